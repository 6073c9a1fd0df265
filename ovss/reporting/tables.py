"""Tables of the book's pages: whole, with a caption, a number and an anchor."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from numbers import Integral, Real
from typing import Any

import pandas as pd

from ..errors import OvssError
from . import results

NONE = "–"
NAME = re.compile(r"tab-[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, repr=False)
class Table:
    """A table that Sphinx numbers, and that `{numref}` can point at; `table` makes it.

    Attributes:
        heads: the lines of column headings, each as long as a row.
        rows: the cells as text, row headings first.
        stubs: how many cells at the start of a row are its heading.
        caption: what the table shows, in MyST; the first sentence says the takeaway.
        name: its anchor, "tab-...", used once in the book.
    """

    heads: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    stubs: int
    caption: str
    name: str

    def __repr__(self) -> str:
        lines = ["  ".join(line) for line in (*self.heads, *self.rows)]
        return "\n".join([self.caption, *lines])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a notebook shows (HTML), and what the book's pages are made from (Markdown)."""
        return {
            "text/markdown": self.markdown(),
            "text/html": self.html(),
            "text/plain": repr(self),
        }

    def markdown(self) -> str:
        """Write the table as a MyST directive."""
        options = {
            "header-rows": str(len(self.heads)),
            "stub-columns": str(self.stubs),
            "name": self.name,
            "class": "results",
        }
        lines = [f"~~~{{list-table}} {' '.join(self.caption.split())}"]
        lines += [f":{name}: {value}" for name, value in options.items()]
        for row in (*self.heads, *self.rows):
            cells = [f"- {_literal(cell)}".rstrip() for cell in row]
            lines += ["", f"* {cells[0]}", *(f"  {cell}" for cell in cells[1:])]
        return "\n".join([*lines, "~~~"])

    def html(self) -> str:
        """Write the table as HTML, for notebooks."""
        body = [
            _html_row([("th" if i < self.stubs else "td", cell) for i, cell in enumerate(row)])
            for row in self.rows
        ]
        heads = [_html_row([("th", cell) for cell in row]) for row in self.heads]
        return (
            f'<table class="dataframe"><caption>{escape(self.caption)}</caption>'
            f"<thead>{''.join(heads)}</thead><tbody>{''.join(body)}</tbody></table>"
        )


def table(
    frame: pd.DataFrame | pd.Series,
    caption: str,
    name: str,
    digits: int | Mapping[str, int] = 1,
    corner: str = "",
) -> Table:
    """Show every row of a frame as a numbered table of the book.

    Args:
        frame: the numbers and texts; a `RangeIndex` without a name is no row heading and is left
            out. Floats are rounded, counts are not, missing values become a dash.
        caption: what the table shows, in MyST (roles and formulas work).
        name: the anchor, "tab-" and words in lower case: {numref}`tab-...` refers to it.
        digits: after the point, of all floats or of each column.
        corner: heading of the row headings; by default the index's name.

    Raises:
        OvssError: the caption is empty, the name is no anchor, or there are no rows.
    """
    if not caption.strip() or not NAME.fullmatch(name) or frame.empty:
        raise OvssError(
            f"table {name!r} with {len(frame)} rows: give a caption, a name such as "
            "'tab-part-what', and at least one row"
        )
    cells = frame.to_frame() if isinstance(frame, pd.Series) else frame
    index, columns = cells.index, cells.columns
    bare = isinstance(index, pd.RangeIndex) and index.name is None and not corner
    stubs = 0 if bare else index.nlevels
    corners = _corners(index, corner)[:stubs]
    heads = tuple(
        (*(corners if level == columns.nlevels - 1 else [""] * stubs), *labels)
        for level, labels in enumerate(_levels(columns))
    )
    places = [_digits(digits, column) for column in columns]
    rows = tuple(
        (*_labels(key)[:stubs], *(_text(value, n) for value, n in zip(row, places, strict=True)))
        for key, row in zip(index, cells.astype(object).to_numpy(), strict=True)
    )
    return Table(heads, rows, stubs, caption, name)


def overview(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Lay out a results file's mIoU as text: a row per method, a column per data set and protocol.

    In the file's order; empty where there is no such file.
    """
    rows = results.read(path)
    rows = rows[rows["metric"] == "mIoU"]
    columns: dict[str, dict[str, str]] = {}
    for cell in rows.to_dict("records"):
        column = columns.setdefault(f"{cell['dataset']} ({cell['protocol']})", {})
        column[str(cell["row"])] = results.show({str(name): value for name, value in cell.items()})
    return pd.DataFrame(columns).reindex(rows["row"].unique()).fillna("")


def _corners(index: pd.Index, corner: str) -> list[str]:
    names = [str(name) if name is not None else "" for name in index.names]
    return [corner or names[0] or "row", *(name or "–" for name in names[1:])]


def _levels(columns: pd.Index) -> list[list[str]]:
    """The headings of the columns, a list for each level."""
    labels = [_labels(key) for key in columns]
    return [list(level) for level in zip(*labels, strict=True)]


def _labels(key: Any) -> list[str]:
    return [str(part) for part in key] if isinstance(key, tuple) else [str(key)]


def _digits(digits: int | Mapping[str, int], column: Any) -> int:
    return digits if isinstance(digits, int) else digits.get(_labels(column)[-1], 1)


def _text(value: Any, digits: int) -> str:
    """A cell: a float with so many digits, a count as it is, a dash for what is missing."""
    if value is None or (isinstance(value, Real) and math.isnan(value)) or value is pd.NA:
        return NONE
    if isinstance(value, bool | Integral) or not isinstance(value, Real):
        return {"True": "yes", "False": "no"}.get(str(value), str(value))
    return f"{float(value):.{digits}f}"


def _literal(text: str) -> str:
    """A text that Markdown leaves as it is."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def _html_row(cells: list[tuple[str, str]]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for tag, text in cells)}</tr>"
