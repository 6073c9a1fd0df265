"""Does attention stay inside the object? The share of it that does, beside that of chance."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class Inside(NamedTuple):
    """One number for each thing instance that fills the larger part of at least one patch.

    Attributes:
        share: of the attention of the instance's patches, the part within it: [..., I] in [0, 1].
        area: its share of all patches [I], which is what uniform attention would get.
    """

    share: Tensor
    area: Tensor


def inside_share(attention: Tensor, instances: NDArray[Any] | Tensor) -> Inside:
    """The share of an object pixel's attention that falls inside its own object.

    A patch belongs to an instance that covers more than half of it. Rows of `attention` are scaled
    to sum to 1, so that maps without their class token are judged alike.

    Args:
        attention: [..., L, L], row l says what patch l attends to; patches row by row.
        instances: [H, W] integers, 0 for what belongs to no thing.
    """
    owners = majority(instances, attention.shape[-1]).to(attention)  # [I, L]
    owners = owners[owners.any(-1)]
    count = owners.sum(-1)
    rows = attention / attention.sum(-1, keepdim=True)
    within = (rows @ owners.mT) * owners.mT  # [..., L, I]
    return Inside(within.sum(-2) / count, count / owners.shape[-1])


def majority(numbers: NDArray[Any] | Tensor, patches: int) -> Tensor:
    """Which of `patches` patches lie for more than half in region i + 1 of a map of numbers.

    [H, W] integers, 0 for no region -> [I, L] booleans, I being the largest number.
    """
    numbers = torch.as_tensor(numbers).long()
    planes = F.one_hot(numbers)[..., 1:].permute(2, 0, 1).float()  # [I, H, W]
    patch = (numbers.numel() / patches) ** 0.5
    grid = (round(len(numbers) / patch), round(numbers.shape[1] / patch))
    return (F.adaptive_avg_pool2d(planes, grid) > 0.5).flatten(1)
