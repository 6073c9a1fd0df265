"""The words of a segmentation: classes with synonyms, background words, prompt templates."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .errors import UNPRINTABLE, VocabularyError, printable, shorten
from .files import trim

LONGEST_WORD = 500  # characters of a name; CLIP reads 77 tokens, of which a letter may take several
SEPARATORS = re.compile("[,\uff0c\u3001\uff64\u060c\ufe50\ufe51]")  # the comma of several scripts


@dataclass(frozen=True)
class Vocabulary:
    """What to look for.

    Attributes:
        classes: per class its synonyms; the first is the displayed name. A pixel of class k gets
            the best score among the synonyms of k.
        background: words that compete with the classes but are no label themselves.
        templates: sentences with one `{}`; the text feature of a word is the mean over them.

    Raises:
        VocabularyError: no class; a word that is empty, repeated, longer than `LONGEST_WORD`
            characters, or holds a control character; a template without `{}`.
    """

    classes: tuple[tuple[str, ...], ...]
    background: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {}.",)

    def __post_init__(self) -> None:
        _check_classes(self.classes)
        _check_words(self.queries)
        _check_templates(self.templates)

    @classmethod
    def of(
        cls,
        words: Vocabulary | str | Sequence[str | Sequence[str]],
        background: Iterable[str] | str | None = None,
        templates: Iterable[str] | None = None,
    ) -> Vocabulary:
        """Build from `"car, grass"`, `["cat", "grass"]` or `[["person", "man"], "grass"]`.

        Words in one text are separated by commas (full-width and ideographic ones, too), stripped
        of blanks and byte order marks, and keep their case. `background` and `templates` replace
        those of a vocabulary that is given as `words`.
        """
        base = words if isinstance(words, Vocabulary) else cls(_read_classes(words))
        if background is not None:
            base = replace(base, background=_split(background))
        if templates is not None:
            base = replace(base, templates=tuple(templates))
        return base

    @property
    def names(self) -> tuple[str, ...]:
        """The displayed name of each class, [K]."""
        return tuple(synonyms[0] for synonyms in self.classes)

    @cached_property
    def queries(self) -> tuple[str, ...]:
        """All synonyms in class order, then the background words, [Q]."""
        synonyms = (word for synonyms in self.classes for word in synonyms)
        return (*synonyms, *self.background)

    @cached_property
    def owner(self) -> Tensor:
        """The class of each query, [Q] int64; -1 for background words."""
        sizes = torch.tensor([len(synonyms) for synonyms in self.classes])
        classes = torch.repeat_interleave(torch.arange(len(self)), sizes)
        return torch.cat([classes, classes.new_full((len(self.background),), -1)])

    def reduce(self, query_scores: Tensor) -> Tensor:
        """Best score among the synonyms of each class: [..., Q, h, w] -> [..., K, h, w].

        Background queries are dropped. Nothing of size [K, Q, h, w] is ever made.

        Raises:
            ValueError: the third axis from the end does not hold one map per query.
        """
        if query_scores.ndim < 3 or query_scores.shape[-3] != len(self.queries):
            shape = tuple(query_scores.shape)
            raise ValueError(f"expected [..., {len(self.queries)}, h, w] scores, got {shape}")
        named = query_scores[..., : len(self.queries) - len(self.background), :, :]
        if named.shape[-3] == len(self):
            return named
        owner = self.owner[: named.shape[-3]].to(named.device)
        index = owner[:, None, None].expand(named.shape)
        out = named.new_empty(*named.shape[:-3], len(self), *named.shape[-2:])
        return out.scatter_reduce(-3, index, named, "amax", include_self=False)

    def subset(self, indices: Iterable[int]) -> Vocabulary:
        """The vocabulary of some classes, in the order given, with the same background words."""
        return replace(self, classes=tuple(self.classes[index] for index in indices))

    def __len__(self) -> int:
        """Number of classes K."""
        return len(self.classes)


def _read_classes(words: str | Sequence[str | Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    if isinstance(words, str):
        return tuple((word,) for word in _split(words))
    try:
        return tuple(_read_synonyms(entry) for entry in words)
    except TypeError:
        raise VocabularyError(f"classes must be words, got {shorten(repr(words))}") from None


def _read_synonyms(entry: str | Sequence[str]) -> tuple[str, ...]:
    synonyms = (entry,) if isinstance(entry, str) else tuple(entry)
    if not all(isinstance(word, str) for word in synonyms):
        raise VocabularyError(f"classes must be words, got {shorten(repr(entry))}")
    return tuple(trim(word) for word in synonyms)


def _split(words: Iterable[str] | str) -> tuple[str, ...]:
    if isinstance(words, str):
        words = SEPARATORS.split(words) if trim(words) else ()
    return tuple(trim(word) for word in words)


def _check_classes(classes: tuple[tuple[str, ...], ...]) -> None:
    if not classes:
        raise VocabularyError("the vocabulary is empty: name at least one class")
    if not all(classes):
        raise VocabularyError(f"class {classes.index(())} has no name")


def _check_words(words: tuple[str, ...]) -> None:
    """The one gate of all names, however they came in: classes, synonyms and background words."""
    seen: set[str] = set()
    for number, word in enumerate(words, 1):
        if not trim(word):
            raise VocabularyError(f"a name is empty: the {_place(number, words)}")
        _check_text(word, "name")
        same = " ".join(unicodedata.normalize("NFC", word).casefold().split())
        if same in seen:
            raise VocabularyError(f"the name '{shorten(word)}' appears twice")
        seen.add(same)


def _check_text(text: str, kind: str) -> None:
    if found := UNPRINTABLE.search(text):
        raise VocabularyError(
            f"the {kind} '{shorten(text)}' holds {printable(found[0])}, which is no letter: "
            "separate names by commas, and give plain text"
        )
    if len(text) > LONGEST_WORD:
        raise VocabularyError(
            f"the {kind} '{shorten(text)}' has {len(text)} characters, at most {LONGEST_WORD} "
            "can be read"
        )


def _place(number: int, words: tuple[str, ...]) -> str:
    """Where a name stands, in words that stay short however many there are."""
    before = f", after '{shorten(words[number - 2])}'" if number > 1 else ""
    return f"{number}. of {len(words)}{before}"


def _check_templates(templates: tuple[str, ...]) -> None:
    if not templates:
        raise VocabularyError("at least one prompt template is needed")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise VocabularyError(f"the template '{shorten(str(template))}' must hold one {{}}")
        _check_text(template, "template")
