"""PASCAL VOC 2012 and every benchmark in its layout, the lab's among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, ImageError, shorten
from ..images import read_photo
from ..labels import BACKGROUND, IGNORE
from ..vocabulary import Vocabulary
from .base import IntArray, Sample, check_inside, read_ids, read_words
from .masks import read_mask


@dataclass(frozen=True)
class Spec:
    """How a benchmark in VOC layout is read.

    Attributes:
        masks: the folder of label images, which hold 0 and 1..K (255 = ignored).
        words: files of `data/vocabularies/` whose names, one a line, make the classes; with
            `product` every name of the first with every name of the second ("red car").
        background_words: a file whose names compete but are no label.
        zero: what the value 0 in a mask means, BACKGROUND or IGNORE.
        home: the data set's own folder under `data/`, for those the repository holds.
        below: where the layout may begin under the user's root.
    """

    masks: str
    words: tuple[str, ...]
    background_words: str | None = None
    product: bool = False
    zero: int = BACKGROUND
    home: str | None = None
    below: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class VocDataset:
    """A benchmark in VOC layout; indexing gives `Sample`s, read from the disk each time."""

    name: str
    root: Path
    split: str
    spec: Spec

    protocol = "mmseg"  # a class counts unless absent from ground truth and predictions

    @property
    def has_background(self) -> bool:
        """Whether background is a class of the metric."""
        return self.spec.zero == BACKGROUND

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Class names, [K]."""
        words = [read_words(file) for file in self.spec.words]
        if self.spec.product:
            return tuple(f"{first} {second}" for first in words[0] for second in words[1])
        return tuple(name for part in words for name in part)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The plain data set names, with the background words of the benchmark if it has any."""
        file = self.spec.background_words
        return Vocabulary.of(self.names, background=read_words(file) if file else ())

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Image names without suffix, in the order of the split's list.

        Raises:
            DatasetError: as `read_ids`, or the split leads out of the data set's folder.
        """
        check_inside(self.split, f"the split '{shorten(self.split)}'")
        listing = self.root / "ImageSets" / "Segmentation" / f"{self.split}.txt"
        if not listing.exists():
            raise DatasetError(f"no list {listing}; {self.layout()}")
        return read_ids(listing)

    def layout(self) -> str:
        """The folders this benchmark is read from, to show in an error."""
        parts = ("JPEGImages/<id>.jpg", f"{self.spec.masks}/<id>.png")
        listing = f"ImageSets/Segmentation/{self.split}.txt (one id a line)"
        return f"{self.name} is expected as {self.root}/ with {', '.join(parts)} and {listing}"

    def files(self, index: int) -> tuple[Path, Path]:
        """The files that the sample at `index` is read from: its image and its mask."""
        name = self.ids[index]
        return self.root / "JPEGImages" / f"{name}.jpg", self.root / self.spec.masks / f"{name}.png"

    def __len__(self) -> int:
        """Number of images of the split."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`.

        Raises:
            DatasetError: a file is missing or damaged, holds unknown labels, or the image and
                its mask differ in size; the message names the file.
        """
        name = self.ids[index]
        image_path, mask_path = self.files(index)
        try:
            photo = read_photo(image_path)
        except ImageError as error:
            raise DatasetError(str(error)) from None
        target = self._target(read_mask(mask_path, photo), mask_path)
        return Sample(name, photo.image, target)

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order."""
        return (self[index] for index in range(len(self)))

    def _target(self, values: NDArray[np.uint8], path: Path) -> IntArray:
        table = np.full(256, IGNORE - 1, dtype=np.int64)  # IGNORE - 1: a value with no meaning
        table[1 : len(self.names) + 1] = np.arange(len(self.names))
        table[0], table[255] = self.spec.zero, IGNORE
        target = table[values]  # [H, W]
        if (target < IGNORE).any():
            wrong = int(values[target < IGNORE].max())
            raise DatasetError(
                f"{path} holds the label {wrong}, {self.name} ends at {len(self.names)}"
            )
        return target
