"""What a lab CLIP can do, measured through the package as any user would."""

from __future__ import annotations

import csv

import numpy as np
import torch
from PIL import Image

from ovss import paths
from ovss.backbones.clip import ClipBackbone
from ovss.datasets import open_dataset
from ovss.evaluation import intervals
from ovss.evaluation.evaluate import evaluate
from ovss.evaluation.result import Result
from ovss.lab.pretrain.trainer import Split
from ovss.lab.scenes import STUFF_NAMES, THING_NAMES
from ovss.methods.cliper import Cliper
from ovss.segmenter import Segmenter
from ovss.vocabulary import Vocabulary

TRAINED_SIDE = 64


@torch.no_grad()
def naming(backbone: ClipBackbone, split: Split) -> tuple[float, intervals.Interval, int]:
    """How often the one thing of a single-thing scene is named right among all things, from the
    whole image at the size CLIP was trained on: percent, its 95 % interval, number of scenes."""
    data = open_dataset("lab-20", split=split)
    with paths.data("lab", "captions.csv").open(newline="") as file:
        single = {row["id"] for row in csv.DictReader(file) if row["things"] == "1"}
    samples = [data[i] for i, name in enumerate(data.ids) if name in single]
    small = [s.image.resize((TRAINED_SIDE,) * 2, Image.Resampling.BOX) for s in samples]
    pixels = torch.stack([backbone.preprocess(image, TRAINED_SIDE) for image in small])
    images = backbone.image_embedding(pixels.to(backbone.device))  # [N, E]
    scores = images @ backbone.text_features(Vocabulary.of(THING_NAMES)).T  # [N, 20]
    truth = torch.tensor([int(s.target.max()) for s in samples])
    right = (scores.argmax(1).cpu() == truth).double().numpy()  # [N]
    low, high = intervals.bootstrap(
        right[:, None], lambda sums: sums[..., 0] / len(right), bounds=(0, 1)
    )
    return 100 * float(right.mean()), intervals.Interval(100 * low, 100 * high), len(right)


def given_classes(backbone: ClipBackbone, split: Split, limit: int | None = None) -> Result:
    """CLIPer's fused attention on `lab-all`, each image queried with the classes it holds."""
    segmenter = _cliper(backbone)
    return evaluate(segmenter, "lab-all", split=split, limit=limit, classes="image", progress=False)


def all_things(backbone: ClipBackbone, split: Split, limit: int | None = None) -> Result:
    """The same on `lab-20`, queried with all things."""
    segmenter = _cliper(backbone)
    return evaluate(segmenter, "lab-20", split=split, limit=limit, progress=False)


def _cliper(backbone: ClipBackbone) -> Segmenter:
    return Segmenter(Cliper(backbone, short_side=2 * TRAINED_SIDE))


def measure(backbone: ClipBackbone, split: Split, limit: int | None = None) -> dict[str, float]:
    """The numbers of the training curve, in percent: naming, mIoU, things, stuff, lab20."""
    given = given_classes(backbone, split, limit)
    names = set(np.array(given.names)[given.areas.sum(0)[1, 1:] > 0])
    return {
        "naming": naming(backbone, split)[0],
        "miou": given.miou,
        "things": given.group([n for n in THING_NAMES if n in names])[0],
        "stuff": given.group([n for n in STUFF_NAMES if n in names])[0],
        "lab20": all_things(backbone, split, limit).miou,
    }
