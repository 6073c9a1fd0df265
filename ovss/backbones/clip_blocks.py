"""One transformer block of open_clip in pieces, run through the block's own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import UnknownNameError

# Self-self attentions of the last block: maps softmax(a b^T / sqrt(d)), to be summed, each named by
# its two sides. The identity attends to nothing but itself: no map at all.
ATTENTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "vanilla": (("q", "k"),),
    "qq": (("q", "q"),),
    "kk": (("k", "k"),),
    "vv": (("v", "v"),),
    "identity": (),
    "qq+kk": (("q", "q"), ("k", "k")),  # SCLIP's correlative self-attention
}


def attention_pairs(attention: str) -> tuple[tuple[str, str], ...]:
    """Look up an attention's pairs in ATTENTIONS; "q-q", as the papers spell it, is "qq"."""
    name = attention.replace("-", "")
    if name not in ATTENTIONS:
        raise UnknownNameError.of("attention", attention, ATTENTIONS)
    return ATTENTIONS[name]


def run_block(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Run a block and keep its attention map: output [B, T, D], map [B, heads, T, T]."""
    query, key, value = project_heads(block.attn, block.ln_1(tokens), "qkv")
    weights = softmax_map(query, key)
    return add_residuals(block, tokens, merge_heads(block.attn, weights @ value)), weights


def project_heads(attn: Any, normed: Tensor, parts: Sequence[str]) -> list[Tensor]:
    """Project tokens [B, T, D] to queries, keys or values: [B, heads, T, d] for each part."""
    weights = dict(zip("qkv", attn.in_proj_weight.chunk(3), strict=True))
    biases = dict(zip("qkv", attn.in_proj_bias.chunk(3), strict=True))
    projected = (F.linear(normed, weights[part], biases[part]) for part in parts)
    return [rearrange(part, "b t (h d) -> b h t d", h=attn.num_heads) for part in projected]


def softmax_map(left: Tensor, right: Tensor) -> Tensor:
    """Compute softmax(left right^T / sqrt(d)) (CLIPer, Eq. 2): [B, heads, T, T]."""
    return ((left * left.shape[-1] ** -0.5) @ right.mT).softmax(-1)


def merge_heads(attn: Any, values: Tensor) -> Tensor:
    """Merge heads [B, heads, T, d] through the output projection: [B, T, D]."""
    return attn.out_proj(rearrange(values, "b h t d -> b t (h d)"))


def add_residuals(block: Any, tokens: Tensor, attended: Tensor) -> Tensor:
    """Add residual connections and FFN to attended tokens [B, T, D] (CLIPer, Eq. 6 and 7)."""
    tokens = tokens + block.ls_1(attended)
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
