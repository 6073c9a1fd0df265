"""The losses of a promptable segmentation model: masks by focal and dice loss, IoU by its error."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (Lin et al. 2017)


class Judged(NamedTuple):
    """The loss of a prompt's best mask, that of its predicted IoUs, and which mask was best.

    Attributes:
        mask, iou: means over prompts.
        best: [B, P].
    """

    mask: Tensor
    iou: Tensor
    best: Tensor


def judge(logits: Tensor, predicted: Tensor, target: Tensor, focal: float) -> Judged:
    """Compare M masks of each prompt with the one that was meant.

    Only the best mask gets a gradient, so that each of the three learns a reading of its own of an
    ambiguous point (section 3 of the paper); all of them learn how well they meet what is meant.

    Args:
        logits: [B, P, M, s, s].
        predicted: IoUs [B, P, M].
        target: [B, P, s, s] booleans.
        focal: weight of the focal loss.
    """
    wanted = target[:, :, None].expand(logits.shape).to(logits.dtype)
    loss = focal * focal_loss(logits, wanted) + dice_loss(logits, wanted)  # [B, P, M]
    least, best = loss.min(-1)
    true = mask_iou(logits.detach() > 0, target[:, :, None])  # [B, P, M]
    return Judged(least.mean(), F.mse_loss(predicted, true), best)


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Average the focal loss over the pixels of [..., h, w]."""
    plain = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = torch.exp(-plain)  # probability of the right answer
    weight = ALPHA * wanted + (1 - ALPHA) * (1 - wanted)
    return (weight * (1 - right) ** GAMMA * plain).mean((-1, -2))


def dice_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Compute 1 minus the dice coefficient of [..., h, w], smoothed by one pixel."""
    found = logits.sigmoid()
    both = (found * wanted).sum((-1, -2))
    return 1 - (2 * both + 1) / (found.sum((-1, -2)) + wanted.sum((-1, -2)) + 1)


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the IoU of masks [..., h, w]; two empty ones have 1."""
    union = (a | b).sum((-1, -2))
    return torch.where(union > 0, (a & b).sum((-1, -2)) / union.clamp(min=1), 1.0)


def correction(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a point from where a mask is wrong, or from the whole of it where it is right.

    Args:
        logits: of one mask a prompt [B, P, s, s].
        target: what was meant [B, P, s, s].

    Returns:
        points [B, P, 1, 2], (x, y) in cells of the mask, and labels [B, P, 1]: 1 inside the target.
    """
    wrong = (logits > 0) != target
    weights = torch.where(wrong.any(-1).any(-1)[..., None, None], wrong, True).flatten(2).float()
    cell = torch.multinomial(weights.flatten(0, 1), 1).view(*target.shape[:2], 1)  # [B, P, 1]
    width = target.shape[-1]
    points = torch.stack([cell % width, cell // width], -1).float() + 0.5
    return points, target.flatten(2).gather(2, cell).long()
