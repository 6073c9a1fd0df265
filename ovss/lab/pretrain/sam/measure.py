"""What the lab SAM can do: find a thing by a click at its centre."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ovss.backbones.sam import Prediction, SamBackbone
from ovss.datasets import open_dataset
from ovss.evaluation.counting import draw
from ovss.lab.pretrain.attention_in_mask import instances
from ovss.lab.pretrain.sam.losses import mask_iou
from ovss.lab.pretrain.sam.recipe import inner_points
from ovss.lab.pretrain.trainer import Split

VISIBLE = 64  # pixels that show of a thing which is clicked at
FIVE = 5  # points of a prompt that is not ambiguous


def measure(backbone: SamBackbone, split: Split, limit: int | None = None) -> dict[str, float]:
    """Measure a SAM as the training curve has it, in percent.

    "click": mean IoU of a thing with the mask of highest predicted IoU at one click at its centre;
    "best_of_three": with the best of the three masks; "five": as "click", with five points drawn
    inside; "click_motley": "click" in the motley world.
    """
    plain = np.concatenate(clicks(backbone, split, limit))
    motley = np.concatenate(clicks(backbone, f"{split}-motley", limit))
    found = dict(zip(("click", "best_of_three", "five"), plain.mean(0), strict=True))
    found["click_motley"] = motley[:, 0].mean()
    return {name: 100 * float(value) for name, value in found.items()}


def clicks(
    backbone: SamBackbone, split: str, limit: int | None = None
) -> list[NDArray[np.float64]]:
    """For each image with things, the IoUs of these that `measure` averages: [things, 3]."""
    data = open_dataset("lab-20", split=split)
    rows = []
    for i in draw(len(data), limit, 0):
        numbers = instances(data.ids[i])
        masks = [numbers == n for n in range(1, numbers.max() + 1)]
        masks = [mask for mask in masks if mask.sum() >= VISIBLE]
        if masks:
            rows.append(_clicks(backbone, data[i].image, masks))
    return rows


def centre(mask: NDArray[Any]) -> tuple[int, int]:
    """The pixel (x, y) of a mask farthest from its border, which the image's edge is too."""
    inside = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(inside.argmax(), mask.shape)
    return int(x), int(y)


def _clicks(
    backbone: SamBackbone, image: Image.Image, masks: list[NDArray[Any]]
) -> NDArray[np.float64]:
    embedded = backbone.embed(image)
    truth = torch.from_numpy(np.stack(masks))  # [T, H, W]
    one = torch.tensor([[centre(mask)] for mask in masks]).float()
    five = torch.from_numpy(
        np.stack([inner_points(mask, FIVE, np.random.default_rng(0)) for mask in masks])
    )
    found, more = backbone.predict(embedded, one), backbone.predict(embedded, five)
    ious = mask_iou(found.logits.cpu() > 0, truth[:, None])  # [T, 3]
    columns = [_surest(found, truth), ious.max(1).values, _surest(more, truth)]
    return torch.stack(columns, 1).double().numpy()


def _surest(found: Prediction, truth: Tensor) -> Tensor:
    """IoU [T] of the masks of highest predicted IoU."""
    return mask_iou(found.best()[0].cpu(), truth)
