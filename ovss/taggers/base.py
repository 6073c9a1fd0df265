"""What a tagger is: it says which classes of a vocabulary are in an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..datasets import Sample
from ..errors import OvssError
from ..images import read_image
from ..vocabulary import Vocabulary


class Tagger(Protocol):
    """Says which classes are in images.

    Its name becomes part of the protocol of an evaluation.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, samples: Sequence[Sample], vocabulary: Vocabulary) -> list[list[int]]:
        """For each image the indices of its classes, each once; none is an answer, too."""
        ...


@dataclass(frozen=True)
class Oracle:
    """The classes that the ground truth holds, in the vocabulary's order."""

    name = "image"

    def __call__(self, samples: Sequence[Sample], vocabulary: Vocabulary) -> list[list[int]]:
        """The labels that occur in each target, background and ignored pixels left out."""
        return [np.unique(sample.target[sample.target >= 0]).tolist() for sample in samples]


def image_of(one: Any) -> Image.Image:
    """The image of a sample, or whatever `read_image` takes."""
    return read_image(getattr(one, "image", one))


def id_of(one: Any) -> str:
    """The id of a sample.

    Raises:
        OvssError: it has none: a bare image, for instance.
    """
    name = getattr(one, "id", None)
    if not isinstance(name, str):
        raise OvssError(f"published answers are found by image ids: give samples, not {one!r}")
    return name
