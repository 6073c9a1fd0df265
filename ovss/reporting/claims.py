"""What a paper claims, tested on what we measured: holds, does not hold, undecided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pandas as pd

from ..evaluation import intervals, metrics
from .results import Counts, read_counts

Verdict = Literal["holds", "does not hold", "undecided", "not run yet"]


class Cell(NamedTuple):
    """A number we measured: one row of an experiment on one data set."""

    experiment: str
    row: str
    dataset: str
    protocol: str = "mmseg"


@dataclass(frozen=True)
class Test:
    """A metric of two cells on the same images: their difference in points, and its interval."""

    greater: Cell
    smaller: Cell
    difference: intervals.Difference | None
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper that says that some numbers are greater than others.

    Attributes:
        id: short name, such as "cliper-elf-helps".
        sentence: the paper's words, with the place.
        cells: pairs (greater, smaller) that must all be as claimed.
        margin: by how many points the first must be greater.
        metric: "mIoU", or one of `image_level.METRICS`.
    """

    id: str
    sentence: str
    cells: tuple[tuple[Cell, Cell], ...]
    margin: float = 0.0
    metric: str = "mIoU"

    def tests(self, profile: str = "lab", resamples: int = 1000, seed: int = 0) -> list[Test]:
        """One paired bootstrap test per pair of cells."""
        return [self._test(*pair, profile, resamples, seed) for pair in self.cells]

    def verdict(self, profile: str = "lab", resamples: int = 1000, seed: int = 0) -> Verdict:
        """That of all its pairs together, see `verdict_of`."""
        return verdict_of(self.tests(profile, resamples, seed))

    def _test(self, greater: Cell, smaller: Cell, profile: str, resamples: int, seed: int) -> Test:
        first, second = (
            read_counts(*greater, profile=profile),
            read_counts(*smaller, profile=profile),
        )
        if first is None or second is None:
            return Test(greater, smaller, None, "not run yet")
        difference = paired_difference(first, second, resamples, seed, self.metric)
        return Test(greater, smaller, difference, judge(difference, self.margin))


def verdict_of(tests: Iterable[Test]) -> Verdict:
    """Holds if every test holds, does not hold if one does not, else undecided."""
    verdicts = {test.verdict for test in tests}
    order: tuple[Verdict, ...] = ("does not hold", "not run yet", "undecided", "holds")
    return next(verdict for verdict in order if verdict in verdicts)


def paired_difference(
    first: Counts, second: Counts, resamples: int = 1000, seed: int = 0, metric: str = "mIoU"
) -> intervals.Difference:
    """The metric of `first` minus that of `second` in points, with its 95 % paired interval.

    Raises:
        ValueError: the two were measured on different images, or one with background as a class
            and the other without; or the metric needs image scores that were not kept.
    """
    if first.ids != second.ids or first.has_background != second.has_background:
        raise ValueError("the two runs were not scored on the same images in the same way")
    if metric != "mIoU":
        one, two = _statistic(first, metric), _statistic(second, metric)
        return intervals.paired_jackknife(one, two, len(first.ids))

    statistic = metrics.MeanIou(background=first.has_background, scale=100)
    return intervals.paired_bootstrap(first.areas, second.areas, statistic, resamples, seed)


def judge(difference: intervals.Difference, margin: float = 0.0) -> Verdict:
    """Holds if the interval lies above `margin`, does not hold if below, else undecided."""
    if difference.low > margin:
        return "holds"
    return "does not hold" if difference.high < margin else "undecided"


def worded(
    difference: intervals.Difference, higher: str, lower: str, open: str = "may do either"
) -> str:
    """The word for a difference that lies above zero, below zero, or cannot be told from it."""
    return {"holds": higher, "does not hold": lower, "undecided": open}[judge(difference)]


def claims_table(claims: Iterable[Claim], profile: str = "lab") -> pd.DataFrame:
    """One line per tested pair: claim, sentence, greater, smaller, difference, verdict."""
    lines = []
    for claim in claims:
        for test in claim.tests(profile):
            lines.append(
                {
                    "claim": claim.id,
                    "sentence": claim.sentence,
                    "dataset": test.greater.dataset,
                    "metric": claim.metric,
                    "greater": test.greater.row,
                    "smaller": test.smaller.row,
                    "difference": _show(test.difference),
                    "verdict": test.verdict,
                }
            )
    return pd.DataFrame(lines)


def _statistic(counts: Counts, metric: str) -> intervals.Statistic:
    if counts.image_level is None:
        raise ValueError(f"{metric} needs image scores, and they were not kept")
    return counts.image_level.statistic(metric)


def _show(difference: intervals.Difference | None) -> str:
    if difference is None:
        return "not run yet"
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference)
