"""Do two measures put the same things first? Spearman's rank correlation, with its interval."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from ..errors import OvssError
from . import intervals, metrics

FloatArray = NDArray[np.float64]


def spearman(first: ArrayLike, second: ArrayLike) -> Any:
    """Rank correlation in [-1, 1] along the last axis: both [..., C] -> [...].

    NaN where one of them is constant.
    """
    one, two = (_centred(rankdata(values, axis=-1)) for values in (first, second))
    size = np.sqrt((one**2).sum(-1) * (two**2).sum(-1))
    product = (one * two).sum(-1)
    return np.divide(product, size, out=np.full(size.shape, np.nan), where=size > 0)[()]


def rank_correlation(
    rewards: ArrayLike,
    areas: ArrayLike,
    *,
    background: bool = True,
    n: int = 1000,
    seed: int = 0,
) -> tuple[float, intervals.Interval]:
    """Spearman's correlation of summed rewards and mIoU over candidates, with its interval.

    The interval holds the middle 95 % of resamples of the images, the same for both: ranks move in
    steps, and what `intervals.bootstrap` and `intervals.jackknife` rest on, a slope, they lack.

    Args:
        rewards: of each candidate on each image, [..., I]; the candidates' axes are flattened.
        areas: per candidate and image what `Result.areas` holds, [..., I, 3, K+1].
        background: whether index 0 of the areas is a class of the mIoU.
        n: number of resamples; `seed` fixes them.

    Raises:
        OvssError: the shapes do not belong together.
    """
    reward, area = np.asarray(rewards, dtype=np.float64), np.asarray(areas, dtype=np.float64)
    if area.shape[:-2] != reward.shape:
        raise OvssError(f"rewards {reward.shape} and areas {area.shape} are of other candidates")
    images = reward.shape[-1]
    reward, area = reward.reshape(-1, images), area.reshape(-1, *area.shape[-3:])

    def statistic(weights: FloatArray) -> Any:
        """Weights of the images [..., I] -> [...]."""
        sums = (np.tensordot(weights, one, axes=1) for one in area)  # [..., 3, K+1] each
        mious = [metrics.miou_of_areas(one, "mmseg", background) for one in sums]
        return spearman(weights @ reward.T, np.stack(mious, axis=-1))

    value = float(statistic(np.ones(images)))
    return value, intervals.percentile_bootstrap(statistic, images, n, seed)


def _centred(values: FloatArray) -> FloatArray:
    return values - values.mean(-1, keepdims=True)
