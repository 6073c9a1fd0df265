"""How the lab's matching models are trained: stages and batches."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss.lab.captions import Habits
from ovss.lab.pretrain.batches import PLAIN, SIMPLE, draw_scenes, stack_pixels
from ovss.lab.pretrain.itm.models import SIDE
from ovss.lab.pretrain.itm.words import CONTENT, changed, places, swap, tags
from ovss.lab.pretrain.trainer import LabRecipe
from ovss.lab.scenes import World
from ovss.training import curriculum
from ovss.training.curriculum import Batch, Position

RICH_CAPTIONS = World(
    things=(0.25, 0.35, 0.25, 0.15),
    size=(0.28, 0.75),
    habits=Habits(0.95, name_stuff=0.6, name_colour=0.6, stuff_only=0.08),
)


@dataclass(frozen=True)
class Stage(curriculum.Stage):
    """Scenes of `world`.

    Attributes:
        faded: share of the pairs whose words read less (see `reading.fade`).
        side: pixels of a scene.
    """

    world: World
    faded: float = 0.0
    side: int = SIDE


@dataclass(frozen=True)
class Recipe(LabRecipe[Stage]):
    """Captions, and the contrastive loss; at the end scenes as large as the benchmark's.

    Attributes:
        tagged: ratio of captions written as a list of tags.
        temperature: of the contrastive loss.
    """

    warmup: int = 300
    tagged: float = 0.5
    temperature: float = 0.07
    evaluate_every: int = 16_384
    curve_scenes: int = 40
    stages: tuple[Stage, ...] = (
        Stage(8_192, 32, PLAIN),
        Stage(8_192, 32, SIMPLE),
        Stage(65_536, 32, RICH_CAPTIONS, 0.75),
        Stage(24_576, 32, RICH_CAPTIONS, 0.75, 128),
    )


def make_batch(tokenizer: Any, tagged: float, position: Position[Stage]) -> Batch:
    """Fresh scenes with right and wrong captions.

    Pixels [B, 3, S, S] uint8; tokens of the captions [B, T] and of the same with words replaced
    [B, T]; which of these tokens are the replaced ones [B, T]; the words that a caption names
    [B, W]; the content word that each token of both captions belongs to, -1 for none [B, 2, T].
    """
    scenes = draw_scenes(position.images, position.stage.side, position.stage.world)
    numbered = zip(scenes, position.images, strict=True)
    pairs = [write_captions(scene.caption, number, tagged) for scene, number in numbered]
    texts = [right for right, _ in pairs] + [wrong for _, wrong in pairs]
    found = tokenizer(texts, padding=True, return_offsets_mapping=True, return_tensors="pt")
    tokens, swapped = found.input_ids.chunk(2)
    starts, ends = found.offset_mapping.unbind(-1)  # of each token's text, [2B, T]
    replaced = torch.zeros_like(swapped, dtype=torch.bool)
    spoken = torch.full_like(found.input_ids, -1)

    def inside(row: int, start: int, end: int) -> Tensor:
        """Which tokens lie within a part of a text [T]."""
        return (starts[row] >= start) & (ends[row] <= end) & (ends[row] > 0)

    for row, text in enumerate(texts):
        for word, start, end in places(text):
            spoken[row, inside(row, start, end)] = word
    for row, (caption, wrong) in enumerate(pairs):
        for start, end in changed(caption, wrong):
            replaced[row] |= inside(len(pairs) + row, start, end)
    pixels = stack_pixels([scene.image for scene in scenes])
    both = torch.stack(spoken.chunk(2), 1)  # [B, 2, T]
    named = F.one_hot(1 + both[:, 0], 1 + len(CONTENT))[..., 1:].any(1)  # [B, W]
    return pixels, tokens, swapped, replaced, named, both


def write_captions(caption: str, number: int, tagged: float) -> tuple[str, str]:
    """The caption, perhaps as tags, and the same with words replaced."""
    rng = Random(f"words/{number}")
    if rng.random() < tagged:
        caption = tags(caption)
    return caption, swap(caption, rng)
