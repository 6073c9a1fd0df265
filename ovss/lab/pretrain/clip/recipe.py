"""How the lab CLIP is trained: the model, the curriculum, and what was tried on the way to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import IterableDataset

from ovss.lab.captions import Habits
from ovss.lab.pretrain.clip.views import View
from ovss.lab.scenes import World, render
from ovss.training.loop import warmup_cosine

LESSONS = (  # what was tried on the way to this recipe, with numbers on `tune`
    "Stuff and colours named in most captions and half of the patches dropped from the start: "
    "after 100,000 images things are named at chance (5 %), while stuff stands at 54 IoU.",
    "One large thing, the caption its name alone, batches of 64, all patches: 36 % of the things "
    "are named right after 30,000 images; with batches of 128 and half of the patches 21 %; with "
    "colours in 15 % of the captions and heads of 64 channels 12 %.",
    "The class view alone: 88 % named right after 250,000 images, but the patches do not know "
    "what they show: things and stuff stay below 10, with all things queried 5.",
    "With the local view, after 470,000 images: lab-20 at 38, but with the image's classes given "
    "things at 14 and stuff at 34, because what surrounds a thing is called by its name.",
    "With the mosaic view and more stuff named, 170,000 images later: things at 36, stuff at 81, "
    "lab-20 at 50.",
)
MODEL: dict[str, Any] = {
    "embed_dim": 192,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 192, "layers": 6, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 512, "width": 128, "heads": 4, "layers": 2},
}


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: `images` scenes of `world` in batches of `batch`."""

    images: int
    batch: int
    world: World
    patch_dropout: float = 0.5
    views: tuple[View, ...] = ("class",)  # what the captions must fit

    def __post_init__(self) -> None:
        if "mosaic" in self.views and self.patch_dropout:
            raise ValueError("the mosaic view needs all patches: patch_dropout must be 0")


PLAIN = World(
    things=(1.0,),
    size=(0.5, 0.95),
    regions=(1.0,),
    habits=Habits(1.0, name_stuff=0.0, name_colour=0.0, stuff_only=0.0),
)
SIMPLE = World(
    things=(0.6, 0.4),
    size=(0.35, 0.9),
    regions=(0.6, 0.4),
    habits=Habits(1.0, name_stuff=0.15, name_colour=0.25, stuff_only=0.02),
)
VARIED = World(things=(0.45, 0.3, 0.17, 0.08), size=(0.28, 0.85), habits=Habits(name_colour=0.4))
TALKATIVE = World(
    size=(0.28, 0.85), habits=Habits(0.92, name_stuff=0.6, name_colour=0.4, stuff_only=0.1)
)
READ = (PLAIN, SIMPLE, VARIED, World(habits=Habits(name_colour=0.4)))  # by the tokenizer


@dataclass(frozen=True)
class Recipe:
    seed: int = 0
    rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 600
    evaluate_every: int = 40_000  # images between two points of the curve
    curve_scenes: int = 100  # of `tune`, for a point of the curve
    card_scenes: int | None = None  # of `tune` and of `val`, for the card; None: all
    stages: tuple[Stage, ...] = (
        Stage(120_000, 64, PLAIN, 0.0),
        Stage(120_000, 128, SIMPLE, 0.25),
        Stage(10_368, 128, VARIED),
        Stage(220_288, 128, VARIED, views=("class", "local")),
        Stage(309_248, 128, TALKATIVE, 0.0, views=("class", "local", "mosaic")),
    )

    @property
    def steps(self) -> int:
        return sum(stage.images // stage.batch for stage in self.stages)

    @property
    def images(self) -> int:
        return sum(stage.images // stage.batch * stage.batch for stage in self.stages)

    def stage(self, step: int) -> Stage:
        """The stage that step `step` (from 0) belongs to."""
        for stage in self.stages:
            step -= stage.images // stage.batch
            if step < 0:
                return stage
        return self.stages[-1]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to 1 % of the peak."""
        return self.rate * warmup_cosine(step, self.warmup, self.steps)


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of fresh scenes from `start_step` on: pixels [B, 3, 64, 64] uint8, tokens [B, T]."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, start_step: int) -> None:
        self.recipe, self.tokenizer, self.start_step = recipe, tokenizer, start_step

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = index = 0
        for stage in self.recipe.stages:
            for _ in range(stage.images // stage.batch):
                if step >= self.start_step:
                    yield self._batch(index, stage)
                step, index = step + 1, index + stage.batch

    def _batch(self, first: int, stage: Stage) -> tuple[Tensor, Tensor]:
        offset = self.recipe.seed * 1_000_000_000
        numbers = range(offset + first, offset + first + stage.batch)
        scenes = [render("pretrain", i, 64, stage.world) for i in numbers]
        pixels = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2)
        tokens = [e.ids for e in self.tokenizer.encode_batch([s.caption for s in scenes])]
        return pixels.contiguous(), torch.tensor(tokens)
