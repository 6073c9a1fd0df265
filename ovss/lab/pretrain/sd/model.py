"""The parts of the lab's latent diffusion model: diffusers' and transformers' own, small."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 24  # tokens of a caption
TEXT_WIDTH = 128
QUERY_KEY_SCALE = 1.5  # of their equal weights at the start, see `make_unet`
SIDE = 32  # positions of the latent along a side of a 128 px image

VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (24, 48, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 4 * SIDE,
    "mid_block_add_attention": False,
}
UNET: dict[str, Any] = {  # three stages with attention in two, as Stable Diffusion has four
    "sample_size": SIDE,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (48, 64, 96),
    "layers_per_block": 2,
    "attention_head_dim": (3, 4, 6),  # diffusers' name for the number of heads
    "cross_attention_dim": TEXT_WIDTH,
    "norm_num_groups": 16,
    "use_linear_projection": True,
}
SCHEDULER: dict[str, Any] = {  # Stable Diffusion's noise
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


def make_vae() -> Any:
    """Image [B, 3, S, S] in [-1, 1] <-> latent [B, 4, S/4, S/4]."""
    return AutoencoderKL(**VAE)


def make_unet() -> Any:
    """Noisy latent, time and encoded caption -> the noise.

    Self-attention starts with equal queries and keys: what looks alike attends to each other.
    """
    unet: Any = UNet2DConditionModel(**UNET)
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            nn.init.orthogonal_(module.to_q.weight, QUERY_KEY_SCALE)
            module.to_k.weight.data.copy_(module.to_q.weight)
    return unet


def make_scheduler() -> Any:
    """How much noise at which time."""
    return PNDMScheduler(**SCHEDULER)


def make_text_encoder(tokenizer: Any) -> Any:
    """Tokens [B, T] -> [B, T, C]."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def make_tokenizer(captions: Iterable[str]) -> Any:
    """CLIP's kind of byte-level BPE, with merges learnt from `captions`."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learnt = json.loads(learner.to_str())["model"]
    # The learner numbers letters by chance; here all have the same place each time.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(pair) for pair in learnt["merges"]]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    kind: Any = CLIPTokenizer
    return kind(vocabulary, merges, model_max_length=CONTEXT)


def save_parts(folder: Path, models: Mapping[str, Any], tokenizer: Any) -> None:
    """Write copies in the layout of `StableDiffusionPipeline.save_pretrained`, in float16."""
    for name, model in models.items():
        copy.deepcopy(model).to("cpu", torch.float16).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    make_scheduler().save_pretrained(folder / "scheduler")
