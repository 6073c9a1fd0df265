"""CLIPer written down formula by formula: what the bench measures `ovss` against.

As its authors' program of 2024 computes it (`variant="official-2024"`), with nothing left out or
put in another order: all maps are held, the chain of Eq. 9 is multiplied out, the whole U-Net runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ovss.backbones.clip import ClipBackbone
from ovss.backbones.diffusion import DiffusionBackbone
from ovss.backbones.diffusion.backbone import LAYERS, STEP

LOGIT_SCALE, CUT, THRESHOLD, EPSILON = 100.0, 0.2, 0.1, 1e-5


# ---- the coarse map


def coarse_map(backbone: ClipBackbone, pixels: Tensor, text: Tensor) -> Tensor:
    """Pixels [1, 3, H, W] and text features [K, E] -> scores [K, h, w] (section 3.2)."""
    inputs, maps = blocks(backbone, pixels)
    total = torch.stack(maps).sum(0)  # [1, heads, 1+L, 1+L]
    queries = torch.cat([text, F.normalize(text.mean(0, keepdim=True), dim=-1)])
    scores = []
    for k, tokens in enumerate(inputs):
        total = total / total.sum(-2, keepdim=True)
        total = total / total.sum(-1, keepdim=True)
        affinity = affine(total)
        if k < len(inputs) - 1:
            tokens = backbone.blocks[k].ln_1(tokens)
        embedding = F.normalize(last_block(backbone, tokens, affinity)[0, 1:], dim=-1)  # [L, E]
        scores.append((LOGIT_SCALE * embedding @ queries.T).softmax(-1)[:, : len(text)].T)
    patches = affinity[0].mean(0)[1:, 1:]  # [L, L]
    last = scores[-1]  # [K, L]
    strong = torch.where(last < CUT * last.amax(-1, keepdim=True), 0, last)
    coarse = torch.stack(scores[:-1]).mean(0) + strong @ patches.T
    return rearrange(coarse, "k (h w) -> k h w", h=pixels.shape[2] // backbone.patch)


def blocks(backbone: ClipBackbone, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What each of the N blocks gets, and the attention of the first N-1."""
    tokens, inputs, maps = backbone.embed(pixels), [], []
    for block in backbone.blocks[:-1]:
        inputs.append(tokens)
        normed = block.ln_1(tokens)
        mixed, weights = block.attn(normed, normed, normed, average_attn_weights=False)
        tokens = tokens + mixed
        tokens = tokens + block.mlp(block.ln_2(tokens))
        maps.append(weights)
    return [*inputs, tokens], maps


def affine(total: Tensor) -> Tensor:
    """Symmetric, less the column's mean, no negatives, rows to 1."""
    symmetric = (total + total.mT) / 2
    above = (symmetric - symmetric.mean(-2, keepdim=True)).clamp(0)
    return above / above.sum(-1, keepdim=True)


def last_block(backbone: ClipBackbone, tokens: Tensor, attention: Tensor) -> Tensor:
    """[1, 1+L, D] -> [1, 1+L, E]: the last block's values mixed by `attention`."""
    attn = backbone.blocks[-1].attn
    weight, bias = attn.in_proj_weight.chunk(3)[2], attn.in_proj_bias.chunk(3)[2]
    values = F.linear(backbone.blocks[-1].ln_1(tokens), weight, bias)
    values = rearrange(values, "b t (h d) -> b h t d", h=attn.num_heads)
    mixed = rearrange(attention @ values, "b h t d -> b t (h d)")
    visual = backbone.model.visual
    return visual.ln_post(attn.out_proj(mixed)) @ visual.proj


# ---- fine-grained compensation (section 3.3)


@dataclass
class KeepMap:
    """An attention processor of diffusers that makes the map and keeps it."""

    weights: Tensor = field(init=False)  # [heads, L, L]

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        query, key, value = (
            attn.head_to_batch_dim(side(hidden_states))
            for side in (attn.to_q, attn.to_k, attn.to_v)
        )
        self.weights = (attn.scale * query @ key.mT).softmax(-1)
        mixed = attn.batch_to_head_dim(self.weights @ value)
        return attn.to_out[0](mixed)


def latents(backbone: DiffusionBackbone, pixels: Tensor) -> Tensor:
    """Pixels [1, 3, size, size] -> the scaled mean [1, 4, h, w]."""
    found = backbone.vae.encode(pixels.to(backbone.device, backbone.dtype)).latent_dist.mean
    return found * backbone.vae.config.scaling_factor


def attention_maps(backbone: DiffusionBackbone, latents: Tensor, noise: Tensor) -> list[Tensor]:
    """Latents [1, 4, h, w] -> the maps [heads, L, L] of LAYERS; the whole U-Net runs."""
    time = backbone.timestep(STEP).to(backbone.device)
    noisy = backbone.scheduler.add_noise(latents, noise.to(latents), time[None])
    modules = [backbone.self_attention(layer) for layer in LAYERS]
    before, keepers = [module.processor for module in modules], [KeepMap() for _ in modules]
    for module, keeper in zip(modules, keepers, strict=True):
        module.processor = keeper
    backbone.unet(noisy, time, encoder_hidden_states=backbone.prompt)
    for module, processor in zip(modules, before, strict=True):
        module.processor = processor
    return [keeper.weights for keeper in keepers]


def compensate(coarse: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Eq. 9 and 10 as printed: the product of all heads' maps, times the scores [K, h, w]."""
    heads = [head for layer in maps for head in layer]
    product = normalise(heads[0])
    for head in heads[1:]:
        product = product @ normalise(head)  # [L, L]
    side = round(len(product) ** 0.5)
    upscaled = F.interpolate(coarse[None], (side, side), mode="bilinear")[0]
    refined = product @ upscaled.flatten(1).T  # [L, K]
    return rearrange(refined, "(h w) k -> k h w", h=side)


def normalise(attention: Tensor) -> Tensor:
    """Divided by the column's maximum, cut at THRESHOLD, divided by the row's sum: [L, L]."""
    attention = attention / (attention.amax(0) + EPSILON)
    attention = torch.where(attention < THRESHOLD, 0, attention)
    return attention / (attention.sum(-1, keepdim=True) + EPSILON)


def labels(scores: Tensor, height: int, width: int) -> Tensor:
    """Scores [K, h, w] -> labels [H, W]."""
    return F.interpolate(scores[None], (height, width), mode="bilinear")[0].argmax(0)
