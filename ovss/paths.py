"""Where the repository keeps its data, and how a file is written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def root() -> Path:
    """The folder that holds `data/` and `notebooks/`: the repository this package lies in."""
    return Path(__file__).resolve().parent.parent


def data(*parts: str) -> Path:
    """A path under `data/`; the environment variable OVSS_DATA names another data folder."""
    base = os.environ.get("OVSS_DATA")
    folder = Path(base).expanduser() if base else root() / "data"
    return folder.joinpath(*parts)


def results(profile: str) -> Path:
    """The folder of what was measured under a profile; OVSS_RESULTS names another base."""
    base = os.environ.get("OVSS_RESULTS")
    return (Path(base).expanduser() if base else data("results")) / profile


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open `path` for writing so that readers see the old file or the whole new one.

    The bytes go to a hidden neighbour that replaces `path` once they are on the disk; when the
    body raises (a full disk, say) the neighbour is removed and `path` stays as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path, keep: Sequence[str] = ()) -> Iterator[Path]:
    """Give an empty folder that takes the place of `folder` once the body is done.

    When the body raises, `folder` stays as it was.

    Args:
        keep: names of files of the old folder that are copied to the new one.
    """
    mark = secrets.token_hex(4)
    new, old = (folder.with_name(f".{folder.name}.{mark}.{kind}") for kind in ("tmp", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        for name in keep:
            if (folder / name).exists():
                shutil.copy2(folder / name, new / name)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
