"""PnP-OVSS's steps from attention to maps of the classes, as pure functions (`pnp_ovss.py`).

Maps of tokens are [T, h, w], those of classes [K, h, w], on the grid of patches or of pixels.
"words" are the positions of each class's pieces among the T tokens, as `Prompt.words` has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..labels import BACKGROUND
from ..refine.blur import minmax_normalise

Words = Sequence[Sequence[int]]
Background = Literal["voc", "psc"]


def gradcam(attention: Tensor, gradient: Tensor | None, head: int | None = None) -> Tensor:
    """Weight attention by the positive part of its gradient (Eq. 1): [B, T, h, w] float32.

    The column of the image's class token is left out.

    Args:
        attention: [B, heads, T, 1+L], L a square number of patches.
        gradient: of the match with respect to it; None for the attention alone (Table 5, row 1).
        head: from 0; None for the mean over all heads (Table 6, upper half).
    """
    weights = attention if gradient is None else attention * gradient.clamp(min=0)
    of_head = weights.float().mean(1) if head is None else weights[:, head].float()  # [B, T, 1+L]
    side = math.isqrt(of_head.shape[-1] - 1)
    return rearrange(of_head[..., 1:], "b t (h w) -> b t h w", h=side)


def merge(tokens: Tensor, words: Words, rule: Literal["mean", "official"] = "mean") -> Tensor:
    """Average the maps [T, h, w] of each name's tokens into class maps [K, h, w] (section 3).

    Args:
        rule: "official" takes the sum for the last class, as the authors' code happens to do.
    """
    maps = [tokens[list(pieces)].mean(0) for pieces in words]  # K x [h, w]
    if rule == "official":
        maps[-1] = tokens[list(words[-1])].sum(0)
    return torch.stack(maps)


def saliency(tokens: Tensor, words: Words, by: Literal["tokens", "classes"] = "tokens") -> Tensor:
    """Sum the maps [T, h, w] of tokens, or of classes, into a class-agnostic saliency map [h, w].

    Section 3.2 sums over the classes, the authors' code over the tokens of their names.
    """
    if by == "classes":
        return merge(tokens, words).sum(0)
    return tokens[[piece for pieces in words for piece in pieces]].sum(0)


def select(saliency: Tensor, dropped: Tensor, count: int = 10) -> Tensor:
    """Select the `count` most salient patches not dropped yet (Eq. 2-5): [..., h, w] bool.

    Of equal ones those nearer to the top left are taken; where fewer are left, all of them.

    Args:
        saliency: [..., h, w].
        dropped: [..., h, w] bool.
    """
    values = saliency.masked_fill(dropped, -torch.inf).flatten(-2)  # [..., L]
    best = values.argsort(dim=-1, descending=True, stable=True)[..., :count]
    selected = torch.zeros_like(values, dtype=torch.bool).scatter_(-1, best, True)
    return selected.view_as(dropped) & ~dropped


def aggregate(passes: Tensor, rule: Literal["sum", "official"] = "sum") -> Tensor:
    """Sum the passes' maps [R, ...] -> [...] (section 3.2); "official" counts the first twice."""
    total = passes.sum(0)
    return total + passes[0] if rule == "official" else total


def threshold(maps: Tensor, tau: float) -> Tensor:
    """Set maps [K, h, w] to zero where, min-max normalised, they are below `tau` (section 3.3).

    What is kept keeps its value: the masks of the authors' code are not binary. A constant map
    loses everything.
    """
    return maps * (minmax_normalise(maps, nan=True) >= tau)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample maps [K, h, w] bilinearly to `size` = (H, W), corner on corner (align_corners)."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=True)[0]


def with_background(maps: Tensor, rule: Background | None) -> Tensor:
    """Put the background's map before [K, H, W]: 1 where all classes are exactly 0, [1+K, H, W].

    Args:
        rule: see `has_background`; without a background the maps come back as they are.
    """
    if not has_background(len(maps), rule):
        return maps
    return torch.cat([(maps.amax(0, keepdim=True) == 0).to(maps), maps])


def has_background(classes: int, rule: Background | None) -> bool:
    """Tell if the background has a map: "voc" always, "psc" beside fewer than three classes."""
    return rule == "voc" or (rule == "psc" and classes < 3)


def relabel(
    labels: Tensor, numbers: Sequence[int], background: bool, quirk: bool = False
) -> Tensor:
    """Map labels [H, W], BACKGROUND or 0 ... K-1, to a data set's numbers, 0 for the background.

    Args:
        numbers: the number of each class in the data set, [K].
        background: whether the background had a map of its own.
        quirk: write the numbers in place, from the last class to the first, as the authors' code
            does: a pixel whose new number is the old one of an earlier class changes again.
    """
    if not quirk:
        return torch.tensor([0, *numbers], device=labels.device)[labels - BACKGROUND]
    first = 1 if background else 0
    numbered = labels + first
    for place in reversed(range(len(numbers))):
        numbered = numbered.masked_fill(numbered == place + first, numbers[place])
    return numbered
