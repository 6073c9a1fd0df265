"""Train the lab MAE from scratch: He et al. 2022 (arXiv 2111.06377) in miniature.

Three quarters of an image's patches are hidden; a vision transformer sees the rest, and a small
decoder paints the hidden ones. No caption, no label. Scenes are rendered at the size at which the
tokens are used, half of them in the motley world, where colours do not tell what belongs together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining

from ovss.backbones.dino import DinoBackbone
from ovss.lab.pretrain.batches import (
    SIMPLE,
    VARIED,
    WorldStage,
    draw_scenes,
    normalise,
    stack_pixels,
)
from ovss.lab.pretrain.dino.measure import OVER_COLOURS, measure
from ovss.lab.pretrain.trainer import (
    VIT,
    LabRecipe,
    Split,
    ZooTrainer,
    write_vit,
    write_weights,
)
from ovss.lab.scenes import MOTLEY
from ovss.training.curriculum import Batch, Batches, Position

ENCODER = VIT
DECODER: dict[str, Any] = {
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 256,
    "norm_pix_loss": True,  # each patch's pixels standardised, as in the paper
}


@dataclass(frozen=True)
class Recipe(LabRecipe[WorldStage]):
    """How the MAE is trained; the decay and the betas are the paper's.

    Attributes:
        mask_ratio: of the patches that are hidden.
    """

    mask_ratio: float = 0.75
    rate: float = 1e-3
    warmup: int = 300
    beta2: float = 0.95
    evaluate_every: int = 40_000
    dtype: Literal["float32", "bfloat16"] = "float32"
    stages: tuple[WorldStage, ...] = (
        WorldStage(32_000, 64, (SIMPLE, replace(SIMPLE, disguise=MOTLEY.disguise))),
        WorldStage(128_000, 64, (VARIED, replace(VARIED, disguise=MOTLEY.disguise))),
    )


class MaeTrainer(ZooTrainer[Recipe]):
    """The encoder is what is shipped; the decoder is written beside it."""

    name = "mae"
    what = "a masked autoencoder of transformers, trained from scratch on the lab world"
    default_recipe = Recipe()
    selected_by = ("probe_things", "best_cluster")
    gates = (OVER_COLOURS,)
    model: Any

    def __init__(self, recipe: Recipe | None = None, device: str | torch.device = "cpu") -> None:
        super().__init__(recipe, device)
        self.optimise(make_model(self.recipe.mask_ratio))

    def batches(self) -> Batches[Any]:
        """The scenes of every step."""
        return Batches(self.recipe, make_batch)

    def loss(self, pixels: Tensor) -> Tensor:
        """Mean squared error of the hidden patches of images [B, 3, S, S] uint8."""
        with self.precision():
            loss: Tensor = self.model(normalise(pixels)).loss
            return loss

    def metrics(self, backbone: Any, split: Split, scenes: int | None) -> dict[str, float]:
        """See `dino.measure`."""
        return measure(backbone, split, scenes)

    def write(self, folder: Path) -> None:
        """Write the encoder as transformers' plain `ViTModel`, and the decoder beside it."""
        write_vit(folder, ViTConfig(**ENCODER), self.model.vit.state_dict())
        write_weights(folder / "decoder.safetensors", self.model.decoder.state_dict())

    def load(self, folder: Path) -> DinoBackbone:
        """The encoder in `folder`; it sees every patch."""
        return DinoBackbone.load(folder, device=self.device)

    @property
    def shipped(self) -> nn.Module:
        """The encoder."""
        encoder: nn.Module = self.model.vit
        return encoder


def make_model(mask_ratio: float) -> Any:
    """The encoder and the decoder, untrained."""
    config = ViTMAEConfig(**ENCODER, **DECODER, mask_ratio=mask_ratio)
    return ViTMAEForPreTraining(config)


def load_whole(folder: Path, device: str | torch.device = "cpu") -> Any:
    """The encoder and the decoder in `folder` put together again, as they were trained."""
    model = make_model(Recipe().mask_ratio)
    model.vit.load_state_dict(load_file(folder / "model.safetensors"))
    model.decoder.load_state_dict(load_file(folder / "decoder.safetensors"))
    return model.eval().to(device)


def make_batch(position: Position[WorldStage]) -> Batch:
    """Fresh scenes: pixels [B, 3, S, S] uint8."""
    world = position.stage.world(position.step)
    scenes = draw_scenes(position.images, ENCODER["image_size"], world)
    return (stack_pixels([scene.image for scene in scenes]),)
