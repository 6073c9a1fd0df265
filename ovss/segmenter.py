"""Segmenter = method -> refiners -> decision: the one door from images and words to labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import torch
from PIL import Image
from torch import Tensor

from .decide import Argmax, Rule, decide
from .errors import VocabularyError
from .images import read_image
from .labels import BACKGROUND
from .segmentation import Segmentation
from .vocabulary import Vocabulary


class Method(Protocol):
    """What a paper's file provides: score maps on the method's own grid.

    A method may have `refiners` of its own; they run before the segmenter's. One whose images
    each have words of their own may have `score_each(images, vocabularies)` for a batch of them.
    """

    @property
    def name(self) -> str: ...

    def score(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> list[Tensor]:
        """One [K, h, w] per image; any mixture of image sizes."""
        ...


class Refiner(Protocol):
    """Sharpens the score maps of images: [K, h, w] -> [K, h', w'] each.

    A refiner may put a map of the background before those of the K classes; it competes with them.
    """

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
            classes: a Vocabulary or whatever `Vocabulary.of` takes ("car, grass"); for a list of
                images also a list of Vocabularies, one for each.

        Raises:
            ImageError, VocabularyError: what was given is not an image, or not words.
        """
        if isinstance(image, list | tuple):
            images = [read_image(one) for one in image]
            return self._segment(images, _words_of_each(classes, len(images)))
        return self._segment([read_image(image)], [Vocabulary.of(classes)])[0]

    def _segment(self, images: list[Image.Image], words: list[Vocabulary]) -> list[Segmentation]:
        with torch.no_grad():  # a method that needs gradients enables them itself
            coarse = self._score(images, words) if images else []
            refined = coarse
            for refine in (*getattr(self.method, "refiners", ()), *self.refiners):
                refined = refine(refined, images)
            return [
                self._finish(*of_image)
                for of_image in zip(refined, coarse, images, words, strict=True)
            ]

    def _score(self, images: list[Image.Image], words: list[Vocabulary]) -> list[Tensor]:
        if all(one is words[0] for one in words):
            return self.method.score(images, words[0])
        if hasattr(self.method, "score_each"):
            return self.method.score_each(images, words)
        pairs = zip(images, words, strict=True)
        return [self.method.score([image], own)[0] for image, own in pairs]

    def _finish(
        self, scores: Tensor, coarse: Tensor, image: Image.Image, vocabulary: Vocabulary
    ) -> Segmentation:
        background = len(scores) - len(
            vocabulary
        )  # 1 if it has a map of its own, before the others
        size = (image.height, image.width)
        classes = scores[background:]
        # CLIPer, Table 2: a class's image score is its maximum, the mean of coarse and refined.
        image_scores = 0.5 * classes.amax((1, 2)) + 0.5 * coarse.amax((1, 2))
        if background:
            labels = (decide(self.decision, scores, size) - 1).clamp_min(BACKGROUND)
        else:
            labels = decide(self.decision, scores, size, image_scores)
        return Segmentation(
            labels.cpu(), classes.cpu(), vocabulary.names, image, image_scores.float().cpu()
        )


def _words_of_each(classes: Any, images: int) -> list[Vocabulary]:
    """One vocabulary for each image: the same for all, or those given."""
    each = isinstance(classes, list | tuple) and bool(classes)
    if not each or not all(isinstance(one, Vocabulary) for one in classes):
        return [Vocabulary.of(classes)] * images
    if len(classes) != images:
        raise VocabularyError(f"{len(classes)} vocabularies were given for {images} images")
    return list(classes)
