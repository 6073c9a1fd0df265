"""How much a perfect attention could add: the one definition of headroom.

A refinement that moves scores about, as CLIPer's compensation does, can at best let every pixel
read its own true region, all of it and nothing else. So the headroom of a method is the mIoU of
its score maps averaged within each true region, at the image's pixels, minus that of the maps as
they are, on the same images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor

from ..datasets import Dataset
from ..decide import upsample
from ..errors import OvssError
from ..segmenter import Segmenter

PLAIN, PERFECT = "as it is", "perfect attention"  # the rows


@dataclass(frozen=True)
class PerfectAttention:
    """Average the score maps within each true region of the image: [K, h, w] -> [K, H, W].

    Attributes:
        regions: a data set of the images whose targets are the regions (things and stuff).
    """

    regions: Dataset = field(repr=False)
    _place: dict[str, int] = field(default_factory=dict, repr=False)

    def __call__(self, scores: Sequence[Tensor], images: Sequence[Image.Image]) -> list[Tensor]:
        """Refine one map per image.

        Raises:
            OvssError: an image is not one of the data set's.
        """
        return [
            average_within(one, self._target(image).to(one.device))
            for one, image in zip(scores, images, strict=True)
        ]

    def _target(self, image: Image.Image) -> Tensor:
        if not self._place:
            for index in range(len(self.regions)):
                self._place[_mark(self.regions[index].image)] = index
        index = self._place.get(_mark(image), -1)
        if index < 0:
            raise OvssError(f"an image of {image.size} is not in {self.regions.name}: no regions")
        return torch.as_tensor(self.regions[index].target)


def average_within(scores: Tensor, regions: Tensor) -> Tensor:
    """Replace each score by its mean over the pixel's region: [K, h, w], [H, W] -> [K, H, W]."""
    height, width = regions.shape
    maps = upsample(scores.float(), (height, width)).flatten(1)  # [K, H W]
    _, region = regions.flatten().unique(return_inverse=True)  # [H W], 0..R-1
    size = torch.bincount(region).to(maps)  # [R]
    sums = maps.new_zeros(len(maps), len(size)).index_add_(1, region, maps)  # [K, R]
    return (sums / size)[:, region].unflatten(1, (height, width))


def headroom_rows(segmenter: Segmenter, regions: Dataset) -> dict[str, Segmenter]:
    """List the two rows whose difference is the headroom: as it is, and with perfect attention."""
    perfect = replace(segmenter, refiners=(*segmenter.refiners, PerfectAttention(regions)))
    return {PLAIN: segmenter, PERFECT: perfect}


def _mark(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
