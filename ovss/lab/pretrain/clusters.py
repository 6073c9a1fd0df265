"""k-means of patch features, and how well its clusters would cut an image if they were named right.

The oracle gives each cluster of an image the class that most of its pixels have; the mIoU of that
labelling is what the grouping alone is worth, without any knowledge of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
ROUNDS, RESTARTS = 20, 3


def kmeans(points: Tensor, count: int = 8, seed: int = 0) -> Tensor:
    """Cluster the points of each image: [N, L, D] -> cluster numbers [N, L].

    Lloyd's algorithm from k-means++ seeds; of RESTARTS the one with the least distances is kept.
    """
    dice = torch.Generator(points.device).manual_seed(seed)
    best = torch.full(points.shape[:1], torch.inf, device=points.device)  # [N]
    kept = torch.zeros(points.shape[:2], dtype=torch.long, device=points.device)
    for _ in range(RESTARTS):
        centres = _seeds(points, count, dice)  # [N, K, D]
        for _ in range(ROUNDS):
            member = F.one_hot(_squares(points, centres).argmin(2), count).to(points)  # [N, L, K]
            size = member.sum(1)[:, :, None]  # [N, K, 1]
            centres = torch.where(size > 0, member.mT @ points / size.clamp(min=1), centres)
        squares, nearest = _squares(points, centres).min(2)  # [N, L]
        better = squares.sum(1) < best
        best = torch.where(better, squares.sum(1), best)
        kept = torch.where(better[:, None], nearest, kept)
    return kept


def _squares(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distances [N, L, K]."""
    lengths = points.square().sum(2)[:, :, None] + centres.square().sum(2)[:, None]
    return (lengths - 2 * points @ centres.mT).clamp(min=0)


def _seeds(points: Tensor, count: int, dice: torch.Generator) -> Tensor:
    """k-means++: each next centre is drawn with probability as its squared distance: [N, K, D]."""
    images = torch.arange(len(points), device=points.device)
    first = torch.randint(points.shape[1], (len(points),), generator=dice, device=points.device)
    centres = points[images, first][:, None]  # [N, 1, D]
    for _ in range(count - 1):
        far = _squares(points, centres).amin(2) + 1e-12  # [N, L]
        drawn = torch.multinomial(far, 1, generator=dice)[:, 0]
        centres = torch.cat([centres, points[images, drawn][:, None]], 1)
    return centres


@dataclass(frozen=True)
class Grouping:
    """What clusters are worth, in percent.

    Attributes:
        oracle: mIoU over things and background with each cluster named right.
        best_cluster: of each thing the IoU of its best cluster, averaged over things.
    """

    oracle: float
    best_cluster: float


def judge_clusters(
    clusters: Array, labels: Sequence[Array], instances: Sequence[Array], classes: int
) -> Grouping:
    """Judge clusters of patches at the pixels of the images.

    Args:
        clusters: [N, h, w], repeated to the pixels.
        labels: of each image [H, W], below `classes`.
        instances: of each image [H, W], 0 for what is no thing.

    Raises:
        ValueError: a label is negative or too large.
    """
    if any(label.min() < 0 or label.max() >= classes for label in labels):
        raise ValueError(f"labels must be 0 to {classes - 1}")
    counts = np.zeros((classes, classes), dtype=np.int64)  # truth by prediction
    best: list[float] = []
    for grid, label, number in zip(clusters, labels, instances, strict=True):
        block = len(label) // len(grid)
        cluster = grid.repeat(block, 0).repeat(block, 1)  # [H, W]
        votes = np.zeros((int(cluster.max()) + 1, classes), dtype=np.int64)
        np.add.at(votes, (cluster, label), 1)
        np.add.at(counts, (label, votes.argmax(1)[cluster]), 1)
        best += _best_ious(cluster, number)
    found = counts.sum(1) > 0
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return Grouping(
        100 * float((counts.diagonal() / union.clip(1))[found].mean()), 100 * float(np.mean(best))
    )


def _best_ious(cluster: Array, instances: Array) -> list[float]:
    """The IoU of the best cluster of each thing."""
    size = np.bincount(cluster.ravel())
    ious = []
    for number in np.unique(instances[instances > 0]):
        inside = instances == number
        both = np.bincount(cluster[inside], minlength=len(size))
        ious.append(float((both / (size + inside.sum() - both)).max()))
    return ious


def colour_grid(images: Tensor, side: int) -> Tensor:
    """Average colours over a grid of cells: [N, 3, H, W] -> [N, side * side, 3]."""
    return F.adaptive_avg_pool2d(images, side).flatten(2).mT
