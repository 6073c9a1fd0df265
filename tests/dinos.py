"""Small random DINOs, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

TINY = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
}


def save_dino(folder: Path, seed: int = 0, **changes: int) -> Path:
    """Write a random ViT without a pooling layer."""
    torch.manual_seed(seed)
    model = ViTModel(ViTConfig(**{**TINY, **changes}), add_pooling_layer=False)
    model.save_pretrained(folder)
    return folder


def save_dinov2(folder: Path, registers: int = 0, seed: int = 0) -> Path:
    """Write a random DINOv2, with registers if asked; no parameter is zero or one."""
    torch.manual_seed(seed)
    sizes = {**TINY, "mlp_ratio": 2}
    del sizes["intermediate_size"]
    if registers:
        config = Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        model = Dinov2WithRegistersModel(config)
    else:
        model = Dinov2Model(Dinov2Config(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
