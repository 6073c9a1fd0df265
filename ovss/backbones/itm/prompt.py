"""Class names -> a caption, its tokens, and where each name stands among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import VocabularyError


@dataclass(frozen=True)
class Prompt:
    """One caption, tokenised.

    Attributes:
        text: the caption.
        ids: [T]; the first is [ENC] for BLIP, [CLS] or <s> else, the last [SEP] or </s>.
        pieces: the T tokens as the tokenizer spells them ("pot", "##ted", "Ġcat").
        words: for each class name the positions in `ids` of its pieces.
    """

    text: str
    ids: Tensor
    pieces: tuple[str, ...]
    words: tuple[tuple[int, ...], ...]


def tokenise(
    tokenizer: Any,
    names: Sequence[str],
    *,
    joined: bool,
    prefix: str,
    longest: int,
    first: int | None,
) -> Prompt:
    """The prompt of `names` by a fast tokenizer of transformers; see `ItmBackbone.prompt`.

    Args:
        longest: tokens that the model takes.
        first: id of [ENC], which takes the first token's place; None keeps the tokenizer's.
    """
    words = _checked(names, joined)
    text = prefix + " ".join(words)
    # A class called "[SEP]" is a word like any other.
    found = tokenizer(text, return_offsets_mapping=True, split_special_tokens=True)
    ids, offsets = found["input_ids"], found["offset_mapping"]
    if len(ids) > longest:
        raise VocabularyError(
            f"the prompt of {len(words)} classes has {len(ids)} tokens, the model takes {longest}: "
            "give fewer or shorter names"
        )
    places, start = [], len(prefix)
    for word in words:
        places.append(_within(offsets, start, start + len(word)))
        start += len(word) + 1
    for name, place in zip(names, places, strict=True):
        if all(ids[token] == tokenizer.unk_token_id for token in place):  # or there is no token
            raise VocabularyError(f"the tokenizer reads no word in {name!r}: give another name")
    pieces = tokenizer.convert_ids_to_tokens(ids)
    if first is not None:
        ids[0], pieces[0] = first, "[ENC]"
    return Prompt(text, torch.tensor(ids), tuple(pieces), tuple(places))


def _checked(names: Sequence[str], joined: bool) -> list[str]:
    """The names as the caption spells them."""
    if isinstance(names, str) or not names:
        raise VocabularyError(f"a prompt needs a list of class names, got {names!r}")
    for name in names:
        if not isinstance(name, str) or not name.strip(" -"):
            raise VocabularyError(f"a class name must be a word, got {name!r}")
    words = [" ".join(name.split()) for name in names]
    return [word.replace(" ", "").replace("-", "") if joined else word for word in words]


def _within(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, ...]:
    """The tokens that hold a character of [start, end); special tokens hold none."""
    return tuple(
        place for place, (first, last) in enumerate(offsets) if max(first, start) < min(last, end)
    )
