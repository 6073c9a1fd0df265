"""Verdicts on claims: their rules, what cannot be decided, and how they are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovss.errors import OvssError
from ovss.evaluation import metrics
from ovss.evaluation.intervals import Difference
from ovss.evaluation.result import Result
from ovss.reporting import claims, headroom, results
from ovss.reporting.claims import (
    Cell,
    Claim,
    ClaimError,
    PairTest,
    Verdict,
    judge,
    no_headroom,
    paired_difference,
    summed_up,
    told,
    verdict_of,
    worded,
)
from ovss.reporting.results import Counts


def result(hit: float, checkpoint: str = "clip@1", images: int = 40) -> Result:
    """A made-up evaluation; `hit` says how many pixels are right."""
    rng = np.random.default_rng(1)
    tables = []
    for _ in range(images):
        target = rng.integers(-1, 3, 300)
        pred = np.where(rng.random(300) > hit, rng.integers(-1, 3, 300), target)
        tables.append(metrics.confusion(pred, target, 3))
    stack = np.stack(tables)
    return Result(
        "lab-21", "mmseg", checkpoint, "cpu", 0, ("cat", "dog", "car"), True,
        tuple(f"val_{i:04d}" for i in range(images)), metrics.areas(stack), stack.sum(0),
        np.full(images, 2.0 / images),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def results_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OVSS_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def record(row: str, hit: float, experiment: str = "e", **options: Any) -> None:
    results.record(result(hit, **options), experiment, row)


def claim(**options: Any) -> Claim:
    pair = Cell("e", "better", "lab-21"), Cell("e", "worse", "lab-21")
    return Claim("helps", "better is better (Table 6)", (pair,), **options)


def test_words_follow_the_interval() -> None:
    for gap, word in (((2, 1, 3), "up"), ((-2, -3, -1), "down"), ((0, -1, 1), "may do either")):
        assert worded(Difference(*gap), "up", "down") == word
    assert worded(Difference(0, -1, 1), "up", "down", "open") == "open"


def test_judge_at_the_borders() -> None:
    assert judge(Difference(1, 0.1, 2)) == "holds"
    assert judge(Difference(-1, -2, -0.1)) == "does not hold"
    assert judge(Difference(0.5, -0.1, 1)) == judge(Difference(0, 0, 0)) == "undecided"


def test_verdicts() -> None:
    assert claim().verdict() == "not run yet"
    record("better", 0.8)
    record("worse", 0.6)
    assert claim().verdict() == "holds"
    assert claim(margin=90).verdict() == "does not hold"
    (test,) = claim().tests()
    assert test.difference is not None and test.reason == ""
    low, high = test.difference.low, test.difference.high
    assert low < test.difference.value < high
    assert claim(margin=(low + high) / 2).verdict() == "undecided"
    turned = Claim("turned", "", tuple((b, a) for a, b in claim().cells), cause="a part")
    assert turned.verdict() == "does not hold"
    assert Claim("both", "", claim().cells + turned.cells).verdict() == "does not hold"
    tests = {"straight": claim().tests(), "turned": turned.tests()}
    table = claims.tests_table(tests)
    assert table["verdict"].tolist() == ["holds", "does not hold"]
    assert table["difference"][0].startswith("+") and table["difference"][1].startswith("-")
    verdicts = {name: claims.verdict_of(one) for name, one in tests.items()}
    listed = [("a part", name, "It is so.") for name in tests] + [("speed", "fast", "It is fast.")]
    table = claims.verdicts_table(listed, tests, {**verdicts, "fast": "undecided"})
    assert table.index.tolist() == [("a part", "straight"), ("a part", "turned"), ("speed", "fast")]
    assert table[["holds", "undecided", "does not hold"]].to_numpy().tolist() == [
        [1, 0, 0], [0, 0, 1], [0, 1, 0],
    ]  # fmt: skip
    assert table["verdict"].tolist() == ["holds", "does not hold", "undecided"]


def card(folder: Path, name: str, measured: float) -> None:
    passed = {"name": "things", "what": "", "threshold": 1.0, "measured": 2.0, "passed": True}
    gate = {**passed, "name": "match", "threshold": 80.0, "measured": measured}
    path = folder / "lab" / "zoo" / name / "card.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"gates": [passed, {**gate, "passed": measured >= 80}]}))


@pytest.mark.parametrize("row", ["better", "worse"])
def test_a_network_that_did_not_learn_decides_nothing(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVSS_DATA", str(tmp_path))
    for one, hit in (("better", 0.8), ("worse", 0.6)):
        record(one, hit, checkpoint="clip@1 tower@2" if one == row else "a-published-one@3")
    card(tmp_path, "clip", 99.0)
    card(tmp_path, "tower", 80.0)
    assert claim().verdict() == "holds"
    card(tmp_path, "tower", 68.75)
    (test,) = claim().tests()
    assert test.verdict == "cannot be decided here" and test.difference is not None
    assert test.reason == "tower did not learn enough: match is 68.8, its gate is at 80.0"
    # the rule comes before the test: a difference below zero decides nothing either
    turned = Claim("turned", "", tuple((b, a) for a, b in claim().cells))
    assert turned.verdict() == "cannot be decided here"
    assert claims.gates(["clip", "tower", "none"])["passed"].tolist() == [True, True, True, False]


@pytest.mark.parametrize("name", ["clip", "blip-itm", "bridgetower", "dino", "sd"])
def test_the_labs_networks_at_the_gates_of_their_cards(name: str) -> None:
    record("better", 0.8, checkpoint=f"{name}@1")
    record("worse", 0.6, checkpoint=f"{name}@1")
    found = claims.gates([name])
    assert len(found) and found["threshold"].notna().all()
    assert claim().verdict() == ("holds" if found["passed"].all() else "cannot be decided here")


def test_headroom_within_the_interval() -> None:
    seen = Difference(1.0, -1.0, 3.0)  # half its width is 2
    assert no_headroom(Difference(5.0, 1.0, 9.0), seen) == ""
    assert "a perfect part would add 5.0 [-0.1, 9.0]" in no_headroom(
        Difference(5.0, -0.1, 9.0), seen
    )
    assert "no less than 2.0" in no_headroom(Difference(2.0, 1.0, 3.0), seen)
    part = claim(headroom=("perfect", "plain"))
    record("better", 0.6)
    record("worse", 0.65)
    assert part.verdict() == "not run yet"  # its headroom is not known
    record("plain", 0.6, experiment=headroom.EXPERIMENT)
    record("perfect", 0.6001, experiment=headroom.EXPERIMENT)
    assert part.verdict() == "cannot be decided here"
    record("perfect", 0.9, experiment=headroom.EXPERIMENT)
    assert part.verdict() == "does not hold"


def scored(hit: float) -> Result:
    one = result(hit)
    rng = np.random.default_rng(2)
    scores = np.where(rng.random((40, 3)) < hit, one.present, rng.random((40, 3)))
    return Result(**{**vars(one), "image_scores": scores.astype(np.float32)})


def test_claims_by_several_metrics() -> None:
    for row, hit in (("better", 0.9), ("worse", 0.1)):
        results.record(scored(hit), "e", row, threshold=0.5)
    metric_names = ("mIoU", "mAP", "F1")
    tests = claim(metrics=metric_names).tests()
    assert [test.metric for test in tests] == [*metric_names]
    frame = results.read(results.file_of("e")).set_index(["row", "metric"])["value"]
    for test in tests:
        assert test.difference is not None
        gap = frame["better", test.metric] - frame["worse", test.metric]
        assert test.difference.value == pytest.approx(gap, abs=1e-3)
    with pytest.raises(OvssError, match="metric"):
        claim(metrics=("AP",)).verdict()
    place = results.read(results.file_of("e")).loc[0, ["dataset", "protocol"]]
    counts = [results.read_counts("e", row, *place) for row in ("better", "worse")]
    bare = [one._replace(image_level=None) for one in counts if one]
    assert len(bare) == 2
    with pytest.raises(ClaimError, match="image scores"):
        paired_difference(*bare, metric="mAP")


def test_a_claim_without_cells_is_refused() -> None:
    with pytest.raises(ClaimError, match="'empty' has nothing to test"):
        Claim("empty", "", ())
    with pytest.raises(ClaimError, match="'empty' has nothing to test"):
        claim_of = claim().cells
        Claim("empty", "", claim_of, metrics=())
    with pytest.raises(ClaimError, match="no test, no verdict"):
        verdict_of([])
    with pytest.raises(ClaimError, match="no claim to sum up"):
        summed_up([])


def pair(verdict: Verdict) -> PairTest:
    cell = Cell("e", "a", "lab-21")
    return PairTest(cell, cell, "mIoU", None, verdict)


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "undecided"], "undecided"),
        (["undecided", "cannot be decided here", "holds"], "cannot be decided here"),
        (["cannot be decided here", "does not hold", "holds"], "does not hold"),
        (["not run yet", "holds"], "not run yet"),
    ],
)
def test_several_tests_together(verdicts: list[Verdict], whole: Verdict) -> None:
    assert verdict_of(map(pair, verdicts)) == whole


def test_sentences_have_their_grammar() -> None:
    assert summed_up(["holds"]) == "the one claim holds"
    assert summed_up(["does not hold"], "test") == "the one test does not hold"
    assert summed_up(["undecided"]) == "the one claim is undecided"
    assert summed_up(["holds", "holds"], "test") == "of 2 tests, 2 hold"
    assert (
        summed_up(["holds", "does not hold", "undecided", "undecided", "cannot be decided here"])
        == "of 5 claims, 1 holds, 2 are undecided, 1 cannot be decided here and 1 does not hold"
    )
    assert summed_up(["does not hold", "does not hold", "undecided"]) == (
        "of 3 claims, 1 is undecided and 2 do not hold"
    )
    assert told([pair("holds"), pair("undecided")]) == (
        "undecided (of 2 tests, 1 holds and 1 is undecided)"
    )
    assert told([pair("holds")]) == "holds (the one test holds)"


def test_only_runs_on_the_same_images_are_paired() -> None:
    area = result(0.7).areas
    one = Counts(("a", "b"), area[:2], True)
    for other in (Counts(("a", "c"), area[:2], True), Counts(("a", "b"), area[:2], False)):
        with pytest.raises(ClaimError, match="same images"):
            paired_difference(one, other)
    assert paired_difference(one, one) == (0, 0, 0)
    assert claims.judge(paired_difference(one, one)) == "undecided"


def test_a_difference_that_two_images_make_decides_nothing() -> None:
    """Equal runs but for two images, in which one is right and the other wrong."""
    better = result(0.6, images=40)
    areas = better.areas.copy()
    areas[:2, 0] = 0  # no pixel right
    results.record(better, "e", "better")
    results.record(replace(better, areas=areas), "e", "worse")
    (test,) = claim().tests()
    assert test.verdict == "cannot be decided here"
    assert test.reason == "the difference rests on 2 of 40 images"
