"""What the miniature has no time to learn by itself: self-attention that keeps to what looks alike.

Stable Diffusion's self-attention came to it over billions of images. In the lab, with a few
hundred thousand, each head of the finest stage is asked for it directly, without labels: the clean
latent of a position, and its surroundings', must follow from those of the other positions that it
attends to. What it attends to must then look the same and lie in the same kind of place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SURROUNDINGS = (1, 3, 7, 15)  # positions along a side
ASKED = 64  # positions of an image that are told from the others, drawn anew at each step


def supervised(unet: Any) -> list[Any]:
    """The self-attention modules of the last stage, at the highest resolution."""
    transformers = unet.up_blocks[-1].attentions
    return [block.attn1 for one in transformers for block in one.transformer_blocks]


def context(latents: Tensor) -> Tensor:
    """Clean latents [B, C, h, w] and their local means -> [B, L, 4C], variance one."""
    means = [
        F.avg_pool2d(latents, side, 1, side // 2, count_include_pad=False) for side in SURROUNDINGS
    ]
    both = rearrange(torch.stack(means), "n b c h w -> b (h w) (n c)")
    return both / both.std((0, 1))


@contextmanager
def attending(modules: Sequence[Any], latents: Tensor, weight: Tensor) -> Iterator[list[Tensor]]:
    """Within it, each of `modules` adds its error on the clean `latents` [B, C, h, w] to the list.

    Args:
        weight: of each image [B].
    """
    target = context(latents)[:, None]  # [B, 1, L, 4C]
    errors: list[Tensor] = []
    before = [module.processor for module in modules]
    try:
        for module in modules:
            module.set_processor(_Asked(errors, target, weight))
        yield errors
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.processor = processor


class _Asked:
    """An attention processor of diffusers that also reconstructs `target` from other positions."""

    def __init__(self, errors: list[Tensor], target: Tensor, weight: Tensor) -> None:
        self.errors, self.target, self.weight = errors, target, weight

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """The attention's output."""
        query, key, value = (
            rearrange(project(hidden_states), "b l (h d) -> b h l d", h=attn.heads)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        length = query.shape[2]
        asked = torch.randperm(length, device=query.device)[:ASKED]  # [A]
        itself = asked[:, None] == torch.arange(length, device=query.device)  # [A, L]
        logits = attn.scale * query[:, :, asked] @ key.mT  # [B, heads, A, L]
        others = logits.masked_fill(itself, float("-inf")).softmax(-1)
        told = others @ self.target.to(others)  # [B, heads, A, C]
        error = (told.float() - self.target[:, :, asked]).square().mean((1, 2, 3))  # [B]
        self.errors.append((self.weight * error).mean())
        mixed = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        mixed = rearrange(mixed, "b h l d -> b l (h d)")  # [B, L, D]
        for module in attn.to_out:
            mixed = module(mixed)
        return mixed
