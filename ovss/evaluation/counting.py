"""One evaluation, batch by batch: samples become records of integer counts, records a Result."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..backbones.devices import forked_rng
from ..datasets import Dataset, Sample
from ..errors import OvssError, ScoreError
from ..labels import BACKGROUND
from ..options import check_number
from ..provenance import describe, device_name, find
from ..segmentation import Segmentation
from ..segmenter import Segmenter
from ..taggers import Oracle, Tagger
from ..vocabulary import Vocabulary
from . import fingerprint, metrics
from .journal import Journal, Record, ResumeError
from .memory import FittingBatches
from .result import IntArray, Result

Classes = Literal["all", "image"] | Tagger
Scores = NDArray[np.float32]
MAX_SEED = 2**63 - 1  # what NumPy, torch and a results file can all hold


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

        Raises:
            ScoreError: an image's scores are NaN or infinite; the message names it.
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

    @property
    def protocol(self) -> str:
        """The data set's protocol, and who says what each image is asked for."""
        return self.data.protocol + (f"-{self.tagger.name}-classes" if self.tagger else "")

    def fingerprint(self, order: Sequence[int], batch: int, content: str) -> Record:
        """What must be equal for the counts of two runs to be added; see `fingerprint`.

        Args:
            order: the images.
            batch: images at once, which matter to some methods.
            content: what `fingerprint.content` tells of them.
        """
        listing = "\n".join(self.data.ids[index] for index in order).encode()
        return {
            "code": fingerprint.source(),
            "libraries": fingerprint.libraries(),
            "dataset": self.data.name,
            "split": self.data.split,
            "protocol": self.protocol,
            "background": self.data.has_background,
            "images": f"{len(order)} ({fingerprint.digest(listing)})",
            "data": content,
            "classes": fingerprint.identity(self.classes),
            "counts": "areas, confusion, seconds, scores",
            "words": fingerprint.identity(self.words),
            "seed": self.seed,
            "segmenter": fingerprint.identity(self.segmenter),
            "batch": batch if self.segmenter.method.depends_on_batch else "any",
        }

    def _found(
        self, samples: Sequence[Sample], wanted: list[list[int]] | None
    ) -> tuple[list[IntArray], Scores | None]:
        """The labels, and the image scores [B, K] if all classes were asked."""
        if wanted is not None:
            return list(self._labels_of(samples, wanted)), None
        found = self._segment(samples, self.words)
        scores = np.stack([one.image_scores.numpy() for one in found]).astype(np.float32)
        return [one.labels.numpy() for one in found], scores

    def _labels_of(self, samples: Sequence[Sample], wanted: list[list[int]]) -> Iterator[IntArray]:
        """Labels of images that are asked only for some classes; without any, background."""
        asked = [sample for sample, classes in zip(samples, wanted, strict=True) if classes]
        words = [self.words.subset(classes) for classes in wanted if classes]
        found = iter(self._segment(asked, words) if asked else [])
        for sample, classes in zip(samples, wanted, strict=True):
            if classes:
                labels = self.segmenter.method.relabel(next(found).labels, classes)
                yield labels.numpy()
            else:
                yield np.full(sample.target.shape, BACKGROUND)

    @cached_property
    def batches(self) -> FittingBatches:
        """Splits batches that do not fit into memory, unless their images depend on one another."""
        return FittingBatches(divisible=not self.segmenter.method.depends_on_batch)

    def _segment(
        self, samples: Sequence[Sample], words: Vocabulary | Sequence[Vocabulary]
    ) -> list[Segmentation]:
        """The segmentations of samples with one vocabulary, or with one each."""
        each = [words] * len(samples) if isinstance(words, Vocabulary) else words
        return self.batches.map(self._segment_part, list(zip(samples, each, strict=True)))

    def _segment_part(self, part: Sequence[tuple[Sample, Vocabulary]]) -> list[Segmentation]:
        """The segmentations of what fits; an error about scores names the image by its id."""
        try:
            return self.segmenter([sample.image for sample, _ in part], [word for _, word in part])
        except ScoreError as error:
            raise error.of(part[error.index][0].id) from None


class Tally:
    """The records of a run, those that its journal held among them; each image counts once."""

    def __init__(self, run: Run, order: list[int], journal: Journal) -> None:
        self.run, self.order, self._journal = run, order, journal
        self._place = {index: place for place, index in enumerate(order)}
        self.done: set[int] = set()
        self.records: list[Record] = []
        for record in journal.records:
            self._take(record)

    def count(
        self, indices: Sequence[int], samples: Sequence[Sample], tags: list[list[int]] | None = None
    ) -> None:
        """Count those samples of a batch that are not counted yet, and keep them."""
        new = [place for place, index in enumerate(indices) if index not in self.done]
        if new:
            some = None if tags is None else [tags[place] for place in new]
            chosen = [indices[place] for place in new], [samples[place] for place in new]
            record = self.run.count(*chosen, some)
            self._journal.append(record)
            self._take(record)

    @property
    def todo(self) -> list[int]:
        """The images that are not counted yet, in order."""
        return [index for index in self.order if index not in self.done]

    def _take(self, record: Record) -> None:
        """Add a record, but not one whose images are there already.

        Raises:
            ResumeError: it is no record of this evaluation.
        """
        try:
            indices = set(record["indices"])
            if not indices <= self._place.keys() or len(indices) != len(record["indices"]):
                raise KeyError(sorted(indices - self._place.keys()))
            self._unpacked(record)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ResumeError(
                "the resume folder holds counts of images that are not this evaluation's "
                f"({error!r}): choose another resume folder"
            ) from None
        if not indices & self.done:
            self.done |= indices
            self.records.append(record)

    def _unpacked(self, record: Record) -> tuple[list[int], IntArray, IntArray, Scores | None]:
        """Places [B], areas [B, 3, K+1], confusion [K+1, K+1] and scores [B, K] of a record."""
        side = len(self.run.words) + 1
        rows = [self._place[index] for index in record["indices"]]
        scores = None
        if self.run.tagger is None:
            scores = _decode(record["scores"], (len(rows), side - 1))
        area = _unpack(record["areas"], (len(rows), 3, side))
        return rows, area, _unpack(record["confusion"], (side, side)), scores

    def result(self, bootstrap: int) -> Result:
        """The counts of all records together."""
        run, side, images = self.run, len(self.run.words) + 1, len(self.order)
        area = np.zeros((images, 3, side), dtype=np.int64)
        table = np.zeros((side, side), dtype=np.int64)
        seconds = np.zeros(images)
        image_scores = None if run.tagger else np.zeros((images, side - 1), np.float32)
        for record in self.records:
            rows, areas, confusion, scores = self._unpacked(record)
            area[rows] = areas
            table += confusion
            seconds[rows] = record["seconds"] / len(rows)
            if image_scores is not None and scores is not None:
                image_scores[rows] = scores
        parts = [describe(run.segmenter), describe(run.classes)]
        return Result(
            dataset=run.data.name,
            protocol=run.protocol,
            checkpoint=" + ".join(find(parts, "checkpoint")),
            device=device_name(find(parts, "device")),
            seed=run.seed,
            names=run.words.names,
            has_background=run.data.has_background,
            ids=tuple(run.data.ids[index] for index in self.order),
            areas=area,
            confusion=table,
            seconds=seconds,
            bootstrap=bootstrap,
            image_scores=image_scores,
        )


def check_options(
    seed: int = 0, batch: int = 1, workers: int = 0, limit: int | None = None, bootstrap: int = 1
) -> None:
    """Refuse options that no evaluation can have, before anything runs.

    Raises:
        OvssError: one is no whole number, or out of range.
    """
    check_number("seed", seed, 0, MAX_SEED)
    check_number("batch", batch, 1)
    check_number("workers", workers, 0)
    check_number("bootstrap", bootstrap, 1)
    if limit is not None:
        check_number("limit", limit, 1)


def draw(images: int, limit: int | None, seed: int) -> list[int]:
    """Which images are used; a smaller draw is part of a larger one."""
    check_options(seed=seed, limit=limit)
    if limit is None:
        return list(range(images))
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
