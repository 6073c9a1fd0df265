"""What every benchmark offers: samples with ground truth, class names and a protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import paths
from ..errors import DatasetError
from ..vocabulary import Vocabulary

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """One image with its ground truth: labels [H, W] int64, -1 background, -2 ignored."""

    id: str
    image: Image.Image
    target: IntArray


class Dataset(Protocol):
    """What `evaluate` needs of a benchmark."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def ids(self) -> tuple[str, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def has_background(self) -> bool: ...
    @property
    def protocol(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


def read_words(name: str) -> tuple[str, ...]:
    """The names in `data/vocabularies/<name>.txt`, one a line."""
    path = paths.data("vocabularies", f"{name}.txt")
    if not path.is_file():
        raise DatasetError(f"no vocabulary {path}")
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line)
