"""Measured numbers with their provenance, beside the published ones.

`data/results/<profile>/<experiment>.csv` holds one row per number (COLUMNS), percent for IoU and
accuracies. `counts/<experiment>/` beside it holds what paired tests need of each image: integer
counts, and the image scores of rows that are compared by them; a row names its file there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .. import files, paths
from ..evaluation.classification import METRICS
from ..evaluation.intervals import FEWEST_IMAGES, draw, thin_classes
from ..evaluation.metrics import MeanIou
from ..evaluation.result import Result
from ..provenance import commit, today, version
from . import kept_counts
from . import published as papers
from .kept_counts import Counts, ResultsError, arrays_of, folder_of, locked, remove_unnamed

COLUMNS = (
    "experiment", "row", "dataset", "protocol", "metric", "value", "low", "high", "images",
    "seconds_per_image", "checkpoint", "seed", "profile", "device", "version", "commit", "date",
    "counts",
)  # fmt: skip
KEY = ["experiment", "row", "dataset", "protocol", "metric"]
# A row that is measured again and differs in nothing else stays as it was first written.
CIRCUMSTANCES = ["seconds_per_image", "device", "version", "commit", "date"]
TIMES = ("time (ms)", "time ratio")  # their values are circumstances, too
NUMBERS = {"value": 4, "low": 4, "high": 4, "seconds_per_image": 5}  # digits after the point
MEASURED = ["value", "low", "high", "images"]
OF_COUNTS = ("mIoU", "pixel accuracy", *METRICS)  # metrics that are made of counts
WARNINGS = ["thin", "rests on"]
NOT_RUN = "not run yet"


def measured(result: Result, experiment: str, row: str, profile: str = "lab") -> dict[str, Any]:
    """The part of a results row that all numbers of one evaluation share."""
    return {
        "experiment": experiment,
        "row": row,
        "dataset": result.dataset,
        "protocol": result.protocol,
        "images": result.images,
        "seconds_per_image": result.seconds_per_image,
        "checkpoint": result.checkpoint,
        "seed": result.seed,
        "profile": profile,
        "device": result.device,
    }


def rows_of(
    result: Result,
    experiment: str,
    row: str,
    profile: str = "lab",
    threshold: float | None = None,
) -> list[dict[str, Any]]:
    """The rows of an evaluation: mIoU with its interval, and pixel accuracy.

    Args:
        threshold: of the image scores; with it also mAP, F1, P and R of finding the classes.
    """
    origin = measured(result, experiment, row, profile)
    low, high = result.interval
    rows = [
        {**origin, "metric": "mIoU", "value": result.miou, "low": low, "high": high},
        {**origin, "metric": "pixel accuracy", "value": result.pixel_accuracy},
    ]
    found = {} if threshold is None else result.classification(threshold)
    rows += [
        {**origin, "metric": metric, "value": value, "low": low, "high": high}
        for metric, (value, (low, high)) in found.items()
    ]
    return rows


def record(
    result: Result,
    experiment: str,
    row: str,
    profile: str = "lab",
    threshold: float | None = None,
) -> None:
    """Keep an evaluation: its rows in the experiment's file, with its counts per image.

    Args:
        threshold: see `rows_of`; with it the image scores are kept as well.
    """
    rows = rows_of(result, experiment, row, profile, threshold)
    write(file_of(experiment, profile), rows, counts={row: result}, threshold=threshold)


def file_of(experiment: str, profile: str = "lab") -> Path:
    """The results file of an experiment under a profile."""
    return paths.results(profile) / f"{experiment}.csv"


def write(
    path: str | os.PathLike[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    one_run: bool = False,
    counts: Mapping[str, Result] | None = None,
    threshold: float | None = None,
    apart: Sequence[str] = (),
) -> None:
    """Add rows to a results file, in place of rows with equal KEY.

    Version, commit and date are filled in. Several processes may write to one file, on one machine
    or on several that share the disk: each waits for its turn, and readers see the old file or the
    new one.

    Args:
        one_run: the rows were measured in one run and stay together (times are comparable only
            then): if one of them replaces an old row, all do.
        counts: row name -> the evaluation whose counts per image are kept with its rows.
        threshold: of the image scores, which are then kept too.
        apart: further columns in which rows differ that do not replace each other.

    Raises:
        ResultsError: a row lacks a KEY column or its value, or has an unknown column; the file
            is none of results; another process keeps it locked.
    """
    target = files.expand(path)
    kept = {row: arrays_of(result, row, threshold) for row, result in (counts or {}).items()}
    new = _frame(_with_counts(line, kept) for line in rows)
    with locked(target):
        merged = _merge(read(target), new, one_run, (*KEY, *apart))
        named = set(merged["counts"])
        for name, arrays in kept.values():
            if name in named:
                kept_counts.save(folder_of(target) / name, arrays)
        content = merged.to_csv(index=False, lineterminator="\n").encode()
        if not target.is_file() or target.read_bytes() != content:
            with files.atomic(target) as file:
                file.write(content)
        remove_unnamed(target, named)


def check_results_file(path: str | os.PathLike[str]) -> None:
    """Refuse a results file that could not be written, before the work whose numbers it is to hold.

    Raises:
        OvssError: it is another kind of file, or nothing can be written there.
    """
    read(files.check_destination(path))


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
    """A results file; an absent one gives no rows.

    Raises:
        ResultsError: the file's columns are not COLUMNS.
    """
    file = files.expand(path)
    if not file.is_file():
        return _frame([])
    try:
        frame = pd.read_csv(file, dtype=_types(), keep_default_na=False, na_values=[""])
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise ResultsError(f"{path} is no results file: {error}") from None
    if tuple(frame.columns) == COLUMNS[:-1]:  # written before rows named their counts
        frame["counts"] = ""
    if tuple(frame.columns) != COLUMNS:
        raise ResultsError(f"{path} is no results file: its columns are {list(frame.columns)}")
    text = [name for name, kind in _types().items() if kind is str]
    return frame.fillna(dict.fromkeys(text, ""))


def published(paper: str, table: str | int) -> pd.DataFrame:
    """One table of a paper: row, dataset, metric, value (float, NaN where none), note."""
    cells = papers.load(paper)
    found = cells[cells["table"] == str(table)]
    if found.empty:
        known = ", ".join(dict.fromkeys(cells["table"]))
        raise ResultsError(f"{paper} has no table {table!r}; its tables: {known}")
    numbers = pd.to_numeric(found["value"], errors="coerce")
    return found.assign(value=numbers)[["row", "dataset", "metric", "value", "note"]]


def side_by_side(
    experiment: str,
    profile: str = "lab",
    *,
    paper: str | None = None,
    table: str | int | None = None,
    rows: Mapping[str, str] | None = None,
    datasets: Mapping[str, str] | None = None,
    metric: str = "mIoU",
    protocol: str = "mmseg",
) -> pd.DataFrame:
    """Our numbers beside the paper's: row, dataset, value, low, high, images, published.

    And of an mIoU whose counts were kept "thin" and "rests on", of which `show` warns.

    Args:
        experiment: the results file.
        profile: under which it was measured.
        paper: a paper of `ovss.published`; without it there is no published number.
        table: the table of that paper.
        rows: our row name -> the paper's; by default all rows measured, under equal names.
        datasets: our data set -> the paper's; by default all measured, under equal names.
            Without `rows`, a row has those it was measured on and no others.
        metric: which number, in both.
        protocol: which of our protocols.
    """
    ours = read(file_of(experiment, profile))
    ours = ours[(ours["metric"] == metric) & (ours["protocol"] == protocol)]
    row_names = {name: name for name in ours["row"]} if rows is None else rows
    set_names = {name: name for name in ours["dataset"]} if datasets is None else datasets
    theirs = published(paper, "" if table is None else table) if paper else None
    cells = [
        {
            "row": row,
            "dataset": dataset,
            **_ours(ours, row, dataset),
            **_warnings(experiment, row, dataset, protocol, metric, profile),
            "published": _theirs(theirs, row_names[row], set_names[dataset], metric),
        }
        for row in row_names
        for dataset in set_names
        if rows is not None or ((ours["row"] == row) & (ours["dataset"] == dataset)).any()
    ]
    return pd.DataFrame(cells, columns=["row", "dataset", *MEASURED, *WARNINGS, "published"])


def compare(experiment: str, profile: str = "lab", **options: Any) -> pd.DataFrame:
    """`side_by_side` to read: per data set "value [low, high] (images)" beside the paper's.

    The options are those of `side_by_side`. What was not measured says "not run yet"; what is
    published stands as it is printed. For the rest see `show`.
    """
    cells = side_by_side(experiment, profile, **options)
    names, rows = options.get("datasets") or {}, options.get("rows") or {}
    paper, metric = options.get("paper"), options.get("metric", "mIoU")
    columns: dict[str, dict[str, str]] = {}
    for cell in cells.to_dict("records"):
        ours = str(cell["dataset"])
        theirs = names.get(ours, ours)
        columns.setdefault(f"ours: {ours}", {})[cell["row"]] = show(
            {str(name): value for name, value in cell.items()}
        )
        if paper:
            address = (str(options["table"]), rows.get(cell["row"], cell["row"]), theirs, metric)
            printed = papers.text(paper, *address) or "not reported"
            columns.setdefault(f"paper: {theirs}", {})[cell["row"]] = printed
    return pd.DataFrame(columns)


def show(cell: Mapping[str, Any], digits: int = 1) -> str:
    """A measured number as text: "41.2 [39.8, 42.5] (400)", in parentheses the images.

    "(60, 2 thin)" warns of two classes that fewer than `intervals.FEWEST_IMAGES` images hold,
    "(400, rests on 3)" of a number that so few decide: the interval does not hold its promise.
    """
    if math.isnan(cell["value"]):
        return NOT_RUN
    text = f"{cell['value']:.{digits}f}"
    if not math.isnan(cell["low"]):
        text += f" [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"
    warnings = [f", {cell['thin']:.0f} thin"] if cell.get("thin", 0) > 0 else []
    if cell.get("rests on", math.inf) < FEWEST_IMAGES:
        warnings.append(f", rests on {cell['rests on']:.0f}")
    return f"{text} ({cell['images']:.0f}{''.join(warnings)})"


def read_counts(
    experiment: str, row: str, dataset: str, protocol: str = "mmseg", profile: str = "lab"
) -> Counts | None:
    """The counts that were kept with a row; None if there are none.

    Raises:
        ResultsError: the row names a file that is missing or damaged.
    """
    path = file_of(experiment, profile)
    for last in (False, False, True):  # between two looks another process may have replaced both
        name = _counts_name(read(path), experiment, row, dataset, protocol)
        if not name:
            return None
        kept = folder_of(path) / name
        if kept.is_file() or last:
            return kept_counts.load(kept)
    return None


def _counts_name(rows: pd.DataFrame, experiment: str, row: str, dataset: str, protocol: str) -> str:
    """The file of counts that a row names; "" if there is none."""
    for name, value in zip(KEY, (experiment, row, dataset, protocol), strict=False):
        rows = rows[rows[name] == value]
    named = rows[rows["counts"] != ""]["counts"]
    return "" if named.empty else str(named.iloc[-1])


def _with_counts(line: Mapping[str, Any], kept: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row with the name of its counts, if it is made of counts and they are kept."""
    if line.get("row") not in kept or line.get("metric") not in OF_COUNTS:
        return line
    return {**line, "counts": kept[str(line["row"])][0]}


def _frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    origin = {"version": version(), "commit": commit(), "date": today()}
    lines = [{**origin, **row} for row in rows]
    for line in lines:
        missing = [name for name in (*KEY, "value") if name not in line]
        unknown = [name for name in line if name not in COLUMNS]
        if missing or unknown:
            raise ResultsError(f"a results row lacks {missing} and has the unknown {unknown}")
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    text = [name for name, kind in _types().items() if kind is str]
    frame[text] = frame[text].fillna("").astype(str)
    for name, digits in NUMBERS.items():
        frame[name] = frame[name].astype(float).round(digits)
    return frame.astype({"images": "Int64", "seed": "Int64"})


def _merge(old: pd.DataFrame, new: pd.DataFrame, one_run: bool, key: Sequence[str]) -> pd.DataFrame:
    """Old rows in their order, replaced where measured anew, then the rows that are new."""

    def by_key(frame: pd.DataFrame) -> dict[tuple[str, ...], dict[Any, Any]]:
        return {tuple(str(line[name]) for name in key): line for line in frame.to_dict("records")}

    lines, measured = by_key(old), by_key(new)
    changed = {
        name: line
        for name, line in measured.items()
        if name not in lines or _essence(lines[name]) != _essence(line)
    }
    lines |= measured if one_run and changed else changed
    merged = pd.DataFrame(list(lines.values()), columns=list(COLUMNS))
    return merged.astype({"images": "Int64", "seed": "Int64"})


def _essence(line: Mapping[Any, Any]) -> list[str]:
    left_out = CIRCUMSTANCES + (["value", "low", "high"] if line["metric"] in TIMES else [])
    return [str(line[name]) for name in COLUMNS if name not in left_out]


def _types() -> Any:
    kinds: dict[str, Any] = dict.fromkeys(COLUMNS, str)
    kinds.update(dict.fromkeys(NUMBERS, float))
    return {**kinds, "images": "Int64", "seed": "Int64"}


def _ours(ours: pd.DataFrame, row: str, dataset: str) -> dict[str, float]:
    found = ours[(ours["row"] == row) & (ours["dataset"] == dataset)]
    if found.empty:
        return dict.fromkeys(MEASURED, math.nan)
    return {name: float(found.iloc[-1][name]) for name in MEASURED}


def _warnings(
    experiment: str, row: str, dataset: str, protocol: str, metric: str, profile: str
) -> dict[str, float]:
    """How many classes are thin, and how many images the mIoU rests on; NaN where unknown."""
    counts = read_counts(experiment, row, dataset, protocol, profile) if metric == "mIoU" else None
    if counts is None:
        return dict.fromkeys(WARNINGS, math.nan)
    found = draw([counts.areas], [1.0], MeanIou(background=counts.has_background), n=1)
    thin = thin_classes(counts.areas, counts.has_background)
    return {"thin": len(thin), "rests on": found.effective_images}


def _theirs(theirs: pd.DataFrame | None, row: str, dataset: str, metric: str) -> float:
    if theirs is None:
        return math.nan
    same = (theirs["row"] == row) & (theirs["dataset"] == dataset) & (theirs["metric"] == metric)
    return float(theirs[same]["value"].iloc[0]) if same.any() else math.nan
