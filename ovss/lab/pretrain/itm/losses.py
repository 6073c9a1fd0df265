"""The two losses of a matching model: contrast (ITC) and matching with hard negatives (ITM)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


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


def contrast(image: Tensor, text: Tensor, named: Tensor, temperature: float) -> Tensor:
    """Symmetric cross entropy of unit embeddings [B, E]; captions that name the same are equal."""
    logits = image @ text.T / temperature
    both = fits(named)
    same = (both & both.T).float()
    target = same / same.sum(1, keepdim=True)
    rows, columns = logits.log_softmax(1), logits.log_softmax(0)
    return -((target * rows).sum(1).mean() + (target * columns.T).sum(1).mean()) / 2


@torch.no_grad()
def hard_negatives(image: Tensor, text: Tensor, named: Tensor, temperature: float) -> Negatives:
    """Drawn by their similarity, as ALBEF and BLIP do, among those that are wrong by the words."""
    logits = (image @ text.T / temperature).masked_fill(fits(named), -torch.inf)  # [image, caption]
    logits = logits.clamp_min(-1e4)  # a row without any wrong pair still draws one
    captions = torch.multinomial(logits.softmax(1), 1)[:, 0]
    images = torch.multinomial(logits.T.softmax(1), 1)[:, 0]
    return Negatives(images, captions)


def matching(right: Tensor, wrong: Tensor) -> Tensor:
    """Cross entropy of the logits of right pairs [B, 2] and of wrong ones [N, 2], balanced."""
    match = F.cross_entropy(right, torch.ones(len(right), dtype=torch.long, device=right.device))
    other = F.cross_entropy(wrong, torch.zeros(len(wrong), dtype=torch.long, device=wrong.device))
    return (match + other) / 2


def doubting(right: Tensor, wrong: Tensor, false: Tensor, words: Tensor) -> Tensor:
    """Cross entropy of the doubt in the tokens of right captions [N], and of wrong ones [B, T],
    whose `false` ones are known and whose `words` are no padding; both kinds weigh the same."""
    true = torch.cat([right, wrong[words & ~false]])
    errors = wrong[false]
    return (
        F.binary_cross_entropy_with_logits(true, torch.zeros_like(true))
        + F.binary_cross_entropy_with_logits(errors, torch.ones_like(errors))
    ) / 2
