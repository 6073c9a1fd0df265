"""Words: how they are read, what is refused, and the maximum over synonyms."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovss import Vocabulary
from ovss.errors import OvssError, UnknownNameError, VocabularyError

NESTED = Vocabulary.of(
    [["person", "man", "woman"], "grass", ["car", "auto"]], background="sky, sea"
)


@pytest.mark.parametrize("words", ["Car, grass ", ["Car", " grass"], ("Car", ["grass"])])
def test_reads_every_form(words: object) -> None:
    vocabulary = Vocabulary.of(words)  # type: ignore[arg-type]
    assert vocabulary.names == vocabulary.queries == ("Car", "grass")
    assert Vocabulary.of(vocabulary) == vocabulary
    assert len(vocabulary) == 2


def test_queries_are_synonyms_then_background() -> None:
    assert NESTED.names == ("person", "grass", "car")
    assert NESTED.queries == ("person", "man", "woman", "grass", "car", "auto", "sky", "sea")
    assert NESTED.owner.tolist() == [0, 0, 0, 1, 2, 2, -1, -1]
    assert pickle.loads(pickle.dumps(NESTED)) == NESTED
    assert hash(NESTED) == hash(Vocabulary.of(NESTED))


def test_of_replaces_background_and_templates() -> None:
    other = Vocabulary.of(NESTED, background=[], templates=["{}"])
    assert other.background == () and other.templates == ("{}",)
    assert other.classes == NESTED.classes


@pytest.mark.parametrize(
    "words, said",
    [
        ("", "empty"),
        ([], "empty"),
        ("car,", "empty"),
        (["car", "  "], "empty"),
        ([[]], "no name"),
        (["car", "Car"], "'Car' appears twice"),
        ([["car", "auto"], "auto"], "'auto' appears twice"),
        ([1, 2], "words"),
        (3, "words"),
        ([["car", 1]], "words"),
    ],
)
def test_refuses(words: object, said: str) -> None:
    with pytest.raises(VocabularyError, match=said):
        Vocabulary.of(words)  # type: ignore[arg-type]


def test_refuses_bad_templates_and_background() -> None:
    with pytest.raises(VocabularyError, match="must hold one"):
        Vocabulary.of("car", templates=["a photo"])
    with pytest.raises(VocabularyError, match="at least one"):
        Vocabulary.of("car", templates=[])
    with pytest.raises(VocabularyError, match="twice"):
        Vocabulary.of("car", background="sky, car")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 3), st.data())
def test_reduce_is_the_maximum_over_synonyms(
    sizes: list[int], extra: int, data: st.DataObject
) -> None:
    classes = [[f"{k}-{s}" for s in range(size)] for k, size in enumerate(sizes)]
    vocabulary = Vocabulary.of(classes, background=[f"bg{i}" for i in range(extra)])
    seed = data.draw(st.integers(0, 1000))
    scores = torch.randn(2, len(vocabulary.queries), 3, 2, generator=torch.manual_seed(seed))
    owner = vocabulary.owner
    naive = torch.stack([scores[:, owner == k].amax(1) for k in range(len(classes))], 1)
    assert torch.equal(vocabulary.reduce(scores), naive)
    assert torch.equal(vocabulary.reduce(scores[0]), naive[0])


def test_reduce_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., 8, h, w\]"):
        NESTED.reduce(torch.zeros(7, 2, 2))


def test_subset_keeps_background() -> None:
    part = NESTED.subset([2, 0])
    assert part.names == ("car", "person") and part.background == NESTED.background


def test_unknown_name_lists_the_known() -> None:
    error = UnknownNameError.of("method", "clipper", ["cliper", "maskclip"])
    assert str(error) == (
        "unknown method 'clipper'; did you mean 'cliper'? Known: cliper, maskclip"
    )
    assert isinstance(error, KeyError) and isinstance(error, OvssError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
