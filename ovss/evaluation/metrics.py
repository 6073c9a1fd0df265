"""Scores of a segmentation as pure functions of integer counts.

Label maps are integer arrays: 0..K-1 is a class, BACKGROUND and IGNORE (targets only) are not.
A confusion matrix is int64 [K+1, K+1], row = target, column = prediction, index = label + 1, so
that row and column 0 are the background. All that IoU needs of it are three areas per class:
[3, K+1] int64 = intersection, target, prediction. Counts are integers because a float32
histogram is inexact above 2^24 pixels. Values lie in [0, 1]; NaN means "does not count".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..labels import BACKGROUND, IGNORE

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Rule = Literal["mmseg", "present"]


def confusion(pred: ArrayLike, target: ArrayLike, classes: int) -> IntArray:
    """Count pixels: [K+1, K+1] int64, row = target label + 1, column = predicted label + 1.

    Args:
        pred: labels -1..K-1, any shape.
        target: labels -2..K-1, same shape; IGNORE pixels are not counted.
        classes: K.

    Raises:
        ValueError: the shapes differ or a label is out of range.
    """
    predicted, truth = np.asarray(pred), np.asarray(target)
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction {predicted.shape} and target {truth.shape} differ in shape")
    _check_range("target", truth, IGNORE, classes)
    _check_range("prediction", predicted, BACKGROUND, classes)
    kept = truth != IGNORE
    side = classes + 1
    cells = (truth[kept].astype(np.int64) + 1) * side + predicted[kept].astype(np.int64) + 1
    return np.bincount(cells, minlength=side * side).reshape(side, side).astype(np.int64)


def areas(counts: ArrayLike) -> IntArray:
    """Intersection, target and prediction area of each class: [..., K+1, K+1] -> [..., 3, K+1]."""
    table = np.asarray(counts)
    diagonal = np.diagonal(table, axis1=-2, axis2=-1)
    return np.stack([diagonal, table.sum(-1), table.sum(-2)], axis=-2)


def iou_of_areas(
    area: ArrayLike, rule: Rule = "mmseg", background: bool = True, epsilon: float = 0.0
) -> FloatArray:
    """Intersection over union per class of areas [..., 3, K+1]; NaN where a class does not count.

    Args:
        rule: "mmseg": a class counts unless it is absent from targets and predictions;
            "present": only if the targets hold it (PnP-OVSS, CLIPer).
        background: whether index 0 is a class; if not, it is left out: [..., K].
        epsilon: added to the union (CLIPer's code of 2025 adds 1e-5).
    """
    table = np.asarray(area, dtype=np.float64)[..., 0 if background else 1 :]
    intersection, target, prediction = np.moveaxis(table, -2, 0)
    union = target + prediction - intersection
    iou: FloatArray = np.full(union.shape, np.nan)
    np.divide(intersection, union + epsilon, out=iou, where=_counted(target, union, rule))
    return iou


def miou_of_areas(
    area: ArrayLike, rule: Rule = "mmseg", background: bool = True, epsilon: float = 0.0
) -> Any:
    """Mean over the classes that count, of areas [..., 3, K+1]; NaN if none does."""
    return _mean(iou_of_areas(area, rule, background, epsilon))


@dataclass(frozen=True)
class MeanIou:
    """Mean IoU of summed areas with its derivative, as `intervals.bootstrap` takes it.

    Attributes:
        rule, background, epsilon: as of `iou_of_areas`.
        scale: 100 for percent.
    """

    rule: Rule = "mmseg"
    background: bool = True
    epsilon: float = 0.0
    scale: float = 1.0

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value possible."""
        return 0.0, self.scale

    def __call__(self, area: ArrayLike) -> Any:
        """Areas [..., 3, K+1] -> [...]."""
        return self.scale * miou_of_areas(area, self.rule, self.background, self.epsilon)

    def gradient(self, area: ArrayLike) -> FloatArray:
        """Derivative by each area, [..., 3, K+1] -> [..., 3, K+1]; 0 where a class does not count.

        With i, t, p a class's areas, u = t + p - i and C classes that count:
        d mIoU / d i = (1 + i / u) / (C u), d mIoU / d t = d mIoU / d p = -(i / u) / (C u).
        """
        table = np.asarray(area, dtype=np.float64)
        slope: FloatArray = np.zeros_like(table)
        part = slice(0 if self.background else 1, None)
        intersection, target, prediction = np.moveaxis(table[..., part], -2, 0)
        union = target + prediction - intersection + self.epsilon  # [..., K]
        iou = iou_of_areas(table, self.rule, self.background, self.epsilon)
        counted = np.isfinite(iou)
        share = np.where(counted, self.scale / np.where(counted, union, 1.0), 0.0)
        share /= np.maximum(counted.sum(-1, keepdims=True), 1)
        iou = np.where(counted, iou, 0.0)
        slope[..., 0, part] = share * (1 + iou)
        slope[..., 1, part] = slope[..., 2, part] = -share * iou
        return slope


def per_class_iou(
    counts: ArrayLike, rule: Rule = "mmseg", background: bool = True, epsilon: float = 0.0
) -> FloatArray:
    """`iou_of_areas` of a confusion matrix [K+1, K+1]."""
    return iou_of_areas(areas(counts), rule, background, epsilon)


def miou(
    counts: ArrayLike, rule: Rule = "mmseg", background: bool = True, epsilon: float = 0.0
) -> float:
    """Mean IoU of a confusion matrix summed over the whole data set, in [0, 1]."""
    return float(miou_of_areas(areas(counts), rule, background, epsilon))


def pixel_accuracy(counts: ArrayLike) -> float:
    """Share of the counted pixels that are right; NaN if none was counted."""
    table = np.asarray(counts)
    total = table.sum()
    return float(np.trace(table) / total) if total else float("nan")


def mean_accuracy(counts: ArrayLike, background: bool = True, epsilon: float = 0.0) -> float:
    """Mean over classes of the share of its pixels that are right.

    Args:
        epsilon: added to each class's number of pixels. Without it a class that has none is left
            out; CLIPer's code of 2025 adds 1e-5, and such a class counts as 0.
    """
    intersection, target, _ = areas(counts)[:, 0 if background else 1 :].astype(np.float64)
    accuracy: FloatArray = np.full(target.shape, np.nan)
    np.divide(intersection, target + epsilon, out=accuracy, where=target + epsilon > 0)
    return float(_mean(accuracy))


def average_precision(
    scores: ArrayLike, present: ArrayLike, weights: ArrayLike | None = None
) -> Any:
    """Area under precision over recall of one class: scores [I], present [I] bool.

    Equal scores share one threshold. NaN if the class is in no image.

    Args:
        weights: how often each image counts, [I] or [n, I] for n values at once; once by default.
    """
    score, truth = np.asarray(scores, dtype=np.float64), np.asarray(present, dtype=bool)
    order = np.argsort(-score, kind="stable")
    drawn = np.ones(len(score)) if weights is None else np.asarray(weights, dtype=np.float64)
    drawn, score, truth = drawn[..., order], score[order], truth[order]
    last = np.append(score[1:] != score[:-1], True)  # the last image of each tie
    guessed = drawn.cumsum(-1)[..., last]  # [..., thresholds]
    hits = (drawn * truth).cumsum(-1)[..., last]
    precision = np.divide(hits, guessed, out=np.zeros_like(hits), where=guessed > 0)
    area = (np.diff(hits, prepend=0) * precision).sum(-1)
    true = hits[..., -1]
    return np.divide(area, true, out=np.full(true.shape, np.nan), where=true > 0)[()]


def mean_average_precision(
    scores: ArrayLike, present: ArrayLike, weights: ArrayLike | None = None
) -> Any:
    """Mean of `average_precision` over the classes that occur: scores, present [I, K]."""
    columns = zip(np.asarray(scores).T, np.asarray(present).T, strict=True)
    values = [average_precision(score, truth, weights) for score, truth in columns]
    return _mean(np.stack(values, axis=-1))


def detections(predicted: ArrayLike, present: ArrayLike) -> IntArray:
    """Hits, predicted and present classes of each image: both [I, K] bool -> [I, 3]."""
    guess, truth = np.asarray(predicted, dtype=bool), np.asarray(present, dtype=bool)
    return np.stack([(guess & truth).sum(-1), guess.sum(-1), truth.sum(-1)], axis=-1)


def precision_recall_f1_of(counts: ArrayLike) -> FloatArray:
    """Precision, recall and F1 of sums of `detections` [..., 3]; NaN where nothing is counted."""
    hits, guessed, true = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    below = np.stack([guessed, true, (guessed + true) / 2], axis=-1)
    above = np.broadcast_to(hits[..., None], below.shape)
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)


def precision_recall_f1(predicted: ArrayLike, present: ArrayLike) -> tuple[float, float, float]:
    """Image-level precision, recall and F1 over all image-class pairs: both [I, K] bool."""
    counts = detections(predicted, present).sum(0)
    precision, recall, f1 = precision_recall_f1_of(counts).tolist()
    return precision, recall, f1


def best_threshold(scores: ArrayLike, present: ArrayLike) -> float:
    """The threshold with the largest F1 if a class above it counts as found: both [I, K].

    It lies halfway between two scores. Of equally good ones the largest is taken.

    Raises:
        ValueError: there is only one score to choose from, or no class is in any image.
    """
    score, truth = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(present, dtype=bool)
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], truth.ravel()[order].cumsum()
    last = np.flatnonzero(score[1:] != score[:-1])  # what is found at each threshold ends here
    if not last.size or not hits[-1]:
        raise ValueError("no threshold to choose: all scores are equal, or no class is present")
    f1 = 2 * hits[last] / (last + 1 + hits[-1])
    best = last[f1.argmax()]
    return float((score[best] + score[best + 1]) / 2)


def _counted(target: FloatArray, union: FloatArray, rule: Rule) -> NDArray[np.bool_]:
    if rule not in ("mmseg", "present"):
        raise ValueError(f"unknown rule {rule!r}: 'mmseg' or 'present'")
    return (union if rule == "mmseg" else target) > 0


def _mean(values: FloatArray) -> Any:
    """Mean of the last axis without NaNs; NaN where there are only NaNs."""
    known = np.isfinite(values)
    count = known.sum(-1)
    total = np.where(known, values, 0.0).sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)[()]


def _check_range(what: str, labels: NDArray[Any], low: int, classes: int) -> None:
    if labels.size and (labels.min() < low or labels.max() >= classes):
        found = f"{labels.min()}..{labels.max()}"
        raise ValueError(f"{what} labels {found} are outside {low}..{classes - 1}")
