"""Losses that several trainings share."""

from __future__ import annotations

from torch import Tensor


def symmetric_cross_entropy(logits: Tensor, same: Tensor) -> Tensor:
    """InfoNCE in both directions, with several right answers: the mean over rows and columns.

    CLIP's loss (Radford et al. 2021, Figure 3) where `same` is the identity; pairs that are equally
    right share the probability (UniCL, Yang et al. 2022, Eq. 2).

    Args:
        logits: scaled similarities of images and texts [B, B].
        same: [B, B], symmetric; 1 or True where text j is right for image i, too.
    """
    same = same.float()
    target = same / same.sum(1, keepdim=True)
    rows, columns = logits.log_softmax(1), logits.log_softmax(0)  # [B, B] each
    return -((target * rows).sum(1).mean() + (target * columns.T).sum(1).mean()) / 2
