"""What the patch tokens of a self-distilled vision transformer know, measured on the lab."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ovss import paths
from ovss.backbones.dino import DinoBackbone
from ovss.datasets import open_dataset
from ovss.lab.pretrain.attention_in_mask import inside_share, majority
from ovss.lab.scenes import THING_NAMES
from ovss.methods.proxyclip import proxy_map

Split = Literal["tune", "val"]
QUERIES = 4000  # patches whose nearest neighbour is sought


def instances(name: str) -> Tensor:
    """Which thing each pixel of a scene of `tune` or `val` belongs to: [H, W], 0 for none."""
    with Image.open(paths.data("lab", "SegmentationObject", f"{name}.png")) as picture:
        return torch.from_numpy(np.array(picture)).long()


@torch.no_grad()
def measure(backbone: DinoBackbone, split: Split, limit: int | None = None) -> dict[str, float]:
    """The numbers of the training curve, in percent.

    "inside": of a thing's patches, the share of ProxyCLIP's proxy attention that stays inside the
    thing; "area": what uniform attention would have there. "things" and "stuff": how often a
    patch's nearest neighbour in all other images is of the same class.
    """
    data = open_dataset("lab-all", split=split)
    shares, areas, tokens, labels = [], [], [], []
    for index in range(min(limit or len(data), len(data))):
        image, target = data[index].image, data[index].target
        pixels = backbone.preprocess(image, image.height, image.width)
        features = backbone.features(pixels[None])[0].float().cpu()  # [D, h, w]
        inside = inside_share(proxy_map(features), instances(data.ids[index]))
        shares.append(inside.share)
        areas.append(inside.area)
        tokens.append(F.normalize(features.flatten(1).T, dim=-1))
        labels.append(_labels(target, len(tokens[-1])))
    share, area = torch.cat(shares), torch.cat(areas)  # a thing counts by its patches
    found = {"inside": (share * area).sum() / area.sum(), "area": (area * area).sum() / area.sum()}
    found |= neighbours(torch.stack(tokens), torch.stack(labels))
    return {name: 100 * float(value) for name, value in found.items()}


def neighbours(tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """How often the nearest patch of all other images is of the same class, things and stuff.

    Unit tokens [N, L, D] and labels [N, L], -1 for unlabelled; about QUERIES patches are asked.
    """
    images = torch.arange(len(tokens)).repeat_interleave(tokens.shape[1])
    tokens, labels = tokens.flatten(0, 1), labels.flatten()
    asked = (labels >= 0).nonzero()[:, 0]
    asked = asked[:: max(1, len(asked) // QUERIES)]
    right = torch.cat([_nearest(part, tokens, images, labels) for part in asked.split(500)])
    thing = labels[asked] < len(THING_NAMES)
    return {"things": right[thing].mean(), "stuff": right[~thing].mean()}


def _nearest(asked: Tensor, tokens: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """1 where the neighbour of `asked` is of its class, else 0."""
    cosine = tokens[asked] @ tokens.T
    barred = (images[asked][:, None] == images) | (labels < 0)
    found = cosine.masked_fill_(barred, -2).argmax(-1)
    return (labels[found] == labels[asked]).double()


def _labels(target: np.ndarray, patches: int) -> Tensor:
    """The class that covers more than half of each patch [L], -1 where none does."""
    owners = majority(np.maximum(target, -1) + 1, patches)  # [K, L]
    return torch.where(owners.any(0), owners.int().argmax(0), -1)
