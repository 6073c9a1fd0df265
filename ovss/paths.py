"""Where the repository keeps its data, and how a file is written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
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
