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
from ..refine.blur import stretch

Words = Sequence[Sequence[int]]
Background = Literal["voc", "psc"]


def gradcam(attention: Tensor, gradient: Tensor | None, head: int | None = None) -> Tensor:
    """Eq. 1: attention times the positive part of its gradient, the image's class token left out.

    Args:
        attention: [B, heads, T, 1+L], L a square number of patches.
        gradient: of the match with respect to it; None for the attention alone (Table 5, row 1).
        head: from 0; None for the mean over all heads (Table 6, upper half).

    Returns:
        [B, T, h, w] float32.
    """
    weights = attention if gradient is None else attention * gradient.clamp(min=0)
    chosen = weights.float().mean(1) if head is None else weights[:, head].float()
    side = math.isqrt(chosen.shape[-1] - 1)
    return rearrange(chosen[..., 1:], "b t (h w) -> b t h w", h=side)


def merge(tokens: Tensor, words: Words, rule: Literal["mean", "official"] = "mean") -> Tensor:
    """Tokens' maps [T, h, w] -> classes' maps [K, h, w]: the mean over a name's pieces.

    Args:
        rule: "official" takes the sum for the last class, as the authors' code happens to do.
    """
    maps = [tokens[list(pieces)].mean(0) for pieces in words]
    if rule == "official":
        maps[-1] = tokens[list(words[-1])].sum(0)
    return torch.stack(maps)


def salience(tokens: Tensor, words: Words, by: Literal["tokens", "classes"] = "tokens") -> Tensor:
    """Section 3.2: the class-agnostic map [h, w], a sum over the tokens' or the classes' maps."""
    if by == "classes":
        return merge(tokens, words).sum(0)
    return tokens[[piece for pieces in words for piece in pieces]].sum(0)


def select(agnostic: Tensor, dropped: Tensor, count: int = 10) -> Tensor:
    """Eq. 2-5: the `count` patches with the highest values that are not dropped yet.

    Of equal ones those nearer to the top left are taken; where fewer are left, all of them.

    Args:
        agnostic: [..., h, w].
        dropped: [..., h, w] bool.

    Returns:
        [..., h, w] bool.
    """
    values = agnostic.masked_fill(dropped, -torch.inf).flatten(-2)
    best = values.argsort(dim=-1, descending=True, stable=True)[..., :count]
    chosen = torch.zeros_like(values, dtype=torch.bool).scatter_(-1, best, True)
    return chosen.view_as(dropped) & ~dropped


def aggregate(passes: Tensor, rule: Literal["sum", "official"] = "sum") -> Tensor:
    """Section 3.2: the sum over the passes [R, ...] -> [...]; "official" counts the first twice."""
    total = passes.sum(0)
    return total + passes[0] if rule == "official" else total


def cut(maps: Tensor, threshold: float) -> Tensor:
    """Section 3.3: zero where a map [K, h, w], stretched to [0, 1], lies below the threshold.

    What is kept keeps its value: the masks of the authors' code are not binary. A constant map
    loses everything.
    """
    return maps * (stretch(maps, nan=True) >= threshold)


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corner on corner, from [K, h, w] to `size` = (H, W)."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=True)[0]


def with_background(maps: Tensor, rule: Background | None) -> Tensor:
    """Maps [K, H, W] with the background's before them, 1 where all classes are exactly 0.

    Args:
        rule: see `has_background`.
    """
    if not has_background(len(maps), rule):
        return maps
    return torch.cat([(maps.amax(0, keepdim=True) == 0).to(maps), maps])


def has_background(classes: int, rule: Background | None) -> bool:
    """Whether the background has a map: "voc" always, "psc" beside fewer than three classes."""
    return rule == "voc" or (rule == "psc" and classes < 3)


def relabel(
    labels: Tensor, numbers: Sequence[int], background: bool, quirk: bool = False
) -> Tensor:
    """Labels BACKGROUND, 0 ... K-1 -> a data set's numbers, 0 for the background.

    Args:
        numbers: the number of each class in the data set, [K].
        background: whether the background had a map of its own.
        quirk: write the numbers in place, from the last class to the first, as the authors' code
            does: a pixel whose new number is the old one of an earlier class changes again.
    """
    if not quirk:
        return torch.tensor([0, *numbers], device=labels.device)[labels - BACKGROUND]
    first = 1 if background else 0
    found = labels + first
    for place in reversed(range(len(numbers))):
        found = found.masked_fill(found == place + first, numbers[place])
    return found
