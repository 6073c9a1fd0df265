"""Segmenter = method -> refiners -> decision: the one door from images and words to labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import torch
from PIL import Image
from torch import Tensor

from .decide import Argmax, Rule, decide
from .images import read_image
from .segmentation import Segmentation
from .vocabulary import Vocabulary


class Method(Protocol):
    """What a paper's file provides: score maps on the method's own grid.

    A method may have `refiners` of its own; they run before the segmenter's.
    """

    @property
    def name(self) -> str: ...

    def score(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> list[Tensor]:
        """One [K, h, w] per image; any mixture of image sizes."""
        ...


class Refiner(Protocol):
    """Sharpens the score maps of images: [K, h, w] -> [K, h', w'] each."""

    def __call__(self, scores: Sequence[Tensor], images: Sequence[Image.Image]) -> list[Tensor]: ...


@dataclass(frozen=True)
class Segmenter:
    """Words and images in, segmentations out.

    Attributes:
        method: gives the score maps.
        refiners: applied one after another to the images' maps.
        decision: turns the maps, upsampled to the image's size, into labels.
    """

    method: Method
    refiners: tuple[Refiner, ...] = field(default=())
    decision: Rule = field(default_factory=Argmax)

    @overload
    def __call__(self, image: list[Any] | tuple[Any, ...], classes: Any) -> list[Segmentation]: ...

    @overload
    def __call__(self, image: Any, classes: Any) -> Segmentation: ...

    def __call__(self, image: Any, classes: Any) -> Segmentation | list[Segmentation]:
        """Segment an image, or a list of images in one go.

        Args:
            image: whatever `read_image` takes (path, PIL image, array, tensor), or a list.
            classes: a Vocabulary or whatever `Vocabulary.of` takes ("car, grass").

        Raises:
            ImageError, VocabularyError: what was given is not an image, or not words.
        """
        vocabulary = Vocabulary.of(classes)
        if isinstance(image, list | tuple):
            return self._segment([read_image(one) for one in image], vocabulary)
        return self._segment([read_image(image)], vocabulary)[0]

    def _segment(self, images: list[Image.Image], vocabulary: Vocabulary) -> list[Segmentation]:
        with torch.no_grad():  # a method that needs gradients enables them itself
            coarse = self.method.score(images, vocabulary) if images else []
            refined = coarse
            for refine in (*getattr(self.method, "refiners", ()), *self.refiners):
                refined = refine(refined, images)
            return [
                self._finish(*maps, vocabulary)
                for maps in zip(refined, coarse, images, strict=True)
            ]

    def _finish(
        self, scores: Tensor, coarse: Tensor, image: Image.Image, vocabulary: Vocabulary
    ) -> Segmentation:
        # CLIPer, Table 2: a class's image score is its maximum, the mean of coarse and refined.
        image_scores = 0.5 * scores.amax((1, 2)) + 0.5 * coarse.amax((1, 2))
        labels = decide(self.decision, scores, (image.height, image.width), image_scores)
        return Segmentation(
            labels.cpu(), scores.cpu(), vocabulary.names, image, image_scores.float().cpu()
        )
