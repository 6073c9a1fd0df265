"""The twenty things of the lab world, each told by its silhouette and parts, never by its colour.

A thing is a list of parts in a unit box (x right, y down, both in [-1, 1]), painted in order. A
part is a polygon and a tone: the thing's main colour, a darker or a lighter shade of it.
"""

from __future__ import annotations

from math import cos, pi, sin

Point = tuple[float, float]
Part = tuple[tuple[Point, ...], int]
MAIN, DARK, LIGHT = 0, 1, 2


def rectangle(x0: float, y0: float, x1: float, y1: float) -> tuple[Point, ...]:
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def ellipse(
    cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 1.0, n: int = 18
) -> tuple[Point, ...]:
    """An ellipse, or its arc from `start` to `end` in turns (0 = right, 0.25 = down)."""
    steps = (start + (end - start) * i / n for i in range(n + 1))
    return tuple((cx + rx * cos(2 * pi * t), cy + ry * sin(2 * pi * t)) for t in steps)


def ring(cx: float, cy: float, outer: float, inner: float) -> tuple[Point, ...]:
    """An annulus as one polygon with a seam: outward along the rim, back along the hole."""
    return ellipse(cx, cy, outer, outer) + ellipse(cx, cy, inner, inner)[::-1]


def _mirrored(points: tuple[Point, ...]) -> tuple[Point, ...]:
    return tuple((-x, y) for x, y in points)


def _star() -> tuple[Point, ...]:
    radii = (1.0, 0.42)
    return tuple(
        (radii[i % 2] * sin(pi * i / 5), -radii[i % 2] * cos(pi * i / 5)) for i in range(10)
    )


def _heart() -> tuple[Point, ...]:
    turns = [2 * pi * i / 28 for i in range(28)]
    return tuple(
        (
            sin(t) ** 3,
            -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 16 - 0.1,
        )
        for t in turns
    )


def _moon() -> tuple[Point, ...]:
    return ellipse(-0.1, 0, 0.95, 0.95, 0.14, 0.86) + ellipse(0.28, 0, 0.72, 0.8, 0.83, 0.17)


def _petals() -> list[Part]:
    centres = [(0.45 * cos(2 * pi * i / 6), -0.35 + 0.45 * sin(2 * pi * i / 6)) for i in range(6)]
    return [(ellipse(x, y, 0.27, 0.27), MAIN) for x, y in centres]


_ARM = ((-0.28, -0.45), (-0.8, 0.02), (-0.66, 0.18), (-0.2, -0.15))
_WING = ((0.25, 0.0), (-0.15, 0.0), (-0.5, 0.85), (-0.28, 0.85))
_FIN = ((-0.34, 0.2), (-0.75, 0.75), (-0.34, 0.62))

THINGS: dict[str, list[Part]] = {
    "car": [
        (((-0.62, -0.02), (-0.38, -0.5), (0.32, -0.5), (0.62, -0.02)), MAIN),
        (((-0.45, -0.05), (-0.3, -0.38), (0.26, -0.38), (0.44, -0.05)), LIGHT),
        (((-1, 0.05), (-0.85, -0.06), (0.8, -0.06), (1, 0.12), (1, 0.42), (-1, 0.42)), MAIN),
        (ellipse(-0.52, 0.42, 0.23, 0.23), DARK),
        (ellipse(0.52, 0.42, 0.23, 0.23), DARK),
    ],
    "house": [
        (rectangle(-0.72, -0.15, 0.72, 0.9), MAIN),
        (((-0.98, -0.1), (0, -0.92), (0.98, -0.1)), DARK),
        (rectangle(-0.5, 0.05, -0.15, 0.4), LIGHT),
        (rectangle(0.12, 0.3, 0.45, 0.9), DARK),
    ],
    "tree": [
        (rectangle(-0.14, 0.1, 0.14, 1.0), DARK),
        (ellipse(-0.38, 0.0, 0.42, 0.4), MAIN),
        (ellipse(0.38, 0.0, 0.42, 0.4), MAIN),
        (ellipse(0.0, -0.48, 0.5, 0.48), MAIN),
    ],
    "fish": [
        (((0.4, 0.0), (1.0, -0.5), (0.85, 0.0), (1.0, 0.5)), DARK),
        (ellipse(-0.2, 0.0, 0.75, 0.44), MAIN),
        (((-0.25, -0.1), (0.15, 0.05), (-0.2, 0.22)), DARK),
        (ellipse(-0.62, -0.1, 0.1, 0.1), LIGHT),
    ],
    "boat": [
        (rectangle(-0.06, -0.98, 0.06, 0.35), DARK),
        (((0.12, -0.9), (0.85, 0.2), (0.12, 0.2)), LIGHT),
        (((-0.12, -0.7), (-0.7, 0.2), (-0.12, 0.2)), LIGHT),
        (((-1, 0.32), (1, 0.32), (0.62, 0.85), (-0.62, 0.85)), MAIN),
    ],
    "person": [
        (_ARM, LIGHT),
        (_mirrored(_ARM), LIGHT),
        (rectangle(-0.28, 0.2, -0.04, 1.0), DARK),
        (rectangle(0.04, 0.2, 0.28, 1.0), DARK),
        (rectangle(-0.3, -0.48, 0.3, 0.28), MAIN),
        (ellipse(0, -0.74, 0.25, 0.26), LIGHT),
    ],
    "star": [(_star(), MAIN)],
    "cup": [
        (ring(0.5, -0.02, 0.42, 0.24), DARK),
        (((-0.7, -0.62), (0.5, -0.62), (0.36, 0.75), (-0.56, 0.75)), MAIN),
        (ellipse(-0.1, -0.62, 0.6, 0.15), LIGHT),
    ],
    "flower": [
        (rectangle(-0.07, -0.1, 0.07, 1.0), DARK),
        (ellipse(0.28, 0.62, 0.26, 0.12), DARK),
        *_petals(),
        (ellipse(0, -0.35, 0.25, 0.25), LIGHT),
    ],
    "mushroom": [
        (((-0.22, 0.0), (0.22, 0.0), (0.32, 0.9), (-0.32, 0.9)), LIGHT),
        (ellipse(0, 0.12, 0.98, 0.95, 0.5, 1.0), MAIN),
        (ellipse(-0.4, -0.22, 0.15, 0.15), LIGHT),
        (ellipse(0.1, -0.5, 0.16, 0.15), LIGHT),
        (ellipse(0.5, -0.15, 0.13, 0.13), LIGHT),
    ],
    "key": [
        (rectangle(-0.2, -0.11, 1.0, 0.11), MAIN),
        (rectangle(0.5, 0.1, 0.66, 0.45), DARK),
        (rectangle(0.82, 0.1, 0.98, 0.38), DARK),
        (ring(-0.55, 0.0, 0.45, 0.2), MAIN),
    ],
    "umbrella": [
        (rectangle(-0.06, -0.1, 0.06, 0.8), DARK),
        (rectangle(0.0, 0.7, 0.36, 0.84), DARK),
        (rectangle(0.26, 0.5, 0.36, 0.75), DARK),
        (
            (
                *ellipse(0, 0.05, 1.0, 0.95, 0.5, 1.0),
                (0.66, -0.2),
                (0.33, 0.05),
                (0, -0.2),
                (-0.33, 0.05),
                (-0.66, -0.2),
            ),
            MAIN,
        ),
    ],
    "chair": [
        (rectangle(-0.6, 0.15, -0.42, 1.0), DARK),
        (rectangle(0.42, 0.15, 0.6, 1.0), DARK),
        (rectangle(-0.62, -1.0, -0.4, 0.1), MAIN),
        (rectangle(-0.62, -0.05, 0.68, 0.2), MAIN),
    ],
    "lamp": [
        (rectangle(-0.08, -0.2, 0.08, 0.85), DARK),
        (ellipse(0, 0.88, 0.45, 0.13), DARK),
        (((-0.36, -0.95), (0.36, -0.95), (0.75, -0.05), (-0.75, -0.05)), MAIN),
    ],
    "plane": [
        (_WING, DARK),
        (tuple((x, -y) for x, y in _WING), DARK),
        (
            ((-0.7, 0), (-0.98, -0.42), (-0.84, -0.42), (-0.5, 0), (-0.84, 0.42), (-0.98, 0.42)),
            DARK,
        ),
        (ellipse(0.02, 0, 0.98, 0.19), MAIN),
        (ellipse(0.68, 0, 0.14, 0.1), LIGHT),
    ],
    "heart": [(_heart(), MAIN)],
    "moon": [(_moon(), MAIN)],
    "bottle": [
        (rectangle(-0.19, -1.0, 0.19, -0.8), DARK),
        (
            (
                (-0.14, -0.8),
                (0.14, -0.8),
                (0.14, -0.45),
                (0.42, -0.1),
                (0.42, 1.0),
                (-0.42, 1.0),
                (-0.42, -0.1),
                (-0.14, -0.45),
            ),
            MAIN,
        ),
        (rectangle(-0.42, 0.2, 0.42, 0.65), LIGHT),
    ],
    "butterfly": [
        (((-0.05, -0.05), (-0.95, -0.8), (-0.85, 0.05)), MAIN),
        (((0.05, -0.05), (0.95, -0.8), (0.85, 0.05)), MAIN),
        (ellipse(-0.45, 0.4, 0.42, 0.36), LIGHT),
        (ellipse(0.45, 0.4, 0.42, 0.36), LIGHT),
        (ellipse(0, 0, 0.1, 0.75), DARK),
    ],
    "rocket": [
        (_FIN, DARK),
        (_mirrored(_FIN), DARK),
        (((-0.34, -0.4), (0, -1.0), (0.34, -0.4)), DARK),
        (rectangle(-0.34, -0.42, 0.34, 0.68), MAIN),
        (ellipse(0, -0.12, 0.17, 0.17), LIGHT),
        (((-0.22, 0.68), (0.22, 0.68), (0, 1.0)), LIGHT),
    ],
}
