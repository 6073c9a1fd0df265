"""What a paper claims, tested on what we measured: holds, does not hold, undecided, not decidable.

The rules are written here, before any test:

1. A test *cannot be decided here* if a network that one of its rows used did not learn what claims
   rest on: a gate of its card in the lab's zoo is not passed.
2. Nor can it be decided if the claim says that a part adds something and there is next to nothing
   to add: the headroom (what a perfect part would add) is not above zero by its own interval, or
   is not greater than half the width of the test's interval.
3. Nor can a difference that rests on fewer images than `intervals.FEWEST_IMAGES`: its interval
   does not hold what it promises.
4. Otherwise it *holds* if the paired 95 % interval lies above the margin, *does not hold* if it
   lies below, and is *undecided* if the margin is in it.
5. A claim does not hold if one of its tests does not; it holds if all of them do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from .. import paths
from ..errors import OvssError
from ..evaluation import intervals, metrics
from . import headroom
from .kept_counts import Counts
from .results import file_of, read, read_counts

Verdict = Literal[
    "does not hold", "not run yet", "cannot be decided here", "undecided", "holds"
]  # of several tests the first counts
VERDICTS: tuple[Verdict, ...] = (
    "does not hold", "not run yet", "cannot be decided here", "undecided", "holds"
)  # fmt: skip


class ClaimError(OvssError, ValueError):
    """A claim that cannot be tested as it is written."""


class Cell(NamedTuple):
    """A number we measured: one row of an experiment on one data set."""

    experiment: str
    row: str
    dataset: str
    protocol: str = "mmseg"


@dataclass(frozen=True)
class PairTest:
    """A metric of two cells on the same images: their difference in points, and its interval.

    `reason` says why it cannot be decided here; empty otherwise.
    """

    greater: Cell
    smaller: Cell
    metric: str
    difference: intervals.Difference | None
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper that says that some numbers are greater than others.

    Attributes:
        id: short name, such as "cliper-elf-helps".
        sentence: the paper's words, with the place.
        cells: pairs (greater, smaller) that must all be as claimed.
        margin: by how many points the first must be greater.
        metrics: of each pair: "mIoU", and those of `classification.METRICS`.
        cause: the part of the method that would make it true; claims are grouped by it.
        headroom: rows of `headroom.EXPERIMENT` (perfect, as it is), if the claim says that
            a part adds something.

    Raises:
        ClaimError: there are no cells, or no metrics.
    """

    id: str
    sentence: str
    cells: tuple[tuple[Cell, Cell], ...]
    margin: float = 0.0
    metrics: tuple[str, ...] = ("mIoU",)
    cause: str = ""
    headroom: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.cells or not self.metrics:
            raise ClaimError(f"claim {self.id!r} has nothing to test: give it cells and metrics")

    def tests(self, profile: str = "lab", resamples: int = 1000, seed: int = 0) -> list[PairTest]:
        """Test each pair of cells by each metric."""
        return [
            self._test(*pair, metric, profile, resamples, seed)
            for metric in self.metrics
            for pair in self.cells
        ]

    def verdict(self, profile: str = "lab", resamples: int = 1000, seed: int = 0) -> Verdict:
        """Judge all its tests together, see `verdict_of`."""
        return verdict_of(self.tests(profile, resamples, seed))

    def _test(
        self, greater: Cell, smaller: Cell, metric: str, profile: str, resamples: int, seed: int
    ) -> PairTest:
        runs = _read_pair(greater, smaller, profile)
        if runs is None:
            return PairTest(greater, smaller, metric, None, "not run yet")
        difference = paired_difference(*runs, resamples, seed, metric)
        reason = unlearnt((greater, smaller), profile)
        if self.headroom and not reason:
            perfect, plain = (
                greater._replace(experiment=headroom.EXPERIMENT, row=r) for r in self.headroom
            )
            best = _read_pair(perfect, plain, profile)
            if best is None:
                return PairTest(greater, smaller, metric, difference, "not run yet")
            reason = no_headroom(paired_difference(*best, resamples, seed, metric), difference)
        reason = reason or rests_on_few(*runs, metric)
        verdict = "cannot be decided here" if reason else judge(difference, self.margin)
        return PairTest(greater, smaller, metric, difference, verdict, reason)


def verdict_of(tests: Iterable[PairTest]) -> Verdict:
    """Judge several tests together: the first of VERDICTS that one of them has.

    Raises:
        ClaimError: there is no test.
    """
    found = {test.verdict for test in tests}
    if not found:
        raise ClaimError("no test, no verdict: a claim needs at least one pair of cells")
    return next(verdict for verdict in VERDICTS if verdict in found)


def unlearnt(cells: Iterable[Cell], profile: str = "lab") -> str:
    """Say which networks of the rows missed a gate of their card, and by how much; "" if none did.

    A row's networks are those of its recorded checkpoint ("clip@93cd0ac0d1b8 dino@..."). Networks
    without a card in the zoo, such as the papers' own, are taken to have learnt.
    """
    names = dict.fromkeys(name for cell in cells for name in _networks(cell, profile))
    return "; ".join(
        f"{name} did not learn enough: {gate['name']} is {gate['measured']:.1f}, "
        f"its gate is at {gate['threshold']:.1f}"
        for name in names
        for gate in _gates(name)
        if not gate["passed"]
    )


def gates(networks: Iterable[str]) -> pd.DataFrame:
    """List what each network of the zoo had to learn, and whether it did."""
    columns = ["network", "what", "threshold", "measured", "passed"]
    lines = [{"network": name, **gate} for name in networks for gate in _gates(name)]
    return pd.DataFrame(lines, columns=columns)


def no_headroom(most: intervals.Difference, difference: intervals.Difference) -> str:
    """Say that a perfect part could add too little to be seen; "" if it could add enough."""
    half = (difference.high - difference.low) / 2
    if most.low > 0 and most.value > half:
        return ""
    return (
        f"a perfect part would add {most.value:.1f} [{most.low:.1f}, {most.high:.1f}], "
        f"and the test sees no less than {half:.1f}"
    )


def rests_on_few(first: Counts, second: Counts, metric: str = "mIoU") -> str:
    """Say that a difference rests on too few images to have an interval; "" if it does not."""
    if metric == "mIoU":
        areas = (first.areas, second.areas)
        found = intervals.draw(areas, (1.0, -1.0), _mean_iou(first), n=1)
    else:
        one, two = _statistic(first, metric), _statistic(second, metric)
        found = intervals.left_out(lambda weights: one(weights) - two(weights), len(first.ids))
    if found.effective_images >= intervals.FEWEST_IMAGES:
        return ""
    return f"the difference rests on {found.effective_images:.0f} of {len(first.ids)} images"


def paired_difference(
    first: Counts, second: Counts, resamples: int = 1000, seed: int = 0, metric: str = "mIoU"
) -> intervals.Difference:
    """Estimate the metric of `first` minus that of `second` in points, with its 95 % interval.

    Raises:
        ClaimError: the two were measured on different images, or one with background as a class
            and the other without; or the metric needs image scores that were not kept.
    """
    if first.ids != second.ids or first.has_background != second.has_background:
        raise ClaimError("the two runs were not scored on the same images in the same way")
    if metric != "mIoU":
        one, two = _statistic(first, metric), _statistic(second, metric)
        return intervals.paired_jackknife(one, two, len(first.ids))
    return intervals.paired_bootstrap(first.areas, second.areas, _mean_iou(first), resamples, seed)


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


def summed_up(verdicts: Iterable[Verdict], what: str = "claim") -> str:
    """Tell how many have which verdict: "of 3 claims, 1 holds and 2 do not hold"."""
    found = list(verdicts)
    if not found:
        raise ClaimError(f"there is no {what} to sum up")
    parts = [
        f"{found.count(verdict)} {_verb(verdict, found.count(verdict))}"
        for verdict in reversed(VERDICTS)
        if verdict in found
    ]
    told = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    if len(found) == 1:
        return f"the one {what} {_verb(found[0], 1)}"
    return f"of {len(found)} {what}s, {told}"


def told(tests: Iterable[PairTest]) -> str:
    """Tell the verdict of a claim and what it rests on: "holds (of 6 tests, 6 hold)"."""
    found = list(tests)
    return f"{verdict_of(found)} ({summed_up([test.verdict for test in found], 'test')})"


def verdicts_table(
    listed: Iterable[tuple[str, str, str]],
    tests: Mapping[str, Sequence[PairTest]],
    verdicts: Mapping[str, Verdict],
) -> pd.DataFrame:
    """List claims by cause: sentence, how many of the tests end how, verdict.

    Args:
        listed: cause, id and sentence of each.
        tests: of each id; a claim that rests on something else has none and counts as one.
        verdicts: of each id.
    """
    rows = list(listed)
    ends = {
        name: [test.verdict for test in tests[name]] if name in tests else [verdicts[name]]
        for _, name, _ in rows
    }
    seen = [one for one in reversed(VERDICTS) if any(one in found for found in ends.values())]
    return pd.DataFrame([
        {
            "cause": cause,
            "claim": name,
            "sentence": sentence,
            **{verdict: ends[name].count(verdict) for verdict in seen},
            "verdict": verdicts[name],
        }
        for cause, name, sentence in rows
    ]).set_index(["cause", "claim"])  # fmt: skip


def tests_table(tests: Mapping[str, Iterable[PairTest]]) -> pd.DataFrame:
    """List every single test: claim, greater, smaller, metric, on, difference, verdict, reason."""
    return pd.DataFrame([
        {
            "claim": name,
            "greater": test.greater.row,
            "smaller": test.smaller.row,
            "metric": test.metric,
            "on": _place(test.greater),
            "difference": _show(test.difference),
            "verdict": test.verdict,
            "reason": test.reason,
        }
        for name, found in tests.items()
        for test in found
    ])  # fmt: skip


def _read_pair(greater: Cell, smaller: Cell, profile: str) -> tuple[Counts, Counts] | None:
    """The counts of two cells; None unless both were kept."""
    first, second = (read_counts(*cell, profile=profile) for cell in (greater, smaller))
    return None if first is None or second is None else (first, second)


def _networks(cell: Cell, profile: str) -> list[str]:
    rows = read(file_of(cell.experiment, profile))
    same = (rows[["row", "dataset", "protocol"]] == cell[1:]).all(axis=1)
    return list(dict.fromkeys(re.findall(r"([\w.-]+)@", " ".join(rows[same]["checkpoint"]))))


def _gates(name: str) -> list[dict[str, Any]]:
    """The gates on the card of a network in the lab's zoo; none without a card."""
    path = paths.data("lab", "zoo", name, "card.json")
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")).get("gates", [])
    return found


def _verb(verdict: Verdict, count: int) -> str:
    plural = {"does not hold": "do not hold", "holds": "hold", "undecided": "are undecided",
              "not run yet": "are not run yet"}  # fmt: skip
    single = {"undecided": "is undecided", "not run yet": "is not run yet"}
    return single.get(verdict, verdict) if count == 1 else plural.get(verdict, verdict)


def _mean_iou(counts: Counts) -> intervals.Statistic:
    return metrics.MeanIou(background=counts.has_background, scale=100)


def _statistic(counts: Counts, metric: str) -> intervals.Statistic:
    if counts.image_level is None:
        raise ClaimError(f"{metric} needs image scores, and they were not kept")
    return counts.image_level.statistic(metric)


def _place(cell: Cell) -> str:
    """A data set, with what was asked of it if that is not all classes."""
    asked = cell.protocol.removeprefix("mmseg").lstrip("-")
    return f"{cell.dataset}, {asked}" if asked else cell.dataset


def _show(difference: intervals.Difference | None) -> str:
    if difference is None:
        return "not run yet"
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference)
