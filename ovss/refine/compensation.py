"""Fine-grained compensation: CLIPer (arXiv 2411.13836), section 3.3, Eq. 9 and 10.

The self-attention maps A_1 ... A_M of a diffusion model, head by head, carry what CLIP's coarse
map S [L, K] lacks. Eq. 9 multiplies them, Eq. 10 applies the product:

    S_f = A_1 A_2 ... A_M S

Read from the right, every step is an [L, L] times [L, K] product: with L = 4096 and K = 21 that is
some 200 times less work than the chain of [L, L] products, and the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..backbones.diffusion import LAYERS, STEP, DiffusionBackbone
from ..decide import upsample
from ..errors import OvssError, UnknownNameError

MODES = ("multiplication", "single", "mean")  # rows of Table 7
THRESHOLD = 0.1  # of the code behind the published numbers
CHUNK_VALUES = 2**24  # map values worked on at once: 64 MB of float32
EPSILON = 1e-5


@dataclass(frozen=True)
class Compensation:
    """A refiner: an image's score maps, sharpened by a diffusion model's self-attention.

    Attributes:
        mode: how the maps of all heads and layers are combined (Table 7).
        index: of the map that "single" takes, counting the heads layer by layer.
        layers, step: which maps; see `DiffusionBackbone.attention`.
        noise: seed of the noise, or the noise itself [1, 4, h, w].
    """

    backbone: DiffusionBackbone
    mode: Literal["multiplication", "single", "mean"] = "multiplication"
    index: int = 1
    layers: tuple[int, ...] = LAYERS
    step: int = STEP
    noise: int | Tensor = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UnknownNameError.of("mode", self.mode, MODES)

    @torch.no_grad()
    def __call__(
        self, scores: Tensor, image: Image.Image, threshold: float | None = THRESHOLD
    ) -> Tensor:
        """Scores [K, h, w] of an RGB image -> [K, side, side], side * side = L.

        Args:
            threshold: below which normalised attention counts as none; None for the raw maps.
        """
        maps = self.backbone.attention(image, self.layers, self.step, self.noise)
        return refine(scores, maps, self.mode, self.index, threshold)


def refine(
    scores: Tensor,
    maps: Sequence[Tensor],
    mode: str = "multiplication",
    index: int = 1,
    threshold: float | None = THRESHOLD,
) -> Tensor:
    """Scores [K, h, w], brought bilinearly to the maps' square grid and compensated."""
    length = maps[0].shape[-1]
    side = round(length**0.5)
    if side * side != length:
        raise OvssError(f"the maps must have a square number of positions, got {length}")
    upscaled = upsample(scores.float(), (side, side))
    columns = rearrange(upscaled, "k h w -> (h w) k").to(maps[0].device)
    refined = compensate(columns, maps, mode, index, threshold)
    return rearrange(refined, "(h w) k -> k h w", h=side).to(scores.device)


def compensate(
    scores: Tensor,
    maps: Sequence[Tensor],
    mode: str = "multiplication",
    index: int = 1,
    threshold: float | None = THRESHOLD,
    chunk_values: int = CHUNK_VALUES,
) -> Tensor:
    """Eq. 9 and 10: scores [L, K] -> [L, K], float32.

    Beside what is given, memory for about 3 * `chunk_values` float32 and 3 * L * K is in use: no
    [L, L] array is made when L * L exceeds `chunk_values`.

    Args:
        maps: one tensor [heads, L, L] per layer; the first head of the first is A_1.
        mode: "multiplication" A_1 ... A_M S, "single" A_index S, "mean" of A_m S.
        index: of the map that "single" takes, from 0.
        threshold: see `apply_map`; None applies the maps as they are (the paper's text).
        chunk_values: how many values of a map are worked on at once.
    """
    if mode not in MODES:
        raise UnknownNameError.of("mode", mode, MODES)
    flat = [head for layer in maps for head in layer]  # M x [L, L]
    if mode == "single" and not 0 <= index < len(flat):
        raise OvssError(f"index must be 0 to {len(flat) - 1}, got {index}")
    columns = scores.float()
    if mode == "single":
        return apply_map(flat[index], columns, threshold, chunk_values)
    if mode == "mean":
        parts = (apply_map(one, columns, threshold, chunk_values) for one in flat)
        return torch.stack([part / len(flat) for part in parts]).sum(0)
    for one in reversed(flat):
        columns = apply_map(one, columns, threshold, chunk_values)
    return columns


def apply_map(
    attention: Tensor, columns: Tensor, threshold: float | None, chunk_values: int = CHUNK_VALUES
) -> Tensor:
    """A map [L, L], normalised, times `columns` [L, K].

    The authors' normalisation: divide by the column's maximum + 1e-5, drop what lies below
    `threshold`, divide by the row's sum + 1e-5. The last step comes after the product here.
    """
    peaks = None if threshold is None else attention.amax(0).float().add_(EPSILON)
    rows = []
    for part in _chunks(attention, chunk_values):
        if threshold is None or peaks is None:
            rows.append(part.float() @ columns)
            continue
        kept = part / peaks  # float32
        kept.masked_fill_(kept < threshold, 0)
        rows.append((kept @ columns).div_(kept.sum(-1, keepdim=True).add_(EPSILON)))
    return torch.cat(rows)


def _chunks(attention: Tensor, chunk_values: int) -> Iterator[Tensor]:
    """Some rows at a time."""
    yield from attention.split(max(1, chunk_values // attention.shape[-1]))
