"""What the lab's trainings share: worlds of the curricula, pixels, normalisation, some tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovss.lab.captions import Habits
from ovss.lab.scenes import Scene, World, render
from ovss.training import curriculum

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # of the image towers

PLAIN = World(  # one large thing, the caption its name alone
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


@dataclass(frozen=True)
class WorldStage(curriculum.Stage):
    """Scenes of `worlds`, which take turns from step to step."""

    worlds: tuple[World, ...] = (World(),)

    def world(self, step: int) -> World:
        """The world of a step within the stage."""
        return self.worlds[step % len(self.worlds)]


def draw_scenes(numbers: range, side: int, world: World) -> list[Scene]:
    """Render scenes of the split `pretrain` at `side` pixels."""
    return [render("pretrain", number, side, world) for number in numbers]


def stack_pixels(images: Sequence[NDArray[Any]]) -> Tensor:
    """Stack images [S, S, 3] to a batch [B, 3, S, S] of uint8."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def normalise(pixels: Tensor) -> Tensor:
    """Normalise uint8 pixels [B, 3, H, W] to the range that the image towers are trained on."""
    return standardise(pixels.float() / 255)


def standardise(images: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation: [B, 3, H, W] in [0, 1]."""
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
    return (images - mean) / std


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Take tokens [B, K, D] of [B, L, D] by indices [B, K]."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
