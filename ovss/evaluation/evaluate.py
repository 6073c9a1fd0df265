"""Data set x segmenter -> Result: resumable, deterministic, with integer counts per image."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator

from tqdm import tqdm

from ..datasets import Dataset, open_dataset, read_batches
from ..errors import OvssError
from ..provenance import describe, version
from ..segmenter import Segmenter
from ..vocabulary import Vocabulary
from .counting import Classes, Record, Run, collect, draw, fitting
from .journal import open_journal
from .result import Result


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
        classes: "all"; or "image": query each image only with the classes its target holds; or
            a tagger of `ovss.taggers` that says which. The protocol's name tells.
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
    if not hasattr(classes, "name") and classes not in ("all", "image"):
        raise OvssError(f"classes must be 'all', 'image' or a tagger, got {classes!r}")
    if batch < 1:
        raise OvssError(f"batch must be at least 1 image, got {batch}")
    data: Dataset = open_dataset(dataset, root, split) if isinstance(dataset, str) else dataset
    run = Run(segmenter, data, fitting(vocabulary, data), classes, seed)
    order = draw(len(data), limit, seed)
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
        return collect(run, journal.records, order, bootstrap)


def _fingerprint(run: Run, order: list[int]) -> Record:
    """What must be equal for the counts of two runs to be added."""
    listing = "\n".join(run.data.ids[index] for index in order)
    return {
        "ovss": version(),
        "dataset": run.data.name,
        "split": run.data.split,
        "images": f"{len(order)} ({hashlib.sha256(listing.encode()).hexdigest()[:12]})",
        "classes": describe(run.classes),
        "counts": "areas, confusion, seconds, scores",
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
