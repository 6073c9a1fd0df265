"""Several segmenters on one data set in one pass: the rows of a table, or of a choice."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..datasets import Dataset, Sample, open_dataset, read_batches
from ..reporting.results import record
from ..segmenter import Segmenter
from .counting import Classes, Record, Run, collect, draw, fitting
from .result import Result

Setting = tuple[str, Classes]  # data set, and the classes that are asked


def evaluate_many(
    segmenters: Mapping[str, Segmenter],
    dataset: Dataset | str,
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "val",
    limit: int | None = None,
    seed: int = 0,
    classes: Classes = "all",
    batch: int = 8,
    workers: int = 0,
    bootstrap: int = 1000,
    progress: bool = True,
) -> dict[str, Result]:
    """Row name -> what `ovss.evaluate` of that segmenter would give, with the same counts.

    Each image is read and tagged once; segmenters that share a `CachedClip` also share its
    features.
    Time is therefore no property of a row, and `seconds` is NaN. Nothing is kept for a resume.

    Args:
        segmenters: row name -> segmenter.
        dataset: and the other options, as of `ovss.evaluate`.
    """
    data: Dataset = open_dataset(dataset, root, split) if isinstance(dataset, str) else dataset
    table = _Table(segmenters, data, classes, draw(len(data), limit, seed), seed)
    _count([table], batch, workers, progress)
    return table.results(bootstrap)


def evaluate_settings(
    tables: Mapping[Setting, Mapping[str, Segmenter]],
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "val",
    limit: int | None = None,
    seed: int = 0,
    batch: int = 8,
    workers: int = 0,
    bootstrap: int = 1000,
    progress: bool = True,
) -> dict[Setting, dict[str, Result]]:
    """`evaluate_many` at several places, batch by batch in turn.

    Where the places are of the same images asked for other classes, as the lab's are, what is
    remembered of an image serves all of them.

    Args:
        tables: (data set, classes) -> row name -> segmenter.
        root: and the other options, as of `ovss.evaluate`.
    """
    found = {}
    for (dataset, classes), segmenters in tables.items():
        data = open_dataset(dataset, root, split)
        order = draw(len(data), limit, seed)
        found[dataset, classes] = _Table(segmenters, data, classes, order, seed)
    _count(list(found.values()), batch, workers, progress)
    return {place: table.results(bootstrap) for place, table in found.items()}


class _Table:
    """The rows of a table, at one place."""

    def __init__(
        self,
        segmenters: Mapping[str, Segmenter],
        data: Dataset,
        classes: Classes,
        order: list[int],
        seed: int,
    ) -> None:
        words = fitting(None, data)
        self.runs = {row: Run(one, data, words, classes, seed) for row, one in segmenters.items()}
        self.records: dict[str, list[Record]] = {row: [] for row in self.runs}
        self.data, self.order = data, order

    def count(self, indices: Sequence[int], samples: Sequence[Sample]) -> None:
        tags = next(iter(self.runs.values())).tags(samples) if self.runs else None
        for row, run in self.runs.items():
            self.records[row].append(run.count(indices, samples, tags))

    def results(self, bootstrap: int) -> dict[str, Result]:
        unknown = np.full(len(self.order), math.nan)
        return {
            row: dataclasses.replace(
                collect(run, self.records[row], self.order, bootstrap), seconds=unknown
            )
            for row, run in self.runs.items()
        }


def _count(tables: Sequence[_Table], batch: int, workers: int, progress: bool) -> None:
    """The first batch of all tables, then the second ..."""
    readers = [read_batches(table.data, table.order, batch, workers) for table in tables]
    total = sum(len(table.order) for table in tables)
    with tqdm(total=total, unit="image", disable=not progress) as bar:
        for step in zip_longest(*readers):
            for table, read in zip(tables, step, strict=True):
                if read is not None:
                    table.count(*read)
                    bar.update(len(read[0]))


class Choice(NamedTuple):
    """The best row, and the mIoU of all: a line for each row, a column for each place."""

    best: str
    table: pd.DataFrame


def choose_on_tune(
    candidates: Mapping[str, Segmenter],
    places: Sequence[Setting],
    experiment: str,
    profile: str = "lab",
    **options: Any,
) -> Choice:
    """The candidate with the best mean mIoU over some places, on the split `tune`.

    The counts are recorded, so that the choice can be read again.

    Args:
        candidates: row name -> segmenter.
        places: pairs (data set, classes).
        experiment, profile: where to record.
        options: further ones of `evaluate_settings`.
    """
    columns: dict[str, dict[str, float]] = {}
    found = evaluate_settings(dict.fromkeys(places, candidates), split="tune", **options)
    for (dataset, _), rows in found.items():
        for row, result in rows.items():
            record(result, experiment, row, profile)
            columns.setdefault(f"{dataset} ({result.protocol})", {})[row] = result.miou
    table = pd.DataFrame(columns).assign(mean=lambda frame: frame.mean(axis=1))
    return Choice(str(table["mean"].idxmax()), table)
