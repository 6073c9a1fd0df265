"""What the patch tokens of a vision transformer know that saw no label, measured on the lab."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ovss.backbones.dino import DinoBackbone
from ovss.datasets import open_dataset
from ovss.evaluation import intervals
from ovss.evaluation.intervals import Interval
from ovss.lab.pretrain.attention_in_mask import attention_in_mask, instances, majority
from ovss.lab.pretrain.clusters import Grouping, colour_grid, judge_clusters, kmeans
from ovss.lab.pretrain.probe import class_ious, fit_ridge
from ovss.lab.pretrain.trainer import Split
from ovss.lab.scenes import NAMES, THING_NAMES, render
from ovss.methods.proxyclip import proxy_map
from ovss.training.card import Gate

QUERIES = 4000  # patches whose nearest neighbour is sought
SIDE = 128  # pixels of the scenes that the probe is fitted on
PROBE_FROM, PROBE_SCENES = 900_000_000, 400
OVER_COLOURS = Gate(
    "over_colours",
    "oracle mIoU of k-means in the motley world, tokens minus colours of the same grid",
    3.0,
)


class Features(NamedTuple):
    """Patch tokens and labels of a split.

    Attributes:
        tokens: unit vectors [N, L, D].
        labels: of each patch [N, L], -1 where no class covers more than half.
        attention: by image [N, 3], summed over things: patches, patches weighted by the attention
            mass inside the thing, patches weighted by the thing's area.
    """

    tokens: Tensor
    labels: Tensor
    attention: NDArray[np.float64]


@torch.no_grad()
def measure(backbone: DinoBackbone, split: Split, limit: int | None = None) -> dict[str, float]:
    """Measure patch tokens as the training curve has it, in percent.

    "attention_in_mask": of the proxy attention (ProxyCLIP) of a thing's patches, the part inside
    the thing; "area": what uniform attention would have there. "things" and "stuff": how often a
    patch's nearest neighbour in all other images is of the same class. "probe_things" and
    "probe_stuff": mIoU of a ridge probe. "oracle", "best_cluster", "over_colours": see `group`.
    """
    found = read_features(backbone, split, limit)
    patches, inside, area = found.attention.sum(0)
    right = neighbours(found.tokens, found.labels)
    parts = {"attention_in_mask": inside / patches, "area": area / patches, **right}
    percent = {name: 100 * float(value) for name, value in parts.items()}
    return {**percent, **probe(backbone, split, limit), **group(backbone, split, limit)}


@torch.no_grad()
def probe(backbone: DinoBackbone, split: Split, limit: int | None = None) -> dict[str, float]:
    """Read the classes of `lab-all` off the patch tokens by a ridge probe: mIoU in percent.

    The probe is fitted on PROBE_SCENES scenes of `pretrain`, past those that any recipe trains on;
    fitted and judged are the patches of which one class covers more than half.
    """
    fitted = [render("pretrain", PROBE_FROM + i, SIDE) for i in range(PROBE_SCENES)]
    tokens = torch.cat([patch_tokens(backbone, Image.fromarray(s.image)) for s in fitted])
    classes = torch.stack([_labels(s.labels, tokens.shape[1]) for s in fitted])  # [N, L]
    weights, bias = fit_ridge(tokens[classes >= 0], classes[classes >= 0], len(NAMES))
    data = open_dataset("lab-all", split=split)
    samples = [data[index] for index in range(min(limit or len(data), len(data)))]
    tokens = torch.cat([patch_tokens(backbone, sample.image) for sample in samples])
    classes = torch.stack([_labels(s.target, tokens.shape[1]) for s in samples])
    found = (tokens[classes >= 0] @ weights + bias).argmax(1)
    ious = 100 * class_ious(found, classes[classes >= 0], len(NAMES))
    things = len(THING_NAMES)
    return {
        "probe_things": float(np.nanmean(ious[:things])),
        "probe_stuff": float(np.nanmean(ious[things:])),
    }


@torch.no_grad()
def group(backbone: DinoBackbone, split: Split, limit: int | None = None) -> dict[str, float]:
    """Judge k-means (K = 8) of the patch tokens in the motley world, in percent.

    "oracle": mIoU on `lab-21` with each cluster named right; "best_cluster": of each thing the IoU
    of its best cluster; "over_colours": "oracle" minus that of mean colours on the same grid.
    """
    data = open_dataset("lab-21", split=f"{split}-motley")
    samples = [data[index] for index in range(min(limit or len(data), len(data)))]
    tokens = torch.cat([patch_tokens(backbone, sample.image) for sample in samples])  # [N, L, D]
    side = _side(tokens)
    images = torch.stack([torch.from_numpy(np.array(s.image)) for s in samples])
    colours = colour_grid(images.permute(0, 3, 1, 2) / 255, side)  # [N, L, 3]
    labels = [sample.target + 1 for sample in samples]  # 0: what is no thing
    numbers = [instances(name) for name in data.ids[: len(samples)]]

    def judge(points: Tensor) -> Grouping:
        clusters = kmeans(points).unflatten(1, (side, side)).numpy()
        return judge_clusters(clusters, labels, numbers, 1 + len(data.names))

    found = judge(F.normalize(tokens, dim=-1))
    return {
        "oracle": found.oracle,
        "best_cluster": found.best_cluster,
        "over_colours": found.oracle - judge(colours).oracle,
    }


def patch_tokens(backbone: DinoBackbone, image: Image.Image) -> Tensor:
    """Compute the patch tokens of one image at its own size: [1, L, D]."""
    pixels = backbone.preprocess(image, image.height, image.width)
    return backbone.features(pixels[None]).float().cpu().flatten(2).mT


def _side(tokens: Tensor) -> int:
    """The side of a square grid of L patches."""
    return round(tokens.shape[1] ** 0.5)


def attention_interval(backbone: DinoBackbone, split: Split, limit: int | None = None) -> Interval:
    """The 95 % interval over images of "attention_in_mask"."""
    sums = read_features(backbone, split, limit).attention
    return intervals.bootstrap(
        sums, lambda drawn: 100 * drawn[..., 1] / drawn[..., 0], bounds=(0, 100)
    )


@torch.no_grad()
def read_features(backbone: DinoBackbone, split: Split, limit: int | None = None) -> Features:
    """Read the first `limit` scenes of `lab-all` (None: all)."""
    data = open_dataset("lab-all", split=split)
    tokens, labels, attention = [], [], []
    for index in range(min(limit or len(data), len(data))):
        image, target = data[index].image, data[index].target
        pixels = backbone.preprocess(image, image.height, image.width)
        features = backbone.features(pixels[None])[0].float().cpu()  # [D, h, w]
        inside = attention_in_mask(proxy_map(features), instances(data.ids[index]))
        weighted = (torch.ones_like(inside.area), inside.mass, inside.area)  # things by patches
        attention.append([float((part * inside.area).sum()) for part in weighted])
        tokens.append(F.normalize(features.flatten(1).T, dim=-1))  # [L, D]
        labels.append(_labels(target, len(tokens[-1])))
    return Features(torch.stack(tokens), torch.stack(labels), np.array(attention))


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
    owners = majority(np.maximum(target.astype(int), -1) + 1, patches)  # [K, L]
    return torch.where(owners.any(0), owners.int().argmax(0), -1)
