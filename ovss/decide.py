"""From score maps to labels: the background rules of the protocols, one small class each.

A rule is called with scores [K, H, W] at image size and gives labels [H, W] int64: 0..K-1, or
BACKGROUND. All rules here treat each class map on its own and then let the best class win, so
`decide` can go through the classes in chunks and never holds [K, H, W] for a large photograph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .labels import BACKGROUND
from .options import check_fields

CHUNK_VALUES = 2**26  # map values held at once while deciding: 256 MB of float32


class Rule(Protocol):
    """Turn scores [K, H, W] and a score per class [K] into labels [H, W] int64."""

    def __call__(self, scores: Tensor, image_scores: Tensor | None = None) -> Tensor: ...


class PerClassRule:
    """Decide in two steps: `transform` each class map, then `finalise` what the best one means."""

    def transform(self, scores: Tensor, image_scores: Tensor) -> Tensor:
        """Transform class maps [k, H, W] with their image scores [k] into those that compete."""
        return scores

    def finalise(self, best: Tensor, index: Tensor) -> Tensor:
        """Turn the best value and its class, both [H, W], into labels [H, W]."""
        return index

    def __call__(self, scores: Tensor, image_scores: Tensor | None = None) -> Tensor:
        """Labels [H, W] of scores [K, H, W]; without `image_scores` the maxima of the maps."""
        if image_scores is None:
            image_scores = scores.amax((1, 2))
        best, index = self.transform(scores, image_scores).max(0)
        return self.finalise(best, index)


@dataclass(frozen=True)
class Argmax(PerClassRule):
    """Take the best class everywhere; there is no background (ties: the first class)."""


@dataclass(frozen=True)
class Threshold(PerClassRule):
    """Set background where the best score lies below `tau` (`prob_thd` of SCLIP's protocol)."""

    tau: float

    def __post_init__(self) -> None:
        check_fields(self, tau=(-1e6, 1e6))

    def finalise(self, best: Tensor, index: Tensor) -> Tensor:
        """Set BACKGROUND where `best < tau`."""
        return index.masked_fill(best < self.tau, BACKGROUND)


@dataclass(frozen=True)
class CliperRule(PerClassRule):
    """Decide as CLIPer's authors' code does; the paper does not describe it.

    Attributes:
        score_threshold: a class is kept if its image score is greater.
        background_threshold: if positive, values below it become 0 and a pixel where all are 0
            is background; if not, (1 - best)^2 competes as the background's score.
        normalize: stretch each map to [0, 1] first, which cancels the rescaling below.
        rescale: scale each map so that its maximum is the class's image score.
    """

    score_threshold: float = 0.0
    background_threshold: float = 0.0
    normalize: bool = False
    rescale: bool = True

    def __post_init__(self) -> None:
        check_fields(self, score_threshold=(-1e6, 1e6), background_threshold=(-1e6, 1e6))

    def transform(self, scores: Tensor, image_scores: Tensor) -> Tensor:
        """Rescale, normalise, gate by the image score, zero below the background threshold."""
        maps = scores
        if self.rescale:
            maps = maps / (_peak(maps) + 1e-5) * image_scores[:, None, None]
        if self.normalize:
            maps = maps - maps.amin((1, 2), keepdim=True)
            maps = maps / (_peak(maps) + 1e-6)
        maps = maps * (image_scores > self.score_threshold)[:, None, None]
        if self.background_threshold > 0:
            maps = maps.masked_fill(maps < self.background_threshold, 0)
        return maps

    def finalise(self, best: Tensor, index: Tensor) -> Tensor:
        """Set background where nothing is left, or where its squared complement is the best."""
        if self.background_threshold > 0:
            return index.masked_fill(best == 0, BACKGROUND)
        return index.masked_fill((1 - best) ** 2 >= best, BACKGROUND)


def upsample(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample [K, h, w] bilinearly (align_corners=False) to [K, H, W]."""
    if scores.shape[1:] == size:
        return scores
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]


def decide(
    rule: Rule,
    scores: Tensor,
    size: tuple[int, int],
    image_scores: Tensor | None = None,
    chunk_values: int = CHUNK_VALUES,
) -> Tensor:
    """Decide labels [H, W] of scores [K, h, w], upsampled to `size` = (H, W).

    Args:
        image_scores: one score per class [K]; by default the maxima of the maps on the grid.
        chunk_values: how many map values at image size to hold at once; the labels do not
            depend on it. A rule that is no PerClassRule always gets all maps.
    """
    scores = scores.float()
    image_scores = scores.amax((1, 2)) if image_scores is None else image_scores.float()
    step = max(1, chunk_values // (size[0] * size[1]))
    if len(scores) <= step or not isinstance(rule, PerClassRule):
        return rule(upsample(scores, size), image_scores)
    best = scores.new_full(size, -torch.inf)
    index = torch.zeros(size, dtype=torch.int64, device=scores.device)
    for start in range(0, len(scores), step):
        chunk = slice(start, start + step)
        maps = rule.transform(upsample(scores[chunk], size), image_scores[chunk])
        value, winner = maps.max(0)  # NaN is more than any number, here as in `max`
        better = (value > best) | (value.isnan() & ~best.isnan())
        index = torch.where(better, winner + start, index)
        best = torch.where(better, value, best)
    return rule.finalise(best, index)


def _peak(maps: Tensor) -> Tensor:
    return maps.amax((1, 2), keepdim=True)
