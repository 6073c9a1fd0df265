"""From a name or a folder to the parts of a Stable Diffusion."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError
from ..loading import sha256, without_bars
from ..registry import Checkpoint, find

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class LoadedDiffusion:
    """The parts of a latent diffusion model, the models in evaluation mode."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    name: str
    checkpoint: str


def load_diffusion(source: str | Path, dtype: torch.dtype) -> LoadedDiffusion:
    """Load diffusers' U-Net, VAE and PNDM scheduler, transformers' CLIP text encoder.

    Args:
        source: a folder that `StableDiffusionPipeline.save_pretrained` wrote, or a name of
            `registry.CHECKPOINTS`, whose hub ids are tried one after another.
        dtype: of the three models.

    Raises:
        CheckpointError: something is missing, damaged, not to be had or of another kind.
        UnknownNameError: no such checkpoint; the message lists the known ones.
    """
    found = find(source)
    folder = _fetch(str(source), found) if isinstance(found, Checkpoint) else found
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise CheckpointError(f"{folder} is no Stable Diffusion: it holds no {', '.join(missing)}")
    name = str(source) if isinstance(found, Checkpoint) else folder.name
    identity = f"{name}@{sha256(_weights(folder / 'unet', dtype))[:12]}"
    return LoadedDiffusion(**_parts(folder, dtype), name=name, checkpoint=identity)


def _parts(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The five parts by name."""
    try:
        from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise CheckpointError(f"{error}: install ovss with `pip install ovss[diffusion]`") from None
    variant = "fp16" if _weights(folder / "unet", dtype).name.count(".fp16.") else None
    try:
        kinds: list[tuple[Any, str]] = [(UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")]
        models = [
            kind.from_pretrained(folder / part, torch_dtype=dtype, variant=variant)
            for kind, part in kinds
        ]
        with without_bars():
            text = CLIPTextModel.from_pretrained(
                folder / "text_encoder", torch_dtype=dtype, variant=variant
            )
        others = [
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            PNDMScheduler.from_pretrained(folder / "scheduler"),
        ]
    except Exception as error:  # three libraries raise all kinds
        raise CheckpointError(f"{folder} is no Stable Diffusion, or damaged ({error})") from None
    models = [model.eval().requires_grad_(False) for model in (*models, text)]
    return dict(zip(PARTS, (*models, *others), strict=True))


def _fetch(name: str, entry: Checkpoint) -> Path:
    """The folder of a published model: each hub id in turn, from the cache or the network."""
    if "Stable Diffusion" not in entry.role:
        raise CheckpointError(f"{name} is no Stable Diffusion but: {entry.role}")
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/*.{kind}" for part in PARTS for kind in ("json", "txt", "safetensors")]
    problems = []
    for hub in entry.hubs:
        try:
            return Path(snapshot_download(hub, revision=entry.revision, allow_patterns=patterns))
        except Exception as error:  # hub and network errors of several libraries
            problems.append(f"{hub}: {str(error).splitlines()[0] if str(error) else repr(error)}")
    raise CheckpointError(
        f"cannot download {name} ({entry.megabytes} MB; {'; '.join(problems)}). With a network run "
        "it again; without one, copy the folder here and give its path instead of the name"
    )


def _weights(folder: Path, dtype: torch.dtype) -> Path:
    """The weights' file; the float16 one first when that is what is asked for."""
    names = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"]
    for name in reversed(names) if dtype == torch.float16 else names:
        if os.path.isfile(folder / name):
            return folder / name
    raise CheckpointError(f"{folder} holds no {names[0]}")
