"""How a user's file is read, and how a file or folder is written whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import UNPRINTABLE, OvssError, printable

try:
    import fcntl
except ImportError:  # Windows has no such locks: leftovers of killed runs stay there
    fcntl = None  # type: ignore[assignment]

LARGEST_TEXT = 64 << 20  # bytes of a list, a vocabulary or another text file
BLANKS = re.compile(r"^[\s\ufeff\u200b]+|[\s\ufeff\u200b]+$")
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Which byte order mark means which encoding; the longer ones come first.
MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def check_file(
    path: str | os.PathLike[str], kind: str, error: type[OvssError], largest: int
) -> Path:
    """Give the path of a file that can be read to its end, `~` expanded.

    Args:
        path: as the user gave it.
        kind: what it should be ("image file"), for the message.
        error: raised when there is no such file, it is no regular file (a pipe or a device may
            never end), it may not be read, or it is larger than `largest` bytes.
    """
    file = expand(path)
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise error(f"no such {kind}: {file}") from None
    except OSError as reason:
        raise error(f"the {kind} {file} cannot be read: {reason.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{file} is {_kind(found)}, not {_article(kind)}")
    if found.st_size > largest:
        size = f"{found.st_size >> 20} MB, more than {largest >> 20} MB"
        raise error(f"the {kind} {file} is too large ({size})")
    return file


def read_text(
    path: str | os.PathLike[str],
    kind: str,
    error: type[OvssError] = OvssError,
    largest: int = LARGEST_TEXT,
) -> str:
    """Read a text file: UTF-8 with or without a byte order mark, or UTF-16 or UTF-32 with one.

    Raises:
        error: the file is missing, too large, or of another encoding.
    """
    file = check_file(path, kind, error, largest)
    try:
        content = file.read_bytes()
    except OSError as reason:
        raise error(f"the {kind} {file} cannot be read: {reason.strerror}") from None
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as reason:
        raise error(
            f"the {kind} {file} is no {encoding.upper()} text (byte {reason.start}): "
            "save it as UTF-8"
        ) from None


def read_lines(
    path: str | os.PathLike[str], kind: str, error: type[OvssError] = OvssError
) -> tuple[str, ...]:
    """Read the lines of a text file, without blanks at their ends; empty lines do not count.

    Raises:
        error: as `read_text`, or a line holds a control character (a binary file, say).
    """
    lines = []
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", read_text(path, kind, error)), 1):
        line = trim(raw)
        if found := UNPRINTABLE.search(line):
            shown = printable(found[0])
            raise error(f"line {number} of the {kind} {expand(path)} holds {shown}: no plain text")
        lines += [line] if line else []
    return tuple(lines)


def check_destination(
    path: str | os.PathLike[str],
    suffixes: Sequence[str] = (),
    keep: Iterable[str | os.PathLike[str]] = (),
) -> Path:
    """Give the path of a file to be written, `~` expanded, or say before any work why it cannot.

    Args:
        path: as the user gave it; its folder need not exist.
        suffixes: the endings allowed, in lower case; all if none is given.
        keep: files that must not be replaced, under whatever name (the photo itself).

    Raises:
        OvssError: another suffix, a folder or device of that name, no right or no room to write
            there, or one of `keep`.
    """
    target = expand(path)
    if suffixes and target.suffix.lower() not in suffixes:
        raise OvssError(f"cannot save as {target.name!r}: end it in {' or '.join(suffixes)}")
    try:
        _check_replaceable(target, keep)
        real = Path(os.path.realpath(target))
        folder = next(one for one in real.parents if one.exists())
        temporary, holder = _open_temporary(folder)
        temporary.unlink()
        os.close(holder)
    except (OSError, ValueError) as reason:
        raise OvssError(f"cannot write {target}: {_reason(reason)}") from None
    return target


def trim(text: str) -> str:
    """Give `text` without blanks, byte order marks and zero-width spaces at its ends."""
    return BLANKS.sub("", text)


def expand(path: str | os.PathLike[str]) -> Path:
    """The path with `~` and `~user` replaced by the home folder, where there is one."""
    return Path(os.path.expanduser(os.fsdecode(path)))


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open `path` for writing so that readers see the old file or the whole new one.

    The bytes go to a hidden neighbour, `.ovss-….tmp`, that replaces `path` once they are on the
    disk; when the body raises (a full disk, say) the neighbour is removed and `path` stays as it
    was. Neighbours that a killed process left are removed by the next one that writes there. A
    symbolic link stays: the file it names is replaced. The file's permissions stay, too.
    """
    target = Path(os.path.realpath(expand(path)))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target.parent)
    temporary, holder = _open_temporary(target.parent)
    try:
        with os.fdopen(os.dup(holder), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        if fcntl is None:
            os.close(holder)  # Windows renames no open file
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if fcntl is not None:
            os.close(holder)
    sync_folder(target.parent)


@contextmanager
def atomic_folder(folder: Path, keep: Sequence[str] = ()) -> Iterator[Path]:
    """Give an empty folder that takes the place of `folder` once the body is done.

    When the body raises, `folder` stays as it was. What a killed process left beside it is put
    back or removed by the next one that writes there.

    Args:
        keep: names of files of the old folder that are copied to the new one.
    """
    mark = secrets.token_hex(4)
    new, old = (folder.with_name(f".{folder.name}.{mark}.{kind}") for kind in ("tmp", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_folders(folder)
    new.mkdir()
    holder = os.open(new, os.O_RDONLY) if fcntl is not None else -1
    try:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(holder, fcntl.LOCK_EX)  # its writer lives
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
    finally:
        if fcntl is not None:
            os.close(holder)
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk: a new file survives a power loss only then."""
    if os.name != "posix":
        return  # folders cannot be opened elsewhere
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network disks know no such thing, and need none
    finally:
        os.close(descriptor)


def _open_temporary(folder: Path) -> tuple[Path, int]:
    """A new file in `folder`, and a descriptor whose lock says that its writer lives."""
    while True:
        path = folder / f".ovss-{secrets.token_hex(8)}.tmp"
        holder = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:
            return path, holder
        with suppress(OSError):  # a file system without locks
            fcntl.flock(holder, fcntl.LOCK_EX)
        if path.exists():  # else another process took it for a leftover before it was locked
            return path, holder
        os.close(holder)


_cleaned: set[Path] = set()  # folders that this process has looked through


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in `folder`; a file whose writer lives is locked."""
    if folder in _cleaned or fcntl is None:
        return
    _cleaned.add(folder)
    for path in folder.glob(".ovss-*.tmp"):
        with suppress(OSError):  # locked, already gone, or not ours
            holder = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(holder)


def _remove_left_folders(folder: Path) -> None:
    """Put `folder` back or remove what killed processes left of writing it."""
    if fcntl is None:
        return
    ours = re.compile(re.escape(f".{folder.name}.") + r"[0-9a-f]{8}\.(tmp|old)")
    beside = [one for one in folder.parent.iterdir() if ours.fullmatch(one.name)]
    if any(one.suffix == ".tmp" and not _is_left(one) for one in beside):
        return  # another process writes it just now
    for one in beside:
        if one.suffix == ".old" and not folder.exists():
            one.rename(folder)  # killed between the two steps of its replacement
        else:
            shutil.rmtree(one, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether the writer of a temporary folder no longer lives, so that its lock is free."""
    try:
        holder = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(holder)
    return True


def _check_replaceable(target: Path, keep: Iterable[str | os.PathLike[str]]) -> None:
    if not target.exists():
        return
    if not target.is_file():
        raise OvssError(f"cannot write {target}: it is {_kind(target.stat())}")
    for other in map(expand, keep):
        if other.exists() and target.samefile(other):
            raise OvssError(f"cannot write {target}: it would replace {other}, which is needed")
    if not os.access(target, os.W_OK):
        raise OvssError(f"cannot write {target}: it is write-protected")


def _kind(found: os.stat_result) -> str:
    return KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
