"""Keeping the headroom that `evaluation.headroom` defines, for every page that speaks of it."""

from __future__ import annotations

from collections.abc import Mapping

from ..evaluation.headroom import PERFECT, PLAIN
from ..evaluation.intervals import paired_bootstrap
from ..evaluation.metrics import MeanIou
from ..evaluation.result import Result
from . import results

EXPERIMENT = "headroom"  # where its rows are recorded


def record(found: Mapping[str, Result], profile: str = "lab") -> None:
    """Keep both rows with their counts, and the headroom itself: a paired difference in points."""
    plain, perfect = found[PLAIN], found[PERFECT]
    for row, one in ((PLAIN, plain), (PERFECT, perfect)):
        results.record(one, EXPERIMENT, row, profile)
    statistic = MeanIou(background=plain.has_background, scale=100)
    most = paired_bootstrap(perfect.areas, plain.areas, statistic, plain.bootstrap, plain.seed)
    origin = results.measured(plain, EXPERIMENT, f"{PERFECT} minus {PLAIN}", profile)
    line = {"metric": "headroom", **most._asdict()}
    results.write(results.file_of(EXPERIMENT, profile), [{**origin, **line}])
