"""Measured numbers with their provenance, beside the published ones.

`data/results/<profile>/<experiment>.csv` holds one row per number (COLUMNS), percent for IoU and
accuracies; `counts/` beside it holds what paired tests need of each image: integer counts, and
the image scores of rows that are compared by them.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray

from .. import paths
from ..errors import OvssError
from ..evaluation.classification import ImageLevel
from ..evaluation.result import Result
from ..provenance import commit, today, version
from . import published as papers

COLUMNS = (
    "experiment", "row", "dataset", "protocol", "metric", "value", "low", "high", "images",
    "seconds_per_image", "checkpoint", "seed", "profile", "device", "version", "commit", "date",
)  # fmt: skip
KEY = ["experiment", "row", "dataset", "protocol", "metric"]
# A row that is measured again and differs in nothing else stays as it was first written.
CIRCUMSTANCES = ["seconds_per_image", "device", "version", "commit", "date"]
TIMES = ("time (ms)", "time ratio")  # their values are circumstances, too
NUMBERS = {"value": 4, "low": 4, "high": 4, "seconds_per_image": 5}  # digits after the point
MEASURED = ["value", "low", "high", "images"]
NOT_RUN = "not run yet"


class ResultsError(OvssError, ValueError):
    """A results file is malformed, or a row lacks what identifies it."""


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
    """Keep an evaluation: its rows in the experiment's file, and its counts per image.

    Args:
        threshold: see `rows_of`; with it the image scores are kept as well.
    """
    write(file_of(experiment, profile), rows_of(result, experiment, row, profile, threshold))
    write_counts(result, experiment, row, profile, threshold)


def file_of(experiment: str, profile: str = "lab") -> Path:
    """The results file of an experiment under a profile."""
    return paths.results(profile) / f"{experiment}.csv"


def write(
    path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], *, one_run: bool = False
) -> None:
    """Add rows to a results file, in place of rows with equal KEY.

    Version, commit and date are filled in. Several processes may write to one file: each waits
    for its turn, and readers see the old file or the new one.

    Args:
        one_run: the rows were measured in one run and stay together (times are comparable only
            then): if one of them replaces an old row, all do.

    Raises:
        ResultsError: a row lacks a KEY column or its value, or has an unknown column.
    """
    new = _frame(rows)
    target = Path(path)
    with _turn(target):
        old = read(target) if target.is_file() else new.iloc[:0]
        content = _merge(old, new, one_run).to_csv(index=False, lineterminator="\n").encode()
        if not target.is_file() or target.read_bytes() != content:
            with paths.atomic(target) as file:
                file.write(content)


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
    """A results file; an absent one gives no rows.

    Raises:
        ResultsError: the file's columns are not COLUMNS.
    """
    if not Path(path).is_file():
        return _frame([])
    try:
        frame = pd.read_csv(path, dtype=_types(), keep_default_na=False, na_values=[""])
    except (ValueError, pd.errors.ParserError) as error:
        raise ResultsError(f"{path} is no results file: {error}") from None
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
            "published": _theirs(theirs, row_names[row], set_names[dataset], metric),
        }
        for row in row_names
        for dataset in set_names
        if rows is not None or ((ours["row"] == row) & (ours["dataset"] == dataset)).any()
    ]
    return pd.DataFrame(cells, columns=["row", "dataset", *MEASURED, "published"])


def compare(experiment: str, profile: str = "lab", **options: Any) -> pd.DataFrame:
    """`side_by_side` to read: per data set "value [low, high] (images)" beside the paper's.

    The options are those of `side_by_side`. What was not measured says "not run yet"; what is
    published stands as it is printed.
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
    """A measured number as text: "41.2 [39.8, 42.5] (400)"."""
    if math.isnan(cell["value"]):
        return NOT_RUN
    text = f"{cell['value']:.{digits}f}"
    if not math.isnan(cell["low"]):
        text += f" [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"
    return f"{text} ({cell['images']:.0f})"


class Counts(NamedTuple):
    """The counts of one evaluation: images [I], areas [I, 3, K+1], background a class or not.

    With image scores, if they were kept.
    """

    ids: tuple[str, ...]
    areas: NDArray[np.int64]
    has_background: bool
    image_level: ImageLevel | None = None


def write_counts(
    result: Result,
    experiment: str,
    row: str,
    profile: str = "lab",
    threshold: float | None = None,
) -> Path:
    """Keep the areas per image of an evaluation, in the smallest integer type that holds them.

    Args:
        threshold: of the image scores, which are then kept too.
    """
    path = _counts_path(experiment, row, result.dataset, result.protocol, profile)
    small = result.areas.astype(np.min_scalar_type(int(result.areas.max(initial=0))))
    arrays: dict[str, Any] = {
        "row": np.array(row),
        "ids": np.array(result.ids),
        "areas": small,
        "has_background": np.array(result.has_background),
    }
    if threshold is not None:
        found = result.image_level(threshold)
        arrays |= {"scores": found.scores, "threshold": np.array(threshold)}
    with paths.atomic(path) as file:
        np.savez_compressed(file, **arrays)
    return path


def read_counts(
    experiment: str, row: str, dataset: str, protocol: str = "mmseg", profile: str = "lab"
) -> Counts | None:
    """The counts that `write_counts` kept; None if there are none."""
    path = _counts_path(experiment, row, dataset, protocol, profile)
    if not path.is_file():
        return None
    with np.load(path) as file:
        if str(file["row"]) != row:
            raise ResultsError(f"{path.name} holds the row {str(file['row'])!r}, not {row!r}")
        ids, areas = tuple(file["ids"].tolist()), file["areas"].astype(np.int64)
        found = None
        if "scores" in file:
            present = areas[:, 1, 1:] > 0
            found = ImageLevel(file["scores"], present, float(file["threshold"]))
        return Counts(ids, areas, bool(file["has_background"]), found)


def _counts_path(experiment: str, row: str, dataset: str, protocol: str, profile: str) -> Path:
    parts = [experiment, row, dataset] + ([protocol] if protocol != "mmseg" else [])
    spelt = [part.replace("*", "-star ") for part in parts]  # CLIPer* is not CLIPer
    name = "__".join(re.sub(r"[^\w.]+", "-", part).strip("-") for part in spelt)
    return paths.results(profile) / "counts" / f"{name}.npz"


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


def _merge(old: pd.DataFrame, new: pd.DataFrame, one_run: bool) -> pd.DataFrame:
    """Old rows in their order, replaced where measured anew, then the rows that are new."""
    lines = {tuple(line[name] for name in KEY): line for line in old.to_dict("records")}
    measured = {tuple(line[name] for name in KEY): line for line in new.to_dict("records")}
    changed = {
        key: line
        for key, line in measured.items()
        if key not in lines or _essence(lines[key]) != _essence(line)
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


def _turn(path: Path) -> FileLock:
    """A lock for the file, kept outside the repository."""
    mark = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"ovss-{mark}.lock")


def _ours(ours: pd.DataFrame, row: str, dataset: str) -> dict[str, float]:
    found = ours[(ours["row"] == row) & (ours["dataset"] == dataset)]
    if found.empty:
        return dict.fromkeys(MEASURED, math.nan)
    return {name: float(found.iloc[-1][name]) for name in MEASURED}


def _theirs(theirs: pd.DataFrame | None, row: str, dataset: str, metric: str) -> float:
    if theirs is None:
        return math.nan
    same = (theirs["row"] == row) & (theirs["dataset"] == dataset) & (theirs["metric"] == metric)
    return float(theirs[same]["value"].iloc[0]) if same.any() else math.nan
