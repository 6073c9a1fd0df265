"""Small random DINOs, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import ViTConfig, ViTModel

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
