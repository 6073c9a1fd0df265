"""GPT-4o's answers as text: `[2: 'bicycle', 15: 'person'], [100%, 71%]`, and worse.

Names may be quoted or not and hold commas, percent signs may be missing, a probability may repeat
its class's name, the lists may differ in length, stand in one more pair of brackets or on lines of
their own, the second may be missing. What counts is as in the authors' code: classes are told by
their ids, never by their names; the n-th probability belongs to the n-th class; a class without
one is not taken; without a probability list every class counts as certain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Issue = Literal["empty", "unreadable", "unlisted", "uneven"]
CERTAIN = 100.0

_BETWEEN_LISTS = re.compile(r"\]\s*,?\s*\[")
_BETWEEN_CLASSES = re.compile(r",\s*(?=\d+\s*:)")
_CLASS = re.compile(r"(\d+)\s*:\s*(.*?)\s*$", re.DOTALL)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Answer:
    """One answer, read.

    Attributes:
        ids: of the classes, in the answer's order; an id may repeat.
        names: beside them, without quotes.
        percent: the probability of each class; None where the answer gives none.
        issue: what is wrong with the answer's form, if anything: "empty"; "unreadable", no
            `id: name` in it; "unlisted", no probabilities; "uneven", too many or too few of them.
    """

    ids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    percent: tuple[float | None, ...] = ()
    issue: Issue | None = None

    def above(self, threshold: float) -> list[int]:
        """Ids of the classes with more than `threshold` percent."""
        pairs = zip(self.ids, self.percent, strict=True)
        return [one for one, percent in pairs if percent is not None and percent > threshold]


def read_answer(text: str) -> Answer:
    """Read an answer, whatever its form; no text is an error."""
    if not text.strip():
        return Answer(issue="empty")
    first, *rest = _BETWEEN_LISTS.split(text, maxsplit=1)
    found = [match for part in _BETWEEN_CLASSES.split(first) if (match := _CLASS.search(part))]
    if not found:
        return Answer(issue="unreadable")
    ids = tuple(int(match[1]) for match in found)
    names = tuple(match[2].strip("[] \n'\"") for match in found)
    if not rest:
        return Answer(ids, names, (CERTAIN,) * len(ids), "unlisted")
    percent = _read_percent(rest[0])
    even = len(percent) == len(ids) and None not in percent
    padded = (*percent, *[None] * len(ids))[: len(ids)]
    return Answer(ids, names, padded, None if even else "uneven")


def _read_percent(text: str) -> list[float | None]:
    """`"dog: 99%, 85% probability of cat]"` -> [99.0, 85.0]: the first number after any name."""
    parts = [part.rpartition(":")[2] for part in text.rstrip("], \n").split(",")]
    return [float(match[0]) if (match := _NUMBER.search(part)) else None for part in parts]
