"""Several segmenters on one data set in one pass: the rows of a table, or of a choice."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from .counting import Classes, Record, Run, collect, draw, fitting
from .datasets import Dataset, open_dataset, read_batches
from .result import Result
from .results import record
from .segmenter import Segmenter


def evaluate_together(
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

    Each image is read and tagged once; segmenters that share a `RememberingClip` also share its
    features.
    Time is therefore no property of a row, and `seconds` is NaN. Nothing is kept for a resume.

    Args:
        segmenters: row name -> segmenter.
        dataset: and the other options, as of `ovss.evaluate`.
    """
    data: Dataset = open_dataset(dataset, root, split) if isinstance(dataset, str) else dataset
    words = fitting(None, data)
    runs = {row: Run(one, data, words, classes, seed) for row, one in segmenters.items()}
    records: dict[str, list[Record]] = {row: [] for row in runs}
    order = draw(len(data), limit, seed)
    with tqdm(total=len(order), unit="image", disable=not progress) as bar:
        for indices, samples in read_batches(data, order, batch, workers):
            tags = next(iter(runs.values())).tags(samples) if runs else None
            for row, run in runs.items():
                records[row].append(run.count(indices, samples, tags))
            bar.update(len(samples))
    found = {row: collect(run, records[row], order, bootstrap) for row, run in runs.items()}
    unknown = np.full(len(order), math.nan)
    return {row: dataclasses.replace(one, seconds=unknown) for row, one in found.items()}


class Choice(NamedTuple):
    """The best row, and the mIoU of all: a line for each row, a column for each place."""

    best: str
    table: pd.DataFrame


def choose_on_tune(
    candidates: Mapping[str, Segmenter],
    places: Sequence[tuple[str, Classes]],
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
        options: further ones of `evaluate_together`.
    """
    columns: dict[str, dict[str, float]] = {}
    for dataset, classes in places:
        found = evaluate_together(candidates, dataset, split="tune", classes=classes, **options)
        for row, result in found.items():
            record(result, experiment, row, profile)
            columns.setdefault(f"{dataset} ({result.protocol})", {})[row] = result.miou
    table = pd.DataFrame(columns).assign(mean=lambda frame: frame.mean(axis=1))
    return Choice(str(table["mean"].idxmax()), table)
