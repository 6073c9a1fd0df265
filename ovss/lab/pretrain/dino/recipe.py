"""How the lab DINO is trained: the model, the curriculum, the films of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from einops import rearrange

from ovss.lab.disguise import Disguise
from ovss.lab.pretrain.batches import PLAIN, SIMPLE, VARIED, stack_pixels
from ovss.lab.pretrain.trainer import LabRecipe
from ovss.lab.scenes import COLOUR_NAMES, MOTLEY, STUFF_NAMES, World, film
from ovss.training import curriculum
from ovss.training.curriculum import Batch, Position
from ovss.training.optim import cosine

PATCH = 8  # pixels
MODEL: dict[str, Any] = {
    "image_size": 128,
    "patch_size": PATCH,
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "attn_implementation": "eager",  # on a CPU the fused kernel's backward pass is slower
}
FEW_COLOURS = Disguise(motley=0.3, textured=0.1, camouflage=0.2)
ALIGNED = replace(PLAIN, size=(0.7, 0.95), tilt=5.0, pan=1.0)
LIVELY = replace(VARIED, pan=0.5)


@dataclass(frozen=True)
class Stage(curriculum.Stage):
    """Films of `worlds`, by turns.

    Attributes:
        frame: pixels of a frame.
        side: pixels of a large crop; small ones have half of them.
        contrast: weight of the contrastive loss.
        distil: weight of DINO's and iBOT's losses; 0: no patch is hidden either. The prototypes of
            an untrained teacher sort by what the other frame cannot tell.
        alike: the first frames of all films of a batch share a colour and a ground, and so do the
            second ones, another: then nothing but shape tells the films of a batch apart.
    """

    worlds: tuple[World, ...] = (World(),)
    frame: int = 64
    side: int = 64
    contrast: float = 1.0
    distil: float = 1.0
    alike: bool = False


@dataclass(frozen=True)
class Recipe(LabRecipe[Stage]):
    """Crops, masks, and what the teacher does.

    Attributes:
        small: number of small crops of a frame.
        large_sizes, small_sizes: least and largest side of a crop in sides of the frame.
        jitter: strength of brightness, contrast and saturation.
        masked_share, mask_ratio: the share of the large crops that have hidden patches, and the
            least and largest ratio of these.
        prototypes: outputs of the head.
        frozen_prototypes: for this part of the steps they stay as drawn.
        koleo: weight of the KoLeo loss.
        momentum: of the teacher, first and last.
        temperature: of the teacher.
    """

    small: int = 1
    large_sizes: tuple[float, float] = (0.7, 1.0)
    small_sizes: tuple[float, float] = (0.4, 0.7)
    jitter: float = 0.25
    masked_share: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    prototypes: int = 128
    frozen_prototypes: float = 0.03
    koleo: float = 0.1
    rate: float = 1e-3
    warmup: int = 300
    momentum: tuple[float, float] = (0.99, 0.9995)
    temperature: float = 0.04
    evaluate_every: int = 20_000
    dtype: Literal["float32", "bfloat16"] = "float32"  # faster on a CPU without AMX
    stages: tuple[Stage, ...] = (
        Stage(48_000, 64, (ALIGNED,), side=48, distil=0.0, alike=True),
        Stage(96_000, 64, (replace(PLAIN, pan=1.0),), side=48, distil=0.0, alike=True),
        Stage(48_000, 64, (replace(PLAIN, pan=1.0),), side=48),
        Stage(128_000, 64, (replace(SIMPLE, pan=0.7, disguise=FEW_COLOURS),)),
        Stage(128_000, 64, (LIVELY, replace(LIVELY, disguise=MOTLEY.disguise))),
        Stage(32_000, 32, (LIVELY, replace(LIVELY, disguise=MOTLEY.disguise)), 128, 128),
    )

    def teacher_momentum(self, step: int) -> float:
        """A cosine from first to last."""
        return cosine(*self.momentum, step / self.steps)


def make_batch(position: Position[Stage]) -> Batch:
    """Fresh films of two frames: pixels [B, 2, 3, S, S] uint8."""
    worlds = worlds_of(position)
    films = [film("pretrain", n, position.stage.frame, worlds) for n in position.images]
    pixels = stack_pixels([frame.image for frames in films for frame in frames])
    return (rearrange(pixels, "(b v) c h w -> b v c h w", v=2),)


def worlds_of(position: Position[Stage]) -> tuple[World, World]:
    """The worlds of the first and the second frames of a batch."""
    stage = position.stage
    world = stage.worlds[position.step % len(stage.worlds)]
    if not stage.alike:
        return world, world
    rng = Random(f"alike/{position.images.start}")
    first, second = (
        replace(world, colours=(rng.choice(COLOUR_NAMES),), stuff=(rng.choice(STUFF_NAMES),))
        for _ in range(2)
    )
    return first, second
