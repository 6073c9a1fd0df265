"""The state of a long evaluation on disk: one line per batch, safe against kill -9.

Each line is a checksum and a JSON object, written in one call and synced. Records stand on their
own: a line that was torn by a crash is cut off, one that was damaged since is left out, and what
follows it is kept. Whoever reads the records counts every image once (`counting.Tally`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from ..errors import OvssError
from ..files import sync_folder

Record = dict[str, Any]
NAME = "journal.jsonl"
SHOWN = 3  # differences that an error names


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
def open_journal(
    folder: str | os.PathLike[str] | None, fingerprint: Record, restart: bool = False
) -> Iterator[Journal]:
    """Open (or start) the journal in `folder`; only one process at a time may hold it.

    Without a folder the records live in memory only.

    Args:
        restart: where the folder holds another evaluation, set its journal aside and begin anew.

    Raises:
        ResumeError: the folder holds another evaluation's journal, or it is in use.
    """
    if folder is None:
        yield Journal(None, [])
        return
    path = check_folder(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps(fingerprint))
    with _locked(path.with_suffix(".lock")):
        if restart:
            _set_aside(path, wanted)
        with open(path, "a+b") as file:
            sync_folder(path.parent)
            yield _read(file, path, wanted)


@contextlib.contextmanager
def interrupts_explained(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Say on stderr, when Ctrl-C ends the work within it, how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"what is counted lies in {folder}: run the same call again to go on"
        lost = "nothing was kept: give a resume folder to be able to go on"
        print(f"ovss: {lost if folder is None else kept}", file=sys.stderr)
        raise


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The resume folder's path; called before the work that it is to keep.

    Raises:
        ResumeError: it is a file, or nothing can be written there.
    """
    path = Path(folder).expanduser()
    existing = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not existing.is_dir():
        raise ResumeError(f"the resume folder {path} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ResumeError(f"the resume folder {path} cannot be written: no permission")
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system lets go of when the process dies, however it dies."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ResumeError(f"another process is evaluating in {path.parent}") from None
    except OSError as error:
        raise ResumeError(f"cannot lock {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def _read(file: BinaryIO, path: Path, fingerprint: Record) -> Journal:
    file.seek(0)
    content = file.read()
    records, damaged, length = _decode(content)
    header = records[0] if records else None
    if header is None and length:
        raise ResumeError(f"{path} is not a journal of ovss: choose another resume folder")
    if header is not None and header != fingerprint:
        raise ResumeError(_mismatch(path.parent, header, fingerprint))
    if damaged:
        logging.getLogger("ovss").warning(
            "ovss: %s damaged lines of %s are left out; their images are counted again",
            damaged, path,
        )  # fmt: skip
    file.truncate(length)
    journal = Journal(file, records[1:])
    if header is None:
        journal.append(fingerprint)
        journal.records.clear()  # the fingerprint is no batch
    return journal


def _set_aside(path: Path, fingerprint: Record) -> None:
    """Rename the journal of another evaluation, so that a new one begins."""
    if not path.is_file():
        return
    records, _, _ = _decode(path.read_bytes())
    if records and records[0] != fingerprint:
        old = zlib.crc32(json.dumps(records[0], sort_keys=True).encode())
        os.replace(path, path.with_name(f"journal-{old:08x}.jsonl"))


def _mismatch(folder: Path, old: Record, new: Record) -> str:
    """One line: what differs between two fingerprints."""
    there, here = dict(_leaves(old)), dict(_leaves(new))
    differing = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    changes = [f"{key}: {_short(there, key)} there, {_short(here, key)} now" for key in differing]
    more = [f"{len(changes) - SHOWN} more"] if len(changes) > SHOWN else []
    return (
        f"{folder} holds another evaluation ({'; '.join([*changes[:SHOWN], *more])}): choose "
        "another resume folder, or count anew with restart=True (--restart)"
    )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries under dotted names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _short(values: Mapping[str, Any], key: str) -> str:
    text = str(values[key]) if key in values else "nothing"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _encode(record: Mapping[str, Any]) -> bytes:
    payload = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def _decode(content: bytes) -> tuple[list[Record], int, int]:
    """The valid records, how many whole lines are damaged, and the bytes of all whole lines."""
    records: list[Record] = []
    lines = content.split(b"\n")[:-1]  # what follows the last line's end was torn off
    for place, line in enumerate(lines):
        record = _record(line)
        if record is not None:
            records.append(record)
        elif place == 0:  # without the fingerprint nothing tells whose records follow
            return [], len(lines), content.rfind(b"\n") + 1
    return records, len(lines) - len(records), content.rfind(b"\n") + 1


def _record(line: bytes) -> Record | None:
    """The record of a line; None if it is damaged."""
    checksum, _, payload = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(payload):
        return None
    try:
        record = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
