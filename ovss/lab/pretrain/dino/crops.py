"""Random crops, flips and colours of a batch of scenes, drawn on the device in one go."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crops(scenes: Tensor, side: int, sizes: tuple[float, float]) -> Tensor:
    """One square crop of each scene, resized to `side`, half of them mirrored.

    Args:
        scenes: [B, 3, S, S].
        sizes: smallest and largest side of a crop in image sides.
    """
    count = len(scenes)
    size = torch.empty(count, device=scenes.device).uniform_(*sizes)
    shift = torch.empty(count, 2, device=scenes.device).uniform_(-1, 1) * (1 - size)[:, None]
    mirror = torch.randint(0, 2, (count,), device=scenes.device) * 2 - 1
    theta = scenes.new_zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = size * mirror, size, shift
    grid = F.affine_grid(theta, [count, 3, side, side], align_corners=False)
    return F.grid_sample(scenes, grid, padding_mode="border", align_corners=False)


def jitter(pixels: Tensor, strength: float = 0.25) -> Tensor:
    """Brightness, contrast, saturation and the light's colour, mildly: [B, 3, h, w] in [0, 1]."""

    def factor(channels: int, most: float) -> Tensor:
        drawn = torch.empty(len(pixels), channels, 1, 1, device=pixels.device)
        return drawn.uniform_(1 - most, 1 + most)

    pixels = pixels * factor(1, strength) * factor(3, strength / 3)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * factor(1, strength)
    grey = pixels.mean(1, keepdim=True)
    return (grey + (pixels - grey) * factor(1, strength)).clamp(0, 1)
