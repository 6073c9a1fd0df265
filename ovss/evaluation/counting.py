"""One evaluation, batch by batch: samples become records of integer counts, records a Result."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..backbones.devices import forked_rng
from ..datasets import Dataset, Sample
from ..errors import OvssError
from ..labels import BACKGROUND
from ..provenance import describe, device_name, find
from ..segmenter import Segmenter
from ..taggers import Oracle, Tagger
from ..vocabulary import Vocabulary
from . import metrics
from .result import IntArray, Result

Classes = Literal["all", "image"] | Tagger
Record = dict[str, Any]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """One evaluation: turns samples into journal records."""

    segmenter: Segmenter
    data: Dataset
    words: Vocabulary
    classes: Classes
    seed: int

    def tags(self, samples: Sequence[Sample]) -> list[list[int]] | None:
        """The classes that each image is asked for, None for all."""
        return self.tagger(samples, self.words) if self.tagger else None

    def count(
        self, indices: Sequence[int], samples: Sequence[Sample], tags: list[list[int]] | None = None
    ) -> Record:
        """Segment a batch and count its pixels; the tagger's time is not the segmenter's.

        Args:
            tags: what `tags` gives, if another run has asked for it already.
        """
        wanted = self.tags(samples) if tags is None else tags
        start = time.perf_counter()
        with forked_rng(self.devices):
            torch.manual_seed(self.seed)
            labels, scores = self._found(samples, wanted)
        seconds = time.perf_counter() - start
        size = len(self.words)
        pairs = zip(labels, samples, strict=True)
        tables = np.stack([metrics.confusion(found, one.target, size) for found, one in pairs])
        return {
            "indices": list(indices),
            "areas": _pack(metrics.areas(tables)),
            "confusion": _pack(tables.sum(0)),
            "seconds": seconds,
            "scores": None if scores is None else _encode(scores),
        }

    @cached_property
    def devices(self) -> list[str]:
        """The devices that the segmenter's networks are on."""
        return find(describe(self.segmenter), "device")

    @property
    def tagger(self) -> Tagger | None:
        """Who says what each image is asked for; None if it is asked for all classes."""
        if isinstance(self.classes, str):
            return Oracle() if self.classes == "image" else None
        return self.classes

    def _found(
        self, samples: Sequence[Sample], wanted: list[list[int]] | None
    ) -> tuple[list[IntArray], Scores | None]:
        """The labels, and the image scores [B, K] if all classes were asked."""
        if wanted is not None:
            return list(self._labels_of(samples, wanted)), None
        found = self.segmenter([sample.image for sample in samples], self.words)
        scores = np.stack([one.image_scores.numpy() for one in found]).astype(np.float32)
        return [one.labels.numpy() for one in found], scores

    def _labels_of(self, samples: Sequence[Sample], wanted: list[list[int]]) -> Iterator[IntArray]:
        """Labels of images that are asked only for some classes; without any, background."""
        images = [sample.image for sample, classes in zip(samples, wanted, strict=True) if classes]
        words = [self.words.subset(classes) for classes in wanted if classes]
        found = iter(self.segmenter(images, words) if images else [])
        for sample, classes in zip(samples, wanted, strict=True):
            if classes:
                yield self._of_data_set(next(found).labels, classes)
            else:
                yield np.full(sample.target.shape, BACKGROUND)

    def _of_data_set(self, labels: torch.Tensor, classes: list[int]) -> IntArray:
        """Labels of an image that was asked for some classes -> the data set's."""
        if hasattr(self.segmenter.method, "relabel"):  # PnP-OVSS can do it as its authors' code
            return self.segmenter.method.relabel(labels, classes).numpy()
        found: IntArray = np.append(classes, BACKGROUND)[labels.numpy()]  # [-1]: background
        return found


def collect(run: Run, records: list[Record], order: list[int], bootstrap: int) -> Result:
    """The counts of all records together."""
    side = len(run.words) + 1
    place = {index: i for i, index in enumerate(order)}
    area = np.zeros((len(order), 3, side), dtype=np.int64)
    table = np.zeros((side, side), dtype=np.int64)
    seconds = np.zeros(len(order))
    scores = None if run.tagger else np.zeros((len(order), side - 1), np.float32)
    for record in records:
        rows = [place[index] for index in record["indices"]]
        area[rows] = _unpack(record["areas"], (len(rows), 3, side))
        table += _unpack(record["confusion"], (side, side))
        seconds[rows] = record["seconds"] / len(rows)
        if scores is not None:
            scores[rows] = _decode(record["scores"], (len(rows), side - 1))
    parts = [describe(run.segmenter), describe(run.classes)]
    return Result(
        dataset=run.data.name,
        protocol=run.data.protocol + (f"-{run.tagger.name}-classes" if run.tagger else ""),
        checkpoint=" + ".join(find(parts, "checkpoint")),
        device=device_name(find(parts, "device")),
        seed=run.seed,
        names=run.words.names,
        has_background=run.data.has_background,
        ids=tuple(run.data.ids[index] for index in order),
        areas=area,
        confusion=table,
        seconds=seconds,
        bootstrap=bootstrap,
        image_scores=scores,
    )


def draw(images: int, limit: int | None, seed: int) -> list[int]:
    """Which images are used; a smaller draw is part of a larger one."""
    if limit is None:
        return list(range(images))
    if limit < 1:
        raise OvssError(f"limit must be at least 1 image, got {limit}")
    return sorted(np.random.default_rng(seed).permutation(images)[:limit].tolist())


def fitting(vocabulary: Vocabulary | None, data: Dataset) -> Vocabulary:
    """The words to query a data set with: the given ones if they fit, else its own."""
    if vocabulary is not None and len(vocabulary) != len(data.names):
        given, wanted = len(vocabulary), len(data.names)
        raise OvssError(f"the vocabulary has {given} classes, {data.name} has {wanted}")
    return vocabulary or data.vocabulary


def _pack(counts: IntArray) -> list[list[int]]:
    """The places and values that are not zero, as JSON can hold them."""
    flat = counts.ravel()
    places = np.flatnonzero(flat)
    return [places.tolist(), flat[places].tolist()]


def _unpack(packed: list[list[int]], shape: tuple[int, ...]) -> IntArray:
    counts = np.zeros(shape, dtype=np.int64)
    counts.flat[packed[0]] = packed[1]
    return counts


def _encode(scores: Scores) -> str:
    """Exact, and a third of the length of decimal numbers."""
    return base64.b64encode(scores.astype("<f4").tobytes()).decode()


def _decode(text: str, shape: tuple[int, ...]) -> Scores:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").reshape(shape)
