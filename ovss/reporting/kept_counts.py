"""Files of counts beside a results file, and the lock that makes both one write.

A file of counts is called after its content. It is written before the rows that name it and
removed when no row names it any more, so rows and counts belong together whenever they are read,
and whatever was killed in between.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from filelock import SoftFileLease, Timeout
from numpy.typing import NDArray

from .. import files
from ..errors import OvssError
from ..evaluation.classification import ImageLevel
from ..evaluation.result import Result

LEASE, PATIENCE = 10, 30  # seconds; see `locked`


class ResultsError(OvssError, ValueError):
    """A results file is malformed, or a row lacks what identifies it."""


class Counts(NamedTuple):
    """The counts of one evaluation: images [I], areas [I, 3, K+1], background a class or not.

    With image scores, if they were kept.
    """

    ids: tuple[str, ...]
    areas: NDArray[np.int64]
    has_background: bool
    image_level: ImageLevel | None = None


def folder_of(results_file: Path) -> Path:
    """The folder of the counts that the rows of a results file name."""
    return results_file.parent / "counts" / results_file.stem


def arrays_of(result: Result, row: str, threshold: float | None) -> tuple[str, dict[str, Any]]:
    """What is kept of an evaluation, in the smallest type that holds it, and its file's name."""
    arrays: dict[str, Any] = {
        "row": np.array(row),
        "dataset": np.array(f"{result.dataset} ({result.protocol})"),
        "ids": np.array(result.ids),
        "areas": result.areas.astype(np.min_scalar_type(int(result.areas.max(initial=0)))),
        "has_background": np.array(result.has_background),
    }
    if threshold is not None:
        found = result.image_level(threshold)
        arrays |= {"scores": found.scores, "threshold": np.array(threshold)}
    total = hashlib.sha256()
    for name, values in arrays.items():
        total.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    spelt = re.sub(r"[^\w.]+", "-", f"{row}__{result.dataset}").strip("-.")
    return f"{spelt[:60]}-{total.hexdigest()[:12]}.npz", arrays


def save(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write a file of counts whole or not at all; one that can be read has this content already."""
    try:
        load(path)
    except ResultsError:
        with files.atomic(path) as file:
            np.savez_compressed(file, **arrays)


def load(path: Path) -> Counts:
    """Read a file of counts.

    Raises:
        ResultsError: it is missing or damaged.
    """
    try:
        with np.load(path) as file:
            ids, areas = tuple(file["ids"].tolist()), file["areas"].astype(np.int64)
            found = None
            if "scores" in file:
                present = areas[:, 1, 1:] > 0
                found = ImageLevel(file["scores"], present, float(file["threshold"]))
            return Counts(ids, areas, bool(file["has_background"]), found)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ResultsError(f"the counts {path} are missing or damaged ({error})") from None


def remove_unnamed(results_file: Path, named: set[str]) -> None:
    """Remove counts that no row names."""
    for path in folder_of(results_file).glob("*.npz"):
        if path.name not in named:
            path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a results file, a file beside it that all machines on a shared disk see.

    A lock whose holder died is taken over, on this machine at once, else after LEASE seconds; one
    that nobody renews for PATIENCE seconds, whoever left it there, is removed.
    """
    mark = path.with_name(f".{path.name}.lock")
    lock = SoftFileLease(mark, lease_duration=LEASE, timeout=PATIENCE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = _stamp(mark)
        try:
            lock.acquire()
        except Timeout:
            if before is not None and before == _stamp(mark):
                mark.unlink(missing_ok=True)
            lock.acquire()
    except Timeout:
        raise ResultsError(f"{path} is in use by another process, says {mark}") from None
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells one lock file from another, and from itself when its holder has renewed it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
