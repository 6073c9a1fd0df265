"""The classes that GPT-4o named in five validation sets, as published with PnP-OVSS."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ..datasets import Sample
from ..errors import OvssError, one_line
from ..vocabulary import Vocabulary
from .answers import Answer, Unit, numbers_in, read_answer, unit_of
from .base import id_of

# The ids of COCO's 80 things and 91 stuff classes; some numbers were never given.
_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
COCO_IDS = tuple(one for one in range(1, 183) if one not in _COCO_GAPS)

LONGEST_FILE = 2**28  # bytes; the answers to 120,000 images have some 2**24
FORM = "[15: person, 8: cat], [95%, 80%]"


def class_ids(dataset: str, classes: int) -> tuple[int, ...]:
    """The ids by which answers name the classes of a data set: COCO's own, else 1..K."""
    return COCO_IDS[:classes] if dataset.startswith("coco-") else tuple(range(1, classes + 1))


@dataclass(frozen=True)
class Report:
    """What a file of answers holds; images by their ids.

    Attributes:
        entries: number of images.
        mean: classes an image, after the rules.
        few: share of the images with fewer than three classes, in percent.
        missing: images that were asked for and are not in the file.
        empty, unreadable, unlisted, uneven, outside, fraction: see `Answer.issue`.
        unknown: the answer has ids that are no class of the data set.
        nothing: no class is left above the threshold; those of `empty` and `unreadable` too.
        unit: of probabilities without a percent sign; see `answers`.
    """

    entries: int
    mean: float
    few: float
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    unreadable: tuple[str, ...]
    unlisted: tuple[str, ...]
    uneven: tuple[str, ...]
    outside: tuple[str, ...]
    fraction: tuple[str, ...]
    unknown: tuple[str, ...]
    nothing: tuple[str, ...]
    unit: Unit

    def __str__(self) -> str:
        """A few lines to print; of each kind the first ids."""
        lines = [
            f"{self.entries} images, {self.mean:.2f} classes an image, "
            f"{self.few:.0f} % with fewer than three"
        ]
        lines += ["probabilities without a percent sign are fractions"] * (self.unit == "fraction")
        return "\n".join([*lines, *self.lines(_KINDS)])

    def lines(self, kinds: Sequence[str]) -> list[str]:
        """A line for each of `kinds` that occurs, with the first ids."""
        found = [(kind, getattr(self, kind)) for kind in kinds]
        return [
            one_line(f"{kind}: {len(ids)} ({', '.join(ids[:3])}{' ...' if len(ids) > 3 else ''})")
            for kind, ids in found
            if ids
        ]


_UNCLEAR = ("unreadable", "outside", "fraction")  # what nobody means to publish
_KINDS = (
    *("missing", "empty", "unreadable", "unlisted", "uneven", "outside", "fraction"),
    *("unknown", "nothing"),
)


@dataclass(frozen=True)
class PublishedAnswers:
    """Classes read from stored answers.

    Attributes:
        answers: image id -> the answer's text.
        ids: of the data set's classes, in the vocabulary's order; see `class_ids`.
        threshold: a class needs more than this many percent (section 3: 70).
        first_if_none: without any class left the image gets the data set's first one (aeroplane,
            wall, person), as in the authors' code; by default it gets none, as from `Gpt4oTagger`.
        source: the file's name and the first 12 hex digits of its SHA-256.
    """

    answers: Mapping[str, str] = field(repr=False)
    ids: tuple[int, ...] = field(repr=False)
    threshold: float = 70.0
    first_if_none: bool = False
    source: str = "given"

    @property
    def name(self) -> str:
        """Its part of an evaluation's protocol; the two rules give other numbers."""
        return "published-first" if self.first_if_none else "published"

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], dataset: str, classes: int, **options: Any
    ) -> PublishedAnswers:
        """Read a JSON file of answers by image id.

        Args:
            dataset: its name in ovss ("voc21", "coco-stuff" ...), which tells the classes' ids.
            classes: how many classes it has.
            options: the fields of this class.

        A warning tells how many answers cannot be read or hold odd probabilities.

        Raises:
            OvssError: the file is missing, is no JSON object, or none of its answers can be read.
        """
        answers, source = _read_file(Path(path).expanduser())
        found = cls(answers, class_ids(dataset, classes), source=source, **options)
        report = found.report()
        if report.unreadable and len(report.unreadable) + len(report.empty) == report.entries:
            raise OvssError(
                f"{path}: no answer names a class; the form of an answer is {FORM}, the first is "
                f"{one_line(answers[report.unreadable[0]], 100)}"
            )
        if unclear := report.lines(_UNCLEAR):
            warnings.warn(f"{source}: answers that are {'; '.join(unclear)}", stacklevel=2)
        return found

    @cached_property
    def unit(self) -> Unit:
        """What probabilities without a percent sign are, told by all answers together."""
        return unit_of(one for text in self.answers.values() for one in numbers_in(text))

    def __call__(self, samples: Sequence[Sample], vocabulary: Vocabulary) -> list[list[int]]:
        """The classes of samples, found by their ids.

        Raises:
            OvssError: an image is not in the file, or the vocabulary is another data set's.
        """
        if len(vocabulary) != len(self.ids):
            given, wanted = len(vocabulary), len(self.ids)
            raise OvssError(f"the answers tell {wanted} classes apart, the vocabulary has {given}")
        return [self.classes(id_of(sample)) for sample in samples]

    def classes(self, image: str) -> list[int]:
        """Class indices of one image in the answer's order, each once."""
        if image not in self.answers:
            raise OvssError(
                f"{self.source} has no answer for the image {image!r}: is it another data set's?"
            )
        found = self._known(read_answer(self.answers[image], self.unit).above(self.threshold))
        return found or ([0] if self.first_if_none else [])

    def report(self, images: Iterable[str] | None = None) -> Report:
        """What the file holds for these images, by default for all that it names."""
        wanted = list(self.answers if images is None else images)
        known = {
            image: read_answer(self.answers[image], self.unit)
            for image in wanted
            if image in self.answers
        }
        sizes = [len(self.classes(image)) for image in known]
        kinds: dict[str, list[str]] = {kind: [] for kind in _KINDS}
        kinds["missing"] = [image for image in wanted if image not in known]
        for image, answer in known.items():
            for kind in self._kinds(answer):
                kinds[kind].append(image)
        return Report(
            len(known),
            sum(sizes) / max(1, len(sizes)),
            100 * sum(size < 3 for size in sizes) / max(1, len(sizes)),
            **{kind: tuple(found) for kind, found in kinds.items()},
            unit=self.unit,
        )

    def _kinds(self, answer: Answer) -> list[str]:
        """Under which headings of a report an answer falls."""
        kinds: list[str] = [answer.issue] if answer.issue else []
        kinds += ["unknown"] if set(answer.ids) - set(self.ids) else []
        return kinds + ([] if self._known(answer.above(self.threshold)) else ["nothing"])

    def _known(self, ids: Iterable[int]) -> list[int]:
        """Indices of the ids that are classes, each once."""
        place = _places(self.ids)
        return list(dict.fromkeys(place[one] for one in ids if one in place))


@cache
def _places(ids: tuple[int, ...]) -> dict[int, int]:
    return {one: index for index, one in enumerate(ids)}


def _read_file(path: Path) -> tuple[dict[str, str], str]:
    """A file's answers, and its name with its hash."""
    try:
        if path.exists() and not path.is_file():
            raise OvssError(f"the answers {path} are no file")
        if path.stat().st_size > LONGEST_FILE:
            raise OvssError(f"the answers {path} are longer than {LONGEST_FILE // 2**20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise OvssError(f"cannot read the answers {path}: {error.strerror or error}") from None
    try:
        entries = json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise OvssError(f"{path} is not JSON: {one_line(error)}") from None
    if not isinstance(entries, dict):
        kind = type(entries).__name__
        raise OvssError(f"{path} must hold a JSON object of answers by image id, not a {kind}")
    texts = {image: _text(answer) for image, answer in entries.items()}
    return texts, f"{path.name}@{hashlib.sha256(content).hexdigest()[:12]}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object none of whose names stands twice: which of the two would count?"""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it holds {one_line(repr(twice), 60)} twice")
    return found


def _text(answer: Any) -> str:
    """An answer's text; null is an empty one, lists and objects are read as JSON."""
    if answer is None:
        return ""
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
