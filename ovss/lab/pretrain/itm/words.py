"""Captions as a matching model is trained on them: tokens, content words, and one word swapped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations
from random import Random
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizerFast

from ovss.lab.captions import PLURALS
from ovss.lab.scenes import COLOUR_NAMES, STUFF_NAMES, THING_NAMES

WORD_PIECES, BYTE_PIECES = 415, 420
SPACE = "\u0120"  # how the byte-level alphabet spells a blank
CONTEXT = 40  # tokens of a caption
EXCHANGED = 0.2  # share of wrong captions that say the right words in the wrong places, if any do

_MANY = {PLURALS.get(name, name + "s"): name for name in THING_NAMES}  # plural -> singular
_KINDS = (THING_NAMES, STUFF_NAMES, COLOUR_NAMES)
CONTENT = {word: i for i, word in enumerate(w for kind in _KINDS for w in kind)}
_RELATION = re.compile(r"\b(left of|right of|above|below)\b")
_WORD = re.compile(r"[a-z]+")


def content(caption: str) -> frozenset[str]:
    """The things, stuff and colours that a caption names; plurals count as their singular."""
    return frozenset(_single(m[0]) for m in _content_words(caption))


def places(caption: str) -> list[tuple[int, int, int]]:
    """Where a caption names things, stuff and colours: number in CONTENT, start, end."""
    return [(CONTENT[_single(m[0])], *m.span()) for m in _content_words(caption)]


def swap(caption: str, rng: Random) -> str:
    """A caption that is wrong by one word, or by two that have changed places.

    Where two things have colours, these may be exchanged; where one thing stands beside another,
    the things. Else a content word is replaced by another of its kind that is not named.
    """
    words = _content_words(caption)
    pairs = [(a, b) for a, b in combinations(words, 2) if _exchangeable(caption, a[0], b[0])]
    if pairs and rng.random() < EXCHANGED:
        first, second = rng.choice(pairs)
        return _put(_put(caption, second, first[0]), first, second[0])
    place, named = rng.choice(words), content(caption)
    single = _single(place[0])
    kind = next(kind for kind in _KINDS if single in kind)
    other = rng.choice([word for word in kind if word not in named])
    return _put(caption, place, other if single == place[0] else PLURALS.get(other, other + "s"))


def changed(caption: str, swapped: str) -> list[tuple[int, int]]:
    """Where in `swapped` words stand that the caption does not have there: (start, end)."""
    pairs = zip(_WORD.finditer(caption), _WORD.finditer(swapped), strict=True)
    return [new.span() for old, new in pairs if old[0] != new[0] and _single(new[0]) in CONTENT]


def tags(caption: str) -> str:
    """The caption as a list of tags, as in much of the web's text."""
    words = (_single(m[0]) for m in _content_words(caption))
    return "a picture of " + " ".join(dict.fromkeys(words))


def make_wordpiece(captions: Iterable[str]) -> Any:
    """BERT's kind of tokenizer, lower case. Its pieces are those of learnt byte pairs: the
    library's own learner of word pieces breaks ties by chance."""
    learnt = _learn(captions, WORD_PIECES).get_vocab()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = {*letters, *(f"##{letter}" for letter in letters)}
    for piece in learnt:
        start, text = piece.startswith(SPACE), piece.removeprefix(SPACE)
        if text.isascii() and text.isalpha():
            pieces.add(text if start else f"##{text.lower()}")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {piece: index for index, piece in enumerate([*special, *sorted(pieces)])}
    kind: Any = BertTokenizer
    return kind(vocab=vocabulary, model_max_length=CONTEXT)


def make_bytepairs(captions: Iterable[str]) -> Any:
    """RoBERTa's kind of tokenizer with merges learnt from the captions, but lower case as these
    are, which the library's own class for it cannot be told."""
    learnt = RobertaTokenizerFast(
        tokenizer_object=_learn(captions, BYTE_PIECES), add_prefix_space=True
    )
    inner = learnt.backend_tokenizer
    inner.normalizer = normalizers.Lowercase()
    names = ("bos", "eos", "sep", "cls", "unk", "pad", "mask")
    special = {f"{name}_token": getattr(learnt, f"{name}_token") for name in names}
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=inner, model_max_length=CONTEXT, **special)


def _learn(captions: Iterable[str], size: int) -> Tokenizer:
    """Byte pairs of the captions, `size` in all; too few for every name, so that some are split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def _content_words(caption: str) -> list[re.Match[str]]:
    return [m for m in _WORD.finditer(caption) if _single(m[0]) in CONTENT]


def _single(word: str) -> str:
    return _MANY.get(word, word)


def _exchangeable(caption: str, first: str, second: str) -> bool:
    if first == second:
        return False
    if first in COLOUR_NAMES and second in COLOUR_NAMES:
        return True
    things = _single(first) in THING_NAMES and _single(second) in THING_NAMES
    return things and bool(_RELATION.search(caption))


def _put(caption: str, place: re.Match[str], word: str) -> str:
    """The caption with `word` in a place of it, and "a" or "an" before it as it asks for."""
    right = "an " if word[0] in "aeiou" else "a "
    before = re.sub(r"\ban? $", right, caption[: place.start()])
    return before + word + caption[place.end() :]
