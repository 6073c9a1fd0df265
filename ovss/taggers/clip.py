"""CLIP as a tagger: the whole image and overlapping windows of it, each compared with all words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from ..backbones.clip import ClipBackbone
from ..datasets import Sample
from ..options import LOGIT_SCALE, check_fields
from ..vocabulary import Vocabulary
from .base import image_of


@dataclass(frozen=True)
class ClipTagger:
    """Keeps the classes that some view of the image resembles nearly as much as the best one.

    A view's probabilities are a softmax over all words, background words among them; a class's
    score is its largest probability in any view. The defaults have the highest mean F1 over lab-20,
    lab-21 and lab-all on the lab's `tune` split.

    Attributes:
        keep: a class is kept from this share of the best class's score on; the best one always is.
        windows: per side, each half as wide and high as the image; 0 for the whole image alone.
        logit_scale: factor of the cosines before the softmax; None takes the one CLIP has learnt.
    """

    backbone: ClipBackbone
    keep: float = 0.75
    windows: int = 3
    logit_scale: float | None = None
    name: str = field(default="clip", kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self, keep=(0.0, 1.0), windows=(0, 1024), logit_scale=LOGIT_SCALE)

    def __call__(
        self, samples: Sequence[Sample | Image.Image], vocabulary: Vocabulary
    ) -> list[list[int]]:
        """The classes of samples, or of bare images, in the vocabulary's order."""
        if not samples:
            return []
        scores = self.scores([image_of(sample) for sample in samples], vocabulary)
        kept = scores >= self.keep * scores.amax(1, keepdim=True)
        return [row.nonzero().flatten().tolist() for row in kept]

    @torch.no_grad()
    def scores(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> Tensor:
        """The score of each class in each image, [B, K] in [0, 1], float32 on the CPU."""
        text = self.backbone.text_features(vocabulary).float()
        views = [view for image in images for view in self.views(image)]
        embedded = self._embed(views)  # [B * V, E]
        likely = (self._scale() * embedded @ text.T).softmax(1)  # [B * V, Q]
        classes = vocabulary.reduce(likely[..., None, None])[..., 0, 0]
        return classes.unflatten(0, (len(images), -1)).amax(1).cpu()

    def views(self, image: Image.Image) -> list[Image.Image]:
        """The image, then its windows row by row; windows touch the image's borders."""
        width, height = image.size
        boxes = [
            (left, top, left + -(-width // 2), top + -(-height // 2))  # halves, rounded up
            for top in _starts(height, self.windows)
            for left in _starts(width, self.windows)
        ]
        return [image, *(image.crop(box) for box in boxes)]

    def _embed(self, views: Sequence[Image.Image]) -> Tensor:
        """Unit vectors [V, E]; views of equal shape go through CLIP together."""
        side = int(self.backbone.model.visual.image_size[0])
        rows: dict[int, Tensor] = {}
        for indices, pixels in self.backbone.batches(views, side):
            rows.update(zip(indices, self.backbone.image_embedding(pixels).float(), strict=True))
        return torch.stack([rows[index] for index in range(len(views))])

    def _scale(self) -> float:
        if self.logit_scale is not None:
            return self.logit_scale
        return float(self.backbone.model.logit_scale.exp())


def _starts(side: int, windows: int) -> list[int]:
    """Where windows of half a side begin, evenly spread; a single one lies in the middle."""
    room = side - -(-side // 2)
    if windows == 1:
        return [room // 2]
    return [round(room * place / (windows - 1)) for place in range(windows)]
