"""Several segmenters on one data set in one pass: the rows of a table."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

import numpy as np
from tqdm import tqdm

from ..datasets import Dataset, Sample, open_dataset, read_batches
from ..segmenter import Segmenter
from .counting import Classes, Run, Tally, check_options, draw, fitting
from .evaluate import check_classes
from .fingerprint import content
from .journal import check_folder, interrupts_explained, open_journal
from .result import Result

Setting = tuple[str, Classes]  # data set, and the classes that are asked


def evaluate_many(
    segmenters: Mapping[str, Segmenter],
    dataset: Dataset | str,
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "val",
    limit: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    restart: bool = False,
    seed: int = 0,
    classes: Classes = "all",
    batch: int = 8,
    workers: int = 0,
    bootstrap: int = 1000,
    progress: bool = True,
) -> dict[str, Result]:
    """Evaluate several segmenters in one pass: row name -> what `ovss.evaluate` would give.

    Each image is read and tagged once; segmenters that share a caching network also share its
    features. Time is therefore no property of a row, and `seconds` is NaN.

    Args:
        segmenters: row name -> segmenter.
        dataset: and the other options, as of `ovss.evaluate`.
        resume: a folder that keeps the counts, each row's in a folder of its own: rows may be
            added, and one that has changed is refused (or with `restart` counted anew).
    """
    check_options(seed, batch, workers, limit, bootstrap)
    data: Dataset = open_dataset(dataset, root, split) if isinstance(dataset, str) else dataset
    table = _Table(segmenters, data, classes, draw(len(data), limit, seed), seed)
    with interrupts_explained(resume), table.opened(resume, restart, batch):
        _count([table], batch, workers, progress)
        return table.results(bootstrap)


def evaluate_settings(
    tables: Mapping[Setting, Mapping[str, Segmenter]],
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "val",
    limit: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    restart: bool = False,
    seed: int = 0,
    batch: int = 8,
    workers: int = 0,
    bootstrap: int = 1000,
    progress: bool = True,
) -> dict[Setting, dict[str, Result]]:
    """`evaluate_many` in several settings, batch by batch in turn.

    Where the settings are of the same images asked for other classes, as the lab's are, what is
    cached of an image serves all of them.

    Args:
        tables: (data set, classes) -> row name -> segmenter.
        root: and the other options, as of `ovss.evaluate`.
    """
    check_options(seed, batch, workers, limit, bootstrap)
    found = {}
    for (dataset, classes), segmenters in tables.items():
        data = open_dataset(dataset, root, split)
        order = draw(len(data), limit, seed)
        found[dataset, classes] = _Table(segmenters, data, classes, order, seed)
    with interrupts_explained(resume), contextlib.ExitStack() as journals:
        for table in found.values():
            journals.enter_context(table.opened(resume, restart, batch))
        _count(list(found.values()), batch, workers, progress)
        return {setting: table.results(bootstrap) for setting, table in found.items()}


class _Table:
    """The rows of a table, in one setting."""

    def __init__(
        self,
        segmenters: Mapping[str, Segmenter],
        data: Dataset,
        classes: Classes,
        order: list[int],
        seed: int,
    ) -> None:
        check_classes(classes)
        words = fitting(None, data)
        self.runs = {row: Run(one, data, words, classes, seed) for row, one in segmenters.items()}
        self.tallies: dict[str, Tally] = {}
        self.data, self.order = data, order

    @contextlib.contextmanager
    def opened(
        self, folder: str | os.PathLike[str] | None, restart: bool, batch: int
    ) -> Iterator[None]:
        """Within it each row has its journal, in a folder of its own below `folder`."""
        seen = "" if folder is None else content(self.data, self.order)
        with contextlib.ExitStack() as journals:
            for row, run in self.runs.items():
                place, mark = None, {}
                if folder is not None:
                    place = check_folder(folder) / _folder_name(run.data.name, run.protocol, row)
                    mark = run.fingerprint(self.order, batch, seen) | {"row": row, "timed": False}
                journal = journals.enter_context(open_journal(place, mark, restart))
                self.tallies[row] = Tally(run, self.order, journal)
            yield

    @property
    def todo(self) -> list[int]:
        """The images that some row has not counted yet, in order."""
        done = [tally.done for tally in self.tallies.values()]
        return [index for index in self.order if any(index not in one for one in done)]

    def count(self, indices: Sequence[int], samples: Sequence[Sample]) -> None:
        """Tag a batch once, and let every row count what it lacks of it."""
        tags = next(iter(self.runs.values())).tags(samples)
        for tally in self.tallies.values():
            tally.count(indices, samples, tags)

    def results(self, bootstrap: int) -> dict[str, Result]:
        unknown = np.full(len(self.order), math.nan)
        return {
            row: dataclasses.replace(tally.result(bootstrap), seconds=unknown)
            for row, tally in self.tallies.items()
        }


def _count(tables: Sequence[_Table], batch: int, workers: int, progress: bool) -> None:
    """The first batch of all tables, then the second ..."""
    readers = [read_batches(table.data, table.todo, batch, workers) for table in tables]
    total = sum(len(table.order) for table in tables)
    done = total - sum(len(table.todo) for table in tables)
    with tqdm(total=total, initial=done, unit="image", disable=not progress) as bar:
        for step in zip_longest(*readers):
            for table, read in zip(tables, step, strict=True):
                if read is not None:
                    table.count(*read)
                    bar.update(len(read[0]))


def _folder_name(*parts: str) -> str:
    """A name that can be read and that no other row has."""
    exact = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
    spelt = re.sub(r"[^\w.]+", "-", "_".join(parts)).strip("-.")
    return f"{spelt[:80]}-{exact}"
