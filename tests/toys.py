"""A toy benchmark in VOC layout and a method that compares mean colours: no weights, no network."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ovss import Segmenter, Vocabulary
from ovss.decide import Threshold
from ovss.labels import palette
from ovss.segmenter import Method


@dataclass(frozen=True)
class ColourMethod(Method):
    """Scores = softmax over queries of minus the distance of a patch's colour to a word's."""

    patch: int = 8
    name: str = "colours"
    checkpoint: str = "none"

    def score(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> list[torch.Tensor]:
        colours = torch.tensor([colour_of(word) for word in vocabulary.queries]) / 255.0
        return [self._one(image, colours, vocabulary) for image in images]

    def _one(
        self, image: Image.Image, colours: torch.Tensor, vocabulary: Vocabulary
    ) -> torch.Tensor:
        grid = (max(1, image.height // self.patch), max(1, image.width // self.patch))
        pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255.0
        cells = torch.nn.functional.adaptive_avg_pool2d(pixels, grid)[0]
        distance = (cells[None] - colours[:, :, None, None]).norm(dim=1)
        return vocabulary.reduce((-12 * distance).softmax(0))


def toy_segmenter(tau: float = 0.2) -> Segmenter:
    """The colour method with a threshold for the background."""
    return Segmenter(ColourMethod(), decision=Threshold(tau))


def colour_of(word: str) -> list[int]:
    """A fixed colour for a word."""
    mark = zlib.crc32(word.encode())
    return [mark & 255, (mark >> 8) & 255, (mark >> 16) & 255]


def make_voc(root: Path, images: int, seed: int = 0) -> Path:
    """Write VOCdevkit/VOC2012 with palette masks that have 255 borders, as the real one has."""
    from ovss.datasets.base import read_words

    base, names = root / "VOCdevkit" / "VOC2012", read_words("voc21")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    ids = [f"2007_{index:06d}" for index in range(images)]
    for name in ids:
        picture, mask = _scene(rng, names)
        Image.fromarray(picture).save(base / "JPEGImages" / f"{name}.jpg", quality=95)
        save_mask(mask, base / "SegmentationClass" / f"{name}.png")
    listing = base / "ImageSets" / "Segmentation" / "val.txt"
    listing.write_text("\n".join(ids) + "\n")
    return root


def save_mask(mask: np.ndarray, path: Path) -> None:
    """A palette PNG, as VOC's masks are."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(palette(255).ravel().tolist())
    image.save(path)


def _scene(rng: np.random.Generator, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    height, width = rng.integers(40, 70, 2)
    picture = rng.integers(100, 140, (height, width, 3))
    mask = np.zeros((height, width), dtype=np.int64)
    for label in rng.choice(len(names), rng.integers(1, 4), replace=False) + 1:
        top, left = rng.integers(0, height - 24), rng.integers(0, width - 24)
        area = np.s_[top : top + 24, left : left + 24]
        picture[area] = colour_of(names[label - 1]) + rng.integers(-30, 30, (24, 24, 3))
        mask[area] = 255
        mask[top + 1 : top + 23, left + 1 : left + 23] = label
    return picture.clip(0, 255).astype(np.uint8), mask
