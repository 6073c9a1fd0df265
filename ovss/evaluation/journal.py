"""The state of a long evaluation on disk: one line per batch, safe against kill -9.

Each line is a checksum and a JSON object, written in one call and synced. A line that was torn
by a crash fails its checksum and is cut off when the journal is opened again, so every image is
counted once or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from ..errors import OvssError

Record = dict[str, Any]


class ResumeError(OvssError, RuntimeError):
    """The resume folder belongs to another evaluation, or another process uses it."""


class Journal:
    """An append-only list of records under a fingerprint of the evaluation they belong to."""

    def __init__(self, file: BinaryIO | None, records: list[Record]) -> None:
        self._file = file
        self.records = records

    def append(self, record: Record) -> None:
        """Add a record; when this returns it is on the disk."""
        if self._file is not None:
            self._file.write(_encode(record))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.records.append(record)


@contextlib.contextmanager
def open_journal(folder: str | os.PathLike[str] | None, fingerprint: Record) -> Iterator[Journal]:
    """Open (or start) the journal in `folder`; only one process at a time may hold it.

    Without a folder the records live in memory only.

    Raises:
        ResumeError: the folder holds another evaluation's journal, or it is in use.
    """
    if folder is None:
        yield Journal(None, [])
        return
    path = Path(folder).expanduser() / "journal.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")), open(path, "a+b") as file:
        yield _read(file, path, json.loads(json.dumps(fingerprint)))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system lets go of when the process dies, however it dies."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ResumeError(f"another process is evaluating in {path.parent}") from None
    try:
        yield
    finally:
        lock.release()


def _read(file: BinaryIO, path: Path, fingerprint: Record) -> Journal:
    file.seek(0)
    content = file.read()
    records, length = _decode(content)
    if not records and content.count(b"\n"):
        raise ResumeError(f"{path} is not a journal of ovss: choose another resume folder")
    if records and records[0] != fingerprint:
        raise ResumeError(_mismatch(path.parent, records[0], fingerprint))
    file.truncate(length)
    journal = Journal(file, records[1:])
    if not records:
        journal.append(fingerprint)
        journal.records.clear()  # the fingerprint is no batch
    return journal


def _mismatch(folder: Path, old: Record, new: Record) -> str:
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    changes = "; ".join(f"{key}: {old.get(key)} there, {new.get(key)} now" for key in differing)
    return f"{folder} holds another evaluation ({changes}): choose another resume folder"


def _encode(record: Mapping[str, Any]) -> bytes:
    payload = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def _decode(content: bytes) -> tuple[list[Record], int]:
    """The valid records at the beginning, and the number of bytes they take."""
    records: list[Record] = []
    length = 0
    for line in content.splitlines(keepends=True):
        checksum, _, payload = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(payload):
            break
        records.append(json.loads(payload))
        length += len(line)
    return records, length
