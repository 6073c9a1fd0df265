"""Colours that lie: parts in colours and textures of their own, things in those of a ground.

All of it is drawn from a generator of its own, so that a scene keeps its things, their places and
its grounds whatever colours they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovss.lab.stuff import STUFF

Colour = tuple[int, int, int]
Tones = dict[int, Colour]  # of a thing, by the tone of the part
FLAT = 0  # the material of a part without texture


@dataclass(frozen=True)
class Disguise:
    """Probabilities with which colours lie.

    Attributes:
        motley: a part draws its own colour.
        textured: a part draws its own texture, that of some stuff in the part's colour.
        camouflage: a thing takes, of a ground of its scene, the tint or (as often) the texture.
    """

    motley: float = 0.0
    textured: float = 0.0
    camouflage: float = 0.0


@dataclass(frozen=True)
class Coat:
    """How a part is painted: its colour, and its material (FLAT, or 1 + a number of STUFF)."""

    colour: Colour
    material: int = FLAT


class Coats:
    """The coat of each part of one thing, drawn part by part."""

    def __init__(
        self,
        rng: Random,
        disguise: Disguise,
        tones: Tones,
        draw_tones: Callable[[Random], Tones],
        grounds: dict[str, NDArray[np.float32]],
    ) -> None:
        """Draw what holds for the whole thing.

        Args:
            tones: of the thing without a disguise.
            draw_tones: tones of a random colour.
            grounds: the mean colour [3] of each stuff of the scene.
        """
        self.rng, self.disguise, self.tones, self.draw_tones = rng, disguise, tones, draw_tones
        self.material, self.hidden = FLAT, False
        if rng.random() < disguise.camouflage:
            name = rng.choice(sorted(grounds))
            if rng.random() < 0.5:
                self.hidden, self.tones = True, _tints(rng, grounds[name])
            else:
                self.material = 1 + list(STUFF).index(name)

    def draw(self, tone: int) -> Coat:
        """Draw the coat of the next part; a thing in the tint of a ground wears no other colour."""
        rng, material = self.rng, self.material
        tones = self.tones
        if rng.random() < self.disguise.motley and not self.hidden:
            tones = self.draw_tones(rng)
        if rng.random() < self.disguise.textured:
            material = 1 + rng.randrange(len(STUFF))
        return Coat(tones[tone], material)


def _tints(rng: Random, ground: NDArray[np.float32]) -> Tones:
    """Tones near the mean colour of a ground, darker and lighter by a little."""

    def near(gain: float) -> Colour:
        r, g, b = (min(255, max(0, round(float(c) * gain + rng.uniform(-8, 8)))) for c in ground)
        return r, g, b

    return {0: near(1.0), 1: near(0.85), 2: near(1.12)}


def weave(rng: Random, materials: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Gains of the textures at each pixel: a texture divided by its mean colour.

    Args:
        materials: [k S, k S], of the topmost part at each subpixel.

    Returns:
        [S, S, 3], 1 where a part is flat.
    """
    gains = np.ones((side, side, 3), dtype=np.float32)
    block = len(materials) // side
    for material in range(1, len(STUFF) + 1):
        layer = materials == material
        if not layer.any():
            continue
        share = Image.fromarray(layer.view(np.uint8) * 255).reduce(block)
        texture = list(STUFF.values())[material - 1](rng, side).reshape(-1, 3)  # [S S, 3]
        even = np.full(len(texture), 1 / len(texture), dtype=np.float32)
        gain = texture / (even @ texture).clip(1) - 1
        gains += np.asarray(share, np.float32)[:, :, None] / 255 * gain.reshape(side, side, 3)
    return gains.astype(np.float32)
