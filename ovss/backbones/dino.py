"""DINO and DINOv2, opened up: the patch tokens of a self-distilled vision transformer.

The model is transformers' own; nothing but its last layer's normalised tokens is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..images import to_pixels


@dataclass(eq=False)
class DinoBackbone:
    """A vision transformer trained by self-distillation.

    Attributes:
        model: transformers' `ViTModel`, `Dinov2Model` or `Dinov2WithRegistersModel`.
        mean, std: of the pixels, per channel.
        name, checkpoint: what it is; name and first 12 hex digits of the weights' SHA-256.
        settings: hash of the configuration and tokenizer files, see `loading.settings_of`.
    """

    model: Any = field(repr=False)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str
    checkpoint: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    settings: str = ""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> DinoBackbone:
        """Load a lab zoo name, a DINO or DINOv2 of `registry.CHECKPOINTS`, or a folder.

        Raises:
            CheckpointError, UnknownNameError: see `dino_loading.load_dino`.
            OvssError: there is no such device here.
        """
        from .dino_loading import load_dino  # transformers takes seconds to import
        from .loading import load_onto

        return cls(**load_onto(load_dino, source, device, dtype))

    @property
    def patch(self) -> int:
        """Give the side of a patch in pixels."""
        return int(self.model.config.patch_size)

    @property
    def width(self) -> int:
        """Give the channels D of a token."""
        return int(self.model.config.hidden_size)

    def preprocess(self, image: Image.Image, height: int, width: int) -> Tensor:
        """Resize and normalise an RGB image: [3, h, w] on the CPU, rounded to whole patches."""
        sides = [max(1, round(side / self.patch)) * self.patch for side in (width, height)]
        resized = image.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
        return to_pixels(resized, self.mean, self.std)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Compute last-layer patch tokens [B, D, h/p, w/p] of normalised pixels [B, 3, h, w]."""
        pixels = pixels.to(self.device, self.dtype)
        config = self.model.config
        options = {"interpolate_pos_encoding": True} if config.model_type == "vit" else {}
        tokens = self.model(pixels, **options).last_hidden_state  # [B, 1 + R + L, D]
        patches = tokens[:, 1 + getattr(config, "num_register_tokens", 0) :]
        return rearrange(patches, "b (h w) d -> b d h w", h=pixels.shape[2] // self.patch)
