"""The decision and the metric of a golden case: what `check.py` compares of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ovss.decide import CliperRule
from ovss.evaluation import metrics
from ovss.labels import IGNORE

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
EPSILON = 1e-5  # the code of 2025 adds it to areas; only that code's metric is recorded


def rule_of(setting: Array, rescale: bool = True) -> CliperRule:
    """A row (background threshold, score threshold, normalise) of `settings`."""
    background, score, normalize = setting
    return CliperRule(float(score), float(background), bool(normalize), rescale)


def random_maps(inputs: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
    """Random maps [K, h, w] and class scores [K], the rule's own inputs."""
    maps, scores = (torch.from_numpy(inputs[name][0]) for name in ("cam_random", "cls_random"))
    return maps, scores


def cam2label(inputs: Arrays, rest: list[str], golden: Arrays) -> Array:
    """`cam2label|i` (h, w): the labels of the random maps."""
    rule = rule_of(golden["settings"][int(rest[0])], rescale=False)
    return (rule(*random_maps(inputs)) + 1).numpy()


def competing(inputs: Arrays, rest: list[str], golden: Arrays) -> Array:
    """`cam2label_valid|i` (C, h, w): the maps that compete, the background first if it does."""
    rule = rule_of(golden["settings"][int(rest[0])], rescale=False)
    maps = rule.transform(*random_maps(inputs))
    if rule.background_threshold > 0:
        return maps.numpy()
    background = (1 - maps.amax(0, keepdim=True)) ** 2
    return torch.cat([background, maps]).numpy()


def histogram(inputs: Arrays, rest: list[str], golden: Arrays) -> Array:
    """`metric_hist|ignT` (K+1, K+1): two "images", the second with its ground truth turned."""
    ignored = [int(value) for value in rest[0].removeprefix("ign").split("_")]
    truth, found = (inputs[name].astype(np.int64) for name in ("metric_gt", "metric_pred"))
    classes = len(inputs["fg_text_features"])
    kept = ~np.isin(truth, ignored) & (truth <= classes)
    target = np.where(kept, truth - 1, IGNORE)
    images = (target, target[::-1, ::-1])
    return np.sum([metrics.confusion(found - 1, image, classes) for image in images], 0)


def summary(inputs: Arrays, rest: list[str], golden: Arrays) -> Array:
    """`metric|ignT` (3,): pixel accuracy, mean accuracy, mean IoU."""
    counts = histogram(inputs, rest, golden)
    accuracies = metrics.pixel_accuracy(counts), metrics.mean_accuracy(counts, epsilon=EPSILON)
    return np.array([*accuracies, metrics.miou(counts, "present", epsilon=EPSILON)])


def class_iou(inputs: Arrays, rest: list[str], golden: Arrays) -> Array:
    """`metric_iou|ignT` (K+1,): 0 for a class that the ground truth does not hold."""
    counts = histogram(inputs, rest, golden)
    return np.nan_to_num(metrics.per_class_iou(counts, "present", epsilon=EPSILON))


READERS: dict[str, Callable[[Arrays, list[str], Arrays], Array]] = {
    "cam2label": cam2label,
    "cam2label_valid": competing,
    "metric": summary,
    "metric_iou": class_iou,
    "metric_hist": histogram,
}
