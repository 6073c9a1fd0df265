"""What a lab's matching model can do: match captions, and locate things by GradCAM."""

from __future__ import annotations

import csv
from random import Random

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ovss import paths
from ovss.backbones.itm import ItmBackbone
from ovss.datasets import Sample, open_dataset
from ovss.decide import upsample
from ovss.evaluation import metrics
from ovss.evaluation.counting import draw
from ovss.lab.pretrain.itm.words import swap
from ovss.lab.pretrain.trainer import Split
from ovss.lab.scenes import NAMES, THING_NAMES
from ovss.methods.pnp_maps import gradcam, merge

SIDE = 128  # of the images when they are segmented: the side of the benchmark's


def measure(backbone: ItmBackbone, split: Split, limit: int | None = None) -> dict[str, float]:
    """Measure a matching model as the training curve has it, in percent.

    "match": accuracy on captions and on captions with a word replaced. "things", "stuff": mIoU of
    GradCAM (Eq. 1 of PnP-OVSS) with the classes of the image given, at the head that is best for
    things; "layer" and "head" tell which, from 0.
    """
    iou = head_iou(backbone, split, limit)  # [layers, heads, K]
    things = np.nanmean(iou[..., : len(THING_NAMES)], -1)  # [layers, heads]
    layer, head = np.unravel_index(np.argmax(things), things.shape)
    return {
        "match": matching_accuracy(backbone, split, limit),
        "things": 100 * float(things[layer, head]),
        "stuff": 100 * float(np.nanmean(iou[layer, head, len(THING_NAMES) :])),
        "layer": int(layer),
        "head": int(head),
    }


def matching_accuracy(backbone: ItmBackbone, split: Split, limit: int | None = None) -> float:
    """Percent of pairs classified right: each scene's caption, and the caption with a word
    replaced."""
    data = open_dataset("lab-all", split=split)
    with paths.data("lab", "captions.csv").open(newline="") as file:
        captions = {row["id"]: row["caption"] for row in csv.DictReader(file)}
    right = []
    for i in draw(len(data), limit, 0):
        caption = captions[data.ids[i]]
        texts = [caption, swap(caption, Random(f"words/{data.ids[i]}"))]
        prompts = [backbone.prompt([text], prefix="") for text in texts]
        pixels = backbone.pixels([data[i].image] * 2, backbone.size)
        says = backbone.match(pixels, prompts, gradient=False).logits.argmax(1)  # [2]
        right += [int(says[0] == 1), int(says[1] == 0)]
    return 100 * float(np.mean(right))


def head_iou(
    backbone: ItmBackbone, split: Split, limit: int | None = None, size: int = SIDE
) -> NDArray[np.float64]:
    """IoU [layers, heads, K] of each class of `lab-all` by GradCAM with the image's classes given.

    The best class wins each pixel. Not a number where no image has a class.
    """
    data = open_dataset("lab-all", split=split)
    areas = np.zeros((backbone.layers, backbone.heads, 3, len(NAMES) + 1), dtype=np.int64)
    for i in draw(len(data), limit, 0):
        sample = data[i]
        present = np.array([k for k in np.unique(sample.target) if k >= 0])
        maps = head_maps(backbone, sample, [NAMES[k] for k in present], size)
        for layer, heads in enumerate(maps):
            for head, scores in enumerate(heads):  # [K', h, w]
                labels = present[upsample(scores, sample.target.shape).argmax(0).cpu().numpy()]
                counts = metrics.confusion(labels, sample.target, len(NAMES))
                areas[layer, head] += metrics.areas(counts)
    return metrics.iou_of_areas(areas, background=False)


def head_maps(
    backbone: ItmBackbone, sample: Sample, names: list[str], size: int = SIDE
) -> list[list[Tensor]]:
    """GradCAM of the classes [K, h, w] of an image for each layer and head."""
    prompt = backbone.prompt(names)
    layers = range(backbone.layers)
    found = backbone.match(backbone.pixels([sample.image], size), [prompt], layers)
    return [
        [
            merge(gradcam(found.attention[layer], found.gradient[layer], head)[0], prompt.words)
            for head in range(backbone.heads)
        ]
        for layer in layers
    ]
