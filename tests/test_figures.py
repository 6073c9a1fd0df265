"""Every figure draws what it is given, and leaves matplotlib as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
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

READ = [
    figures.Read("one", IMAGE, np.eye(4), {"cat": np.eye(4), "dog": 2 * np.eye(4)}, LABELS, 41.2)
    for _ in range(2)
]

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
    "published": lambda: figures.bars_with_intervals(CELLS, published_on={"lab-20": "VOC20"}),
    "curves": lambda: figures.curves([1, 2], {"dB": {"a": [1, 2]}, "%": {"b": [3, 2]}}, "x"),
    "one scale": lambda: figures.grid([IMAGE, np.eye(4)], limits=(0, 1), legend={"cat": "red"}),
    "methods": lambda: figures.method_rows(READ, NAMES, (0, 1)),
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
    assert shown[5, 5].tolist() == [128, 0, 0]
    legend = figure.legends[0].get_patches()[0].get_facecolor()
    assert legend[:3] == pytest.approx((128 / 255, 0, 0))  # the very colour of the map
    assert {text.get_text() for text in figure.axes[1].texts} == {"cat", "boat"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "boat"]


def test_figures_fit_the_page() -> None:
    many = figures.overlay(IMAGE, {str(n): LABELS for n in range(5)}, NAMES)
    rows = {round(ax.get_position().y0, 3) for ax in many.axes}
    assert len(many.axes) == 6 and len(rows) == 2
    wide = pd.concat([CELLS.assign(row=CELLS["row"] + str(n)) for n in range(6)])
    for figure in (many, figures.bars_with_intervals(wide)):
        assert figure.get_size_inches()[0] <= figures.PAGE + 1e-6


def test_published_values_stand_apart_under_their_own_benchmarks() -> None:
    figure = figures.bars_with_intervals(CELLS, published_on={"lab-20": "VOC20", "lab-all": "PC59"})
    ours, theirs = figure.axes
    assert legend_of(ours) == ["lab-20", "lab-all"]
    assert legend_of(theirs) == ["published, VOC20", "published, PC59"]
    points = [line.get_ydata() for line in theirs.lines]
    np.testing.assert_array_equal(points, [[51.2, 61.2], [np.nan, 34.3]])
    assert not ours.lines or max(line.get_ydata().max() for line in ours.lines) < 50
    one = CELLS[CELLS["dataset"] == "lab-20"].assign(published=np.nan)
    alone = figures.bars_with_intervals(one)
    assert len(alone.axes) == 1 and alone.axes[0].get_legend() is None


def legend_of(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_methods_share_one_scale_and_name_their_labels() -> None:
    figure = figures.method_rows(READ, NAMES, (0, 1))
    maps = [ax.images[0] for ax in figure.axes if ax.get_title() in ("cat", "dog")]
    assert len(maps) == 4 and {one.get_clim() for one in maps} == {(0, 1)}
    own = figures.method_rows(READ, NAMES)
    assert {ax.images[0].get_clim() for ax in own.axes if ax.get_title() == "cat"} == {(0, 2)}
    assert [ax.get_title() for ax in figure.axes].count("labels: mIoU 41 %") == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat", "boat"]


def test_few_points_are_drawn_as_points_on_axes_of_their_own() -> None:
    figure = figures.curves([1, 2], {"dB": {"a": [23, 24]}, "%": {"b": [0, 90]}}, "seen")
    assert [ax.get_ylabel() for ax in figure.axes] == ["dB", "%"]
    assert [ax.lines[0].get_marker() for ax in figure.axes] == ["o", "o"]
    assert figure.axes[0].lines[0].get_color() != figure.axes[1].lines[0].get_color()
    long = figures.curve(range(50), {"a": range(50)}, "x", "y").axes[0].lines[0]
    assert long.get_marker() in ("", "None")


def test_a_place_is_marked_in_every_panel_and_named_once() -> None:
    panels = {"dB": {"a": [23, 24]}, "%": {"b": [0, 90]}}
    figure = figures.curves([1, 2], panels, "seen", marks={"kept": 2})
    lines = [ax.lines[-1] for ax in figure.axes]
    assert [list(line.get_xdata()) for line in lines] == [[2, 2], [2, 2]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "kept", "b"]


def test_a_patch_is_marked_where_it_lies_and_the_image_is_left_alone() -> None:
    image = np.zeros((32, 64, 3), np.uint8)
    cross = figures.marked(image, (1, 3), cells=4)
    assert image.max() == 0 and cross[12, 56].tolist() == [213, 94, 0]
    assert figures.marked(image, (0, 0), cells=16).shape == image.shape  # at the very edge


def test_the_query_patch_is_marked_in_the_middle_of_its_cell() -> None:
    cross = figures.attention_on(IMAGE, np.zeros((4, 6)), (1, 2)).axes[0].lines[0]
    assert cross.get_xydata().tolist() == [[2.5 * 5 - 0.5, 1.5 * 5 - 0.5]]  # type: ignore[union-attr]


def test_bars_have_the_values_and_the_papers() -> None:
    ax = figures.bars_with_intervals(CELLS).axes[0]
    heights = [patch.get_height() for patch in ax.patches]
    np.testing.assert_array_equal(heights, [20, 40, 30, np.nan])
    below = figures.bars_with_intervals(CELLS).axes[1]
    assert [label.get_text() for label in below.get_xticklabels()] == ["last", "fused"]


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
