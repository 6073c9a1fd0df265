"""Gaussian blur of score maps: PnP-OVSS (arXiv 2311.17095), section 3.3.

Hard masks of patches make poor unary potentials for a CRF, so they are smoothed first. The blur is
SciPy's `gaussian_filter` (edges mirrored, the kernel cut at 4 standard deviations) as two matrix
products: its standard deviation, 5 % of the image's longer side, makes the kernel nearly as wide
as the image, and a matrix of each axis also takes care of kernels that are wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

from ..backbones.devices import has_float64
from ..options import check_fields

TRUNCATE = 4.0  # standard deviations


@dataclass(frozen=True)
class Blur:
    """Blur each map with a Gaussian and min-max normalise it: a refiner.

    Attributes:
        deviation: standard deviation, relative to the map's longer side (Table 2: 0.05).
        nan_quirk: a map that is constant becomes NaN, as in the authors' code; without it, 1 if
            it is positive and 0 if not.
    """

    deviation: float = 0.05
    nan_quirk: bool = False

    def __post_init__(self) -> None:
        check_fields(self, deviation=(1e-6, 1e3))

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor], images: Sequence[Image.Image]) -> list[Tensor]:
        """Blur maps [C, h, w] of each image -> [C, h, w] in [0, 1]."""
        return [self.blurred(maps) for maps in scores]

    def blurred(self, maps: Tensor) -> Tensor:
        """Blur one image's maps [C, h, w]."""
        smooth = gaussian(maps, self.deviation * max(maps.shape[1:]))
        return minmax_normalise(smooth, self.nan_quirk)


def gaussian(maps: Tensor, deviation: float) -> Tensor:
    """Blur maps [C, h, w] with a standard deviation in pixels, as SciPy's `gaussian_filter`.

    The products are of float64, on the CPU where the maps' device has none.
    """
    place = maps.device if has_float64(maps.device) else torch.device("cpu")
    rows, columns = (_matrix(side, deviation).to(place) for side in maps.shape[1:])
    blurred = [rows @ one.to(place).double() @ columns.mT for one in maps]  # [h, w] each
    return torch.stack([one.float() for one in blurred]).to(maps.device)  # [C, h, w]


def minmax_normalise(maps: Tensor, nan: bool = False) -> Tensor:
    """Scale each map [C, h, w] to [0, 1] by its minimum and maximum.

    Args:
        nan: whether a constant map becomes NaN; if not, 1 where it is positive, else 0.
    """
    shifted = maps - maps.amin((1, 2), keepdim=True)  # [C, h, w]
    scaled = shifted / shifted.amax((1, 2), keepdim=True)
    return scaled if nan else torch.where(scaled.isnan(), (maps > 0).to(maps), scaled)


@lru_cache(maxsize=32)
def _matrix(side: int, deviation: float) -> Tensor:
    """[side, side] float64 on the CPU: row i weighs all positions for the blurred value i."""
    radius = int(TRUNCATE * deviation + 0.5)
    steps = torch.arange(-radius, radius + 1)
    weights = (-0.5 * (steps / deviation).double() ** 2).exp()
    places = (torch.arange(side)[:, None] + steps) % (2 * side)  # mirrored: d c b a a b c d d c
    mirrored = torch.where(places < side, places, 2 * side - 1 - places)
    spread = (weights / weights.sum()).expand(side, -1)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, mirrored, spread)
