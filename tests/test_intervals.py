"""Intervals: by hand, against scipy, and their coverage on the project's own recorded counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ovss.evaluation import intervals, metrics
from ovss.evaluation.intervals import IntervalError
from ovss.reporting import results

GIVEN = "mmseg-image-classes"


def mean(sums: np.ndarray) -> np.ndarray:
    """Of two columns, values and ones: a ratio of sums, so a mean of any number of images."""
    return sums[..., 0] / sums[..., 1]


def with_ones(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones(len(values))], axis=1)


def areas_of(
    rng: np.random.Generator, images: int, classes: int = 3, hit: float = 0.7
) -> np.ndarray:
    tables = []
    for _ in range(images):
        target = rng.integers(-1, classes, 200)
        pred = np.where(rng.random(200) < hit, target, rng.integers(-1, classes, 200))
        tables.append(metrics.areas(metrics.confusion(pred, target, classes)))
    return np.stack(tables)


def recorded(experiment: str, row: str, dataset: str, protocol: str = "") -> np.ndarray:
    """Areas of a row of the book, without the background where it is no class."""
    found = results.read_counts(experiment, row, dataset, protocol or "mmseg", "lab")
    assert found is not None
    area = found.areas.astype(float)
    area[:, :, 0] *= found.has_background  # a class without pixels does not count
    return area


def test_jackknife_of_a_mean_is_the_textbook(rng: np.random.Generator) -> None:
    values = rng.exponential(size=30)
    error = values.std(ddof=1) / np.sqrt(30)
    for counts, statistic in (
        (with_ones(values), mean),
        (values[:, None], lambda sums: sums[..., 0] / 30),  # divided by a fixed number
    ):
        found = intervals.draw([counts], [1.0], statistic, n=50)
        assert found.value == pytest.approx(values.mean())
        assert found.error == pytest.approx(error)
        half = stats.t.ppf(0.975, 29) * error
        assert intervals.student_t(found) == pytest.approx(
            (values.mean() - half, values.mean() + half)
        )


def test_studentised_bootstrap_of_a_mean_equals_a_loop(rng: np.random.Generator) -> None:
    values = rng.exponential(size=20)
    weights = np.random.default_rng(3).multinomial(20, np.full(20, 1 / 20), size=300)
    t = []
    for times in weights:
        drawn = np.repeat(values, times)
        t.append(abs(drawn.mean() - values.mean()) / (drawn.std(ddof=1) / np.sqrt(20)))
    assert np.quantile(t, 0.95) > stats.t.ppf(0.975, 19)  # k is no less than that
    half = np.quantile(t, 0.95) * values.std(ddof=1) / np.sqrt(20)
    expected = values.mean() - half, values.mean() + half
    for counts, statistic in (
        (with_ones(values), mean),
        (values[:, None], lambda sums: sums[..., 0] / 20),
    ):
        np.testing.assert_allclose(
            intervals.bootstrap(counts, statistic, n=300, seed=3), expected, rtol=1e-6
        )


def test_resampled_miou_equals_a_loop(rng: np.random.Generator) -> None:
    area = areas_of(rng, 12)
    weights = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=300)
    naive = [metrics.miou_of_areas(np.repeat(area, times, axis=0).sum(0)) for times in weights]
    left_out = [metrics.miou_of_areas(np.delete(area, i, axis=0).sum(0)) for i in range(12)]
    found = intervals.draw([area], [1.0], n=300, seed=3)
    np.testing.assert_allclose(found.values, naive)
    np.testing.assert_allclose(found.left_out, left_out)
    np.testing.assert_allclose(intervals.percentile(found), np.quantile(naive, [0.025, 0.975]))
    low, high = np.quantile(naive, [0.025, 0.975])
    np.testing.assert_allclose(
        intervals.basic(found), [2 * found.value - high, 2 * found.value - low]
    )


def test_the_derivative_of_any_statistic(rng: np.random.Generator) -> None:
    area = areas_of(rng, 25)
    exact = intervals.bootstrap(area, n=300)
    np.testing.assert_allclose(
        intervals.bootstrap(area, metrics.miou_of_areas, n=300), exact, rtol=1e-6
    )
    signed = rng.normal(size=25)[:, None]  # sums near zero
    found = intervals.draw([signed], [1.0], lambda sums: sums[..., 0] / 25, n=300)
    weights = intervals.resample_weights(25, 300, 0)
    drawn = [np.repeat(signed[:, 0], times.astype(int)) for times in weights]
    np.testing.assert_allclose(found.errors, [one.std(ddof=1) / 5 for one in drawn], rtol=1e-5)


def test_percentile_basic_and_bca_are_those_of_scipy() -> None:
    values = np.random.default_rng(5).exponential(size=40)
    found = intervals.draw([with_ones(values)], [1.0], mean, n=40_000)
    for name in ("percentile", "basic", "BCa"):
        theirs = stats.bootstrap(
            (values,), np.mean, n_resamples=40_000, method=name, rng=np.random.default_rng(1)
        ).confidence_interval
        ours = intervals.INTERVALS[name](found)
        width = theirs.high - theirs.low
        np.testing.assert_allclose(ours, theirs, atol=0.02 * width)


def test_bca_by_hand() -> None:
    values = np.arange(1, 1001) / 1000  # the quantiles of the resamples are their own numbers
    draws = intervals.Draws(0.6, values, np.empty(0), np.array([0.5, 0.5, 0.5, 0.9]))
    bias = stats.norm.ppf((0.599 + 0.6) / 2)
    apart = 0.6 - draws.left_out
    acceleration = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)
    assert acceleration < 0 < bias
    z = bias + np.array([-1.959964, 1.959964])
    at = stats.norm.cdf(bias + z / (1 - acceleration * z))
    np.testing.assert_allclose(intervals.bca(draws), np.quantile(values, at), rtol=1e-5)


def test_paired_bootstrap(rng: np.random.Generator) -> None:
    worse, better = areas_of(rng, 60, hit=0.6), areas_of(rng, 60, hit=0.7)
    found = intervals.paired_bootstrap(better, worse)
    assert found.low > 0 and found.low < found.value < found.high
    assert found.value == pytest.approx(
        metrics.miou_of_areas(better.sum(0)) - metrics.miou_of_areas(worse.sum(0))
    )
    assert intervals.paired_bootstrap(better, better) == (0, 0, 0)
    opposite = intervals.paired_bootstrap(worse, better)
    np.testing.assert_allclose(opposite, [-found.value, -found.high, -found.low])
    assert intervals.contrast([better, worse], (1, -1)) == found
    gains = intervals.contrast([better, worse, better], (1, -2, 1))
    np.testing.assert_allclose(gains, 2 * np.array(found))
    with pytest.raises(IntervalError, match="share their images, got 60 and 5"):
        intervals.paired_bootstrap(better, worse[:5])
    with pytest.raises(IntervalError, match=r"at least one image, got \[0, 3, 4\]"):
        intervals.bootstrap(np.zeros((0, 3, 4)))
    with pytest.raises(IntervalError, match="a resample, got 60 and 0"):
        intervals.bootstrap(better, n=0)


def test_the_seed_fixes_an_interval_and_bounds_hold_it(rng: np.random.Generator) -> None:
    area = areas_of(rng, 12)
    interval = intervals.bootstrap(area, n=200, seed=3)
    assert intervals.bootstrap(area, n=200, seed=3) == interval
    assert intervals.bootstrap(area, n=200, seed=4) != interval
    assert interval.low < metrics.miou_of_areas(area.sum(0)) < interval.high
    right = with_ones(np.array([1.0] * 30 + [0.0]))
    assert intervals.bootstrap(right, mean).high > 1
    assert intervals.bootstrap(right, mean, bounds=(0, 1)).high == 1
    assert intervals.jackknife(lambda w: w @ right[:, 0] / w.sum(1), 31, (0, 1)).high == 1
    rare = areas_of(rng, 3, classes=40, hit=0.05)
    assert intervals.bootstrap(rare).low >= 0 and intervals.bootstrap(rare).high <= 1


def test_one_image_says_nothing_about_spread(rng: np.random.Generator) -> None:
    assert np.isnan(intervals.bootstrap(areas_of(rng, 1))).all()
    assert np.isnan(intervals.jackknife(lambda w: w[:, 0], 1)).all()
    two = intervals.bootstrap(areas_of(rng, 2))
    assert np.isfinite(two).all() and two.low < two.high
    equal = np.repeat(areas_of(rng, 1), 9, axis=0)  # nine times one image: no spread at all
    value = metrics.miou_of_areas(equal[0])
    assert intervals.bootstrap(equal) == pytest.approx((value, value))


def test_jackknife_of_weights(rng: np.random.Generator) -> None:
    one, two = rng.exponential(size=(2, 30))

    def mean_of(values: np.ndarray) -> intervals.Statistic:
        return lambda weights: weights @ values / weights.sum(1)

    draws = intervals.draw([with_ones(one)], [1.0], mean, n=1)
    found = intervals.jackknife(mean_of(one), 30)
    np.testing.assert_allclose(found, intervals.student_t(draws))
    gap = intervals.paired_jackknife(mean_of(one), mean_of(two), 30)
    half = stats.t.ppf(0.975, 29) * (one - two).std(ddof=1) / np.sqrt(30)
    value = (one - two).mean()
    np.testing.assert_allclose(gap, [value, value - half, value + half])
    middle = intervals.percentile_bootstrap(mean_of(one), 30, n=500)
    assert middle.low < one.mean() < middle.high


def test_how_many_images_a_value_rests_on(rng: np.random.Generator) -> None:
    """By hand: deviations 1, -1, 0, 0 are two images' doing; one far value is one's."""

    def rests(values: list[float]) -> float:
        counts = np.array(values)[:, None]  # [I, 1]
        found = intervals.draw([counts], [1.0], lambda sums: sums[..., 0], n=1)
        return found.effective_images

    assert rests([1, -1, 0, 0]) == pytest.approx(2)
    assert rests([1, -1] * 30) == pytest.approx(60)
    assert 1 <= rests([0] * 99 + [1]) < 1.1
    assert rests([3, 3, 3]) == 3, "no image changes anything"
    areas = rng.integers(0, 50, (40, 3, 3))
    same = intervals.draw([areas, areas], [1.0, -1.0], n=1)
    assert same.effective_images == 40


def test_thin_classes() -> None:
    area = np.zeros((9, 3, 4))
    area[:, 1, 1] = 7  # every image
    area[:5, 1, 2] = 7  # five images
    area[:4, 1, 3] = 7  # four
    assert intervals.thin_classes(area) == [-1, 2]
    assert intervals.thin_classes(area, background=False) == [2]


# The population is a row's recorded images; benchmarks are drawn from it with replacement. With B
# benchmarks, a share of 0.92 has a standard error of sqrt(0.92 * 0.08 / B); 2.33 of it below 0.92
# would happen to an interval that covers exactly 92 % in 1 of 100 simulations.
BENCHMARKS = 150
LEAST = 0.92 - 2.33 * np.sqrt(0.92 * 0.08 / BENCHMARKS)
SIMULATED: dict[str, tuple[list[tuple[str, ...]], int]] = {  # rows, images of a benchmark
    "a row on 400": ([("cliper-table1", "CLIPer (2024)", "lab-21")], 400),
    "classes given, on 400": ([("cliper-table1", "CLIPer (2024)", "lab-all", GIVEN)], 400),
    "a low mIoU, on 100": ([("cliper-table1", "MaskCLIP", "lab-all")], 100),
    "all asked, on 60": ([("cliper-table1", "CLIPer (2024)", "lab-all")], 60),
    "a difference on 400": (
        [("cliper-table2", "CLIPer*", "lab-all"), ("cliper-table2", "CLIPer", "lab-all")],
        400,
    ),
    "a difference on 60": (
        [("cliper-table1", "CLIPer (2024)", "lab-20"), ("cliper-table1", "SCLIP", "lab-20")],
        60,
    ),
}


@pytest.mark.parametrize("case", SIMULATED)
def test_coverage_on_recorded_counts(case: str) -> None:
    rows, images = SIMULATED[case]
    runs, factors = [recorded(*row) for row in rows], (1.0, -1.0)[: len(rows)]
    share = intervals.coverage(runs, factors, images, benchmarks=BENCHMARKS, n=150)
    assert LEAST < 0.87 and share["studentised"] >= LEAST, share


def test_percentile_intervals_of_few_images_do_not_keep_their_promise() -> None:
    run = recorded("cliper-table6", "Early-layer attention | last", "lab-all", GIVEN)
    share = intervals.coverage([run], [1.0], 30, benchmarks=BENCHMARKS, n=200)
    assert share["percentile"] < LEAST < share["studentised"]
