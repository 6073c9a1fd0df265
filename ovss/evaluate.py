"""Data set x segmenter -> Result: resumable, deterministic, with integer counts per image."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from . import metrics
from .datasets import Dataset, Sample, open_dataset, read_batches
from .errors import OvssError
from .journal import open_journal
from .provenance import describe, device_name, find, version
from .segmenter import Segmenter
from .vocabulary import Vocabulary

IntArray = NDArray[np.int64]
Classes = Literal["all", "image"]
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What an evaluation measured. IoU and mIoU are in percent, as the papers print them.

    Attributes:
        dataset, protocol, checkpoint, device, seed: where the numbers come from.
        names: classes, [K]; `has_background` tells whether background is one more.
        ids: the images, [I], in the order of `areas`.
        areas: per image intersection, target and prediction area, [I, 3, K+1] int64.
        confusion: [K+1, K+1] int64 over all images, row = target, column = prediction.
        seconds: time spent segmenting, reading of files not included.
        bootstrap: number of resamples of the interval.
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
    seconds: float
    bootstrap: int = 1000

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.ids)

    @property
    def miou(self) -> float:
        """Mean IoU in percent, rule "mmseg": a class counts unless absent from both sides."""
        return 100 * metrics.miou(self.confusion, "mmseg", self.has_background)

    @cached_property
    def interval(self) -> metrics.Interval:
        """95 % bootstrap interval of the mIoU over images, in percent."""
        low, high = metrics.bootstrap(self.areas, self._statistic, self.bootstrap, self.seed)
        return metrics.Interval(100 * low, 100 * high)

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
        return self.seconds / self.images

    def group(self, names: Sequence[str]) -> tuple[float, metrics.Interval]:
        """Mean IoU over some classes and its interval, in percent (things apart from stuff)."""
        columns = [0] + [self.names.index(name) + 1 for name in names]  # 0: left out below

        def statistic(sums: Any) -> Any:
            return metrics.miou_of_areas(sums, "mmseg", background=False)

        area = self.areas[:, :, columns]
        low, high = metrics.bootstrap(area, statistic, self.bootstrap, self.seed)
        return 100 * float(statistic(area.sum(0))), metrics.Interval(100 * low, 100 * high)

    def rows(self, experiment: str, row: str, profile: str = "lab") -> list[dict[str, Any]]:
        """The rows of a results file (`ovss.results`): mIoU with its interval, pixel accuracy."""
        from .results import measured  # results stands on top of evaluate

        origin = measured(self, experiment, row, profile)
        low, high = self.interval
        return [
            {**origin, "metric": "mIoU", "value": self.miou, "low": low, "high": high},
            {**origin, "metric": "pixel accuracy", "value": self.pixel_accuracy},
        ]

    def _statistic(self, sums: Any) -> Any:
        return metrics.miou_of_areas(sums, "mmseg", self.has_background)


def evaluate(
    segmenter: Segmenter,
    dataset: Dataset | str,
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "val",
    limit: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    seed: int = 0,
    classes: Classes = "all",
    vocabulary: Vocabulary | None = None,
    batch: int = 8,
    workers: int = 0,
    bootstrap: int = 1000,
    progress: bool = True,
) -> Result:
    """Segment a benchmark and count.

    Args:
        segmenter: what `ovss.load` gives.
        dataset: a name of `ovss list datasets`, or a Dataset.
        root: the folder of a named data set; the lab's lie in the repository.
        split: the split of a named data set.
        limit: use this many images, drawn by `seed`; a smaller draw is part of a larger one.
        resume: a folder that keeps the counts; run again after a crash to go on.
        seed: draws the limit and the bootstrap, and seeds torch before every batch.
        classes: "all", or "image": query each image only with the classes its target holds.
        vocabulary: other words for the same classes (synonyms, background words, templates).
        batch: images given to the segmenter at once.
        workers: threads that read files ahead.
        bootstrap: resamples of the interval.
        progress: show a progress bar on stderr.

    Raises:
        DatasetError: the benchmark's folder or a file is missing or damaged.
        ResumeError: the resume folder belongs to another evaluation, or is in use.
        OvssError: `limit`, `batch` or `vocabulary` do not fit.
    """
    if classes not in ("all", "image"):
        raise OvssError(f"classes must be 'all' or 'image', got {classes!r}")
    if batch < 1:
        raise OvssError(f"batch must be at least 1 image, got {batch}")
    data: Dataset = open_dataset(dataset, root, split) if isinstance(dataset, str) else dataset
    run = _Run(segmenter, data, _fitting(vocabulary, data), classes, seed)
    order = _draw(len(data), limit, seed)
    with open_journal(resume, _fingerprint(run, order)) as journal:
        done = {index for record in journal.records for index in record["indices"]}
        todo = [index for index in order if index not in done]
        with (
            _explain_interrupt(resume),
            tqdm(total=len(order), initial=len(done), unit="image", disable=not progress) as bar,
        ):
            for indices, samples in read_batches(data, todo, batch, workers):
                journal.append(run.count(indices, samples))
                bar.update(len(samples))
        return _result(run, journal.records, order, bootstrap)


@dataclasses.dataclass(frozen=True)
class _Run:
    """One evaluation: turns samples into journal records."""

    segmenter: Segmenter
    data: Dataset
    words: Vocabulary
    classes: Classes
    seed: int

    def count(self, indices: Sequence[int], samples: Sequence[Sample]) -> Record:
        """Segment a batch and count its pixels."""
        start = time.perf_counter()
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            labels = self._labels(samples)
        seconds = time.perf_counter() - start
        size = len(self.words)
        pairs = zip(labels, samples, strict=True)
        tables = np.stack([metrics.confusion(found, one.target, size) for found, one in pairs])
        return {
            "indices": list(indices),
            "areas": _pack(metrics.areas(tables)),
            "confusion": _pack(tables.sum(0)),
            "seconds": seconds,
        }

    def _labels(self, samples: Sequence[Sample]) -> list[IntArray]:
        if self.classes == "all":
            found = self.segmenter([sample.image for sample in samples], self.words)
            return [one.labels.numpy() for one in found]
        return [self._labels_of_present(sample) for sample in samples]

    def _labels_of_present(self, sample: Sample) -> IntArray:
        """Labels of an image that is asked only for the classes its target holds."""
        present = np.unique(sample.target[sample.target >= 0])
        if present.size == 0:
            return np.full(sample.target.shape, metrics.BACKGROUND)
        found = self.segmenter(sample.image, self.words.subset(present)).labels.numpy()
        labels: IntArray = np.append(present, metrics.BACKGROUND)[found]  # [-1] is background
        return labels


def _result(run: _Run, records: list[Record], order: list[int], bootstrap: int) -> Result:
    side = len(run.words) + 1
    place = {index: i for i, index in enumerate(order)}
    area = np.zeros((len(order), 3, side), dtype=np.int64)
    table = np.zeros((side, side), dtype=np.int64)
    for record in records:
        rows = [place[index] for index in record["indices"]]
        area[rows] = _unpack(record["areas"], (len(rows), 3, side))
        table += _unpack(record["confusion"], (side, side))
    parts = describe(run.segmenter)
    return Result(
        dataset=run.data.name,
        protocol=run.data.protocol + ("" if run.classes == "all" else "-image-classes"),
        checkpoint=" + ".join(find(parts, "checkpoint")),
        device=device_name(find(parts, "device")),
        seed=run.seed,
        names=run.words.names,
        has_background=run.data.has_background,
        ids=tuple(run.data.ids[index] for index in order),
        areas=area,
        confusion=table,
        seconds=sum(record["seconds"] for record in records),
        bootstrap=bootstrap,
    )


def _draw(images: int, limit: int | None, seed: int) -> list[int]:
    if limit is None:
        return list(range(images))
    if limit < 1:
        raise OvssError(f"limit must be at least 1 image, got {limit}")
    return sorted(np.random.default_rng(seed).permutation(images)[:limit].tolist())


def _fitting(vocabulary: Vocabulary | None, data: Dataset) -> Vocabulary:
    if vocabulary is not None and len(vocabulary) != len(data.names):
        given, wanted = len(vocabulary), len(data.names)
        raise OvssError(f"the vocabulary has {given} classes, {data.name} has {wanted}")
    return vocabulary or data.vocabulary


def _fingerprint(run: _Run, order: list[int]) -> Record:
    """What must be equal for the counts of two runs to be added."""
    listing = "\n".join(run.data.ids[index] for index in order)
    return {
        "ovss": version(),
        "dataset": run.data.name,
        "split": run.data.split,
        "images": f"{len(order)} ({hashlib.sha256(listing.encode()).hexdigest()[:12]})",
        "classes": run.classes,
        "words": describe(run.words),
        "seed": run.seed,
        "segmenter": describe(run.segmenter),
    }


@contextlib.contextmanager
def _explain_interrupt(resume: str | os.PathLike[str] | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        kept = f"what is counted lies in {resume}: run the same call again to go on"
        lost = "nothing was kept: give a resume folder to be able to go on"
        print(f"ovss: interrupted; {kept if resume else lost}", file=sys.stderr)
        raise


def _pack(counts: IntArray) -> list[list[int]]:
    """The places and values that are not zero, as JSON can hold them."""
    flat = counts.ravel()
    places = np.flatnonzero(flat)
    return [places.tolist(), flat[places].tolist()]


def _unpack(packed: list[list[int]], shape: tuple[int, ...]) -> IntArray:
    counts = np.zeros(shape, dtype=np.int64)
    counts.flat[packed[0]] = packed[1]
    return counts
