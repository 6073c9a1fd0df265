"""`make coverage`: how often the intervals of the book hold the truth, on its own recorded counts.

Each recorded row is the population in turn, and so is each difference of a row and the one before
it in its table. Benchmarks of as many images as the row has, and for CLIPer's Table 1 also of 60
and of 100, are drawn with replacement, until it is clear whether the interval that the book prints
holds the truth in 92 % of them; the shares go to data/results/<profile>/coverage.csv. About ten
minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from ovss import paths
from ovss.evaluation import intervals, metrics
from ovss.reporting import results
from ovss.reporting.kept_counts import Counts

SMALLER = (60, 100)  # benchmarks of the rows of CLIPer's Table 1
RESAMPLES = 200
HUNDRED = 100  # benchmarks are drawn by the hundred
PROMISE = 0.92  # the share of intervals that must hold the truth, of those called 95 %


class Case(NamedTuple):
    """A row, or the difference of two, and the size of the benchmarks to draw."""

    experiment: str
    rows: tuple[str, ...]
    dataset: str
    protocol: str
    images: int


def cases(profile: str, only: str) -> Iterator[Case]:
    """List what is simulated: every row with counts, and differences within its table."""
    for file in sorted(paths.results(profile).glob("*.csv")):
        if only and file.stem != only:
            continue
        frame = results.read(file)
        frame = frame[frame["metric"] == "mIoU"]
        for place, part in frame.groupby(["dataset", "protocol"], sort=False):
            dataset, protocol = (str(name) for name in place)
            counts: dict[str, Counts] = {}
            for row in dict.fromkeys(part["row"]):
                found = results.read_counts(file.stem, row, dataset, protocol, profile)
                counts |= {row: found} if found else {}
            rows = list(counts)
            pairs = list(zip(rows[1:], rows, strict=False))
            for chosen in [*((row,) for row in rows), *pairs]:
                known = [counts[row] for row in chosen]
                if known[0].ids != known[-1].ids:
                    continue
                sizes = [len(known[0].ids)]
                sizes += [n for n in SMALLER if file.stem == "cliper-table1" and n < sizes[0]]
                for images in sizes:
                    yield Case(file.stem, chosen, dataset, protocol, images)


def simulate(case: Case, profile: str, most: int) -> list[dict[str, object]]:
    """Draw the benchmarks of a case, until it is clear or `most` are drawn; its rows.

    It is clear when the share of intervals that hold the truth lies further than three standard
    errors from PROMISE. Each hundred of benchmarks has a seed of its own.
    """
    kept = [
        results.read_counts(case.experiment, row, case.dataset, case.protocol, profile)
        for row in case.rows
    ]
    runs = [one.areas for one in kept if one is not None]
    miou = metrics.MeanIou(background=kept[0] is not None and kept[0].has_background)
    factors = (1.0, -1.0)[: len(runs)]
    held: Counter[str] = Counter()
    drawn = 0
    while drawn < most:
        share = intervals.coverage(
            runs, factors, case.images, miou, HUNDRED, RESAMPLES, seed=drawn // HUNDRED
        )
        held.update({name: round(value * HUNDRED) for name, value in share.items()})
        drawn += HUNDRED
        found = held["studentised"] / drawn
        if abs(found - PROMISE) > 3 * (found * (1 - found) / drawn) ** 0.5:
            break
    origin = {
        "experiment": "coverage", "row": f"{case.experiment}: {' minus '.join(case.rows)}",
        "dataset": case.dataset, "protocol": f"{case.protocol} on {case.images}",
        "images": case.images, "seed": 0, "profile": profile,
    }  # fmt: skip
    measured = {f"held: {name}": 100 * held[name] / drawn for name in intervals.INTERVALS}
    measured["benchmarks"] = drawn
    rests = intervals.draw(runs, factors, miou, n=1).effective_images
    measured["rests on"] = rests * case.images / len(runs[0])
    return [{**origin, "metric": metric, "value": value} for metric, value in measured.items()]


def main() -> None:
    """Simulate all cases in as many processes as asked for."""
    parser = argparse.ArgumentParser("coverage", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--profile", default="lab")
    parser.add_argument("--most", type=int, default=1600, help="benchmarks of a case")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="one experiment, such as cliper-table1")
    options = parser.parse_args()
    todo = list(cases(options.profile, options.only))
    target = results.file_of("coverage", options.profile)
    with ProcessPoolExecutor(options.jobs) as pool:
        running = [pool.submit(simulate, case, options.profile, options.most) for case in todo]
        for one in tqdm(running, unit="case"):
            results.write(target, one.result())
    frame = results.read(target)
    frame = frame[frame["metric"].str.startswith("held")]
    spread = frame.groupby(["images", "metric"])["value"].agg(["min", "median", "count"])
    with pd.option_context("display.max_rows", None):
        print(spread.round(1))


if __name__ == "__main__":
    main()
