"""How the lab CLIP is trained: the model, the curriculum, the batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from ovss.lab.captions import Habits
from ovss.lab.pretrain.batches import PLAIN, SIMPLE, VARIED, draw_scenes, stack_pixels
from ovss.lab.pretrain.clip.views import View
from ovss.lab.pretrain.trainer import LabRecipe
from ovss.lab.scenes import World
from ovss.training import curriculum
from ovss.training.curriculum import Batch, Position
from ovss.training.optim import warmup_cosine

SIDE = 64  # pixels of a scene
LATE_WARMUP = 60  # steps, of a stage with a rate of its own
MODEL: dict[str, Any] = {
    "embed_dim": 192,
    "vision_cfg": {
        "image_size": SIDE,
        "patch_size": 8,
        "width": 192,
        "layers": 6,
        "head_width": 32,
    },
    "text_cfg": {"context_length": 24, "vocab_size": 512, "width": 128, "heads": 4, "layers": 2},
}
RICH_CAPTIONS = World(  # stuff is named in most captions
    size=(0.28, 0.85), habits=Habits(0.92, name_stuff=0.6, name_colour=0.4, stuff_only=0.1)
)
READ = (PLAIN, SIMPLE, VARIED, World(habits=Habits(name_colour=0.4)))  # by the tokenizer


@dataclass(frozen=True)
class Stage(curriculum.Stage):
    """Scenes of `world`; `views` are the embeddings that the captions must fit.

    Attributes:
        sides: of the scenes in pixels, by turns.
        rate: peak of the learning rate, with a warm-up and a cosine of the stage's own; none: the
            stage shares those of the recipe.
    """

    world: World
    patch_dropout: float = 0.5
    views: tuple[View, ...] = ("class",)
    sides: tuple[int, ...] = (SIDE,)
    rate: float | None = None

    def __post_init__(self) -> None:
        if "mosaic" in self.views and self.patch_dropout:
            raise ValueError("the mosaic view needs all patches: patch_dropout must be 0")


@dataclass(frozen=True)
class Recipe(LabRecipe[Stage]):
    """The curriculum goes from one large thing on plain ground, named without its colour, to the
    world of the benchmark: a small CLIP learns stuff and colours first and things hardly, unless
    nothing else is said of the picture."""

    warmup: int = 600
    evaluate_every: int = 40_000
    stages: tuple[Stage, ...] = (
        Stage(120_000, 64, PLAIN, 0.0),
        Stage(120_000, 128, SIMPLE, 0.25),
        Stage(10_368, 128, VARIED),
        Stage(220_288, 128, VARIED, views=("class", "local")),
        Stage(309_248, 128, RICH_CAPTIONS, 0.0, views=("class", "local", "mosaic")),
        Stage(61_440, 64, RICH_CAPTIONS, 0.0, ("class", "local", "mosaic"), (2 * SIDE, SIDE), 3e-4),
    )

    def learning_rate(self, step: int) -> float:
        """Linear warm-up and a cosine to 1 % of the peak, over the stages that share them."""
        stage, within, _ = self.at(step)
        if stage.rate is not None:
            return stage.rate * warmup_cosine(within, LATE_WARMUP, stage.steps)
        shared = sum(stage.steps for stage in self.stages if stage.rate is None)
        return self.rate * warmup_cosine(step, self.warmup, shared)


def make_batch(tokenizer: Tokenizer, position: Position[Stage]) -> Batch:
    """Fresh scenes and their captions: pixels [B, 3, S, S] uint8, tokens [B, T]."""
    stage = position.stage
    side = stage.sides[position.step % len(stage.sides)]
    scenes = draw_scenes(position.images, side, stage.world)
    tokens = [e.ids for e in tokenizer.encode_batch([scene.caption for scene in scenes])]
    return stack_pixels([scene.image for scene in scenes]), torch.tensor(tokens)
