"""How the lab's matching models are trained: stages and batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ovss.lab.captions import Habits
from ovss.lab.pretrain.clip.recipe import PLAIN, SIMPLE
from ovss.lab.pretrain.itm.models import SIDE
from ovss.lab.pretrain.itm.words import CONTENT, changed, content, swap, tags
from ovss.lab.scenes import World, render
from ovss.training.loop import warmup_cosine

LESSONS = (  # what was tried on the way to this recipe, with numbers on 60 scenes of `tune`
    "Contrast and matching with hard negatives alone, the library's start, 25,000 images at 64 "
    "px: swapped words are noticed in 73 % of the captions, but each head looks everywhere "
    "alike: things at 8 mIoU by GradCAM, 9 by attention, where 6 is what a constant gets.",
    "Without the CLIP's last block and with sharper queries and keys: 9 and 14.",
    "With words exchanged between things in half of the wrong captions: 10 and 12 after 16,000 "
    "images.",
    "Batches of 32, one wrong pair for each right one: 9 and 12; with twice the rate no better; "
    "one thing named alone first: 97 % told right after 8,000 images, then 8 and 14 after "
    "33,000.",
    "With a loss on each word, whether it is the swapped one, as detectors of replaced tokens "
    "are trained (ALBEF, BLIP and BridgeTower have losses on words, too, for masked or next "
    "words): 14 and 20 after 25,000 images, 13 and 23 after 57,000, with 62 % of the swaps "
    "noticed. Words were exchanged in half of the wrong captions, which is hard; now it is a "
    "fifth.",
    "With that, after 74,000 images: 88 % of the pairs told right, things at 24 by attention and "
    "at 12 by GradCAM. A word must look at its thing: if it may not, the match's logit falls by "
    "1.7; but the gradient foretells 0.13 of it. The match is so sure that a little more or less "
    "of attention does not count. Attention dropout of 0.4, or of 0.1 with hidden dropout of "
    "0.1, for 8,000 images: 13 either way.",
    "With patches left out at random (a quarter to all are seen) it has to go by how much of a "
    "thing is seen: after 25,000 images more the gradient foretells 0.21 of 1.14, and things "
    "stand at 25 by attention; by GradCAM at 10 for the best head, at 16 for the mean of a "
    "layer's heads.",
    "BridgeTower with twice the scenes, 164,000 instead of 90,000: 68 % told right, things at 8 "
    "and stuff at 31 by GradCAM on 40 scenes, no better than before. It is not the number of "
    "scenes that it lacks.",
)
SHARES = (0.25, 0.5, 0.75, 1.0)
TALKATIVE = World(
    things=(0.25, 0.35, 0.25, 0.15),
    size=(0.28, 0.75),
    habits=Habits(0.95, name_stuff=0.6, name_colour=0.6, stuff_only=0.08),
)


@dataclass(frozen=True)
class Stage:
    """`images` scenes of `world` in batches of `batch`; of the patches a share is seen that is
    drawn from `keeps` for each batch."""

    images: int
    batch: int
    world: World
    keeps: tuple[float, ...] = (1.0,)

    @property
    def steps(self) -> int:
        return self.images // self.batch


@dataclass(frozen=True)
class Recipe:
    seed: int = 0
    rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 300
    tagged: float = 0.2  # share of captions written as a list of tags
    temperature: float = 0.07  # of the contrastive loss
    evaluate_every: int = 24_576  # images between two points of the curve
    curve_scenes: int = 40  # of `tune`, for a point of the curve
    card_scenes: int | None = None  # of `tune` and of `val`, for the card; None: all
    stages: tuple[Stage, ...] = (
        Stage(8_192, 32, PLAIN),
        Stage(8_192, 32, SIMPLE),
        Stage(57_344, 32, TALKATIVE),
        Stage(131_072, 32, TALKATIVE, SHARES),
    )

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def images(self) -> int:
        return sum(stage.steps * stage.batch for stage in self.stages)

    def stage(self, step: int) -> Stage:
        """The stage that step `step` (from 0) belongs to."""
        for stage in self.stages:
            step -= stage.steps
            if step < 0:
                return stage
        return self.stages[-1]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to 1 % of the peak."""
        return self.rate * warmup_cosine(step, self.warmup, self.steps)


RECIPES = {
    "blip-itm": Recipe(),
    "bridgetower": Recipe(  # takes twice as long for an image
        stages=(
            Stage(8_192, 32, PLAIN),
            Stage(8_192, 32, SIMPLE),
            Stage(73_728, 32, TALKATIVE, SHARES),
        )
    ),
}


class Batches(IterableDataset[tuple[Tensor, ...]]):
    """Fresh scenes from `start_step` on: pixels [B, 3, 64, 64] uint8, the captions' tokens [B, T],
    those of the same with one word swapped [B, T], and the words that a caption names [B, W]."""

    def __init__(self, recipe: Recipe, tokenizer: Any, start_step: int) -> None:
        self.recipe, self.tokenizer, self.start_step = recipe, tokenizer, start_step

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        step, first = 0, self.recipe.seed * 1_000_000_000
        for stage in self.recipe.stages:
            for _ in range(stage.steps):
                if step >= self.start_step:
                    yield self._batch(range(first, first + stage.batch), stage.world)
                step, first = step + 1, first + stage.batch

    def _batch(self, indices: range, world: World) -> tuple[Tensor, ...]:
        scenes = [render("pretrain", i, SIDE, world) for i in indices]
        pixels = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2)
        captions = [scene.caption for scene in scenes]
        pairs = [self._write(*one) for one in zip(captions, indices, strict=True)]
        texts = [right for right, _ in pairs] + [wrong for _, wrong in pairs]
        found = self.tokenizer(
            texts, padding=True, return_offsets_mapping=True, return_tensors="pt"
        )
        tokens, swapped = found.input_ids.chunk(2)
        starts, ends = found.offset_mapping.chunk(2)[1].unbind(-1)  # of each token's text
        false, named = torch.zeros_like(swapped), torch.zeros(len(scenes), len(CONTENT)).bool()
        for row, (caption, wrong) in enumerate(pairs):
            named[row, [CONTENT[word] for word in content(caption)]] = True
            for start, end in changed(caption, wrong):
                false[row] |= (starts[row] >= start) & (ends[row] <= end) & (ends[row] > 0)
        return pixels.contiguous(), tokens, swapped, false.bool(), named

    def _write(self, caption: str, index: int) -> tuple[str, str]:
        """The caption, perhaps as tags, and the same with words swapped."""
        rng = Random(f"words/{index}")
        if rng.random() < self.recipe.tagged:
            caption = tags(caption)
        return caption, swap(caption, rng)
