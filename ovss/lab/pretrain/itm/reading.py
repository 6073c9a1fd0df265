"""What words read of the image: asked for by itself, and now and then taken away.

GradCAM needs two things that matching in a small world does not teach. A word has to look at what
it names, in each head: so what it reads must say which word it is. And reading more of that has to
speak for the match: so pairs are shown of whose words some read less, and such a pair is less of a
match. Without the second a head is free to put all that things have in common on the side of *no
match*, since how much is read never tells anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

FADED_WORDS, FADED_HEADS = 0.5, 0.35  # shares of a pair's words, and of the heads, that read less


class Readers(nn.Module):
    """Linear classifiers that tell a content word by what a head reads for it, one for each head
    of each layer."""

    def __init__(self, layers: int, heads: int, width: int, words: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.05 * torch.randn(layers, heads, width // heads, words))
        self.bias = nn.Parameter(torch.zeros(layers, heads, 1, words))

    def forward(self, reads: Sequence[Tensor], spoken: Tensor) -> Tensor:
        """Compute the mean cross-entropy of the words, a scalar.

        Args:
            reads: of each layer, what the tokens read [B, T, heads, d].
            spoken: number of the content word that a token belongs to [B, T], -1 for none.
        """
        words = spoken >= 0
        read = torch.stack([one[words] for one in reads]).float()  # [layers, n, heads, d]
        read = F.layer_norm(read, read.shape[-1:]).transpose(1, 2)  # [layers, heads, n, d]
        logits = read @ self.weight + self.bias  # [layers, heads, n, W]
        wanted = spoken[words].expand(logits.shape[:3])
        return F.cross_entropy(logits.flatten(0, 2), wanted.flatten())


def fade(spoken: Tensor, share: float, layers: int, heads: int) -> tuple[Tensor, Tensor]:
    """Draw how much of the image the tokens of pairs read.

    In a share of the pairs some words read, in some heads, only a part of what they would; the part
    is drawn for the pair. What words read in the last layer does not reach the match, it stays.

    Args:
        spoken: see `Readers.forward`, [B, T].

    Returns:
        what is left of the reads [layers, B, T, heads], and the part of each pair [B], 1 where
        nothing was taken.
    """
    pairs, device = len(spoken), spoken.device
    part = torch.rand(pairs, device=device)
    words = (spoken >= 0) & (torch.rand(spoken.shape, device=device) < FADED_WORDS)
    words &= torch.rand(pairs, 1, device=device) < share
    where = torch.rand(layers, pairs, 1, heads, device=device) < FADED_HEADS
    where[-1] = False
    faded = where & words[:, :, None]  # [layers, B, T, heads]
    left = torch.where(faded, part[:, None, None], 1.0)
    return left, torch.where(faded.any(3).any(2).any(0), part, 1.0)


@contextmanager
def reading(modules: Sequence[Any], left: Tensor) -> Iterator[list[Tensor]]:
    """Within it, what tokens read in `modules` is listed [B, T, heads, d], and scaled by `left`.

    Args:
        modules: attention modules of transformers, in the order of the layers.
        left: of each layer [layers, B, T, heads].
    """
    reads: list[Tensor] = []

    def scale(_: nn.Module, __: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        amount = left[len(reads)]
        read = rearrange(output[0], "b t (h d) -> b t h d", h=amount.shape[-1])
        reads.append(read)
        scaled = read * amount[..., None].to(read)
        return (rearrange(scaled, "b t h d -> b t (h d)"), *output[1:])

    hooks = [module.register_forward_hook(scale) for module in modules]
    try:
        yield reads
    finally:
        for hook in hooks:
            hook.remove()
