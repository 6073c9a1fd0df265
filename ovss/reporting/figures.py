"""Every picture of the book. Each function gives a Figure and changes no global setting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..labels import BACKGROUND, IGNORE, palette

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PAGE = 6.8  # inches: a wider figure is shrunk on the pages, and its letters with it
STYLE: Any = {
    "figure.facecolor": "white",  # the pages have a dark mode
    "figure.dpi": 110,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "image.interpolation": "nearest",
}
HEAT = "viridis"
FloatArray = NDArray[np.float64]


def show_scene(image: Any, labels: Any, names: Sequence[str]) -> Figure:
    """The image, and beside it its labels [H, W] in colour, with the names of what is there."""
    return overlay(image, {"labels": labels}, names)


def overlay(image: Any, labelings: Mapping[str, Any], names: Sequence[str]) -> Figure:
    """Draw an image and several label maps [H, W] of it side by side.

    Classes have the colours of `palette`, which the legend repeats; BACKGROUND shows the image,
    IGNORE is white; each region carries its name. More than four pictures stand in two rows.
    """
    count = 1 + len(labelings)
    columns = count if count <= 4 else math.ceil(count / 2)
    size = min(2.4, PAGE / columns)
    figure, axes = _canvas(count, columns, size, image, legend=True)
    _picture(axes[0], image, "image")
    for ax, (title, labels) in zip(axes[1:], labelings.items(), strict=True):
        label_map = _array(labels).astype(np.int64)
        pixels = np.asarray(_as_image(image).convert("RGB"))
        _picture(ax, coloured(label_map, len(names), pixels), title)
        _name_regions(ax, label_map, names)
    _class_legend(figure, class_colours(labelings.values(), names))
    return figure


def coloured(labels: Any, classes: int, image: Any = None) -> NDArray[np.uint8]:
    """Paint a label map [H, W] in the colours of `palette`: [H, W, 3].

    IGNORE is white; BACKGROUND is black, or the pixels of `image` [H, W, 3] where it is given.
    """
    label_map = _array(labels).astype(np.int64)
    painted: NDArray[np.uint8] = palette(classes)[np.maximum(label_map, BACKGROUND) + 1]
    if image is not None:
        painted = np.where((label_map == BACKGROUND)[..., None], _array(image), painted)
    painted = painted.astype(np.uint8)
    painted[label_map == IGNORE] = 255
    return painted


def class_colours(labelings: Iterable[Any], names: Sequence[str]) -> dict[str, FloatArray]:
    """Name the colours of the classes that occur in label maps: name -> RGB in [0, 1]."""
    there = {int(label) for one in labelings for label in np.unique(_array(one))}
    colours = palette(len(names)) / 255
    return {names[label]: colours[label + 1] for label in sorted(there) if label >= 0}


def grid(
    images: Sequence[Any],
    titles: Sequence[str] = (),
    columns: int = 4,
    size: float = 1.6,
    limits: tuple[float, float] | None = None,
    legend: Mapping[str, Any] | None = None,
) -> Figure:
    """Draw images (PIL, [H, W, 3] or maps [H, W]) in rows, each with its title.

    Args:
        images: the pictures.
        titles: of each, from the first.
        columns: pictures in a row.
        size: width of a picture in inches.
        limits: the colour scale of all maps, drawn beside them; by default each has its own.
        legend: name -> colour of the classes that label maps among the images show.
    """
    first = images[0] if len(images) else None
    figure, axes = _canvas(len(images), columns, size, first, legend=bool(legend))
    for position, image in enumerate(images):
        title = titles[position] if position < len(titles) else ""
        _picture(axes[position], image, title, limits)
    if limits:
        _colour_bar(figure, axes, limits)
    _class_legend(figure, legend or {})
    return figure


def marked(image: Any, point: tuple[int, int], cells: int = 16) -> NDArray[np.uint8]:
    """Draw a cross on one patch of an image: [H, W, 3].

    Args:
        image: the image.
        point: (row, column) of the patch on a grid of `cells` x `cells`.
        cells: patches along a side of that grid.
    """
    pixels = np.array(_as_image(image).convert("RGB"))
    row, column = point
    y = int((row + 0.5) / cells * pixels.shape[0])
    x = int((column + 0.5) / cells * pixels.shape[1])
    for span, colour in ((7, (255, 255, 255)), (5, (213, 94, 0))):
        wide = span - 4
        pixels[max(y - span, 0) : y + span + 1, max(x - wide + 1, 0) : x + wide] = colour
        pixels[max(y - wide + 1, 0) : y + wide, max(x - span, 0) : x + span + 1] = colour
    return pixels


@dataclass(frozen=True)
class Read:
    """What a method makes of one scene: a row of `method_rows`.

    Attributes:
        title: the scene's name.
        image: the scene, its query patch marked.
        attention: [h, w], the attention of that patch.
        scores: word -> score map [h, w].
        labels: [H, W], as indices into the benchmark's names.
        iou: mean IoU of those labels in percent.
    """

    title: str
    image: Any
    attention: Any
    scores: Mapping[str, Any]
    labels: Any
    iou: float


def method_rows(
    rows: Sequence[Read],
    names: Sequence[str],
    limits: tuple[float, float] | None = None,
    what: str = "score",
) -> Figure:
    """Draw a row per scene: image, attention of a patch, score maps of given words, labels.

    Figures of several methods can be compared where they show the same words and share `limits`.

    Args:
        rows: the scenes, each with the same number of words.
        names: of the benchmark's classes, for the colours of the labels.
        limits: the one colour scale of all score maps, by default from the smallest score to
            the largest; each attention map has its own.
        what: the colour bar's label.
    """
    columns = 3 + max(len(row.scores) for row in rows)
    scores = [_array(heat) for row in rows for heat in row.scores.values()]
    lowest, highest = min(map(np.min, scores)), max(map(np.max, scores))
    limits = limits or (float(lowest), float(highest))
    figure, axes = _canvas(len(rows) * columns, columns, 1.4, rows[0].image, legend=True)
    for number, row in enumerate(rows):
        at = axes[number * columns : (number + 1) * columns]
        _picture(at[0], row.image, row.title)
        _picture(at[1], row.attention, "attention of ×")
        for ax, (word, heat) in zip(at[2:], row.scores.items(), strict=False):
            _picture(ax, heat, word, limits)
        _picture(at[-1], coloured(row.labels, len(names)), f"labels: mIoU {row.iou:.0f} %")
    _colour_bar(figure, axes, limits, what)
    _class_legend(figure, class_colours([row.labels for row in rows], names))
    return figure


def attention_on(image: Any, attention: Any, point: tuple[int, int]) -> Figure:
    """Where one patch looks: its attention row over the image.

    Args:
        image: the image.
        attention: [h, w], the attention of one patch to all patches.
        point: (row, column) of that patch on the grid; marked by a cross.
    """
    heat = _array(attention)
    figure, axes = _canvas(2, 2, 2.4, image)
    width, height = _as_image(image).size
    row, column = point
    for ax, title in zip(axes, ("image and query patch", "its attention"), strict=True):
        _picture(ax, image, title)
        x, y = (column + 0.5) * width / heat.shape[1], (row + 0.5) * height / heat.shape[0]
        ax.plot(x - 0.5, y - 0.5, "x", color="white", markersize=9, markeredgewidth=4)
        ax.plot(x - 0.5, y - 0.5, "x", color="#D55E00", markersize=8, markeredgewidth=2)
    _heat(axes[1], heat, (height, width))
    return figure


def score_maps(
    image: Any, scores: Any, names: Sequence[str], columns: int = 4, shared: bool = True
) -> Figure:
    """The image and the score map of each class, [K, h, w], laid over it.

    Args:
        image: the image.
        scores: [K, h, w].
        names: of the K classes.
        columns: pictures in a row.
        shared: one colour scale for all classes, so that they can be compared.
    """
    maps = _array(scores)
    figure, axes = _canvas(1 + len(maps), columns, 1.6, image)
    _picture(axes[0], image, "image")
    width, height = _as_image(image).size
    limits = (float(maps.min()), float(maps.max())) if shared else None
    for ax, heat, name in zip(axes[1:], maps, names, strict=False):
        _picture(ax, image, f"{name}: max {heat.max():.2f}")
        _heat(ax, heat, (height, width), limits)
    return figure


def embedding_rgb(layers: Mapping[str, Any], size: tuple[int, int], columns: int = 4) -> Figure:
    """Patch embeddings as colours, a picture per layer (CLIPer, Figure 2a).

    Args:
        layers: title -> tokens [L, D] without the class token.
        size: the grid (h, w), L = h * w.
        columns: pictures in a row.
    """
    pictures = [pca_rgb(tokens).reshape(*size, 3) for tokens in layers.values()]
    return grid(pictures, list(layers), columns)


def pca_rgb(tokens: Any) -> FloatArray:
    """The first three principal components of tokens [L, D], each stretched to [0, 1]: [L, 3].

    The sign of a component is chosen so that its largest loading is positive.
    """
    centred = _array(tokens).astype(np.float64)
    centred = centred - centred.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:3]
    largest = np.abs(directions).argmax(1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    parts = centred @ directions.T
    parts = np.pad(parts, ((0, 0), (0, 3 - parts.shape[1])))
    low, high = parts.min(0), parts.max(0)
    scaled: FloatArray = (parts - low) / np.maximum(high - low, 1e-12)
    return scaled


def bars_with_intervals(
    cells: pd.DataFrame,
    ylabel: str = "mIoU (%)",
    published_on: Mapping[str, str] | None = None,
) -> Figure:
    """Draw measured numbers with their intervals as bars; published ones below, on their own axis.

    Args:
        cells: what `results.side_by_side` gives: row, dataset, value, low, high, published.
        ylabel: what is measured.
        published_on: our data set -> the paper's, whose name the lower legend shows.
    """
    datasets = list(dict.fromkeys(cells["dataset"]))
    rows = list(dict.fromkeys(cells["row"]))
    parts = [cells[cells["dataset"] == name].set_index("row").reindex(rows) for name in datasets]
    beside = cells["published"].notna().any()
    with plt.rc_context(STYLE):
        size = (min(2 + 0.9 * len(rows), PAGE), 4.6 if beside else 3.4)
        ratios = [2, 1] if beside else [1]
        figure, both = plt.subplots(
            len(ratios), sharex=True, squeeze=False, figsize=size, layout="constrained",
            height_ratios=ratios,
        )  # fmt: skip
        axes = list(both.ravel())
        for position, (name, part) in enumerate(zip(datasets, parts, strict=True)):
            _bars(axes[0], part, position, len(datasets), name)
            if beside:
                theirs = (published_on or {}).get(name, name)
                _diamonds(axes[1], part, position, len(datasets), theirs)
        axes[-1].set_xticks(
            range(len(rows)), rows, rotation=20 if len(rows) < 7 else 40, ha="right"
        )
        axes[0].set_ylabel(ylabel)
        columns = max(2, min(len(datasets), 5))
        if len(datasets) > 1:
            axes[0].legend(
                loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, frameon=False
            )
        if beside:
            axes[1].set_ylabel("published")
            axes[1].grid(axis="y", alpha=0.3)
            axes[1].legend(
                loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, frameon=False
            )
    return _done(figure)


def differences(
    gaps: Mapping[str, Sequence[float]], xlabel: str = "difference of mIoU (points)"
) -> Figure:
    """Differences (value, low, high), one below the other, around a line at zero."""
    value, low, high = np.array(list(gaps.values()), dtype=float).reshape(-1, 3).T
    lines = np.arange(len(gaps))
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6, 1 + 0.24 * len(gaps)), layout="constrained")
        ax.axvline(0, color="black", linewidth=0.8)
        errors = np.stack([value - low, high - value]).clip(0)
        ax.errorbar(value, lines, xerr=errors, fmt="o", color=COLOURS[0], capsize=2)
        ax.set_yticks(lines, list(gaps))
        ax.invert_yaxis()
        ax.set_xlabel(xlabel)
        ax.grid(axis="x", alpha=0.3)
    return _done(figure)


def curve(
    x: ArrayLike,
    series: Mapping[str, ArrayLike],
    xlabel: str,
    ylabel: str,
    log: bool = False,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Draw lines over x, one per series, with different dashes as well as colours; see `curves`."""
    return curves(x, {ylabel: series}, xlabel, log, marks)


def curves(
    x: ArrayLike,
    panels: Mapping[str, Mapping[str, ArrayLike]],
    xlabel: str,
    log: bool = False,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Draw series over one x, a panel for each unit: its label -> (name -> values).

    Few points are drawn as points, so that a line between two is not taken for a curve. `marks`
    are places on the x axis by name, such as the point whose weights were kept: upright lines.
    """
    places = np.asarray(x)
    marker = "o" if len(places) <= 20 else ""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(panels), sharex=True, squeeze=False, layout="constrained",
            figsize=(5.5, 1 + 2 * len(panels)),
        )  # fmt: skip
        dashes = [f"{marker}{style}" for style in ("-", "--", ":", "-.")]
        number = 0
        for ax, (ylabel, series) in zip(axes.ravel(), panels.items(), strict=True):
            for name, values in series.items():
                style, colour = dashes[number % 4], COLOURS[number % len(COLOURS)]
                ax.plot(places, np.asarray(values), style, label=name, color=colour, markersize=3)
                number += 1
            for name, place in (marks or {}).items():
                label = name if ax is axes[0, 0] else None
                ax.axvline(place, color="black", linewidth=0.8, linestyle="--", label=label)
            ax.set(ylabel=ylabel, xscale="log" if log else "linear")
            ax.grid(alpha=0.3)
        axes[-1, 0].set_xlabel(xlabel)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return _done(figure)


def heatmap(values: Any, xlabels: Sequence[str], ylabels: Sequence[str], digits: int = 2) -> Figure:
    """A matrix as colours with its numbers written in (similarity of layers, a confusion)."""
    matrix = _array(values)
    rows, columns = matrix.shape
    with plt.rc_context(STYLE):
        size = (1.5 + 0.55 * columns, 1 + 0.4 * rows)
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        ax.imshow(matrix, cmap=HEAT, aspect="auto")
        ax.set_xticks(range(columns), xlabels, rotation=45, ha="right")
        ax.set_yticks(range(rows), ylabels)
        middle = (np.nanmin(matrix) + np.nanmax(matrix)) / 2
        for row, column in np.ndindex(rows, columns):
            value = matrix[row, column]
            colour = "black" if value > middle else "white"
            ax.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=colour)
    return _done(figure)


def _canvas(
    count: int, columns: int, size: float, picture: Any, legend: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes for pictures `size` inches wide, with the aspect of `picture`."""
    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    with plt.rc_context(STYLE):
        height = rows * (size * _aspect(picture) + 0.25) + (0.4 if legend else 0)
        figure, axes = plt.subplots(
            rows, columns, figsize=(columns * size, height), layout="constrained", squeeze=False
        )
    flat: list[Axes] = list(axes.ravel())
    for ax in flat:
        ax.set_axis_off()
    _done(figure)
    return figure, flat[:count]


def _aspect(picture: Any) -> float:
    """Height over width, kept between a quarter and four."""
    if picture is None:
        return 1.0
    shape = (picture.height, picture.width) if isinstance(picture, Image.Image) else picture.shape
    height, width = shape[:2]
    return min(max(height / width, 0.25), 4.0)


def _done(figure: Figure) -> Figure:
    """Take the figure out of pyplot's hands, so that a notebook shows it once."""
    plt.close(figure)
    return figure


def _picture(ax: Axes, image: Any, title: str, limits: tuple[float, float] | None = None) -> None:
    shown = image if isinstance(image, Image.Image) else _array(image)
    low, high = limits or (None, None)
    with plt.rc_context(STYLE):
        ax.imshow(shown, cmap=HEAT, vmin=low, vmax=high)
        ax.set_title(title)


def _colour_bar(
    figure: Figure, axes: Sequence[Axes], limits: tuple[float, float], label: str = ""
) -> None:
    with plt.rc_context(STYLE):
        scale = ScalarMappable(Normalize(*limits), HEAT)
        figure.colorbar(scale, ax=list(axes), shrink=0.6, pad=0.01, aspect=30, label=label)


def _class_legend(figure: Figure, colours: Mapping[str, Any]) -> None:
    if colours:
        handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)


def _heat(
    ax: Axes, heat: FloatArray, size: tuple[int, int], limits: tuple[float, float] | None = None
) -> None:
    """Lay a map over a picture of `size` (H, W); the patches stay visible as squares."""
    low, high = limits or (float(heat.min()), float(heat.max()))
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    ax.imshow(heat, cmap=HEAT, alpha=0.75, extent=extent, vmin=low, vmax=high)


def _places(part: pd.DataFrame, position: int, count: int) -> FloatArray:
    """Where the marks of one of `count` data sets stand, beside each other at each row."""
    return np.arange(len(part), dtype=np.float64) + (0.8 / count * (position + 0.5) - 0.4)


def _bars(ax: Axes, part: pd.DataFrame, position: int, count: int, name: str) -> None:
    x, value = _places(part, position, count), part["value"].to_numpy(float)
    errors = np.stack([value - part["low"].to_numpy(float), part["high"].to_numpy(float) - value])
    errors = errors.clip(0)  # of a few images, a percentile interval need not hold the value
    colour = COLOURS[position % len(COLOURS)]
    ax.bar(x, value, 0.72 / count, color=colour, label=name, alpha=0.85)
    ax.errorbar(x, value, errors, fmt="none", ecolor="black", capsize=2, linewidth=1)


def _diamonds(ax: Axes, part: pd.DataFrame, position: int, count: int, name: str) -> None:
    if part["published"].notna().any():
        paper, colour = part["published"].to_numpy(float), COLOURS[position % len(COLOURS)]
        x, label = _places(part, position, count), f"published, {name}"
        ax.plot(x, paper, "D", color="white", markeredgecolor=colour, markersize=4, label=label)


def _name_regions(ax: Axes, labels: NDArray[np.int64], names: Sequence[str]) -> None:
    """Write each class's name on a pixel of it, near the middle, if it covers 2 % or more."""
    for index in np.unique(labels[labels >= 0]):
        places = np.argwhere(labels == index)
        if len(places) >= 0.02 * labels.size:
            nearest = np.abs(places - np.median(places, axis=0)).sum(1).argmin()
            row, column = places[nearest]
            box = {"facecolor": "black", "alpha": 0.5, "pad": 1, "linewidth": 0}
            ax.text(
                column, row, names[index], color="white", fontsize=7,
                ha="center", va="center", bbox=box, clip_on=True,
            )  # fmt: skip


def _as_image(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    return Image.fromarray(np.asarray(image, dtype=np.uint8))


def _array(values: Any) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().float().numpy()
    return np.asarray(values)
