"""What an evaluation measured: counts, and the numbers made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import OvssError
from . import intervals, metrics
from .classification import METRICS, ImageLevel

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Result:
    """What an evaluation measured. IoU and mIoU are in percent, as the papers print them.

    Attributes:
        dataset, protocol, checkpoint, device, seed: where the numbers come from.
        names: classes, [K]; `has_background` tells whether background is one more.
        ids: the images, [I], in the order of `areas`.
        areas: per image intersection, target and prediction area, [I, 3, K+1] int64.
        confusion: [K+1, K+1] int64 over all images, row = target, column = prediction.
        seconds: time spent segmenting each image [I], reading of files not included; the images
            of a batch share theirs evenly.
        bootstrap: number of resamples of the interval.
        image_scores: of each class in each image [I, K]; None if only some classes were asked.
    """

    dataset: str
    protocol: str
    checkpoint: str
    device: str
    seed: int
    names: tuple[str, ...]
    has_background: bool
    ids: tuple[str, ...]
    areas: IntArray
    confusion: IntArray
    seconds: FloatArray
    bootstrap: int = 1000
    image_scores: NDArray[np.float32] | None = None

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.ids)

    @property
    def miou(self) -> float:
        """Mean IoU in percent by rule "mmseg" (a class counts unless absent from both sides)."""
        return 100 * metrics.miou(self.confusion, "mmseg", self.has_background)

    @cached_property
    def interval(self) -> intervals.Interval:
        """95 % interval of the mIoU over images, in percent (see `intervals`)."""
        statistic = metrics.MeanIou(background=self.has_background, scale=100)
        return intervals.bootstrap(self.areas, statistic, self.bootstrap, self.seed)

    @property
    def per_class(self) -> dict[str, float]:
        """IoU of each class in percent; NaN for a class that does not occur."""
        names = ("background", *self.names) if self.has_background else self.names
        values = metrics.per_class_iou(self.confusion, "mmseg", self.has_background)
        return dict(zip(names, (100 * values).tolist(), strict=True))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that are right, in percent."""
        return 100 * metrics.pixel_accuracy(self.confusion)

    @property
    def seconds_per_image(self) -> float:
        """Mean time to segment one image."""
        return float(self.seconds.mean())

    @property
    def thin_classes(self) -> tuple[str, ...]:
        """Classes that fewer than `intervals.FEWEST_IMAGES` images hold: too few to rest on."""
        names = (*self.names, "background")  # at -1
        thin = intervals.thin_classes(self.areas, self.has_background)
        return tuple(names[k] for k in thin)

    def group(self, names: Sequence[str]) -> tuple[float, intervals.Interval]:
        """Mean IoU over some classes and its interval, in percent (things apart from stuff)."""
        columns = [0] + [self.names.index(name) + 1 for name in names]  # 0: left out below
        statistic = metrics.MeanIou(background=False, scale=100)
        area = self.areas[:, :, columns]  # [I, 3, 1 + names]
        interval = intervals.bootstrap(area, statistic, self.bootstrap, self.seed)
        return float(statistic(area.sum(0))), interval

    def image_level(self, threshold: float) -> ImageLevel:
        """Which classes were found in each image, to compare with those that are there.

        Raises:
            OvssError: each image was asked only for the classes it holds.
        """
        if self.image_scores is None:
            raise OvssError("image-level scores need classes='all': every image, every class")
        return ImageLevel(self.image_scores, self.present, threshold)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which classes each image's target holds, [I, K]."""
        return self.areas[:, 1, 1:] > 0

    def classification(self, threshold: float) -> dict[str, tuple[float, intervals.Interval]]:
        """mAP, F1, P and R in percent with their intervals (CLIPer, Table 2)."""
        found, once = self.image_level(threshold), np.ones(self.images)
        values = {}
        for name in METRICS:
            statistic = found.statistic(name)
            interval = intervals.jackknife(statistic, self.images, bounds=(0, 100))
            values[name] = (float(statistic(once)), interval)
        return values
