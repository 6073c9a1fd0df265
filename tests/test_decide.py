"""The rules from scores to labels; CLIPer's against the recorded runs of its authors' code."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovss.decide import Argmax, CliperRule, PerClassRule, Rule, Threshold, decide
from ovss.labels import BACKGROUND

GOLDEN = np.load(Path(__file__).parent / "golden" / "cliper_decide.npz")
CASES = ("c1_p16", "c2_p14")
RULES: list[Rule] = [
    Argmax(),
    Threshold(0.6),
    CliperRule(0.2, 0.4),
    CliperRule(0.5, 0.0),
    CliperRule(0.0, 0.5, normalize=True),
    CliperRule(0.3, 0.0, normalize=True, rescale=False),
]


def cliper(setting: np.ndarray, rescale: bool = True) -> CliperRule:
    background, score, normalize = setting.tolist()
    return CliperRule(score, background, bool(normalize), rescale)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("index", range(9))
def test_cliper_rule_is_the_authors_cam_to_label(case: str, index: int) -> None:
    cam, scores = (torch.tensor(GOLDEN[f"{case}/{name}"]) for name in ("cam", "cls"))
    rule = cliper(GOLDEN[f"{case}/settings"][index], rescale=False)
    labels = rule(cam, scores) + 1  # theirs count from 1
    np.testing.assert_array_equal(labels.numpy(), GOLDEN[f"{case}/cam2label"][index])


@pytest.mark.parametrize(
    "case, year, refiner",
    [(case, year, "None") for case in CASES for year in ("2024", "2025")]
    + [("c2_p14", year, "SFSA") for year in ("2024", "2025")],
)
def test_decide_is_the_authors_way_from_scores_to_labels(
    case: str, year: str, refiner: str
) -> None:
    key = f"{case}/{year}/{refiner}"
    scores, image_scores = (torch.tensor(GOLDEN[f"{key}/{name}"]) for name in ("pred", "score"))
    for index, setting in enumerate(GOLDEN[f"{case}/{year}/settings"]):
        wanted = GOLDEN[f"{key}/labels"][index]
        labels = decide(cliper(setting), scores, wanted.shape, image_scores)
        np.testing.assert_array_equal((labels + 1).numpy(), wanted)
        if refiner == "None":  # then the image scores are the maxima on the method's grid
            assert torch.equal(decide(cliper(setting), scores, wanted.shape), labels)


def test_background_threshold_by_hand() -> None:
    scores = torch.tensor([[[0.9, 0.3, 0.1]], [[0.2, 0.4, 0.1]]])
    rule = CliperRule(score_threshold=0.35, background_threshold=0.35, rescale=False)
    assert rule(scores).tolist() == [[0, 1, BACKGROUND]]
    assert rule(scores, torch.tensor([0.9, 0.35])).tolist() == [[0, BACKGROUND, BACKGROUND]]


def test_squared_complement_by_hand() -> None:
    best = 0.381966  # just above the root of (1 - x)^2 = x
    scores = torch.tensor([[[best + 1e-3, best - 1e-3, 0.0]]])
    assert CliperRule(rescale=False)(scores).tolist() == [[0, BACKGROUND, BACKGROUND]]


def test_normalize_cancels_the_rescaling() -> None:
    scores = torch.rand(3, 8, 9, generator=torch.manual_seed(0))
    with_scale, without = (CliperRule(0.0, 0.5, True, rescale) for rescale in (True, False))
    image_scores = torch.tensor([0.9, 0.1, 0.4])
    assert torch.equal(with_scale(scores, image_scores), without(scores, image_scores))


def test_threshold_keeps_equality_and_argmax_the_first() -> None:
    scores = torch.tensor([[[0.5, 0.4]], [[0.5, 0.1]]])
    assert Threshold(0.5)(scores).tolist() == [[0, BACKGROUND]]
    assert Argmax()(scores).tolist() == [[0, 0]]


def test_no_map_is_all_background_not_a_crash() -> None:
    zeros = torch.zeros(2, 3, 4)
    for rule in (CliperRule(0.0, 0.1), CliperRule(0.0, 0.0), CliperRule(0.0, 0.1, True)):
        assert (rule(zeros) == BACKGROUND).all()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_chunks_do_not_matter(rule: Rule) -> None:
    scores = torch.rand(7, 5, 6, generator=torch.manual_seed(1))
    scores[3] = scores[1]  # a tie everywhere
    whole = decide(rule, scores, (31, 43))
    assert whole.dtype == torch.int64 and whole.shape == (31, 43)
    for chunk in (1, 31 * 43, 3 * 31 * 43):
        assert torch.equal(decide(rule, scores, (31, 43), chunk_values=chunk), whole)
    assert 3 not in whole.unique().tolist()


def test_a_rule_of_ones_own_gets_all_maps() -> None:
    def own(scores: torch.Tensor, image_scores: torch.Tensor | None = None) -> torch.Tensor:
        assert scores.shape == (4, 9, 9) and image_scores is not None
        return scores.argmin(0)

    found = decide(own, torch.rand(4, 3, 3), (9, 9), chunk_values=1)
    assert found.shape == (9, 9)


@settings(max_examples=30)
@given(st.permutations(range(4)), st.sampled_from(RULES), st.integers(0, 10_000))
def test_permuting_classes_permutes_labels(order: list[int], rule: Rule, seed: int) -> None:
    scores = torch.rand(4, 5, 6, generator=torch.manual_seed(seed))
    labels, permuted = rule(scores), rule(scores[order])
    back = torch.tensor([*order, BACKGROUND])[permuted]
    assert torch.equal(back, labels)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_are_plain_values(rule: Rule) -> None:
    assert isinstance(rule, PerClassRule)
    assert pickle.loads(pickle.dumps(rule)) == rule


def test_nan_wins_in_chunks_as_in_one_piece() -> None:
    """As where a class's map became NaN by an accident of the authors' code."""
    maps = torch.rand(7, 4, 5, generator=torch.Generator().manual_seed(0))
    maps[3, 1] = maps[5, 1, 2:] = maps[6] = torch.nan
    for rule in (Argmax(), Threshold(0.5)):
        whole = decide(rule, maps, (4, 5))
        assert whole[1].eq(3).all() and whole[0].eq(6).all()
        for classes in (1, 2, 3, 5):
            assert torch.equal(decide(rule, maps, (4, 5), chunk_values=20 * classes), whole)
