"""GPT-4o's answers as text: `[2: 'bicycle', 15: 'person'], [100%, 71%]`, and worse.

Names and ids may be quoted or not, names may hold commas, percent signs may be missing, a
probability may repeat its class's name, the lists may differ in length, stand in one more pair of
brackets or on lines of their own, the second may be missing; a JSON object of names or of
probabilities by id is read too. What counts is as in the authors' code: classes are told by their
ids, never by their names; the n-th probability belongs to the n-th class; a class without one is
not taken; without any probability every class counts as certain.

A number with a percent sign is a percentage. Numbers without one are fractions (0.95 for 95 %) if
none of them is above 1 and one is written with a decimal point; else they are percentages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Issue = Literal["empty", "unreadable", "unlisted", "uneven", "outside", "fraction"]
Unit = Literal["percent", "fraction"]
CERTAIN = 100.0
NO_CLASS = -1  # the id in place of one that no data set has

# possessive (`++`), so that no answer takes more than one pass
_BETWEEN_LISTS = re.compile(r"[\]}]\s*+,?+\s*+\[")
_BETWEEN_CLASSES = re.compile(r",\s*+(?=['\"]?+\d++['\"]?+\s*+:)")
_CLASS = re.compile(r"(?<!\d)(\d++)['\"]?+\s*+:(.*)", re.DOTALL)
_NUMBER = re.compile(r"(\d++(?:\.\d++)?+|\.\d++)(?:[eE]([+-]?+\d{1,2}+))?+\s*+(%)?")


class Number(NamedTuple):
    """A probability as it is written: 95, 95 %, 0.95."""

    value: float
    signed: bool  # with a percent sign
    decimal: bool  # with a decimal point


@dataclass(frozen=True)
class Answer:
    """One answer, read.

    Attributes:
        ids: of the classes, in the answer's order; an id may repeat.
        names: beside them, without quotes.
        percent: the probability of each class; None where the answer gives none.
        issue: what is wrong with the answer's form, if anything: "empty"; "unreadable", no
            `id: name` in it; "unlisted", no probabilities; "uneven", too many or too few of them;
            "outside", one below 0 or above 100 %; "fraction", numbers that look like fractions in
            a file of percentages.
    """

    ids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    percent: tuple[float | None, ...] = ()
    issue: Issue | None = None

    def above(self, threshold: float) -> list[int]:
        """Ids of the classes with more than `threshold` percent."""
        pairs = zip(self.ids, self.percent, strict=True)
        return [one for one, percent in pairs if percent is not None and percent > threshold]


def read_answer(text: str, unit: Unit | None = None) -> Answer:
    """Read an answer, whatever its form; no text is an error.

    Args:
        unit: of numbers without a percent sign; by default this answer's own numbers decide.
    """
    if not text.strip():
        return Answer(issue="empty")
    classes, numbers = _parts(text)
    if not classes:
        return Answer(issue="unreadable")
    ids, names = zip(*classes, strict=True)
    if numbers is None:
        return Answer(ids, names, (CERTAIN,) * len(ids), "unlisted")
    taken = unit or unit_of(numbers)
    percent = tuple(None if one is None else _percent(one, taken) for one in numbers)
    padded = (*percent, *[None] * len(ids))[: len(ids)]
    return Answer(ids, names, padded, _issue(numbers, percent, len(ids), taken))


def unit_of(numbers: Iterable[Number | None]) -> Unit:
    """Tell whether numbers without a percent sign are fractions or percentages."""
    plain = [one for one in numbers if one is not None and not one.signed]
    fractions = all(one.value <= 1 for one in plain) and any(one.decimal for one in plain)
    return "fraction" if fractions else "percent"


def numbers_in(text: str) -> list[Number | None]:
    """The probabilities of an answer as they are written; empty where it has none."""
    return _parts(text)[1] or []


def _parts(text: str) -> tuple[list[tuple[int, str]], list[Number | None] | None]:
    """The classes (id, name), and the numbers of the second list, None without a second list."""
    first, *rest = _BETWEEN_LISTS.split(text, maxsplit=1)
    found = [match for part in _BETWEEN_CLASSES.split(first) if (match := _CLASS.search(part))]
    classes = [(_id(match[1]), match[2].strip("[]{}, \t\r\n'\"")) for match in found]
    if rest:
        return classes, _read_numbers(rest[0])
    values = [_NUMBER.fullmatch(name) for _, name in classes]
    if classes and all(values):  # {"15": 95}: probabilities by id, no names
        return [(one, "") for one, _ in classes], [_number(name) for _, name in classes]
    return classes, None


def _id(digits: str) -> int:
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) <= 9 else NO_CLASS


def _read_numbers(text: str) -> list[Number | None]:
    """`"dog: 99%, 85% probability of cat]"` -> 99 and 85: the first number after any name."""
    return [_number(part.rpartition(":")[2]) for part in text.rstrip("]}, \n").split(",")]


def _number(text: str) -> Number | None:
    if (match := _NUMBER.search(text)) is None:
        return None
    value = float(match[1] + (f"e{match[2]}" if match[2] else ""))
    below = text.strip(" '\"[{(").startswith("-")
    return Number(-value if below else value, match[3] is not None, "." in match[1])


def _percent(number: Number, unit: Unit) -> float:
    fraction = unit == "fraction" and not number.signed
    return round(100 * number.value, 6) if fraction else number.value


def _issue(
    numbers: list[Number | None], percent: tuple[float | None, ...], classes: int, unit: Unit
) -> Issue | None:
    if len(numbers) != classes or None in numbers:
        return "uneven"
    if not all(0 <= one <= 100 for one in percent if one is not None):
        return "outside"
    return "fraction" if unit == "percent" and unit_of(numbers) == "fraction" else None
