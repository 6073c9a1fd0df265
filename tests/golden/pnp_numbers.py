"""The numbers of PnP-OVSS's data sets, and the metric of its authors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ovss.evaluation import metrics
from ovss.labels import IGNORE
from ovss.taggers.published import COCO_IDS

Array = np.ndarray[Any, Any]
SIZES = {"voc": 21, "psc": 60, "ade20k": 151, "coco_object": 91, "coco_stuff": 183}


def class_numbers(data: str, places: Sequence[int]) -> list[int]:
    """A class's place in the list of names -> its number in the ground truth."""
    return [COCO_IDS[place] if data.startswith("coco") else place + 1 for place in places]


def count(truth: Array, found: Array, size: int) -> Array:
    """Confusion matrix [n, n] of labels 0 ... n-1; the truth's other values do not count."""
    target, label = truth.astype(np.int64) - 1, found.astype(np.int64) - 1
    target = np.where((target >= -1) & (target < size - 1), target, IGNORE)
    return metrics.confusion(label, target, size - 1)


def metrics_of(counts: Array) -> Array:
    """Pixel accuracy, mean accuracy, frequency-weighted and mean IoU; background is a class."""
    share = metrics.areas(counts)[1] / counts.sum()
    weighted = np.nansum(share * metrics.per_class_iou(counts))
    accuracies = metrics.pixel_accuracy(counts), metrics.mean_accuracy(counts)
    return np.array([*accuracies, weighted, metrics.miou(counts, "present")])
