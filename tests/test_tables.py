"""A table of the book: all of it, each cell as it was meant."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from docutils.core import publish_doctree
from myst_parser.parsers.docutils_ import Parser

from ovss.errors import OvssError
from ovss.reporting.tables import Table, table

FRAME = pd.DataFrame(
    {"mIoU": [84.0, np.nan], "images": [400, 60], "kept": [True, False], "note": ["a|b", None]},
    index=["CLIP | ViT-B/16", "CLIPer*"],
)


def made(**changed: object) -> Table:
    options = {"frame": FRAME, "caption": "What was measured.", "name": "tab-one"}
    return table(**{**options, **changed})  # type: ignore[arg-type]


def test_every_row_is_there_and_numbers_keep_their_digits() -> None:
    assert made().heads == (("row", "mIoU", "images", "kept", "note"),)
    assert made().rows == (
        ("CLIP | ViT-B/16", "84.0", "400", "yes", "a|b"),
        ("CLIPer*", "–", "60", "no", "–"),
    )
    long = made(frame=pd.DataFrame({"value": np.arange(103.0)}, index=map(str, range(103))))
    assert len(long.rows) == 103 and long.markdown().count("\n* - ") == 104
    assert made(digits={"mIoU": 3}).rows[0][1] == "84.000"


def test_a_running_number_is_no_heading_and_a_named_one_is() -> None:
    bare = made(frame=pd.DataFrame({"a": [1.0]}))
    assert (bare.heads, bare.rows, bare.stubs) == ((("a",),), (("1.0",),), 0)
    named = made(frame=pd.DataFrame({"a": [1.0]}, pd.RangeIndex(3, 4, name="factors")))
    assert (named.heads, named.rows, named.stubs) == ((("factors", "a"),), (("3", "1.0"),), 1)


def test_levels_of_columns_and_rows_stand_above_and_beside_each_other() -> None:
    frame = pd.concat({"ours": FRAME[["mIoU"]], "paper": FRAME[["images"]]}, axis=1)
    both = made(frame=frame, corner="method")
    assert both.heads == (("", "ours", "paper"), ("method", "mIoU", "images"))
    index = pd.MultiIndex.from_tuples([("a", "b")], names=["group", "row"])
    assert made(frame=pd.DataFrame({"x": [1]}, index)).rows == (("a", "b", "1"),)


def test_no_cell_is_taken_for_markup() -> None:
    cells = ["*x*", "$a$", "{cite}`x`", "<b>", "1. one", "- two", "a_b_c", "[x](y)", "|", "\\"]
    text = made(frame=pd.DataFrame({"c": cells})).markdown()

    tree = publish_doctree(text, parser=Parser())
    assert [entry.astext() for entry in tree.findall(lambda node: node.tagname == "entry")] == [
        "c", *cells
    ]  # fmt: skip
    titles = [node.astext() for node in tree.findall(lambda node: node.tagname == "title")]
    assert titles == ["What was measured."]
    assert "&lt;b&gt;" in made(frame=pd.DataFrame({"c": cells})).html()


@pytest.mark.parametrize(
    "wrong", [{"caption": " "}, {"name": "One"}, {"name": "fig-x"}, {"frame": FRAME.iloc[:0]}]
)
def test_a_table_needs_caption_anchor_and_rows(wrong: dict[str, object]) -> None:
    with pytest.raises(OvssError, match="caption"):
        made(**wrong)
