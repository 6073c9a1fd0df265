"""Every figure draws what it is given, and leaves matplotlib as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from ovss.labels import BACKGROUND, IGNORE
from ovss.reporting import figures

IMAGE = Image.fromarray(np.full((20, 30, 3), 90, dtype=np.uint8))
LABELS = np.full((20, 30), BACKGROUND)
LABELS[:10, :15], LABELS[10:, 15:], LABELS[0] = 0, 2, IGNORE
NAMES = ("cat", "dog", "boat")
CELLS = pd.DataFrame(
    [
        {"row": row, "dataset": data, "value": value, "low": value - 2, "high": value + 3,
         "published": paper}
        for row, data, value, paper in [
            ("last", "lab-20", 20.0, 51.2), ("last", "lab-all", 30.0, np.nan),
            ("fused", "lab-20", 40.0, 61.2), ("fused", "lab-all", np.nan, 34.3),
        ]
    ]
)  # fmt: skip

MAKERS: dict[str, Callable[[], Figure]] = {
    "show_scene": lambda: figures.show_scene(IMAGE, LABELS, NAMES),
    "overlay": lambda: figures.overlay(np.asarray(IMAGE), {"a": LABELS, "b": LABELS}, NAMES),
    "grid": lambda: figures.grid([IMAGE, np.zeros((4, 4)), torch.rand(5, 5)], ["one"], columns=2),
    "empty grid": lambda: figures.grid([]),
    "attention_on": lambda: figures.attention_on(IMAGE, torch.rand(4, 6), (1, 2)),
    "score_maps": lambda: figures.score_maps(IMAGE, torch.rand(3, 4, 6), NAMES),
    "own scales": lambda: figures.score_maps(IMAGE, torch.rand(3, 4, 6), NAMES, shared=False),
    "embedding_rgb": lambda: figures.embedding_rgb({"first": torch.rand(24, 8)}, (4, 6)),
    "bars": lambda: figures.bars_with_intervals(CELLS),
    "curve": lambda: figures.curve([1, 2, 4], {"a": [1, 2, 3], "b": [3, 2, 1]}, "x", "y", log=True),
    "heatmap": lambda: figures.heatmap(np.eye(3), list("abc"), list("xyz")),
}


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    before = mpl.rcParams.copy()
    yield
    assert mpl.rcParams == before and plt.get_fignums() == []


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_figures_draw(name: str, recwarn: pytest.WarningsRecorder) -> None:
    figure = MAKERS[name]()
    figure.canvas.draw()
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert [str(one.message) for one in recwarn if "ovss" in str(one.filename)] == []


def test_labels_are_coloured_and_named() -> None:
    figure = figures.show_scene(IMAGE, LABELS, NAMES)
    shown = figure.axes[1].images[0].get_array()
    assert shown is not None
    assert shown[0, 0].tolist() == [255, 255, 255]  # ignored
    assert shown[15, 2].tolist() == [90, 90, 90]  # background
    assert shown[5, 5].tolist() == pytest.approx([0.35 * 90 + 0.65 * 128, 31.5, 31.5], abs=1)
    assert {text.get_text() for text in figure.axes[1].texts} == {"cat", "boat"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "boat"]


def test_figures_fit_the_page() -> None:
    many = figures.overlay(IMAGE, {str(n): LABELS for n in range(5)}, NAMES)
    rows = {round(ax.get_position().y0, 3) for ax in many.axes}
    assert len(many.axes) == 6 and len(rows) == 2
    wide = pd.concat([CELLS.assign(row=CELLS["row"] + str(n)) for n in range(6)])
    for figure in (many, figures.bars_with_intervals(wide)):
        assert figure.get_size_inches()[0] <= figures.PAGE + 1e-6


def test_bars_name_what_there_is() -> None:
    names = [text.get_text() for text in figures.bars_with_intervals(CELLS).legends[0].get_texts()]
    assert names == ["lab-20: the paper's", "lab-20", "lab-all: the paper's", "lab-all"]
    one = CELLS[CELLS["dataset"] == "lab-20"].assign(published=np.nan)
    assert figures.bars_with_intervals(one).legends == []


def test_the_query_patch_is_marked_in_the_middle_of_its_cell() -> None:
    cross = figures.attention_on(IMAGE, np.zeros((4, 6)), (1, 2)).axes[0].lines[0]
    assert cross.get_xydata().tolist() == [[2.5 * 5 - 0.5, 1.5 * 5 - 0.5]]  # type: ignore[union-attr]


def test_bars_have_the_values_and_the_papers() -> None:
    ax = figures.bars_with_intervals(CELLS).axes[0]
    heights = [patch.get_height() for patch in ax.patches]
    np.testing.assert_array_equal(heights, [20, 40, 30, np.nan])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["last", "fused"]


def test_differences_stand_where_they_belong() -> None:
    ax = figures.differences({"up": (2, 1, 4), "down": (-1, -3, 0)}).axes[0]
    points = ax.containers[0][0].get_xydata()
    np.testing.assert_array_equal(points, [[2, 0], [-1, 1]])
    bars = ax.containers[0][2][0].get_segments()
    np.testing.assert_array_equal([bar[:, 0] for bar in bars], [[1, 4], [-3, 0]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["up", "down"]
    assert ax.yaxis_inverted()


def test_pca_rgb_finds_three_groups() -> None:
    groups = torch.eye(3).repeat_interleave(5, 0) @ torch.randn(3, 16)
    colours = figures.pca_rgb(groups)
    assert colours.shape == (15, 3) and colours.min() >= 0 and colours.max() <= 1
    assert np.allclose(colours[0], colours[4]) and not np.allclose(colours[0], colours[5], atol=0.1)
    assert figures.pca_rgb(torch.rand(9, 2)).shape == (9, 3)
    assert np.isfinite(figures.pca_rgb(torch.ones(4, 5))).all()
