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

SIDE = 64  # pixels of a scene
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
    """Scenes of `world`; `views` are the embeddings that the captions must fit."""

    world: World
    patch_dropout: float = 0.5
    views: tuple[View, ...] = ("class",)

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
    )


def make_batch(tokenizer: Tokenizer, position: Position[Stage]) -> Batch:
    """Fresh scenes and their captions: pixels [B, 3, 64, 64] uint8, tokens [B, T]."""
    scenes = draw_scenes(position.images, SIDE, position.stage.world)
    tokens = [e.ids for e in tokenizer.encode_batch([scene.caption for scene in scenes])]
    return stack_pixels([scene.image for scene in scenes]), torch.tensor(tokens)
