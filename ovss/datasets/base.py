"""What every benchmark offers: samples with ground truth, class names and a protocol."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import files, paths
from ..errors import UNPRINTABLE, DatasetError, VocabularyError, shorten
from ..vocabulary import Vocabulary

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """One image with its ground truth: labels [H, W] int64, -1 background, -2 ignored."""

    id: str
    image: Image.Image
    target: IntArray


class Dataset(Protocol):
    """What `evaluate` needs of a benchmark."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def ids(self) -> tuple[str, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def has_background(self) -> bool: ...
    @property
    def protocol(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class FromFiles(Protocol):
    """A data set that names the files of its samples."""

    def files(self, index: int) -> tuple[Path, ...]: ...


def check_present(data: Dataset, indices: Iterable[int]) -> None:
    """Look whether the files of samples are there, before hours of work end at the one that is not.

    Raises:
        DatasetError: names the first that is missing, and says how many are.
    """
    if not isinstance(data, FromFiles):
        return
    files = [path for index in indices for path in data.files(index)]
    if missing := [path for path in files if not path.is_file()]:
        more = f", nor are {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DatasetError(f"{data.name}: {missing[0]} is not there{more} of {len(files)} files")


def read_words(name: str) -> tuple[str, ...]:
    """Read the class names of `data/vocabularies/<name>.txt`, one a line."""
    return read_names(paths.data("vocabularies", f"{name}.txt"))


def read_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read a file of class names, one a line: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        DatasetError: the file is missing, is no text, or a name is empty, repeated or unprintable;
            the message names it.
    """
    lines = files.read_lines(path, "vocabulary", DatasetError)
    try:
        return Vocabulary.of(lines).names
    except VocabularyError as error:
        raise DatasetError(f"the vocabulary {path}: {error}") from None


def read_ids(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read a list of image names, one a line; blanks within a name belong to it.

    Raises:
        DatasetError: the file is missing, is no text or holds no name; a name is listed twice or
            leads out of the data set's folder.
    """
    found = files.read_lines(path, "list", DatasetError)
    if not found:
        raise DatasetError(f"the list {path} names no image")
    for one in found:
        check_inside(one, f"the id '{shorten(one)}' of the list {path}")
    if repeated := [one for one, times in Counter(found).items() if times > 1]:
        raise DatasetError(
            f"the list {path} names '{shorten(repeated[0])}' more than once: an image that is "
            "counted twice changes the number and narrows its interval"
        )
    return found


def check_inside(name: str, told: str) -> None:
    """Refuse a name from which a path out of the data set's folder would be built.

    Raises:
        DatasetError: the name, called `told` in the message, is absolute, begins with a drive, has
            an empty part or a part `.` or `..`, or holds a control character.
    """
    parts = re.split(r"[/\\]", name)
    leaves = any(part in ("", ".", "..") for part in parts) or re.match("[A-Za-z]:", name)
    if leaves or UNPRINTABLE.search(name):
        raise DatasetError(f"{told} is no plain name below the data set's folder")
