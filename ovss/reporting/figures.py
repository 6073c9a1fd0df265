"""Every picture of the book. Each function gives a Figure and changes no global setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from cycler import cycler
from matplotlib.axes import Axes
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
    """The image and several label maps [H, W] of it (truth, ours, theirs ...) side by side.

    BACKGROUND shows the image, IGNORE is white; each region carries its name. More than four
    pictures stand in two rows.
    """
    count = 1 + len(labelings)
    columns = count if count <= 4 else math.ceil(count / 2)
    size = min(2.4, PAGE / columns)
    figure, axes = _canvas(count, columns, size, image, legend=True)
    _picture(axes[0], image, "image")
    found: set[int] = set()
    for ax, (title, labels) in zip(axes[1:], labelings.items(), strict=True):
        label_map = _array(labels).astype(np.int64)
        _picture(ax, _coloured(image, label_map, len(names)), title)
        found |= set(np.unique(label_map).tolist())
        _name_regions(ax, label_map, names)
    colours = palette(len(names)) / 255
    handles = [Patch(color=colours[i + 1], label=names[i]) for i in sorted(found) if i >= 0]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


def grid(
    images: Sequence[Any], titles: Sequence[str] = (), columns: int = 4, size: float = 1.6
) -> Figure:
    """Images (PIL, [H, W, 3] or maps [H, W]) in rows, each with its title."""
    figure, axes = _canvas(len(images), columns, size, images[0] if len(images) else None)
    for position, image in enumerate(images):
        title = titles[position] if position < len(titles) else ""
        _picture(axes[position], image, title)
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


def bars_with_intervals(cells: pd.DataFrame, ylabel: str = "mIoU (%)") -> Figure:
    """Our numbers with their intervals as bars, the paper's as diamonds.

    Args:
        cells: what `results.side_by_side` gives: row, dataset, value, low, high, published.
        ylabel: what is measured.
    """
    datasets = list(dict.fromkeys(cells["dataset"]))
    rows = list(dict.fromkeys(cells["row"]))
    with plt.rc_context(STYLE):
        size = (min(2 + 0.9 * len(rows), PAGE), 3.4)
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        for position, dataset in enumerate(datasets):
            part = cells[cells["dataset"] == dataset].set_index("row").reindex(rows)
            _bars(ax, part, position, len(datasets), dataset)
        ax.set_xticks(range(len(rows)), rows, rotation=20 if len(rows) < 7 else 40, ha="right")
        ax.set_ylabel(ylabel)
        _legend_above(figure, ax, datasets)
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
    x: ArrayLike, series: Mapping[str, ArrayLike], xlabel: str, ylabel: str, log: bool = False
) -> Figure:
    """Lines over x, one per series, with different dashes as well as colours."""
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
        for position, (name, values) in enumerate(series.items()):
            style = ("-", "--", ":", "-.")[position % 4]
            ax.plot(np.asarray(x), np.asarray(values), style, label=name)
        ax.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log else "linear")
        ax.grid(alpha=0.3)
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


def _picture(ax: Axes, image: Any, title: str) -> None:
    shown = image if isinstance(image, Image.Image) else _array(image)
    with plt.rc_context(STYLE):
        ax.imshow(shown, cmap=HEAT)
        ax.set_title(title)


def _heat(
    ax: Axes, heat: FloatArray, size: tuple[int, int], limits: tuple[float, float] | None = None
) -> None:
    """Lay a map over a picture of `size` (H, W); the patches stay visible as squares."""
    low, high = limits or (float(heat.min()), float(heat.max()))
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    ax.imshow(heat, cmap=HEAT, alpha=0.75, extent=extent, vmin=low, vmax=high)


def _legend_above(figure: Figure, ax: Axes, datasets: Sequence[str]) -> None:
    """A column for each data set; none where there is only one thing to name."""
    marks, names = ax.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: datasets.index(names[i].split(": ")[0]))
    if len(order) > 1:
        shown = [marks[i] for i in order], [names[i] for i in order]
        columns = max(2, min(len(datasets), 5))
        figure.legend(*shown, loc="outside upper center", ncols=columns, frameon=False)


def _bars(ax: Axes, part: pd.DataFrame, position: int, count: int, name: str) -> None:
    width = 0.8 / count
    x = np.arange(len(part)) - 0.4 + width * (position + 0.5)
    value = part["value"].to_numpy(float)
    errors = np.stack([value - part["low"].to_numpy(float), part["high"].to_numpy(float) - value])
    errors = errors.clip(0)  # of a few images, a percentile interval need not hold the value
    colour = COLOURS[position % len(COLOURS)]
    ax.bar(x, value, width * 0.9, color=colour, label=name, alpha=0.85)
    ax.errorbar(x, value, errors, fmt="none", ecolor="black", capsize=2, linewidth=1)
    if part["published"].notna().any():
        paper = part["published"].to_numpy(float)
        label = f"{name}: the paper's"
        ax.plot(x, paper, "D", color="white", markeredgecolor=colour, markersize=4, label=label)


def _coloured(image: Any, labels: NDArray[np.int64], classes: int) -> NDArray[np.uint8]:
    pixels = np.asarray(_as_image(image).convert("RGB"), dtype=np.float64)
    colours = palette(classes)[np.maximum(labels, BACKGROUND) + 1]
    mixed = np.where((labels == BACKGROUND)[..., None], pixels, 0.35 * pixels + 0.65 * colours)
    mixed[labels == IGNORE] = 255
    return (mixed + 0.5).astype(np.uint8)


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
