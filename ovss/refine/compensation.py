"""Fine-grained compensation: CLIPer (arXiv 2411.13836), section 3.3, Eq. 9 and 10.

The self-attention maps A_1 ... A_M of a diffusion model, head by head, carry what CLIP's coarse
map S [L, K] lacks. Eq. 9 multiplies them, Eq. 10 applies the product:

    S_f = A_1 A_2 ... A_M S

Read from the right, every step is an [L, L] times [L, K] product: with L = 4096 and K = 21 that is
some 200 times less work than the chain of [L, L] products, and the same result. It also needs one
map at a time, which is made from its queries and keys when its turn comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..backbones.diffusion import DiffusionBackbone
from ..backbones.diffusion.backbone import LAYERS, STEP, LazyMap
from ..decide import upsample
from ..errors import OvssError, UnknownNameError
from ..options import check_fields

MODES = ("multiplication", "single", "mean")  # rows of Table 7
THRESHOLD = 0.1  # of the code behind the published numbers
EPSILON = 1e-5
CHUNK_VALUES = {"cpu": 2**19, "cuda": 2**26}  # map values worked on at once
HELD_VALUES = 2**26  # a larger map, 256 MB of float32, is computed twice instead of held
BATCH_PIXELS = 2**20  # that go through the diffusion model at once: 4 images of 512 x 512

Map = Tensor | LazyMap  # [L, L]
Layer = Tensor | Sequence[LazyMap]  # [heads, L, L]


@dataclass(frozen=True)
class Compensation:
    """Sharpen images' score maps by a diffusion model's self-attention (a refiner).

    Attributes:
        mode: how the maps of all heads and layers are combined (Table 7).
        index: of the map that "single" takes, counting the heads layer by layer.
        layers, step: which maps; see `DiffusionBackbone.projections`.
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
        check_fields(self, index=(0, math.inf), step=(0, math.inf))

    @torch.no_grad()
    def __call__(
        self,
        scores: Sequence[Tensor],
        images: Sequence[Image.Image],
        threshold: float | None = THRESHOLD,
    ) -> list[Tensor]:
        """Refine the scores [K, h, w] of each RGB image to [K, side, side], side * side = L.

        Args:
            threshold: below which normalised attention counts as none; None for the raw maps.
        """
        layers, index = self._needed()
        refined: list[Tensor] = []
        for batch in _batches(images, self.backbone.size):
            found = self.backbone.projections(batch, layers, self.step, self.noise)
            for position in range(len(batch)):
                maps = [layer.heads(position) for layer in found]
                coarse = scores[len(refined)]
                refined.append(refine(coarse, maps, self.mode, index, threshold))
        return refined

    def _needed(self) -> tuple[tuple[int, ...], int]:
        """The layers that are read, and `index` counted within them."""
        if self.mode != "single":
            return self.layers, self.index
        heads = [self.backbone.self_attention(layer).heads for layer in self.layers]
        layer, head = locate(self.index, heads)
        return (self.layers[layer],), head


def _batches(images: Sequence[Image.Image], size: int) -> Iterator[Sequence[Image.Image]]:
    """As many images of size x size pixels as may go through the model at once."""
    step = max(1, BATCH_PIXELS // size**2)
    for start in range(0, len(images), step):
        yield images[start : start + step]


def refine(
    scores: Tensor,
    maps: Sequence[Layer],
    mode: str = "multiplication",
    index: int = 1,
    threshold: float | None = THRESHOLD,
) -> Tensor:
    """Upsample scores [K, h, w] to the maps' square grid and compensate: [K, side, side]."""
    length = len(maps[0][0])
    side = round(length**0.5)
    if side * side != length:
        raise OvssError(f"the maps must have a square number of positions, got {length}")
    upscaled = upsample(scores.float(), (side, side))  # [K, side, side]
    columns = rearrange(upscaled, "k h w -> (h w) k").to(maps[0][0].device)  # [L, K]
    refined = compensate(columns, maps, mode, index, threshold)  # [L, K]
    return rearrange(refined, "(h w) k -> k h w", h=side).to(scores.device)


def compensate(
    scores: Tensor,
    maps: Sequence[Layer],
    mode: str = "multiplication",
    index: int = 1,
    threshold: float | None = THRESHOLD,
    chunk_values: int | None = None,
) -> Tensor:
    """Multiply scores [L, K] by the self-attention maps (Eq. 9 and 10): [L, K] float32.

    Beside what is given, one map is in memory at a time, or none if it has more than `HELD_VALUES`
    values; with it about 3 * `chunk_values` float32 and 3 * L * K.

    Args:
        maps: for each layer its heads' maps [L, L], made or not; the first of all is A_1.
        mode: "multiplication" A_1 ... A_M S, "single" A_index S, "mean" of A_m S.
        index: of the map that "single" takes, from 0.
        threshold: see `apply_map`; None applies the maps as they are (the paper's text).
        chunk_values: how many values of a map are worked on at once; None: see `CHUNK_VALUES`.
    """
    if mode not in MODES:
        raise UnknownNameError.of("mode", mode, MODES)
    columns = scores.float()
    if mode == "single":
        layer, head = locate(index, [len(layer) for layer in maps])
        return apply_map(maps[layer][head], columns, threshold, chunk_values)
    flat = [head for layer in maps for head in layer]  # M x [L, L]
    if mode == "mean":
        total = torch.zeros_like(columns)
        for one in flat:
            total += apply_map(one, columns, threshold, chunk_values) / len(flat)
        return total
    for one in reversed(flat):
        columns = apply_map(one, columns, threshold, chunk_values)
    return columns


def locate(index: int, heads: Sequence[int]) -> tuple[int, int]:
    """Find the layer and head of a map's number, counting the heads layer by layer."""
    numbers = [(layer, head) for layer, count in enumerate(heads) for head in range(count)]
    if not 0 <= index < len(numbers):
        raise OvssError(f"index must be 0 to {len(numbers) - 1}, got {index}")
    return numbers[index]


def apply_map(
    attention: Map, columns: Tensor, threshold: float | None, chunk_values: int | None = None
) -> Tensor:
    """Normalise a map [L, L] and multiply it by `columns` [L, K].

    The authors' normalisation: divide by the column's maximum + 1e-5, drop what lies below
    `threshold`, divide by the row's sum + 1e-5. The last step comes after the product here; the
    row's sum is the product with a column of ones.
    """
    if threshold is None:
        return torch.cat([part @ columns for part in _chunks(attention, chunk_values)])
    parts, peaks = _peaks(attention, columns, chunk_values)
    below = float(np.nextafter(np.float32(threshold), np.float32("-inf")))  # >= t is kept
    extended = F.pad(columns, (0, 1), value=1)  # [L, K+1]
    rows = [F.threshold(part / peaks, below, 0, inplace=True) @ extended for part in parts]
    product = torch.cat(rows)  # [L, K+1]
    return product[:, :-1] / (product[:, -1:] + EPSILON)


def _peaks(
    attention: Map, columns: Tensor, chunk_values: int | None
) -> tuple[Iterable[Tensor], Tensor]:
    """The map's rows and its columns' maxima + 1e-5 [L], gathered as the rows are made."""
    held = len(attention) ** 2 <= HELD_VALUES
    parts: list[Tensor] = []
    peaks = columns.new_zeros(len(attention))
    for part in _chunks(attention, chunk_values):
        torch.maximum(peaks, part.amax(0), out=peaks)
        if held:
            parts.append(part)
    return parts if held else _chunks(attention, chunk_values), peaks.add_(EPSILON)


def _chunks(attention: Map, chunk_values: int | None) -> Iterator[Tensor]:
    """Some rows at a time, float32."""
    values = chunk_values or CHUNK_VALUES["cpu" if attention.device.type == "cpu" else "cuda"]
    step = max(1, values // len(attention))
    for start in range(0, len(attention), step):
        yield attention[start : start + step].float()
