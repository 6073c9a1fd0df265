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
from ovss.training.optim import cosine

MODEL: dict[str, Any] = {
    **VIT,
    "attn_implementation": "eager",  # on a CPU the fused kernel's backward pass is slower
}
PATCH: int = VIT["patch_size"]  # pixels
FEW_COLOURS = Disguise(motley=0.3, textured=0.1, camouflage=0.2)
LONE = replace(PLAIN, pan=1.0)
COUPLE = replace(SIMPLE, pan=0.6, disguise=FEW_COLOURS)
LIVELY = replace(VARIED, pan=0.5)
MASKED = replace(LIVELY, disguise=MOTLEY.disguise)


@dataclass(frozen=True)
class Stage(WorldStage):
    """Films of `worlds`, by turns; an image of the curriculum is a film.

    Attributes:
        frames: of a film.
        frame: pixels of a frame.
        side: pixels of a crop.
        crops: of each frame.
        mosaic: four frames of different films are put together to one image instead of being
            cropped; each quarter has the class token's place in the losses.
        distil: DINO's, iBOT's and KoLeo's losses join in; else no patch is hidden either. The
            prototypes of an untrained teacher sort by what the other frames cannot tell.
    """

    frames: int = 6
    frame: int = 64
    side: int = 64
    crops: int = 2
    mosaic: bool = False
    distil: bool = False

    def __post_init__(self) -> None:
        if self.mosaic and (self.distil or self.crops > 1 or self.batch % 4):
            raise ValueError("a mosaic takes a crop of four films each, and nothing is distilled")


@dataclass(frozen=True)
class Recipe(LabRecipe[Stage]):
    """Crops, masks, and what the teacher does.

    Attributes:
        sizes: least and largest side of a crop in sides of the frame.
        jitter: strength of brightness, contrast and saturation.
        masked_share, mask_ratio: the share of the crops that have hidden patches, and the least and
            largest ratio of these.
        prototypes: outputs of DINO's head.
        koleo: weight of the KoLeo loss, beside DINO's.
        momentum: of the teacher, first and last.
        temperature: of the teacher.
    """

    sizes: tuple[float, float] = (0.7, 1.0)
    jitter: float = 0.25
    masked_share: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    prototypes: int = 256
    koleo: float = 0.1
    rate: float = 1e-3
    warmup: int = 200
    momentum: tuple[float, float] = (0.99, 0.9995)
    temperature: float = 0.05
    evaluate_every: int = 8_000
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    stages: tuple[Stage, ...] = (
        Stage(24_000, 16, (LONE,), side=48),
        Stage(16_000, 16, (COUPLE,)),
        Stage(16_000, 16, (LONE, COUPLE), crops=1, mosaic=True),
        Stage(24_000, 16, (LIVELY, MASKED), distil=True),
        Stage(4_000, 8, (LIVELY, MASKED), 4, 128, 128, distil=True),
    )

    def teacher_momentum(self, step: int) -> float:
        """A cosine from first to last."""
        return cosine(*self.momentum, step / self.steps)


def make_batch(position: Position[Stage]) -> Batch:
    """Fresh films: pixels [B, V, 3, S, S] uint8."""
    stage = position.stage
    world = stage.world(position.step)
    films = [film("pretrain", n, stage.frame, [world] * stage.frames) for n in position.images]
    pixels = stack_pixels([frame.image for frames in films for frame in frames])
    return (rearrange(pixels, "(b v) c h w -> b v c h w", v=stage.frames),)
