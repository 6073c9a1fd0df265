"""How the lab DINO is trained: the model, the curriculum, the films of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from einops import rearrange

from ovss.lab.disguise import Disguise
from ovss.lab.pretrain.batches import PLAIN, SIMPLE, VARIED, WorldStage, stack_pixels
from ovss.lab.pretrain.trainer import VIT, LabRecipe
from ovss.lab.scenes import MOTLEY, film
from ovss.training.curriculum import Batch, Position

MODEL: dict[str, Any] = {
    **VIT,
    "attn_implementation": "eager",  # on a CPU the fused kernel's backward pass is slower
}
PATCH: int = VIT["patch_size"]  # pixels
FEW_COLOURS = Disguise(motley=0.3, textured=0.1, camouflage=0.2)
LONE = replace(PLAIN, pan=1.0)
COUPLE = replace(SIMPLE, pan=0.6, disguise=FEW_COLOURS)
MASKED = replace(VARIED, pan=0.5, disguise=MOTLEY.disguise)
STILL = replace(MASKED, pan=0.0)  # the grounds stay


@dataclass(frozen=True)
class Stage(WorldStage):
    """Films of `worlds`, by turns; an image of the curriculum is a film.

    Attributes:
        frames: of a film.
        frame: pixels of a frame.
        side: pixels of a crop.
        least: smallest side of a crop in sides of the frame, before it is resized.
        seen: share of the patches that are read.
        settle: weight of `settle_loss`.
    """

    frames: int = 12
    frame: int = 64
    side: int = 64
    least: float = 0.7
    seen: float = 1.0
    settle: float = 0.0


@dataclass(frozen=True)
class Recipe(LabRecipe[Stage]):
    """One large thing first, then two, then the world of the benchmark in motley, at its size.

    Attributes:
        jitter: strength of brightness, contrast and saturation.
        asked: patches of a frame that are matched.
        matched: share of these that count where the grounds change from frame to frame:
            those of things. Where they stay, each patch has its like, and all count.
    """

    jitter: float = 0.25
    asked: int = 16
    matched: float = 0.25
    warmup: int = 200
    evaluate_every: int = 3_200
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    stages: tuple[Stage, ...] = (
        Stage(12_800, 16, (LONE,), side=48),
        Stage(4_800, 16, (LONE, COUPLE)),
        Stage(20_800, 16, (LONE, COUPLE, MASKED, STILL), seen=0.5),
        Stage(12_800, 16, (MASKED,), 12, 128, 96, 0.6, 0.5, settle=10.0),
    )


def make_batch(position: Position[Stage]) -> Batch:
    """Fresh films: pixels [B, V, 3, S, S] uint8."""
    stage = position.stage
    world = stage.world(position.step)
    films = [film("pretrain", n, stage.frame, [world] * stage.frames) for n in position.images]
    pixels = stack_pixels([frame.image for frames in films for frame in frames])
    return (rearrange(pixels, "(b v) c h w -> b v c h w", v=stage.frames),)
