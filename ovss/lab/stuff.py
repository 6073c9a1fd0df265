"""The eight stuff textures of the lab world: everything that has a name but no shape.

Each texture is a function of pixel coordinates in units of the image side, so that a scene
rendered at 128 px looks like the same scene at 64 px. Randomness enters through a few numbers and
through offsets into fixed noise tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Texture = Callable[[Random, int], Array]
_TILE = 512


@cache
def _noise(cell: int) -> Array:
    """A periodic tile of noise [2 * _TILE, 2 * _TILE] in [-1, 1], smooth over `cell` pixels.

    Integers of PCG64 and exact arithmetic in float64, so that every machine gets the same tile.
    """
    n = _TILE // cell
    coarse = np.random.Generator(np.random.PCG64(cell)).integers(0, 1 << 20, (n, n)) / (1 << 19) - 1
    for axis in (0, 1):
        coarse = _smooth(coarse, axis, cell)
    return np.tile(coarse, (2, 2)).astype(np.float32)


def _smooth(values: NDArray[np.float64], axis: int, cell: int) -> NDArray[np.float64]:
    """Interpolate linearly between neighbours along one axis, periodically."""
    following = np.roll(values, -1, axis)
    weights = [(cell - i) / cell for i in range(cell)]
    steps = [w * values + (1 - w) * following for w in weights]
    shape = list(values.shape)
    shape[axis] *= cell
    return np.stack(steps, axis + 1).reshape(shape)


def _crop(rng: Random, side: int, cell: int) -> Array:
    """A random [side, side] piece of noise that is smooth over `cell / 64` of the image side."""
    scale = side // 64 if side >= 64 else 1
    y, x = rng.randrange(_TILE), rng.randrange(_TILE)
    return _noise(cell * scale)[y : y + side, x : x + side]


def _grid(side: int) -> tuple[Array, Array]:
    line = ((np.arange(side) + 0.5) / side).astype(np.float32)
    return line[:, None], line[None, :]  # y [side, 1], x [1, side]


def _paint(
    base: tuple[float, float, float], shade: Array, rng: Random, spread: float = 18
) -> Array:
    """Colour `base` (0-255) shifted by a random tint, times 1 + shade: [side, side, 3]."""
    tint = [c + rng.uniform(-spread, spread) for c in base]
    return np.asarray(tint, dtype=np.float32) * (1 + shade[:, :, None])


def _sky(rng: Random, side: int) -> Array:
    y, _ = _grid(side)
    base = rng.choice([(115, 165, 225), (150, 190, 230), (225, 165, 130), (90, 120, 190)])
    return _paint(base, (y - 0.4) * rng.uniform(0.1, 0.45) + 0.16 * _crop(rng, side, 16), rng)


def _grass(rng: Random, side: int) -> Array:
    blades = _crop(rng, side, 2)[:, ::1] * 0.28 + 0.18 * _crop(rng, side, 1)
    return _paint((75, 140, 55), blades, rng)


def _water(rng: Random, side: int) -> Array:
    y, x = _grid(side)
    phase = y * rng.uniform(60, 90) + 2.0 * _crop(rng, side, 8) + rng.uniform(-3, 3) * x
    return _paint((35, 110, 150), 0.22 * np.sin(phase), rng)


def _sand(rng: Random, side: int) -> Array:
    return _paint((215, 185, 125), 0.12 * _crop(rng, side, 1) + 0.06 * _crop(rng, side, 16), rng)


def _brick(rng: Random, side: int) -> Array:
    y, x = _grid(side)
    rows = rng.choice([6.0, 8.0, 10.0])
    v = y * rows + rng.random()
    u = x * rows / 2 + 0.5 * (np.floor(v) % 2) + rng.random()
    mortar = ((v % 1) < 0.16) | ((u % 1) < 0.09)
    shade = np.where(mortar, 0.35, -0.05).astype(np.float32) + 0.1 * _crop(rng, side, 4)
    return _paint(rng.choice([(165, 80, 60), (150, 100, 85), (140, 65, 55)]), shade, rng)


def _road(rng: Random, side: int) -> Array:
    y, x = _grid(side)
    asphalt = _paint((95, 95, 100), 0.13 * _crop(rng, side, 1), rng, 10)
    line = np.abs(x - 0.5 + (y - 0.5) * rng.uniform(-0.6, 0.6) + rng.uniform(-0.3, 0.3)) < 0.02
    dashes = line & ((y * 5 + rng.random()) % 1 < 0.55)
    asphalt[dashes] = 225
    return asphalt


def _snow(rng: Random, side: int) -> Array:
    return _paint((232, 238, 246), 0.05 * _crop(rng, side, 8) + 0.03 * _crop(rng, side, 1), rng, 8)


def _wood(rng: Random, side: int) -> Array:
    y, x = _grid(side)
    rings = np.sin(x * rng.uniform(35, 60) + 2.5 * _crop(rng, side, 16) + y * rng.uniform(-4, 4))
    boards = ((x * rng.choice([3.0, 4.0]) + rng.random()) % 1 < 0.05) * -0.45
    return _paint((150, 105, 62), (0.16 * rings + boards).astype(np.float32), rng)


STUFF: dict[str, Texture] = {
    "sky": _sky,
    "grass": _grass,
    "water": _water,
    "sand": _sand,
    "brick": _brick,
    "road": _road,
    "snow": _snow,
    "wood": _wood,
}
