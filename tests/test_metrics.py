"""Counts and scores: by hand, against naive loops, against CLIPer's record, invariances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ovss.evaluation import metrics
from ovss.labels import BACKGROUND, IGNORE

GOLDEN = np.load(Path(__file__).parent / "golden" / "cliper_decide.npz")
# A 4x4 image with classes cat = 0, grass = 1; B background, I ignored.
B, I = BACKGROUND, IGNORE  # noqa: E741
TARGET = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [B, B, 1, 1], [I, I, B, B]])
PRED = np.array([[0, 0, 1, 1], [0, B, 1, 0], [B, B, 1, 1], [0, 1, 1, B]])


def test_the_4x4_image_by_hand() -> None:
    counts = metrics.confusion(PRED, TARGET, classes=2)
    assert counts.tolist() == [[3, 0, 1], [1, 3, 0], [0, 1, 5]] and counts.dtype == np.int64
    # background 3 / (4 + 4 - 3), cat 3 / (4 + 4 - 3), grass 5 / (6 + 6 - 5)
    np.testing.assert_allclose(metrics.per_class_iou(counts), [3 / 5, 3 / 5, 5 / 7])
    assert metrics.miou(counts) == pytest.approx((3 / 5 + 3 / 5 + 5 / 7) / 3)
    assert metrics.miou(counts, background=False) == pytest.approx((3 / 5 + 5 / 7) / 2)
    assert metrics.pixel_accuracy(counts) == pytest.approx(11 / 14)
    assert metrics.mean_accuracy(counts) == pytest.approx((3 / 4 + 3 / 4 + 5 / 6) / 3)


def test_rules_differ_for_a_class_that_is_only_predicted() -> None:
    counts = metrics.confusion([0, 0, 1, 2], [0, 0, 0, 0], classes=4)
    iou = metrics.per_class_iou(counts, "mmseg", background=False)
    np.testing.assert_array_equal(iou, [0.5, 0, 0, np.nan])
    assert metrics.miou(counts, "mmseg", background=False) == pytest.approx(0.5 / 3)
    assert metrics.miou(counts, "present", background=False) == 0.5
    assert np.isnan(metrics.miou(np.zeros((3, 3), int)))
    with pytest.raises(ValueError, match="unknown rule"):
        metrics.miou(counts, "voc")  # type: ignore[arg-type]


def test_predicted_background_is_an_error_where_background_is_no_class() -> None:
    counts = metrics.confusion([B, 0, 0, 0], [0, 0, 0, 0], classes=1)
    assert metrics.miou(counts, background=False) == 0.75


@pytest.mark.parametrize("case", ["c1_p16", "c2_p14"])
@pytest.mark.parametrize("ignored", ["255", "0_255"])
def test_cliper_metric_is_the_authors(case: str, ignored: str) -> None:
    truth, pred = (GOLDEN[f"{case}/{name}"].astype(np.int64) for name in ("gt", "pred"))
    histogram = GOLDEN[f"{case}/metric_hist|ign{ignored}"]
    target = np.where(truth == 255, IGNORE, truth - 1)
    if ignored == "0_255":
        target = np.where(truth == 0, IGNORE, target)
    classes = len(histogram) - 1
    pairs = [(target, pred - 1), (target[::-1, ::-1], pred - 1)]
    counts = sum(metrics.confusion(found, one, classes) for one, found in pairs)
    np.testing.assert_array_equal(counts, histogram)
    pixel, mean, miou = GOLDEN[f"{case}/metric|ign{ignored}"]
    assert metrics.pixel_accuracy(counts) == pixel
    assert metrics.mean_accuracy(counts, epsilon=1e-5) == pytest.approx(mean, rel=1e-12)
    assert metrics.miou(counts, "present", epsilon=1e-5) == pytest.approx(miou, rel=1e-12)
    iou = np.nan_to_num(metrics.per_class_iou(counts, "present", epsilon=1e-5))
    np.testing.assert_allclose(iou, GOLDEN[f"{case}/metric_iou|ign{ignored}"], rtol=1e-12)


@pytest.mark.parametrize(
    "pred, target, said",
    [
        ([0, 1], [0], "shape"),
        ([3], [0], "prediction labels 3..3 are outside -1..2"),
        ([IGNORE], [0], "prediction"),
        ([0], [-3], "target labels -3..-3"),
        ([0], [255], "target"),
    ],
)
def test_confusion_refuses(pred: list[int], target: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        metrics.confusion(pred, target, classes=3)


labels = st.integers(1, 5).flatmap(
    lambda k: st.tuples(
        st.just(k),
        st.lists(
            st.tuples(st.integers(-1, k - 1), st.integers(-2, k - 1)), min_size=1, max_size=60
        ),
    )
)


@given(labels)
def test_confusion_and_iou_equal_loops(case: tuple[int, list[tuple[int, int]]]) -> None:
    classes, pixels = case
    pred, target = np.array(pixels).T
    counts = metrics.confusion(pred, target, classes)
    naive = np.zeros((classes + 1, classes + 1), int)
    for found, true in pixels:
        if true != IGNORE:
            naive[true + 1, found + 1] += 1
    np.testing.assert_array_equal(counts, naive)
    for k in range(-1, classes):
        seen = target != IGNORE
        union = (((pred == k) | (target == k)) & seen).sum()
        both = ((pred == k) & (target == k) & seen).sum()
        value = metrics.per_class_iou(counts)[k + 1]
        assert value == pytest.approx(both / union) if union else np.isnan(value)


@given(labels, st.randoms())
def test_invariances(case: tuple[int, list[tuple[int, int]]], random: object) -> None:
    classes, pixels = case
    pred, target = np.array(pixels).T
    counts = metrics.confusion(pred, target, classes)
    order = np.random.default_rng(len(pixels)).permutation(classes)
    table = np.concatenate([order, [IGNORE, BACKGROUND]])  # label k -> order[k]; -2, -1 stay
    moved = metrics.confusion(table[pred], table[target], classes)
    before = metrics.per_class_iou(counts, background=False)
    np.testing.assert_allclose(metrics.per_class_iou(moved, background=False)[order], before)
    half = len(pixels) // 2
    parts = [
        metrics.confusion(pred[part], target[part], classes)
        for part in (np.s_[:half], np.s_[half:])
    ]
    np.testing.assert_array_equal(sum(parts), counts)
    shuffled = np.random.default_rng(0).permutation(len(pixels))
    again = metrics.confusion(pred[shuffled], target[shuffled], classes)
    np.testing.assert_array_equal(again, counts)


def test_areas_hold_all_that_iou_needs(rng: np.random.Generator) -> None:
    counts = rng.integers(0, 50, (6, 4, 4))
    area = metrics.areas(counts)
    assert area.shape == (6, 3, 4)
    for one, table in zip(area, counts, strict=True):
        np.testing.assert_allclose(metrics.iou_of_areas(one), metrics.per_class_iou(table))
    assert metrics.miou_of_areas(area).shape == (6,)


def test_counts_are_exact_beyond_float32() -> None:
    counts = np.array([[2**24 + 1, 0], [1, 2**53 - 2**25]])
    assert metrics.areas(counts)[1].tolist() == [2**24 + 1, 2**53 - 2**25 + 1]


def test_mean_iou_and_its_derivative(rng: np.random.Generator) -> None:
    area = rng.integers(1, 50, (4, 3, 6)).astype(float)
    area[:, 1:] += area[:, :1]  # no intersection is larger than its target or prediction
    area[0, :, 2] = 0  # a class that does not count under either rule
    area[1, :2, 3] = 0  # one that is only predicted
    for statistic in (
        metrics.MeanIou(),
        metrics.MeanIou("present", scale=100),
        metrics.MeanIou(background=False, epsilon=0.5),
    ):
        rule, background, epsilon = statistic.rule, statistic.background, statistic.epsilon
        expected = metrics.miou_of_areas(area, rule, background, epsilon)
        np.testing.assert_allclose(statistic(area), statistic.scale * expected)
        slope = statistic.gradient(area)
        for place in np.ndindex(3, 6):
            step = np.zeros_like(area)
            step[:, *place] = 1e-5 * area[:, *place]
            change = statistic(area + step) - statistic(area - step)
            known = step[:, *place] > 0
            numeric = change[known] / (2 * step[:, *place][known])
            np.testing.assert_allclose(slope[:, *place][known], numeric, rtol=1e-4, atol=1e-9)
        assert (slope[0, :, 2] == 0).all()
    # one class: d (i / u) / d i = 1 / u + i / u^2 with i = 1, u = 2 + 3 - 1
    one = metrics.MeanIou(background=False).gradient([[0, 1], [0, 2], [0, 3]])
    np.testing.assert_allclose(one[:, 1], [1 / 4 + 1 / 16, -1 / 16, -1 / 16])


def test_average_precision_by_hand() -> None:
    # ranked: hit, miss, hit -> (1/1 + 2/3) / 2
    assert metrics.average_precision([0.9, 0.8, 0.7], [1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.average_precision([0.5, 0.5], [1, 0]) == metrics.average_precision(
        [0.5, 0.5], [0, 1]
    )
    assert np.isnan(metrics.average_precision([0.1], [0]))
    scores = np.array([[0.9, 0.2, 0], [0.8, 0.1, 0], [0.7, 0.3, 0]])
    present = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0]])
    assert metrics.mean_average_precision(scores, present) == pytest.approx((5 / 6 + 1) / 2)


def test_weighted_average_precision_repeats_images(rng: np.random.Generator) -> None:
    scores, present = rng.integers(0, 9, 30) / 8, rng.random(30) < 0.4
    weights = rng.integers(0, 4, (5, 30))
    found = metrics.average_precision(scores, present, weights)
    for value, times in zip(found, weights, strict=True):
        repeated = metrics.average_precision(scores.repeat(times), present.repeat(times))
        assert value == pytest.approx(repeated)
    never = np.where(present, 0, 1)  # no draw holds the class
    assert np.isnan(metrics.average_precision(scores, present, never))


def test_precision_recall_f1_by_hand() -> None:
    predicted, present = np.array([[1, 1], [0, 1]]), np.array([[1, 0], [1, 1]])
    assert metrics.precision_recall_f1(predicted, present) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    empty = np.zeros((2, 2))
    assert np.isnan(metrics.precision_recall_f1(empty, empty)).all()


def test_the_best_threshold_by_hand() -> None:
    # Down to 0.9, 0.8, 0.6, 0.5, 0.1 there are 1, 2, 2, 3, 3 hits of 3, in 1, 2, 3, 5, 6 guesses:
    # F1 = 2/4, 4/5, 4/6, 6/8, 6/9.
    scores = np.array([[0.9, 0.8], [0.6, 0.1], [0.5, 0.5]])
    present = np.array([[1, 1], [0, 0], [1, 0]], dtype=bool)
    threshold = metrics.best_threshold(scores, present)
    assert threshold == pytest.approx(0.7)
    assert metrics.precision_recall_f1(scores > threshold, present)[2] == pytest.approx(4 / 5)
    with pytest.raises(ValueError, match="no threshold"):
        metrics.best_threshold([[0.5, 0.5]], [[1, 0]])
    with pytest.raises(ValueError, match="no threshold"):
        metrics.best_threshold([[0.5, 0.4]], [[0, 0]])


@given(seed=st.integers(0, 10**6))
def test_no_threshold_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, present = rng.integers(0, 8, (6, 3)) / 7, rng.random((6, 3)) < 0.5
    assume(present.any() and len(np.unique(scores)) > 1)
    best = metrics.precision_recall_f1(scores > metrics.best_threshold(scores, present), present)
    for threshold in np.unique(scores)[:-1]:
        other = metrics.precision_recall_f1(scores > threshold, present)
        assert np.nan_to_num(other[2]) <= np.nan_to_num(best[2]) + 1e-12


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 30))
def test_average_precision_does_not_see_the_order(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    scores, present = rng.integers(0, 6, images) / 5, rng.random(images) < 0.5
    order = rng.permutation(images)
    one = metrics.average_precision(scores, present)
    two = metrics.average_precision(scores[order], present[order])
    np.testing.assert_equal(one, two)
