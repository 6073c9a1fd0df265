"""The sliding window of CLIPer's code of September 2025 (its paper, section 4.1, uses none).

Equal windows go through CLIP as images of their own. Where they overlap, the logits of each layer
are averaged, and so is the attention between patches: for the pairs that share a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..errors import OvssError

# Pixels [B, 3, H, W] -> each layer's logits, N x [B, Q, L], and the attention [B, L, L].
Compare = Callable[[Tensor], tuple[list[Tensor], Tensor]]


@dataclass(frozen=True)
class Windows:
    """Place equal windows on a grid of patches.

    Attributes:
        grid: (h, w), the image in patches; L = h * w.
        size: (h', w'), a window in patches; l = h' * w'.
        corners: (top, left) of the n windows, in patches.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    corners: tuple[tuple[int, int], ...]

    @classmethod
    def over(cls, grid: tuple[int, int], crop: int, stride: int) -> Windows:
        """Place a window every `stride` patches; the last ones are shifted back into the image."""
        tops, lefts = (_starts(side, crop, stride) for side in grid)
        size = (min(grid[0], crop), min(grid[1], crop))
        return cls(grid, size, tuple((top, left) for top in tops for left in lefts))

    def crop(self, pixels: Tensor) -> Tensor:
        """Crop pixels [B, 3, H, W] to the windows of all images [B * n, 3, H', W']."""
        patch = pixels.shape[2] // self.grid[0]
        height, width = self.size[0] * patch, self.size[1] * patch
        corners = ((top * patch, left * patch) for top, left in self.corners)
        parts = [pixels[:, :, y : y + height, x : x + width] for y, x in corners]
        return torch.stack(parts, 1).flatten(0, 1)

    @property
    def places(self) -> Tensor:
        """Number each window's patches by their position in the image: [n, l]."""
        numbers = torch.arange(self.grid[0] * self.grid[1]).view(self.grid)
        height, width = self.size
        windows = [numbers[y : y + height, x : x + width].flatten() for y, x in self.corners]
        return torch.stack(windows)

    def mean(self, values: Tensor) -> Tensor:
        """Average the windows' values [B * n, Q, l] at each patch of the image: [B, Q, L]."""
        places = self.places.to(values.device)
        parts = rearrange(values, "(b n) q l -> n b q l", n=len(places))
        count = values.new_zeros(self.grid[0] * self.grid[1])
        total = values.new_zeros(*parts.shape[1:3], len(count))
        for place, part in zip(places, parts, strict=True):
            total[..., place] += part
            count[place] += 1
        return total.div_(count)

    def attention(self, maps: Tensor) -> Tensor:
        """Average the windows' attention [B * n, l, l] over those that share a pair: [B, L, L].

        Pairs without a common window get 0; 1e-5 is added to each count, as in the code.
        """
        places = self.places.to(maps.device)
        positions = self.grid[0] * self.grid[1]
        maps = rearrange(maps, "(b n) i j -> n b i j", n=len(places))
        total = maps.new_zeros(maps.shape[1], positions, positions)
        count = maps.new_zeros(positions, positions)
        for place, part in zip(places, maps, strict=True):
            total[:, place[:, None], place] += part
            count[place[:, None], place] += 1
        return total.div_(count + 1e-5)

    def compare(self, compare: Compare, pixels: Tensor, batch: int) -> tuple[list[Tensor], Tensor]:
        """Run `compare` on the windows, `batch` at a time, and average: as one image's."""
        parts = [compare(part) for part in self.crop(pixels).split(batch)]
        layers = zip(*(logits for logits, _ in parts), strict=True)
        attention = self.attention(torch.cat([maps for _, maps in parts]))
        return [self.mean(torch.cat(layer)) for layer in layers], attention


def propagate(logits: list[Tensor], attention: Tensor) -> list[Tensor]:
    """Propagate each layer's logits [B, Q, L] along attention [B, L, L]; give probabilities."""
    tiny = torch.finfo(attention.dtype).tiny  # a patch may attend to the class token alone
    rows = attention / attention.sum(-1, keepdim=True).clamp_min(tiny)
    return [(layer @ rows).softmax(1) for layer in logits]


def check_window(crop: int, stride: int, patch: int) -> None:
    """Raise unless windows of `crop` pixels every `stride` cover an image in whole patches."""
    for name, value in (("sliding_crop", crop), ("sliding_stride", stride)):
        if value <= 0 or value % patch:
            raise OvssError(f"{name} must be a multiple of the patch, {patch} pixels, got {value}")
    if stride > crop:
        raise OvssError(
            f"windows of sliding_crop={crop} every sliding_stride={stride} pixels leave gaps: "
            "give a stride that is not larger than the crop"
        )


def _starts(side: int, crop: int, stride: int) -> list[int]:
    """First patches of the windows along one side."""
    last = max(side - crop, 0)
    return [*range(0, last, stride), last]
