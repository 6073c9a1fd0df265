"""The four papers' own tables, and the sums the papers do on them.

`data/published/<paper>.csv` holds every table cell as printed, and `derived.csv` every average,
gain, ratio or rank that a text or a table draws from those cells, as a formula (`cell_arithmetic`)
over cells `[paper:table:row:dataset:metric]`; the README beside them says how both were written.
`python tools/sums_page.py` writes the book's page of the sums that do not add up.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pandas as pd

from ovss import paths
from ovss.errors import OvssError, UnknownNameError

from . import cell_arithmetic

PAPERS = {"cliper": "CLIPer", "pnp-ovss": "PnP-OVSS", "s-seg": "S-Seg", "fmbseg": "FMbSeg"}
KEY = ("paper", "table", "row", "dataset", "metric")
COLUMNS = (*KEY, "value", "note")
DERIVED = ("id", "paper", "where", "kind", "sentence", "expression", "stated", "adds_up", "note")
KINDS = {
    "sentence": "numbers in a text that are drawn from a table",
    "order": "claims of rank, such as “best on all datasets”",
    "table": "numbers that a table draws from others, or that two tables share",
    "between": "the same method on the same benchmark in two of the papers",
}


class PublishedError(OvssError, ValueError):
    """A file of `data/published` is missing or malformed, or a cell holds no number."""


def load(paper: str) -> pd.DataFrame:
    """All cells of one paper (`PAPERS`), every column a string, values as printed."""
    if paper not in PAPERS:
        raise UnknownNameError.of("paper", paper, PAPERS)
    return _read(paper)


def cell(paper: str, table: str, row: str, dataset: str, metric: str) -> float:
    """One number of one table; the error names the part of the address that is wrong."""
    return cell_arithmetic.number(_printed(":".join((paper, table, row, dataset, metric))))[0]


def text(paper: str, table: str, row: str, dataset: str, metric: str) -> str:
    """Give a cell as it is printed ("84.0"); empty where there is no such cell or no number."""
    if paper not in PAPERS:
        raise UnknownNameError.of("paper", paper, PAPERS)
    return _cells(paper, paths.data("published")).get((paper, table, row, dataset, metric), ("",))[
        0
    ]


def printed(paper: str, table: str | int, kinds: bool = False) -> pd.DataFrame:
    """Lay a paper's table out as it is printed, every row and column of it.

    Args:
        paper: one of `PAPERS`.
        table: its number.
        kinds: add a first column with what the table says of a row's method ("training-based").

    Returns:
        A row per method, in the paper's order; a column per data set, and per metric where there
        are several; values as strings with the digits that are printed, a dash where there is none.

    Raises:
        PublishedError: the paper has no such table.
    """
    cells = load(paper)
    cells = cells[cells["table"] == str(table)]
    if cells.empty:
        raise PublishedError(f"{paper} has no table {table!r}")
    names = ["dataset", "metric"] if cells["metric"].nunique() > 1 else ["dataset"]
    if cells["dataset"].nunique() == 1 and len(names) > 1:
        names = ["metric"]
    frame = cells.pivot(index="row", columns=names, values="value")
    order = list(dict.fromkeys(cells[names].itertuples(index=False, name=None)))
    frame = frame[[key if len(names) > 1 else key[0] for key in order]]
    frame = frame.reindex(cells["row"].unique()).replace("", "–").fillna("–").rename_axis(None)
    frame.columns.names = [None] * frame.columns.nlevels
    if kinds:
        frame.insert(0, ("kind", "")[: len(names)] if len(names) > 1 else "kind", _kinds(cells))
    return frame


def _kinds(cells: pd.DataFrame) -> pd.Series:
    """What the notes say of each row's method, without what they say of a single cell."""
    notes = cells["note"].str.split("; ").str[-1].where(lambda note: note != "not reported", "")
    return notes.groupby(cells["row"], sort=False).first()


def derived() -> pd.DataFrame:
    """The sums of the papers: one row per stated number, every column a string."""
    frame = _table("derived", DERIVED, ("id",))
    for column, known in (("kind", KINDS), ("adds_up", ("yes", "no")), ("paper", PAPERS)):
        wrong = sorted(set(frame[column]) - set(known))
        if wrong:
            raise PublishedError(f"derived.csv: column {column!r} holds {wrong}")
    return frame


def check_derived() -> pd.DataFrame:
    """Recompute every sum: columns id, stated, recomputed, tolerance, exact, agrees, why.

    `exact`: the printed cells give the stated number within half a unit of its last digit.
    `agrees`: they may, once each cell is allowed half a unit of its own last printed digit.
    """
    sums = derived()
    checked = [
        asdict(cell_arithmetic.judge(stated, *cell_arithmetic.evaluate(expression, _printed)))
        for expression, stated in zip(sums["expression"], sums["stated"], strict=True)
    ]
    return pd.concat([sums[["id", "stated"]], pd.DataFrame(checked)], axis=1)


def sums_page() -> str:
    """The book's page "Sums that do not add up", as MyST markdown."""
    sums = derived().merge(check_derived().drop(columns="stated"), on="id")
    text = paths.data("published", "sums.md").read_text(encoding="utf-8")
    inside, between = sums[sums["kind"] != "between"], sums[sums["kind"] == "between"]
    parts = {
        "cells": str(sum((_read(paper)["value"] != "").sum() for paper in PAPERS)),
        "tables": str(sum(_read(p)["table"].str.rstrip("ab").nunique() for p in PAPERS)),
        "sums": str(len(sums)),
        "wrong": str((~inside["agrees"]).sum()),
        "close": str((inside["agrees"] & ~inside["exact"]).sum()),
        "differ": str((~between["agrees"]).sum()),
        "summary": _summary(sums),
        "wrong_table": _listing(inside[~inside["agrees"]]),
        "close_table": _listing(inside[inside["agrees"] & ~inside["exact"]]),
        "between_table": _listing(between[~between["agrees"]], "the other prints"),
    }
    return re.sub("<<(.+?)>>", lambda mark: parts.get(mark[1]) or _printed(mark[1]), text)


def _summary(sums: pd.DataFrame) -> str:
    lines = ["| what was checked | sums | to the digit | within rounding | not |"]
    lines.append("|:--|--:|--:|--:|--:|")
    groups = [(f"{PAPERS[p]}: {KINDS[k]}", sums[(sums["paper"] == p) & (sums["kind"] == k)])
              for p in PAPERS for k in KINDS if k != "between"]  # fmt: skip
    groups.append((f"between the papers: {KINDS['between']}", sums[sums["kind"] == "between"]))
    for name, group in (*groups, ("**all**", sums)):
        if len(group):
            exact, agrees, total = group["exact"].sum(), group["agrees"].sum(), len(group)
            lines.append(f"| {name} | {total} | {exact} | {agrees - exact} | {total - agrees} |")
    return "\n".join(lines)


def _listing(sums: pd.DataFrame, given: str = "the cells give") -> str:
    lines = [f"| paper, place | it says | stated | {given} | remark |"]
    lines.append("|:--|:--|--:|:--|:--|")
    for row in sums.to_dict("records"):
        filled = cell_arithmetic.filled(row["expression"], _printed)
        value = _show(row["recomputed"], row["stated"])
        place = f"{PAPERS[row['paper']]}, {row['where']}"
        found = f"{filled} = {value}" if " " in filled else filled
        cells = (place, row["sentence"], row["stated"], found, row["note"])
        lines.append("| " + " | ".join(_escape(text) for text in cells) + " |")
    return "\n".join(lines)


def _show(value: float, stated: str) -> str:
    """A recomputed number with one digit more than the stated one, in the same unit."""
    scale, unit = (1e6, "M") if stated.endswith("M") else (1.0, "")
    digits = len(stated.rstrip("M").partition(".")[2]) + 1
    return f"{round(value / scale, digits):.12g}{unit}"


def _escape(text: str) -> str:
    """A text for a cell of a markdown table, with typographic minus and bounds."""
    text = re.sub(r"([|*<])", r"\\\1", text.replace("<=", "≤ ").replace(">=", "≥ "))
    return text.replace(" - ", " − ")


def _printed(address: str) -> str:
    """What a table prints at `paper:table:row:dataset:metric`; an error if it is no number."""
    key = tuple(address.split(":"))
    if len(key) != len(KEY):
        raise PublishedError(f"a cell is [{':'.join(KEY)}], not [{address}]")
    if key[0] not in PAPERS:
        raise UnknownNameError.of("paper", key[0], PAPERS)
    cells = _cells(key[0], paths.data("published"))
    if key not in cells:
        part = next(i for i in range(5) if not any(k[: i + 1] == key[: i + 1] for k in cells))
        known = {k[part] for k in cells if k[:part] == key[:part]}
        raise UnknownNameError.of(f"{KEY[part]} in {':'.join(key[:part])}", key[part], known)
    value, note = cells[key]
    if not value:
        raise PublishedError(f"[{address}] holds no number: {note}")
    return value


@cache
def _cells(paper: str, folder: Path) -> dict[tuple[str, ...], tuple[str, str]]:
    """Address -> (value, note) of one paper; `folder` keeps the copies of two folders apart."""
    rows = _read(paper).itertuples(index=False, name=None)
    return {tuple(row[:5]): (row[5], row[6]) for row in rows}


def _read(paper: str) -> pd.DataFrame:
    frame = _table(paper, COLUMNS, KEY)
    marked = frame.loc[:, list(KEY)].apply(lambda column: column.str.contains(r"[\[\]:]"))
    if marked.to_numpy().any() or set(frame["paper"]) != {paper}:
        raise PublishedError(f"{paper}.csv: a name holds [ ] or :, or a row is another paper's")
    return frame


def _table(name: str, columns: tuple[str, ...], key: tuple[str, ...]) -> pd.DataFrame:
    """A CSV of `data/published` as strings, with its columns and unique keys checked."""
    path = paths.data("published", f"{name}.csv")
    if not path.is_file():
        raise PublishedError(f"{path} is missing: set OVSS_DATA to the repository's data folder")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if tuple(frame.columns) != columns:
        raise PublishedError(f"{path.name}: columns {list(frame.columns)}, not {list(columns)}")
    twice = frame.loc[frame.duplicated(list(key)), list(key)]
    if len(twice):
        raise PublishedError(f"{path.name}: more than once {twice.iloc[0].tolist()}")
    return frame
