"""From a name or a folder to the parts of a Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, one_line
from ..loading import (
    Loaded,
    check_fit,
    check_sizes,
    digest,
    fetch_folder,
    identity,
    load_transformer,
    local_files_only,
    needed,
    one_of,
    read_json,
    settings_of,
    shapes_of,
)
from ..registry import Checkpoint, find
from ..tensor_files import check_finite

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
NETWORKS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
NETWORKS |= {"text_encoder": "model"}  # the names of their weights
TAKEN = "Stable Diffusion 1.x and 2.x from text to image are taken"
CHANNELS = 4  # of the latents
OTHERS = {  # channels of what goes into the U-Net: which kind it is
    5: "a model that also looks at depth",
    7: "an upscaler",
    8: "an image editor (InstructPix2Pix)",
    9: "an inpainting model",
}
UNET_SIZES = (
    *("block_out_channels", "cross_attention_dim", "attention_head_dim", "sample_size"),
    *("norm_num_groups", "num_attention_heads", "transformer_layers_per_block"),
)
VAE_SIZES = ("block_out_channels", "norm_num_groups", "latent_channels", "in_channels")
TEXT_SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"),
    "max_position_embeddings",
)


def load_diffusion(source: str | Path, dtype: torch.dtype) -> Loaded:
    """Load diffusers' U-Net, VAE and PNDM scheduler, transformers' CLIP text encoder.

    Args:
        source: a folder that `StableDiffusionPipeline.save_pretrained` wrote, or a name of
            `registry.CHECKPOINTS`, whose hub ids are tried one after another.
        dtype: of the three models.

    Raises:
        CheckpointError: something is missing, damaged, not to be had or of another kind.
        UnknownNameError: no such checkpoint; the message lists the known ones.
    """
    found, origin, name = find(source), "", str(source)
    if isinstance(found, Checkpoint):
        patterns = [f"{part}/*.{kind}" for part in PARTS for kind in ("json", "txt", "safetensors")]
        folder, origin = fetch_folder(name, found, "sd", patterns)
    else:
        folder, name = found, found.name
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise CheckpointError(f"{folder} is no Stable Diffusion: it holds no {', '.join(missing)}")
    configs = {part: read_json(folder / part / "config.json") for part in NETWORKS}
    _check_kind(folder, configs)
    weights = {part: _weights(folder / part, dtype) for part in NETWORKS}
    hashed = digest(folder, *weights.values())
    _check_sizes(folder, configs, weights)
    parts = _networks(folder, configs, weights, dtype)
    parts |= _tokenizer_and_scheduler(folder, parts["text_encoder"])
    parts["settings"] = settings_of(folder)
    return Loaded(parts, name, identity(name, hashed, origin))


def _check_kind(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what looks like a Stable Diffusion and is another kind of diffusion model.

    Raises:
        CheckpointError: says of which kind it is, and which are taken.
    """
    unet, vae, text = (configs[part] for part in NETWORKS)
    channels, kind = unet.get("in_channels", CHANNELS), ""
    out, latent = unet.get("out_channels", CHANNELS), vae.get("latent_channels", CHANNELS)
    if unet.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        kind = f"a model with a {one_line(unet['_class_name'], 60)}"
    elif unet.get("addition_embed_type"):
        kind = f"SDXL or its like (addition_embed_type {one_line(unet['addition_embed_type'], 40)})"
    elif channels in OTHERS:
        kind = OTHERS[channels]
    elif unet.get("num_class_embeds") or unet.get("class_embed_type"):
        kind = "an upscaler or another model that is told a class or a noise level"
    elif unet.get("encoder_hid_dim_type") or unet.get("time_cond_proj_dim"):
        kind = "a model that is told more than a text and a time"
    elif vae.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        kind = f"a model with a {one_line(vae['_class_name'], 60)}"
    elif text.get("model_type") not in ("clip_text_model", "clip"):
        kind = f"a model whose text encoder is a {one_line(text.get('model_type'), 60)}"
    elif not channels == out == latent == CHANNELS:
        told = ", ".join(one_line(one, 20) for one in (channels, out, latent))
        kind = f"a model with {told} instead of {CHANNELS} channels into and out of its U-Net"
    elif unet.get("cross_attention_dim", 1280) != text.get("hidden_size", 512):
        kind = "a U-Net with the text encoder of another model"
    if kind:
        raise CheckpointError(f"{folder} is {kind}: {TAKEN}")


def _check_sizes(
    folder: Path, configs: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Path]
) -> None:
    """No numbers that are none, and no more layers than the files have tensors."""
    sizes = {"unet": UNET_SIZES, "vae": VAE_SIZES, "text_encoder": TEXT_SIZES}
    for part, config in configs.items():
        path = folder / part / "config.json"
        check_sizes(config, sizes[part], 2**24, path)
        layers = ("layers_per_block", "num_hidden_layers", "transformer_layers_per_block")
        check_sizes(config, layers, len(shapes_of(weights[part])), path)
    factor = configs["vae"].get("scaling_factor", 0.18215)
    if type(factor) not in (int, float) or not factor > 0:
        path = folder / "vae" / "config.json"
        raise CheckpointError(
            f"{path}: scaling_factor must be positive, not {one_line(factor, 60)}"
        )
    path = folder / "scheduler" / "scheduler_config.json"
    check_sizes(read_json(path), ("num_train_timesteps",), 10**5, path)


def _networks(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Path],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """U-Net, VAE and text encoder in evaluation mode."""
    diffusers, transformers = needed("diffusers"), needed("transformers")
    libraries = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    found: dict[str, Any] = {}
    for part, library in libraries.items():
        found[part] = _load(library, folder / part, configs[part], weights[part], dtype)
    path = folder / "text_encoder" / "config.json"
    try:
        config = transformers.CLIPTextConfig.from_dict(dict(configs["text_encoder"]))
    except Exception as error:  # the library raises all kinds
        raise CheckpointError(f"{path} describes no text encoder ({one_line(error)})") from None
    library, file = transformers.CLIPTextModel, weights["text_encoder"]
    return {**found, "text_encoder": load_transformer(library, config, file, dtype=dtype)}


def _load(
    library: Any, folder: Path, config: Mapping[str, Any], weights: Path, dtype: torch.dtype
) -> Any:
    """A network of diffusers, which knows older names of its weights."""
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    check_fit(lambda: library.from_config(given), weights, shapes_of(weights))
    variant = "fp16" if ".fp16." in weights.name else None
    try:
        with local_files_only():
            model = library.from_pretrained(
                folder,
                torch_dtype=dtype,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
            )
    except Exception as error:  # three libraries raise all kinds
        raise CheckpointError(
            f"{folder} is no part of a Stable Diffusion, or damaged ({one_line(error)})"
        ) from None
    state = model.state_dict()
    if lacking := [name for name, value in state.items() if value.is_meta]:
        raise CheckpointError(f"{weights} is damaged (it lacks {lacking[0]})")
    check_finite(state, weights)
    return model.eval().requires_grad_(False)


def _tokenizer_and_scheduler(folder: Path, text_encoder: Any) -> dict[str, Any]:
    """The tokenizer's texts are as long as the text encoder has positions, whatever it says."""
    try:
        with local_files_only():
            tokenizer = needed("transformers").CLIPTokenizer.from_pretrained(
                folder / "tokenizer", local_files_only=True
            )
            scheduler = needed("diffusers").PNDMScheduler.from_pretrained(
                folder / "scheduler", local_files_only=True
            )
    except CheckpointError:
        raise
    except Exception as error:  # three libraries raise all kinds
        raise CheckpointError(f"{folder} is no Stable Diffusion, or damaged ({error})") from None
    positions = int(text_encoder.config.max_position_embeddings)
    length = tokenizer.model_max_length  # 1e30 where the folder does not say it
    shorter = isinstance(length, int) and 0 < length < positions
    tokenizer.model_max_length = length if shorter else positions
    words = int(text_encoder.config.vocab_size)
    if len(tokenizer) > words:
        raise CheckpointError(
            f"{folder}: its tokenizer has {len(tokenizer)} words, its text encoder {words}"
        )
    return {"tokenizer": tokenizer, "scheduler": scheduler}


def _weights(folder: Path, dtype: torch.dtype) -> Path:
    """The weights' file; the float16 one first when that is what is asked for."""
    stem = NETWORKS[folder.name]
    names = [f"{stem}.safetensors", f"{stem}.fp16.safetensors"]
    return one_of(folder, names[::-1] if dtype == torch.float16 else names)
