"""Which classes does an image hold? mAP, F1, precision and recall of CLIPer's Table 2.

A class's score in an image is the maximum of its map (`Segmentation.image_scores`). mAP needs no
threshold; for the others a class counts as found where its score exceeds one for all classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UnknownNameError
from . import intervals, metrics

METRICS = ("mAP", "F1", "P", "R")  # the columns of Table 2


class ImageLevel(NamedTuple):
    """Scores [I, K] of the classes in each image, which are there [I, K], and the threshold."""

    scores: NDArray[np.float32]
    present: NDArray[np.bool_]
    threshold: float

    def statistic(self, metric: str) -> intervals.Statistic:
        """One of METRICS in percent, as a function of weights of the images [n, I] -> [n]."""
        if metric not in METRICS:
            raise UnknownNameError.of("metric", metric, METRICS)
        if metric == "mAP":
            return self._mean_average_precision
        place = ("P", "R", "F1").index(metric)
        counts = metrics.detections(self.scores > self.threshold, self.present)  # [I, 3]

        def score(weights: Any) -> Any:
            return 100 * metrics.precision_recall_f1_of(weights @ counts)[..., place]

        return score

    def _mean_average_precision(self, weights: Any) -> Any:
        return 100 * metrics.mean_average_precision(self.scores, self.present, weights)
