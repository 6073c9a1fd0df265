"""The words of a segmentation: classes with synonyms, background words, prompt templates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .errors import VocabularyError


@dataclass(frozen=True)
class Vocabulary:
    """What to look for.

    Attributes:
        classes: per class its synonyms; the first is the displayed name. A pixel of class k gets
            the best score among the synonyms of k.
        background: words that compete with the classes but are no label themselves.
        templates: sentences with one `{}`; the text feature of a word is the mean over them.

    Raises:
        VocabularyError: no class, an empty or repeated word, a template without `{}`.
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

        Words are stripped and keep their case. `background` and `templates` replace those of a
        vocabulary that is given as `words`.
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
        raise VocabularyError(f"classes must be words, got {words!r}") from None


def _read_synonyms(entry: str | Sequence[str]) -> tuple[str, ...]:
    synonyms = (entry,) if isinstance(entry, str) else tuple(entry)
    if not all(isinstance(word, str) for word in synonyms):
        raise VocabularyError(f"classes must be words, got {entry!r}")
    return tuple(word.strip() for word in synonyms)


def _split(words: Iterable[str] | str) -> tuple[str, ...]:
    if isinstance(words, str):
        words = words.split(",") if words.strip() else ()
    return tuple(word.strip() for word in words)


def _check_classes(classes: tuple[tuple[str, ...], ...]) -> None:
    if not classes:
        raise VocabularyError("the vocabulary is empty: name at least one class")
    if not all(classes):
        raise VocabularyError(f"class {classes.index(())} has no name")


def _check_words(words: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for word in words:
        if not word.strip():
            raise VocabularyError(f"a name is empty in {', '.join(map(repr, words))}")
        if word.casefold() in seen:
            raise VocabularyError(f"the name {word!r} appears twice")
        seen.add(word.casefold())


def _check_templates(templates: tuple[str, ...]) -> None:
    if not templates:
        raise VocabularyError("at least one prompt template is needed")
    for template in templates:
        if template.count("{}") != 1:
            raise VocabularyError(f"the template {template!r} must hold one {{}}")
