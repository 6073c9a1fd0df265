"""Choosing a hyperparameter on the split `tune`, and keeping what it was chosen by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from ..evaluation.many import Setting, evaluate_settings
from ..segmenter import Segmenter
from .results import record


class Choice(NamedTuple):
    """The best row, and the mIoU of all: a line for each row, a column for each setting."""

    best: str
    table: pd.DataFrame


def choose_on_tune(
    candidates: Mapping[str, Segmenter],
    settings: Sequence[Setting],
    experiment: str,
    profile: str = "lab",
    **options: Any,
) -> Choice:
    """Choose the candidate with the best mean mIoU over some settings, on the split `tune`.

    The counts are recorded, so that the choice can be read again.

    Args:
        candidates: row name -> segmenter.
        settings: pairs (data set, classes).
        experiment, profile: where to record.
        options: further ones of `evaluate_settings`.
    """
    columns: dict[str, dict[str, float]] = {}
    found = evaluate_settings(dict.fromkeys(settings, candidates), split="tune", **options)
    for (dataset, _), rows in found.items():
        for row, result in rows.items():
            record(result, experiment, row, profile)
            columns.setdefault(f"{dataset} ({result.protocol})", {})[row] = result.miou
    table = pd.DataFrame(columns).assign(mean=lambda frame: frame.mean(axis=1))
    return Choice(str(table["mean"].idxmax()), table)
