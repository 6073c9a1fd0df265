"""Fine variants of ten things: the same categories drawn from thin limbs with gaps between them.

Parts are as in `things.py`: polygons in a unit box with a tone, painted in order. What shows
through a gap belongs to the ground.
"""

from __future__ import annotations

from itertools import pairwise
from math import cos, hypot, pi, sin

from ovss.lab.things import DARK, LIGHT, MAIN, Part, Point, ellipse


def limb(x0: float, y0: float, x1: float, y1: float, width: float = 0.08) -> tuple[Point, ...]:
    """A straight limb from one point to another, as a thin rectangle."""
    length = hypot(x1 - x0, y1 - y0)
    across = (width / 2 * (y0 - y1) / length, width / 2 * (x1 - x0) / length)
    return tuple(
        (x + side * across[0], y + side * across[1])
        for x, y, side in ((x0, y0, 1), (x1, y1, 1), (x1, y1, -1), (x0, y0, -1))
    )


def strokes(*points: Point, width: float = 0.08) -> list[tuple[Point, ...]]:
    """Limbs along a line of points."""
    return [limb(*a, *b, width) for a, b in pairwise(points)]


def _spokes(cx: float, cy: float, inner: float, outer: float, count: int) -> list[Part]:
    ways = [(cos(2 * pi * i / count), sin(2 * pi * i / count)) for i in range(count)]
    lines = [(cx + inner * x, cy + inner * y, cx + outer * x, cy + outer * y) for x, y in ways]
    return [(limb(*line), MAIN) for line in lines]


def _twigs(x: float, y: float, dx: float, dy: float) -> list[Part]:
    """A branch from (x, y) with two twigs."""
    ends = ((x + dx, y + dy), (x + 0.9 * dx - 0.6 * dy, y + 0.9 * dy + 0.4 * dx))
    fork = (x + 0.5 * dx, y + 0.5 * dy)
    return [
        (limb(x, y, *ends[0], 0.09), MAIN),
        (limb(*fork, *ends[1], 0.06), LIGHT),
        (limb(*fork, fork[0] + 0.5 * dx + 0.3 * dy, fork[1] + 0.5 * dy - 0.3 * dx, 0.06), LIGHT),
    ]


def _ribs() -> list[tuple[float, float]]:
    """Place and height of the bones along a fish."""
    return [(-0.35 + 0.2 * i, 1 - 0.15 * i) for i in range(6)]


def _star_points() -> list[Point]:
    radii = (0.95, 0.4)
    return [(radii[i % 2] * sin(pi * i / 5), -radii[i % 2] * cos(pi * i / 5)) for i in range(11)]


FINE: dict[str, list[Part]] = {
    "tree": [
        (limb(0, 1, 0, -0.3, 0.14), DARK),
        *_twigs(0, 0.35, 0.7, -0.45),
        *_twigs(0, 0.2, -0.75, -0.4),
        *_twigs(0, -0.1, 0.55, -0.6),
        *_twigs(0, -0.2, -0.5, -0.65),
        *_twigs(0, -0.3, 0.05, -0.65),
    ],
    "house": [
        *((limb(x, -0.1, x, 0.9, 0.09), MAIN) for x in (-0.72, -0.24, 0.24, 0.72)),
        *((limb(-0.76, y, 0.76, y, 0.09), DARK) for y in (-0.1, 0.4, 0.9)),
        (limb(-0.98, -0.08, 0, -0.92, 0.1), DARK),
        (limb(0.98, -0.08, 0, -0.92, 0.1), DARK),
        (limb(0, -0.9, 0, -0.1, 0.07), LIGHT),
    ],
    "fish": [
        (limb(-0.6, 0, 0.75, 0, 0.07), MAIN),
        *((limb(x, -0.42 * h, x + 0.1, 0, 0.06), LIGHT) for x, h in _ribs()),
        *((limb(x, 0.42 * h, x + 0.1, 0, 0.06), LIGHT) for x, h in _ribs()),
        (((0.65, 0.0), (1.0, -0.45), (0.88, 0.0), (1.0, 0.45)), DARK),
        (((-0.98, 0.0), (-0.55, -0.36), (-0.45, 0.0), (-0.55, 0.36)), MAIN),
        (ellipse(-0.68, -0.08, 0.08, 0.08), LIGHT),
    ],
    "boat": [
        (limb(0, -0.98, 0, 0.4, 0.07), DARK),
        (limb(0, -0.95, 0.95, 0.35, 0.05), LIGHT),
        (limb(0, -0.95, -0.95, 0.35, 0.05), LIGHT),
        *((limb(-0.62 - y * 0.6, y, 0.62 + y * 0.6, y, 0.06), LIGHT) for y in (-0.5, -0.15)),
        (((-1, 0.4), (1, 0.4), (0.7, 0.75), (-0.7, 0.75)), MAIN),
    ],
    "person": [
        *((part, LIGHT) for part in strokes((-0.1, -0.35), (-0.45, -0.05), (-0.8, -0.3))),
        *((part, LIGHT) for part in strokes((0.1, -0.35), (0.5, -0.15), (0.6, 0.3))),
        *((part, DARK) for part in strokes((0, 0.2), (-0.3, 0.6), (-0.35, 1.0), width=0.1)),
        *((part, DARK) for part in strokes((0, 0.2), (0.3, 0.55), (0.5, 1.0), width=0.1)),
        (limb(0, -0.5, 0, 0.25, 0.16), MAIN),
        (ellipse(0, -0.74, 0.2, 0.22), LIGHT),
    ],
    "star": [(part, MAIN) for part in strokes(*_star_points(), width=0.11)],
    "flower": [
        (limb(0, -0.3, 0, 1.0, 0.07), DARK),
        (limb(0, 0.8, 0.5, 0.45, 0.07), DARK),
        (limb(0, 0.6, -0.45, 0.3, 0.07), DARK),
        *_spokes(0, -0.35, 0.15, 0.62, 11),
        (ellipse(0, -0.35, 0.16, 0.16), LIGHT),
    ],
    "umbrella": [
        (limb(0, -0.85, 0, 0.8, 0.06), DARK),
        (limb(0, 0.8, 0.3, 0.8, 0.06), DARK),
        *((limb(0, -0.85, x, 0.0, 0.06), LIGHT) for x in (-0.95, -0.5, 0.5, 0.95)),
        (ellipse(0, 0.05, 1.0, 0.95, 0.5, 1.0) + ellipse(0, 0.05, 0.9, 0.84, 0.5, 1.0)[::-1], MAIN),
    ],
    "chair": [
        *((limb(x, 0.1, x, 1.0, 0.08), DARK) for x in (-0.55, 0.6)),
        (limb(-0.55, 0.65, 0.6, 0.65, 0.06), DARK),
        *((limb(x, -1.0, x, 0.1, 0.07), MAIN) for x in (-0.6, -0.35, -0.1)),
        (limb(-0.66, -0.95, -0.04, -0.95, 0.08), MAIN),
        (limb(-0.62, 0.08, 0.66, 0.08, 0.1), LIGHT),
    ],
    "lamp": [
        (limb(0, -0.1, 0, 0.9, 0.07), DARK),
        (limb(-0.4, 0.9, 0.4, 0.9, 0.1), DARK),
        *((limb(0.4 * x, -0.95, x, -0.05, 0.06), MAIN) for x in (-0.75, -0.38, 0.0, 0.38, 0.75)),
        (limb(-0.8, -0.05, 0.8, -0.05, 0.07), LIGHT),
        (limb(-0.34, -0.95, 0.34, -0.95, 0.07), LIGHT),
    ],
}
