"""Small random CLIPs, saved in the layouts that ovss loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 300, "width": 16, "heads": 2, "layers": 2},
}
OPENAI: dict[str, Any] = {  # of the shapes that OpenAI's names of the weights tell
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    "quick_gelu": True,
}


def save_clip(
    folder: Path,
    config: dict[str, Any] | None = None,
    *,
    layout: str = "zoo",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a random CLIP: `layout` "zoo" (with a tokenizer of its own) or "open_clip"."""
    config = config or TINY
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    state = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    prefix = "" if layout == "zoo" else "open_clip_"
    save_file(state, folder / f"{prefix}model.safetensors")
    (folder / f"{prefix}config.json").write_text(json.dumps({"model_cfg": config}))
    if layout == "zoo":
        byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def byte_tokenizer() -> Tokenizer:
    """One token a byte; <pad> is 0 and <end> the highest id, as in the lab's tokenizer."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<start>", *letters, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image of noise with some large structure."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)
