"""The losses of a matching model: contrast (ITC), matching with hard negatives (ITM), and
replaced-token detection."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss.training.losses import symmetric_cross_entropy


class Negatives(NamedTuple):
    """For each of B captions an image that does not fit it, and for each image a caption, [B]."""

    images: Tensor
    captions: Tensor


def fits(named: Tensor) -> Tensor:
    """What captions name [B, W] -> whether caption j could be said of image i too, [B, B].

    All that it names is named by the image's own caption. Such pairs are no negatives.
    """
    missing = named.float() @ (~named).float().T  # [caption, image]: words the image's lacks
    return (missing == 0).T


def contrastive_loss(image: Tensor, text: Tensor, named: Tensor, temperature: float) -> Tensor:
    """ITC: symmetric cross-entropy of unit embeddings [B, E]; captions that name the same words
    [B, W] are equally right."""
    both = fits(named)
    return symmetric_cross_entropy(image @ text.T / temperature, both & both.T)


@torch.no_grad()
def hard_negatives(image: Tensor, text: Tensor, named: Tensor, temperature: float) -> Negatives:
    """Drawn by their similarity, as ALBEF and BLIP do, among those that are wrong by the words."""
    logits = (image @ text.T / temperature).masked_fill(fits(named), -torch.inf)  # [image, caption]
    logits = logits.clamp_min(-1e4)  # a row without any wrong pair still draws one
    captions = torch.multinomial(logits.softmax(1), 1)[:, 0]
    images = torch.multinomial(logits.T.softmax(1), 1)[:, 0]
    return Negatives(images, captions)


def matching_loss(right: Tensor, wrong: Tensor, seen: Tensor | None = None) -> Tensor:
    """ITM: cross-entropy of the logits of right pairs [B, 2] and of wrong ones [N, 2], balanced.

    Args:
        seen: how much of the image the words of right pairs read [B], in [0, 1] (None: all): so
            probable is the match.
    """
    seen = right.new_ones(len(right)) if seen is None else seen.to(right)
    match = F.cross_entropy(right, torch.stack([1 - seen, seen], 1))
    other = F.cross_entropy(wrong, torch.zeros(len(wrong), dtype=torch.long, device=wrong.device))
    return (match + other) / 2


def replaced_token_loss(right: Tensor, wrong: Tensor, replaced: Tensor, words: Tensor) -> Tensor:
    """Replaced-token detection (ELECTRA, Clark et al. 2020): binary cross-entropy of each token.

    Args:
        right: logits of the tokens of right captions [N].
        wrong: logits of the tokens of captions with words replaced [B, T].
        replaced: which of these were [B, T]; they weigh as much as all others together.
        words: which of these are no padding [B, T].
    """
    originals = torch.cat([right, wrong[words & ~replaced]])
    others = wrong[replaced]
    return (
        F.binary_cross_entropy_with_logits(originals, torch.zeros_like(originals))
        + F.binary_cross_entropy_with_logits(others, torch.ones_like(others))
    ) / 2
