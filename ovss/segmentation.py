"""The result of a segmentation: labels, scores and names, to look at and to keep."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from .errors import OvssError
from .files import atomic, check_destination
from .labels import BACKGROUND, palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES_KEY = "ovss:names"  # the PNG text chunk that holds the JSON list of names
SUFFIXES = (".png", ".json")
MOST_COLOURS = 255  # of a palette, beside the background


def check_output(
    path: str | os.PathLike[str], classes: int, image: str | os.PathLike[str] | None = None
) -> Path:
    """Give the path that `Segmentation.save` will write, or say before any work why it cannot.

    Args:
        path: where the labels are to go, `~` expanded.
        classes: how many there are.
        image: the photo, which must not be replaced.

    Raises:
        OvssError: another suffix, more classes than a palette has colours, a folder, no right to
            write there, or the photo itself.
    """
    target = check_destination(path, SUFFIXES, () if image is None else (image,))
    if target.suffix.lower() == ".png" and classes > MOST_COLOURS:
        raise OvssError(f"a palette PNG holds {MOST_COLOURS} classes, not {classes}: use .json")
    return target


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one image.

    Attributes:
        labels: [H, W] int64 at image size: 0..K-1, or BACKGROUND (-1).
        scores: [K, h, w] on the method's (or last refiner's) own grid.
        names: displayed name of each class, [K].
        image: the image itself, RGB, upright.
        image_scores: one score per class [K]: is it in the image at all?
    """

    labels: Tensor
    scores: Tensor
    names: tuple[str, ...]
    image: Image.Image
    image_scores: Tensor

    @property
    def shares(self) -> dict[str, float]:
        """The share of the image's pixels of each name found, largest first, background too.

        Pixels without a class are "background"; where a class has that name already, they are
        "background (no class)".
        """
        counts = np.bincount(self.labels.numpy().ravel() + 1, minlength=len(self.names) + 1)
        order = np.argsort(-counts, kind="stable")
        rest = "background"
        while rest in self.names:
            rest += " (no class)"
        named = (rest, *self.names)
        return {named[i]: float(counts[i] / counts.sum()) for i in order if counts[i]}

    def legend(self) -> dict[str, str]:
        """The colour (as "#rrggbb") of each class that was found, in class order."""
        found = np.unique(self.labels.numpy())
        colours = palette(len(self.names))
        return {self.names[i]: _hex(colours[i + 1]) for i in found if i != BACKGROUND}

    def overlay(self, strength: float = 0.6) -> Image.Image:
        """The image with the classes' colours laid over it; the background shows through."""
        labels = self.labels.numpy()
        pixels = np.asarray(self.image, dtype=np.float64)
        colours = palette(len(self.names))[labels + 1]
        mixed = (1 - strength) * pixels + strength * colours
        shown = np.where((labels == BACKGROUND)[..., None], pixels, mixed)
        return Image.fromarray((shown + 0.5).astype(np.uint8))

    def show(self) -> Figure:
        """The image beside its overlay, with a legend."""
        from .reporting.figures import show_scene  # matplotlib only when a figure is wanted

        return show_scene(self.image, self.labels, self.names)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the labels: `.png` with VOC's palette (0 = background, i+1 = class i), `.json` RLE.

        The PNG holds the names in a text chunk. The file is written whole or not at all.

        Raises:
            OvssError: as `check_output`.
        """
        target = check_output(path, len(self.names))
        with atomic(target) as file:
            if target.suffix.lower() == ".png":
                self._palette_image().save(file, format="PNG", pnginfo=self._names_chunk())
            else:
                file.write(json.dumps(self.to_rle()).encode())
        return target

    def to_rle(self) -> dict[str, Any]:
        """COCO's uncompressed run lengths: {"size": [H, W], "segments": [{name, label, counts}]}.

        Runs go down the columns and start with a run (perhaps of length 0) outside the segment.
        """
        labels = self.labels.numpy()
        segments = [
            {"name": self.names[i], "label": int(i), "counts": _runs(labels == i)}
            for i in np.unique(labels)
            if i != BACKGROUND
        ]
        return {"size": list(labels.shape), "names": list(self.names), "segments": segments}

    def _palette_image(self) -> Image.Image:
        image = Image.fromarray((self.labels.numpy() + 1).astype(np.uint8))
        image.putpalette(palette(MOST_COLOURS).ravel().tolist())
        return image

    def _names_chunk(self) -> PngImagePlugin.PngInfo:
        chunk = PngImagePlugin.PngInfo()
        chunk.add_itxt(NAMES_KEY, json.dumps(["background", *self.names]))
        return chunk


def _hex(colour: NDArray[np.uint8]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour.tolist())


def _runs(mask: NDArray[np.bool_]) -> list[int]:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], edges, [flat.size]])
    runs: list[int] = np.diff(starts).tolist()
    return [0, *runs] if flat[0] else runs
