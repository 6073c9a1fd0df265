"""The lines of a table: times and peaks of each stage, side beside side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def table(name: str, stages: Sequence[str], runs: Mapping[str, Any]) -> Iterator[str]:
    """Header, a line for each stage, the sum; `runs` have `seconds`, `bytes` and `total`."""
    first, *others = runs
    yield f"\n{name:18}{first:>10}" + "".join(f"{side:>18}" for side in others) + "  | peak memory"
    units = "".join(f"{side + ' MB':>18}" for side in runs)
    yield f"{'':18}{'ms':>10}" + f"{'ms':>10}{'ratio':>8}" * len(others) + f"  |{units}"
    sides = list(runs.values())
    for index, stage in enumerate(stages):
        yield row(stage, [run.seconds[index] for run in sides], [run.bytes[index] for run in sides])
    yield row("end to end", [run.total for run in sides], [max(run.bytes) for run in sides])


def row(stage: str, seconds: Sequence[float], sizes: Sequence[int]) -> str:
    """A stage's milliseconds with ratios, then megabytes."""
    first, *others = (1000 * value for value in seconds)
    times = "".join(f"{value:10.1f}{first / value:7.1f}x" for value in others)
    memory = "".join(f"{size / 1e6:18.0f}" for size in sizes)
    return f"{stage:18}{first:10.1f}{times}  |{memory}"
