"""Segmenter = method -> refiners -> decision: the one door from images and words to labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import torch
from PIL import Image
from torch import Tensor

from .decide import Argmax, Rule, decide
from .errors import OvssError, ScoreError, VocabularyError
from .images import read_image
from .labels import BACKGROUND
from .provenance import describe, find
from .segmentation import Segmentation
from .vocabulary import Vocabulary


class Method:
    """What a paper's file provides: score maps on the method's own grid.

    A method is a subclass; it has a `name` and `score`. The rest is what most methods do, to be
    replaced where a paper does otherwise.
    """

    name: str

    @property
    def depends_on_batch(self) -> bool:
        """Whether an image's scores depend on the images beside it, the last digits apart."""
        return False

    @property
    def may_be_nan(self) -> bool:
        """Whether its refiners give NaN on purpose, as some authors' code does."""
        return False

    @property
    def predicts_background(self) -> bool:
        """Whether it has a map of the background, which competes with the classes."""
        return False

    @property
    def speed_options(self) -> tuple[str, ...]:
        """Names of the options that change its speed alone, not its counts."""
        return ()

    @property
    def refiners(self) -> tuple[Refiner, ...]:
        """Refiners of its own, which run before the segmenter's."""
        return ()

    def score(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> list[Tensor]:
        """Score maps [K, h, w], one for each RGB image; any mixture of image sizes."""
        raise NotImplementedError

    def score_each(
        self, images: Sequence[Image.Image], vocabularies: Sequence[Vocabulary]
    ) -> list[Tensor]:
        """As `score`, of images with words of their own."""
        pairs = zip(images, vocabularies, strict=True)
        return [self.score([image], words)[0] for image, words in pairs]

    def image_scores(self, coarse: Tensor, refined: Tensor) -> Tensor:
        """One score per class [K], whether it is in the image at all.

        As CLIPer's Table 2 has it: the maximum of its map, the mean of the coarse map's and the
        refined one's, which must therefore be of one kind.

        Args:
            coarse: what `score` gave, [K, h, w].
            refined: the maps after all refiners, without a background's, [K, h', w'].
        """
        return 0.5 * refined.amax((1, 2)) + 0.5 * coarse.amax((1, 2))  # [K]

    def relabel(self, labels: Tensor, classes: Sequence[int]) -> Tensor:
        """Labels of an image asked for some `classes` of a data set -> the data set's labels."""
        lookup = torch.tensor([*classes, BACKGROUND], device=labels.device)
        return lookup[labels]  # [H, W]; the last one, at -1, is the background


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

    Raises:
        OvssError: `method` is none.
    """

    method: Method
    refiners: tuple[Refiner, ...] = field(default=())
    decision: Rule = field(default_factory=Argmax)

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise OvssError(f"a method is a subclass of ovss.segmenter.Method, not {self.method!r}")

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
            self._check_finite(coarse)
            refiners = (*self.method.refiners, *self.refiners)
            for refine in refiners:
                refined = refine(refined, images)
            if refiners and not self.method.may_be_nan:
                self._check_finite(refined)
            return [
                self._finish(*of_image)
                for of_image in zip(refined, coarse, images, words, strict=True)
            ]

    def _score(self, images: list[Image.Image], words: list[Vocabulary]) -> list[Tensor]:
        if all(one is words[0] for one in words):
            return self.method.score(images, words[0])
        return self.method.score_each(images, words)

    def _check_finite(self, maps: Sequence[Tensor]) -> None:
        """No label is made of NaN or infinite scores: they would look like any other."""
        for index, scores in enumerate(maps):
            if not torch.isfinite(scores).all():
                raise ScoreError(self.method.name, index, find(describe(self), "checkpoint"))

    def _finish(
        self, scores: Tensor, coarse: Tensor, image: Image.Image, vocabulary: Vocabulary
    ) -> Segmentation:
        background = len(scores) - len(vocabulary)  # 1: it has a map of its own, the first
        size = (image.height, image.width)
        classes = scores[background:]  # [K, h, w]
        image_scores = self.method.image_scores(coarse, classes)
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
