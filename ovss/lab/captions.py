"""Captions like those of the web: they name most of the things, little of the stuff, and not always
the colours; now and then they say where things stand to one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Mention:
    """What a caption can say of one thing: its names and the centre of its box in [0, 1]."""

    category: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class Habits:
    """How captions are written: the probability of each kind of remark."""

    name_thing: float = 0.95
    name_stuff: float = 0.3
    name_colour: float = 0.5
    relate: float = 0.3
    stuff_only: float = 0.04


_OPENINGS = ("{}", "{}", "a photo of {}", "a picture of {}", "there is {}", "{} in the scene")
_GROUNDS = ("{} with {}", "{} on {}", "{} in front of {}", "{} and {}", "{} by the {}")
PLURALS = {"fish": "fish", "person": "people", "butterfly": "butterflies"}
_NUMBERS = {2: "two", 3: "three", 4: "four"}


def caption(
    things: Sequence[Mention], stuff: Sequence[str], rng: Random, habits: Habits = Habits()
) -> str:
    """One caption for a scene; always non-empty, lower case."""
    if rng.random() < habits.stuff_only or not things:
        return rng.choice(_OPENINGS).format(" and ".join(rng.sample(stuff, len(stuff))))
    named = [t for t in things if rng.random() < habits.name_thing] or [rng.choice(things)]
    named = rng.sample(named, len(named))
    with_colour = rng.random() < habits.name_colour
    if len(named) == 2 and rng.random() < habits.relate:
        text = _relation(named[0], named[1], with_colour)
    else:
        text = _listing(named, with_colour)
    text = rng.choice(_OPENINGS).format(text)
    if rng.random() < habits.name_stuff:
        text = rng.choice(_GROUNDS).format(text, rng.choice(stuff))
    return text


def _phrase(thing: Mention, with_colour: bool) -> str:
    words = f"{thing.colour} {thing.category}" if with_colour else thing.category
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _relation(first: Mention, second: Mention, with_colour: bool) -> str:
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        how = "left of" if dx < 0 else "right of"
    else:
        how = "above" if dy < 0 else "below"
    return f"{_phrase(first, with_colour)} {how} {_phrase(second, with_colour)}"


def _listing(named: Sequence[Mention], with_colour: bool) -> str:
    """ "a red car, a cup and two fish": equal things are counted."""
    kinds = Counter((t.category, t.colour if with_colour else "") for t in named)
    parts = []
    for (category, colour), count in kinds.items():
        if count == 1:
            parts.append(_phrase(Mention(category, colour, 0, 0), bool(colour)))
        else:
            plural = PLURALS.get(category, category + "s")
            parts.append(" ".join(filter(None, (_NUMBERS[count], colour, plural))))
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
