"""How the lab's latent diffusion model is trained: stages and batches."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovss.lab.captions import Habits, Mention, caption
from ovss.lab.pretrain.batches import stack_pixels
from ovss.lab.pretrain.trainer import LabRecipe
from ovss.lab.scenes import NAMES, THING_NAMES, Scene, World, render
from ovss.training import curriculum
from ovss.training.curriculum import Batch, Position
from ovss.training.optim import warmup_cosine

SIDE = 128  # pixels of a rendered scene
HABITS = Habits(name_stuff=0.6, name_colour=0.6)
VISIBLE = 0.4  # a thing is named if this share of it is in the crop


@dataclass(frozen=True)
class Stage(curriculum.Stage):
    """Scenes cut to `side` pixels, with a rate of its own; "image": the autoencoder learns,
    "noise": the U-Net and the text encoder do."""

    learns: Literal["image", "noise"]
    side: int
    rate: float
    warmup: int = 200


@dataclass(frozen=True)
class Recipe(LabRecipe[Stage]):
    """First the autoencoder, then the U-Net.

    Attributes:
        attend: weight of the auxiliary loss of the finest self-attention (see `attention`).
        average: momentum of the U-Net's moving average, whose weights are kept.
        unprompted: ratio of captions left out: the empty prompt is learnt too.
    """

    weight_decay: float = 0.01
    beta2: float = 0.99
    attend: float = 1.0
    average: float = 0.999
    unprompted: float = 0.2
    evaluate_every: int = 32_768
    curve_scenes: int = 60
    stages: tuple[Stage, ...] = (
        Stage(24_576, 32, "image", 64, 1e-3),
        Stage(245_760, 16, "noise", 64, 5e-4),
        Stage(57_344, 8, "noise", 128, 2e-4),
    )

    def learning_rate(self, step: int) -> float:
        """Linear warm-up and a cosine to 1 % of the peak, in each stage."""
        stage, within, _ = self.at(step)
        return stage.rate * warmup_cosine(within, stage.warmup, stage.steps)


def make_batch(tokenizer: Any, unprompted: float, position: Position[Stage]) -> Batch:
    """Crops of fresh scenes and their captions: pixels [B, 3, S, S] uint8, tokens [B, T]."""
    side = position.stage.side
    pairs = [crop(number, side, unprompted) for number in position.images]
    tokens = tokenize(tokenizer, [words for _, words in pairs])
    return stack_pixels([pixels for pixels, _ in pairs]), tokens


def crop(number: int, side: int, unprompted: float) -> tuple[NDArray[np.uint8], str]:
    """A crop of a scene [S, S, 3], and what is said of it, if anything."""
    rng = Random(f"crop/{number}")
    scene = render("pretrain", number, SIDE, World())
    x, y = rng.randint(0, SIDE - side), rng.randint(0, SIDE - side)
    words = describe(scene, x, y, side, rng)
    silent = rng.random() < unprompted
    return scene.image[y : y + side, x : x + side], "" if silent else words


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """[B, T], padded as Stable Diffusion's pipeline does."""
    found = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return torch.as_tensor(found.input_ids)


def describe(scene: Scene, x: int, y: int, side: int, rng: Random) -> str:
    """A caption of the window of `side` pixels at (x, y): names what can be seen there."""
    window = slice(y, y + side), slice(x, x + side)
    counts = np.bincount(scene.instances.ravel(), minlength=len(scene.things) + 1)
    inside = np.bincount(scene.instances[window].ravel(), minlength=len(counts))
    seen = [
        Mention(thing.category, thing.colour, thing.x, thing.y)
        for i, thing in enumerate(scene.things, 1)
        if counts[i] and inside[i] >= VISIBLE * counts[i]
    ]
    labels = np.unique(scene.labels[window])
    stuff = [NAMES[label] for label in labels if label >= len(THING_NAMES)]
    return caption(seen, stuff or scene.stuff, rng, HABITS)
