"""Data set x segmenter -> Result: resumable, deterministic, with integer counts per image."""

from __future__ import annotations

import os

from tqdm import tqdm

from ..datasets import Dataset, open_dataset, read_batches
from ..errors import OvssError
from ..segmenter import Segmenter
from ..vocabulary import Vocabulary
from .counting import Classes, Run, Tally, check_options, draw, fitting
from .fingerprint import content
from .journal import interrupts_explained, open_journal
from .result import Result


def evaluate(
    segmenter: Segmenter,
    dataset: Dataset | str,
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "val",
    limit: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    restart: bool = False,
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
        resume: a folder that keeps the counts; run again after a crash to go on. Another program,
            other data, weights or options are refused; another device, `workers` and `batch` are
            not (see `evaluation.fingerprint`).
        restart: where the resume folder holds another evaluation, set that aside and begin anew.
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
        ScoreError: the scores of an image are NaN or infinite.
        OvssError: an option is out of range, or the vocabulary does not fit.
    """
    check_options(seed, batch, workers, limit, bootstrap)
    check_classes(classes)
    data: Dataset = open_dataset(dataset, root, split) if isinstance(dataset, str) else dataset
    run = Run(segmenter, data, fitting(vocabulary, data), classes, seed)
    order = draw(len(data), limit, seed)
    fingerprint = {} if resume is None else run.fingerprint(order, batch, content(data, order))
    with interrupts_explained(resume), open_journal(resume, fingerprint, restart) as journal:
        tally = Tally(run, order, journal)
        counted = len(tally.done)
        with tqdm(total=len(order), initial=counted, unit="image", disable=not progress) as bar:
            for indices, samples in read_batches(data, tally.todo, batch, workers):
                tally.count(indices, samples)
                bar.update(len(samples))
        return tally.result(bootstrap)


def check_classes(classes: Classes) -> None:
    """Refuse what is neither "all", "image" nor a tagger."""
    if not hasattr(classes, "name") and classes not in ("all", "image"):
        raise OvssError(f"classes must be 'all', 'image' or a tagger, got {classes!r}")
