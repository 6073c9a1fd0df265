"""95 % intervals over images: of one run, of the difference of two, of a sum of several.

An interval is `value ± k s`. The standard error `s` is the jackknife's: every image is left out
once. `k` is the 95 % quantile of |t| over resamples of the images, where the t of a resample is
its distance from `value` in units of its own standard error, which the infinitesimal jackknife
gives (symmetric studentised bootstrap; Efron and Tibshirani 1993, sections 11.5, 12.5 and 21.9).
It was chosen by `coverage` on the project's own counts: percentile and BCa intervals of an mIoU
are too short where classes are in few images (see the book's page on scoring).

A statistic maps sums of counts [n, ...] to values [n]; its values lie in [0, 1], in percent or in
milliseconds, and an interval is in the same unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtrit

from ..errors import OvssError
from . import metrics

FloatArray = NDArray[np.float64]
Statistic = Callable[[Any], Any]
Bounds = tuple[float, float]

MEAN_IOU = metrics.MeanIou()  # in [0, 1], background a class
ANYWHERE: Bounds = (-np.inf, np.inf)
FEWEST_IMAGES = 5  # what rests on fewer, a class or a difference, says nothing
LEVEL = 0.95
BLOCK = 256  # rows of weights at once


class IntervalError(OvssError, ValueError):
    """Counts or weights of which no interval can be made."""


class Interval(NamedTuple):
    """What a 95 % interval spans; NaN where one image, or none, says nothing about spread."""

    low: float
    high: float


class Difference(NamedTuple):
    """The difference of two runs on the same images and its paired interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Draws:
    """A statistic of all images, of resamples of them, and with each image left out.

    Attributes:
        value: of all images.
        values: of each resample, [n].
        errors: the standard error within each resample, [n]; empty if there is none.
        left_out: with one image left out, [I].
    """

    value: float
    values: FloatArray
    errors: FloatArray
    left_out: FloatArray

    @property
    def error(self) -> float:
        """The jackknife standard error (Efron and Tibshirani 1993, equation 11.5)."""
        known = self.left_out[np.isfinite(self.left_out)]
        if len(known) < 2:
            return float("nan")
        n = len(known)
        return float(np.sqrt((n - 1) / n * ((known - known.mean()) ** 2).sum()))

    @property
    def effective_images(self) -> float:
        """How many images the value rests on: (sum d^2)^2 / sum d^4 of the jackknife's d [I].

        As many as there are if all weigh alike, 1 if one decides alone. Below FEWEST_IMAGES no
        interval holds what it promises (`make coverage`). All of them where none matters, as in
        the difference of two equal runs.
        """
        apart = self.left_out[np.isfinite(self.left_out)]
        square = (apart - apart.mean()) ** 2 if apart.size else apart  # [I]
        if square.sum() < 1e-24:
            return float(len(self.left_out))
        return float(square.sum() ** 2 / (square**2).sum())


def bootstrap(
    per_image: ArrayLike,
    statistic: Statistic = MEAN_IOU,
    n: int = 1000,
    seed: int = 0,
    bounds: Bounds | None = None,
) -> Interval:
    """Estimate the 95 % interval of a statistic of summed counts [I, ...] over images.

    Args:
        per_image: counts of each image [I, ...], for instance areas [I, 3, K+1].
        statistic: maps sums [n, ...] to values [n]. With a method `gradient` (sums [n, ...] ->
            [n, ...]), as `metrics.MeanIou` has, it is faster than by numerical differentiation.
        n: number of resamples; `seed` fixes them.
        bounds: the least and the greatest value possible; by default the statistic's own.

    Raises:
        IntervalError: there is no image, or no resample.
    """
    interval = studentised(draw([per_image], [1.0], statistic, n, seed))
    own: Bounds = getattr(statistic, "bounds", ANYWHERE)
    return _clipped(interval, own if bounds is None else bounds)


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Statistic = MEAN_IOU,
    n: int = 1000,
    seed: int = 0,
) -> Difference:
    """Estimate statistic(first) - statistic(second) and its 95 % interval on the same images.

    Args:
        first: counts [I, ...] of one run; second: counts [I, ...] of another run on the same
            images in the same order (their class axes may differ).
        statistic: and the other options, as of `bootstrap`.

    Raises:
        IntervalError: the runs have different numbers of images.
    """
    return contrast([first, second], [1.0, -1.0], statistic, n, seed)


def contrast(
    runs: Sequence[ArrayLike],
    factors: Sequence[float],
    statistic: Statistic = MEAN_IOU,
    n: int = 1000,
    seed: int = 0,
) -> Difference:
    """Estimate sum_r factor_r * statistic(run_r) and its 95 % interval on the same images.

    Args:
        runs: counts [I, ...] of R runs on the same images in the same order.
        factors: R numbers; (1, -1) is a difference, (-1, 2, -1) a gain minus the next gain.
        statistic: and the other options, as of `bootstrap`.
    """
    found = draw(runs, factors, statistic, n, seed)
    return Difference(found.value, *studentised(found))


def jackknife(statistic: Statistic, images: int, bounds: Bounds = ANYWHERE) -> Interval:
    """Estimate the 95 % interval of a statistic that is no function of sums (mAP).

    It is value ± k s with the jackknife's s and k of Student's t with I - 1 degrees of freedom.

    Args:
        statistic: maps weights [n, I], how often each image counts, to values [n].
        images: I.
        bounds: the least and the greatest value possible.
    """
    return _clipped(student_t(left_out(statistic, images)), bounds)


def paired_jackknife(first: Statistic, second: Statistic, images: int) -> Difference:
    """Estimate first - second and its interval, of statistics as `jackknife` takes them."""
    found = left_out(lambda weights: first(weights) - second(weights), images)
    return Difference(found.value, *student_t(found))


def percentile_bootstrap(
    statistic: Statistic, images: int, n: int = 1000, seed: int = 0
) -> Interval:
    """Estimate the 95 % interval of a statistic that is not smooth (a correlation of ranks).

    Args:
        statistic: maps weights [n, I] to values [n], as of `jackknife`.
    """
    values = _by_blocks(statistic, resample_weights(images, n, seed))
    return percentile(Draws(float("nan"), values, np.empty(0), np.empty(0)))


def draw(
    runs: Sequence[ArrayLike],
    factors: Sequence[float],
    statistic: Statistic = MEAN_IOU,
    n: int = 1000,
    seed: int = 0,
) -> Draws:
    """Compute what every interval of `INTERVALS` is made of; arguments as of `contrast`."""
    counts = [_counts(run) for run in runs]  # R x [I, ...]
    images = len(counts[0])
    if any(len(one) != images for one in counts):
        sizes = " and ".join(str(len(one)) for one in counts)
        raise IntervalError(f"paired runs must share their images, got {sizes}")
    value, left_out = 0.0, np.zeros(images)
    for factor, one in zip(factors, counts, strict=True):
        total = one.sum(0)
        value += factor * float(statistic(total[None])[0])
        left_out += factor * statistic((total - one) * (images / max(images - 1, 1)))
    weights = resample_weights(images, n, seed)  # [n, I]
    blocks = [weights[start : start + BLOCK] for start in range(0, n, BLOCK)]
    parts = [_resampled(block, counts, factors, statistic) for block in blocks]
    values, errors = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Draws(value, values, errors, left_out)


def gradient(statistic: Statistic, sums: FloatArray, scale: FloatArray) -> FloatArray:
    """Differentiate a statistic by each of its sums: [n, ...] -> [n, ...].

    Central differences with a step of 1e-4 `scale` if the statistic has no `gradient` of its
    own. Where the scale is zero no image counts, and the derivative is not needed: 0.
    """
    exact = getattr(statistic, "gradient", None)
    if exact is not None:
        return np.asarray(exact(sums), dtype=np.float64)
    slope = np.zeros_like(sums)
    for place in np.ndindex(sums.shape[1:]):
        at = (slice(None), *place)
        step = np.zeros_like(sums)
        step[at] = 1e-4 * scale[at]  # [n, ...]
        change = statistic(sums + step) - statistic(sums - step)  # [n]
        np.divide(change, 2 * step[at], out=slope[at], where=step[at] > 0)
    return slope


def studentised(draws: Draws) -> Interval:
    """Compute value ± k s, with k the 95 % quantile of |t| over the resamples.

    Resamples without spread (of one image many times) have no t and are left out. k is no less
    than Student's: of two or three images the resamples tell next to nothing.
    """
    spread = draws.errors > 0
    t = np.abs(draws.values - draws.value)[spread] / draws.errors[spread]  # [<= n]
    t = t[np.isfinite(t)]
    k = float(np.quantile(t, LEVEL)) if t.size else 0.0
    return _around(draws, max(k, _student(draws)))


def student_t(draws: Draws) -> Interval:
    """Compute value ± k s, with k of Student's t with I - 1 degrees of freedom."""
    return _around(draws, _student(draws))


def percentile(draws: Draws) -> Interval:
    """Take the 2.5 % and the 97.5 % quantile of the resamples."""
    return _quantiles(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])


def basic(draws: Draws) -> Interval:
    """Reflect the percentile interval at the value."""
    low, high = percentile(draws)
    return Interval(2 * draws.value - high, 2 * draws.value - low)


def bca(draws: Draws) -> Interval:
    """Correct the percentiles for bias and acceleration (Efron 1987)."""
    values = draws.values[np.isfinite(draws.values)]
    below = ((values < draws.value).mean() + (values <= draws.value).mean()) / 2
    bias = ndtri(np.clip(below, 0.5 / len(values), 1 - 0.5 / len(values)))
    known = draws.left_out[np.isfinite(draws.left_out)]
    apart = known.mean() - known  # [I]
    size = 6 * (apart**2).sum() ** 1.5
    acceleration = (apart**3).sum() / size if size > 0 else 0.0
    z = bias + ndtri([(1 - LEVEL) / 2, (1 + LEVEL) / 2])  # [2]
    return _quantiles(draws, ndtr(bias + z / (1 - acceleration * z)))


INTERVALS: dict[str, Callable[[Draws], Interval]] = {
    "percentile": percentile,
    "basic": basic,
    "BCa": bca,
    "jackknife": student_t,
    "studentised": studentised,  # what `bootstrap` and `paired_bootstrap` use
}


def coverage(
    runs: Sequence[ArrayLike],
    factors: Sequence[float],
    images: int,
    statistic: Statistic = MEAN_IOU,
    benchmarks: int = 400,
    n: int = 400,
    seed: int = 0,
) -> dict[str, float]:
    """Simulate how often each of `INTERVALS` holds the value of the population.

    The images of `runs` are the population. Benchmarks of `images` images are drawn from it
    with replacement, and an interval is made of each.

    Args:
        runs: and `factors`, as of `contrast`; one run and [1.0] for the interval of a number.
        benchmarks: how many are drawn; the share has a standard error of
            sqrt(p (1 - p) / benchmarks), 1.1 points for p = 0.95 and 400.
        n: resamples of each interval.

    Returns:
        The share of benchmarks whose interval holds it, in [0, 1], by the interval's name.
    """
    counts = [_counts(run) for run in runs]
    truth = sum(
        factor * float(statistic(one.sum(0)[None])[0])
        for factor, one in zip(factors, counts, strict=True)
    )
    dice = np.random.default_rng(seed)
    held = dict.fromkeys(INTERVALS, 0)
    for _ in range(benchmarks):
        drawn = dice.integers(len(counts[0]), size=images)
        found = draw([one[drawn] for one in counts], factors, statistic, n, seed)
        for name, interval in INTERVALS.items():
            low, high = interval(found)
            held[name] += bool(low <= truth <= high)
    return {name: count / benchmarks for name, count in held.items()}


def thin_classes(areas: ArrayLike, background: bool = True) -> list[int]:
    """List the classes, -1..K-1, that fewer than FEWEST_IMAGES images hold: [I, 3, K+1].

    A number over such classes has an interval, but rests on what a few images happened to show.

    Args:
        background: whether index 0 of the areas is a class of the metric.
    """
    held = (np.asarray(areas)[:, 1] > 0).sum(0)  # [K+1]
    first = 0 if background else 1
    return [k - 1 for k in range(first, len(held)) if held[k] < FEWEST_IMAGES]


@lru_cache(maxsize=2)
def resample_weights(images: int, n: int, seed: int) -> FloatArray:
    """Draw how often each image is in each of n resamples with replacement: [n, I]."""
    if images < 1 or n < 1:
        raise IntervalError(f"an interval needs an image and a resample, got {images} and {n}")
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=n)
    weights: FloatArray = draws.astype(np.float64)
    weights.flags.writeable = False  # it is shared
    return weights


def _counts(per_image: ArrayLike) -> FloatArray:
    counts = np.asarray(per_image, dtype=np.float64)  # sums stay exact below 2^53 pixels
    if counts.ndim < 2 or len(counts) == 0:
        raise IntervalError(
            f"expected counts [I, ...] of at least one image, got {list(counts.shape)}"
        )
    return counts


def _resampled(
    weights: FloatArray,
    counts: Sequence[FloatArray],
    factors: Sequence[float],
    statistic: Statistic,
) -> tuple[FloatArray, FloatArray]:
    """Value and standard error (infinitesimal jackknife) of each resample: 2 x [n]."""
    n, images = weights.shape
    values, influence = np.zeros(n), np.zeros((n, images))
    for factor, one in zip(factors, counts, strict=True):
        sums = np.tensordot(weights, one, axes=1)  # [n, ...]
        scale = sums if one.min() >= 0 else np.tensordot(weights, np.abs(one), axes=1)
        values += factor * statistic(sums)
        slope = gradient(statistic, sums, scale).reshape(n, -1)
        influence += factor * slope @ one.reshape(images, -1).T  # [n, I]
    weighted = weights * influence
    square = (weighted * influence).sum(1)
    variance = square - weighted.sum(1) ** 2 / images
    variance[variance < 1e-12 * square] = 0.0  # what rounding leaves of none
    return values, np.sqrt(variance * images / max(images - 1, 1))


def left_out(statistic: Statistic, images: int) -> Draws:
    """The jackknife of a statistic of weights."""
    if images < 1:
        raise IntervalError("an interval needs at least one image, got 0")
    value = float(statistic(np.ones((1, images)))[0])
    rest = np.ones((images, images)) - np.eye(images)  # [I, I]
    return Draws(value, np.empty(0), np.empty(0), _by_blocks(statistic, rest))


def _by_blocks(statistic: Statistic, weights: FloatArray) -> FloatArray:
    """A statistic of weights [n, I] -> [n], a block of rows at a time."""
    starts = range(0, len(weights), BLOCK)
    parts = [np.asarray(statistic(weights[start : start + BLOCK])) for start in starts]
    return np.concatenate(parts).astype(np.float64)


def _student(draws: Draws) -> float:
    freedom = max(len(draws.left_out) - 1, 1)
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _around(draws: Draws, k: float) -> Interval:
    half = k * draws.error
    return Interval(float(draws.value - half), float(draws.value + half))


def _quantiles(draws: Draws, at: Any) -> Interval:
    values = draws.values[np.isfinite(draws.values)]
    if not values.size:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(values, at)
    return Interval(float(low), float(high))


def _clipped(interval: Interval, bounds: Bounds) -> Interval:
    low, high = np.clip(interval, *bounds)  # NaN stays
    return Interval(float(low), float(high))
