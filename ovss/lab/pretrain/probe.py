"""A ridge probe: what a linear map can read off frozen patch tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
RIDGE = 1e-3  # of the variance of a standardised channel


def fit_ridge(tokens: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Fit one-hot classes [n] by tokens [n, D] in least squares with a ridge.

    Tokens weigh as the inverse square root of their class's frequency: else most things, being
    small, would never be predicted.

    Returns:
        weights [D, K] and bias [K], for tokens as they are.
    """
    tokens, wanted = tokens.double(), F.one_hot(classes, count).double()  # [n, D], [n, K]
    weight = wanted.sum(0).clamp(min=1).rsqrt()[classes][:, None]  # [n, 1]
    weight = weight / weight.sum()
    mean, goal = (weight * tokens).sum(0), (weight * wanted).sum(0)  # [D], [K]
    scale = (weight * (tokens - mean).square()).sum(0).sqrt().clamp(min=1e-6)  # [D]
    unit = (tokens - mean) / scale
    gram = unit.T @ (weight * unit)
    gram.diagonal().add_(RIDGE)
    weights = torch.linalg.solve(gram, unit.T @ (weight * (wanted - goal))) / scale[:, None]
    return weights.float(), (goal - mean @ weights).float()


def class_ious(found: Tensor, truth: Tensor, count: int) -> Array:
    """Compute the IoU [K] of each class over classes found and true [n], nan where it is not."""
    counts = torch.bincount(count * truth + found, minlength=count**2).view(count, count).numpy()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return np.where(counts.sum(1) > 0, counts.diagonal() / union.clip(1), np.nan)
