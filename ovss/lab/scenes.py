"""The lab world: scenes rendered from a seed, with exact labels and a caption.

`render("val", 7, side=128)` gives the same scene on every machine: labels equal, pixels within one
grey level. A scene is some stuff (textured regions) and one to four things (flat parts in a random
colour, pose and scale, with lighting and noise). The same scene can be rendered at 64, 128, 256 and
512 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import cos, radians, sin
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ovss.lab.captions import Habits, Mention, caption
from ovss.lab.disguise import Coats, Disguise, Tones, weave
from ovss.lab.fine import FINE
from ovss.lab.stuff import STUFF, _crop
from ovss.lab.things import DARK, LIGHT, MAIN, THINGS, Part

Split = Literal["pretrain", "tune", "val"]
THING_NAMES = tuple(THINGS)
STUFF_NAMES = tuple(STUFF)
NAMES = THING_NAMES + STUFF_NAMES  # label i of a scene is NAMES[i]
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 40),
    "orange": (240, 135, 25),
    "yellow": (240, 220, 50),
    "green": (35, 150, 60),
    "blue": (40, 70, 205),
    "purple": (135, 50, 160),
    "white": (240, 240, 240),
    "black": (35, 35, 38),
}
COLOUR_NAMES = tuple(COLOURS)
SIDES = (64, 128, 256, 512)  # noise tiles divide into these
_SUPERSAMPLE = 2


@dataclass(frozen=True)
class World:
    """The distribution of scenes. Defaults are the world of `tune` and `val`."""

    things: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)  # probability of one, two, three, four things
    size: tuple[float, float] = (0.28, 0.6)  # side of a thing's box in image sides
    regions: tuple[float, ...] = (0.35, 0.5, 0.15)  # probability of one, two, three stuff regions
    tilt: float = 15.0  # largest rotation, degrees
    colours: tuple[str, ...] = COLOUR_NAMES  # of things
    stuff: tuple[str, ...] = STUFF_NAMES
    pan: float = 0.0  # probability that the frames of a film show other grounds
    habits: Habits = field(default_factory=Habits)
    disguise: Disguise = field(default_factory=Disguise)  # colours that lie
    fine: float = 0.0  # probability that a thing which has thin parts is drawn with them


MOTLEY = World(  # captions name no colours: things have several
    habits=Habits(name_colour=0.0),
    disguise=Disguise(motley=0.7, textured=0.25, camouflage=0.6),
)
THIN = World(things=(0.1, 0.2, 0.3, 0.4), size=(0.2, 0.45), fine=0.5)


@dataclass(frozen=True)
class Thing:
    """One thing of a scene; x, y, size in image sides, angle in degrees."""

    category: str
    colour: str
    x: float
    y: float
    size: float
    stretch: float
    angle: float
    flipped: bool


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    Attributes:
        image: [S, S, 3] uint8.
        labels: [S, S] uint8, indices into NAMES.
        instances: [S, S] uint8, 0 for stuff and i + 1 for things[i].
        parts: [S, S] uint8, 0 for stuff and a number for each part of each thing.
        caption, things, stuff: what is said of it, and what is in it.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    caption: str
    things: tuple[Thing, ...]
    stuff: tuple[str, ...]


def render(split: Split, index: int, side: int = 64, world: World = World()) -> Scene:
    """Render scene `index` of a split.

    Equal arguments give equal scenes; splits never share a scene. A disguise and thin parts are
    drawn from a generator of their own: worlds that differ in these alone show the same things in
    the same places.

    Raises:
        ValueError: the side is none of `SIDES`.
    """
    if side not in SIDES:
        raise ValueError(f"side must be one of {SIDES}, got {side}")
    rng = Random(f"{split}/{index}")
    things = _arrange(rng, world)
    return _compose(
        rng, Random(f"{split}/{index}/disguise"), things, _stuff(rng, world), side, world
    )


def film(split: Split, index: int, side: int, worlds: Sequence[World]) -> list[Scene]:
    """Render the frames of a film, one in each of the worlds; the first is scene `index`.

    All frames show the same categories of things. Their places, sizes, colours and the light are
    drawn anew for each frame, and so are the grounds with probability `World.pan`.
    """
    first = render(split, index, side, worlds[0])
    categories = [thing.category for thing in first.things]
    scenes = [first]
    for number, world in enumerate(worlds[1:], 1):
        seed = f"{split}/{index}/frame/{number}"
        rng = Random(seed)
        things = _arrange(rng, world, categories)
        stuff = _stuff(rng, world) if rng.random() < world.pan else list(first.stuff)
        scenes.append(_compose(rng, Random(f"{seed}/disguise"), things, stuff, side, world))
    return scenes


def _stuff(rng: Random, world: World) -> list[str]:
    """Stuff of a scene; the sky is above whatever else there is."""
    count = 1 + _draw(rng, world.regions)
    names = rng.sample(world.stuff, min(count, len(world.stuff)))
    return sorted(names, key=lambda name: name != "sky")


def _compose(
    rng: Random, extra: Random, things: list[Thing], stuff: list[str], side: int, world: World
) -> Scene:
    """Write the caption, then paint grounds, things and light; `extra` draws the disguise."""
    words = caption(
        [Mention(t.category, t.colour, t.x, t.y) for t in things], stuff, rng, world.habits
    )
    ground, labels = _ground(rng, stuff, side)
    grounds = _mean_colours(ground, labels) if world.disguise.camouflage else {}
    painter = _Painter(rng, extra, side, world, grounds)
    paint, coverage, instances, parts = painter.paint(things)
    image = ground * (1 - coverage) + paint * _thing_texture(rng, side)
    categories = np.array([0] + [THING_NAMES.index(t.category) for t in things], dtype=np.uint8)
    labels = np.where(instances > 0, categories[instances], labels).astype(np.uint8)
    image = _light(rng, image, side)
    return Scene(image, labels, instances, parts, words, tuple(things), tuple(stuff))


def _draw(rng: Random, weights: tuple[float, ...]) -> int:
    return rng.choices(range(len(weights)), weights)[0]


def _arrange(rng: Random, world: World, categories: Sequence[str] | None = None) -> list[Thing]:
    """Things, of `categories` if given, that overlap a little at most.

    A place that stays crowded is left empty.
    """
    count = len(categories) if categories is not None else 1 + _draw(rng, world.things)
    low, high = world.size
    placed: list[Thing] = []
    for number in range(count):
        for _ in range(12):
            thing = _thing(rng, world, high if count == 1 else low + (high - low) * 0.7)
            if categories is not None:
                thing = replace(thing, category=categories[number])
            if all(_apart(thing, other) for other in placed):
                placed.append(thing)
                break
    return placed


def _thing(rng: Random, world: World, largest: float) -> Thing:
    size = rng.uniform(world.size[0], largest)
    reach = max(0.0, 0.5 - 0.42 * size)
    return Thing(
        category=rng.choice(THING_NAMES),
        colour=rng.choice(world.colours),
        x=0.5 + rng.uniform(-reach, reach),
        y=0.5 + rng.uniform(-reach, reach),
        size=size,
        stretch=rng.uniform(0.85, 1.18),
        angle=rng.uniform(-world.tilt, world.tilt),
        flipped=rng.random() < 0.5,
    )


def _apart(a: Thing, b: Thing) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) > 0.4 * (a.size + b.size)


def _ground(
    rng: Random, stuff: list[str], side: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Stuff in bands from top to bottom with wavy borders: image [S, S, 3] and labels [S, S]."""
    y = (np.arange(side, dtype=np.float64)[:, None] + 0.5) / side
    x = (np.arange(side, dtype=np.float64)[None, :] + 0.5) / side
    image = STUFF[stuff[0]](rng, side).astype(np.float32)
    labels = np.full((side, side), NAMES.index(stuff[0]), dtype=np.uint8)
    for i, name in enumerate(stuff[1:], 1):
        height = i / len(stuff) + rng.uniform(-0.13, 0.13)
        wave = rng.uniform(0, 0.05) * np.sin(x * rng.uniform(3, 12) + rng.uniform(0, 6))
        below = y > height + wave + rng.uniform(-0.25, 0.25) * (x - 0.5)
        image = np.where(below[:, :, None], STUFF[name](rng, side), image)
        labels[below] = NAMES.index(name)
    return image, labels


@dataclass(frozen=True)
class _Painter:
    """Paints the things of a scene; `grounds` holds the mean colour of each of its stuffs."""

    rng: Random
    extra: Random
    side: int
    world: World
    grounds: dict[str, NDArray[np.float32]]

    def paint(
        self, things: list[Thing]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
        """Colour [S, S, 3] times coverage, coverage [S, S, 1] in [0, 1], instances [S, S], parts
        [S, S]."""
        big = self.side * _SUPERSAMPLE
        layers = colour, index, material, number = [
            Image.new(mode, (big, big)) for mode in ("RGB", "L", "L", "L")
        ]
        pens = [ImageDraw.Draw(layer) for layer in layers]
        owners = [0]  # the thing of each part
        for i, thing in enumerate(things, 1):
            coats = self._coats(thing)
            for part in self._parts(thing):
                polygon, coat = _place(thing, part, big), coats.draw(part[1])
                pens[0].polygon(polygon, fill=coat.colour)
                for pen, mark in zip(pens[1:], (i, coat.material, len(owners)), strict=True):
                    pen.polygon(polygon, fill=mark)
                owners.append(i)
        drawn = np.asarray(index)
        coverage = np.asarray(
            Image.fromarray((drawn > 0).astype(np.uint8) * 255).reduce(_SUPERSAMPLE)
        )
        painted = np.asarray(colour.reduce(_SUPERSAMPLE), dtype=np.float32)
        painted = painted * weave(self.extra, np.asarray(material), self.side)
        instances = np.where(coverage >= 128, _majority(drawn), 0).astype(np.uint8)
        share = (coverage / np.float32(255))[:, :, None].astype(np.float32)
        parts = np.asarray(number)[::_SUPERSAMPLE, ::_SUPERSAMPLE]
        shown = np.array(owners, dtype=np.uint8)[parts] == instances
        return painted, share, instances, np.where(shown, parts, 0).astype(np.uint8)

    def _coats(self, thing: Thing) -> Coats:
        tones = _tones(self.rng, thing.colour)
        return Coats(self.extra, self.world.disguise, tones, _any_tones, self.grounds)

    def _parts(self, thing: Thing) -> list[Part]:
        thin = self.extra.random() < self.world.fine
        return (FINE if thin and thing.category in FINE else THINGS)[thing.category]


def _mean_colours(
    ground: NDArray[np.float32], labels: NDArray[np.uint8]
) -> dict[str, NDArray[np.float32]]:
    """The mean colour [3] of each stuff of a ground [S, S, 3]."""
    size = np.bincount(labels.ravel())
    sums = [np.bincount(labels.ravel(), ground[:, :, c].ravel()) for c in range(3)]
    means = np.stack(sums, 1) / size.clip(1)[:, None]  # [K, 3]
    return {NAMES[i]: means[i].astype(np.float32) for i in np.flatnonzero(size)}


def _majority(drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The topmost instance of each 2x2 block."""
    return np.maximum(
        np.maximum(drawn[::2, ::2], drawn[1::2, ::2]),
        np.maximum(drawn[::2, 1::2], drawn[1::2, 1::2]),
    )


def _any_tones(rng: Random) -> Tones:
    return _tones(rng, rng.choice(COLOUR_NAMES))


def _tones(rng: Random, name: str) -> Tones:
    base = [min(255, max(0, c + rng.randint(-18, 18))) for c in COLOURS[name]]

    def mix(target: int, share: float) -> tuple[int, int, int]:
        r, g, b = (round(c + (target - c) * share) for c in base)
        return r, g, b

    return {MAIN: mix(0, 0.0), DARK: mix(20, 0.45), LIGHT: mix(245, 0.5)}


def _place(thing: Thing, part: Part, side: int) -> list[tuple[float, float]]:
    half = thing.size * side / 2
    c, s = cos(radians(thing.angle)) * half, sin(radians(thing.angle)) * half
    sx, sy = (-1 if thing.flipped else 1) * thing.stretch, 1 / thing.stretch
    cx, cy = thing.x * side, thing.y * side
    return [(cx + c * sx * x - s * sy * y, cy + s * sx * x + c * sy * y) for x, y in part[0]]


def _thing_texture(rng: Random, side: int) -> NDArray[np.float32]:
    return (1 + rng.uniform(0.0, 0.14) * _crop(rng, side, rng.choice([2, 8])))[:, :, None]


def _light(rng: Random, image: NDArray[np.float32], side: int) -> NDArray[np.uint8]:
    """A slope of light across the image, brightness, and sensor noise."""
    line = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    slope = rng.uniform(-0.25, 0.25) * line[:, None] + rng.uniform(-0.25, 0.25) * line[None, :]
    gain = rng.uniform(0.85, 1.12) * (1 + slope) + rng.uniform(0, 0.06) * _crop(rng, side, 1)
    return np.clip(image * gain[:, :, None], 0, 255).astype(np.uint8)
