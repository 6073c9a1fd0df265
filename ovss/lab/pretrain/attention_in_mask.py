"""How much of an object's attention falls inside the object's mask, beside uniform attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ovss import paths


class AttentionInMask(NamedTuple):
    """One number for each thing instance that fills the larger part of at least one patch.

    Attributes:
        mass: of the attention of the instance's patches, the part within it: [..., I] in [0, 1].
        area: its part of all patches [I], which is what uniform attention would get.
    """

    mass: Tensor
    area: Tensor


def attention_in_mask(attention: Tensor, instances: NDArray[Any] | Tensor) -> AttentionInMask:
    """Average the attention mass of an object's patches that falls inside its own mask.

    A patch belongs to an instance that covers more than half of it. Rows of `attention` are scaled
    to sum to 1, so that maps without their class token are judged alike.

    Args:
        attention: [..., L, L], row l says what patch l attends to; patches row by row.
        instances: [H, W] integers, 0 for what belongs to no thing.
    """
    owners = majority(instances, attention.shape[-1]).to(attention)  # [I, L]
    owners = owners[owners.any(-1)]
    count = owners.sum(-1)  # [I]
    rows = attention / attention.sum(-1, keepdim=True)
    within = (rows @ owners.mT) * owners.mT  # [..., L, I]
    return AttentionInMask(within.sum(-2) / count, count / owners.shape[-1])


def majority(numbers: NDArray[Any] | Tensor, patches: int) -> Tensor:
    """Assign patches to the region that covers more than half of them.

    [H, W] integers, 0 for no region -> [I, L] booleans, I being the largest number.
    """
    numbers = torch.as_tensor(numbers).long()
    planes = F.one_hot(numbers)[..., 1:].permute(2, 0, 1).float()  # [I, H, W]
    patch = (numbers.numel() / patches) ** 0.5
    grid = (round(len(numbers) / patch), round(numbers.shape[1] / patch))
    return (F.adaptive_avg_pool2d(planes, grid) > 0.5).flatten(1)


def instances(name: str) -> NDArray[np.uint8]:
    """Read the instance map of a lab image [H, W], 0 for what is no thing."""
    with Image.open(paths.data("lab", "SegmentationObject", f"{name}.png")) as file:
        return np.array(file)


def middle_of_largest(name: str, side: int) -> tuple[int, int]:
    """Find a patch (row, column) well within the largest thing of a lab image.

    Args:
        name: of the image.
        side: patches along a side of the grid.
    """
    owners = majority(instances(name), side**2)  # [I, side^2]
    mine = owners[owners.sum(1).argmax()].reshape(side, side).nonzero()  # [n, 2]
    centre = mine.double().mean(0)
    row, column = mine[(mine - centre).norm(dim=1).argmin()].tolist()
    return row, column
