"""Download a file whole or not at all: resumed where it broke off, bounded, checked by its hash."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from filelock import FileLock

from .errors import OvssError, one_line

BLOCK = 2**18  # bytes read at once
SLOWEST = 2**10  # bytes a second; a server that sends less is taken for dead
HERE = ("localhost", "127.0.0.1", "::1")  # where a server may be asked without TLS


class FetchError(OvssError, OSError):
    """A file cannot be downloaded, or is another one than was promised."""


def fetch(
    url: str,
    target: str | os.PathLike[str],
    *,
    largest: int,
    sha256: str | None = None,
    timeout: float = 60.0,
) -> Path:
    """Download `url` to the file `target` and return its path.

    The bytes go to a hidden neighbour (`.NAME.part`), which takes the file's name once all are
    there and their hash is right. A download that broke off goes on where it stopped. A file that
    is there already is not asked for again.

    Args:
        largest: bytes; a longer file is not downloaded.
        sha256: hex digest of the content; a file that is there is checked, too.
        timeout: seconds without a byte, and seconds in which `SLOWEST` must be reached.

    Raises:
        FetchError: no connection, another status than 200 and 206, too many bytes, another hash.
    """
    path = Path(target)
    check_url(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with FileLock(path.with_name(f".{path.name}.lock")):  # two processes, one download
        if not path.exists():
            _download(url, part, largest, timeout)
            _check(part, url, sha256)
            os.replace(part, path)
    _check(path, url, sha256)
    return path


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of the file `name` within `folder`; for names that came over the network.

    Raises:
        FetchError: the name leaves the folder, or is no plain relative path.
    """
    parts = PurePosixPath(name).parts
    plain = re.fullmatch(r"[^\\:\x00-\x1f\x7f]+", name) and not name.startswith(("/", "~"))
    if not plain or not parts or ".." in parts:
        raise FetchError(f"{one_line(repr(name), 80)} is no name of a file within {folder}")
    path = Path(folder, *parts)
    if not path.resolve().is_relative_to(Path(folder).resolve()):  # a link that leads out of it
        raise FetchError(f"{one_line(repr(name), 80)} leaves {folder}")
    return path


def check_url(url: str) -> None:
    """Allow https, and http on this machine alone."""
    try:
        parts = urlsplit(url)
        allowed = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in HERE)
        allowed = allowed and bool(parts.hostname) and bool(re.fullmatch(r"[\x21-\x7e]+", url))
    except ValueError:
        allowed = False
    if not allowed:
        raise FetchError(f"{one_line(repr(url), 200)} is no https address")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect as long as it does not leave https."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, part: Path, largest: int, timeout: float) -> None:
    """Fill `part`, from where it ends."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    opener = urllib.request.build_opener(_Redirects)
    try:
        with opener.open(request, timeout=timeout) as reply:
            begins = f"bytes {have}-" if reply.status == 206 else None
            resumed = begins and str(reply.headers.get("Content-Range", "")).startswith(begins)
            if reply.status not in (200, 206) or (begins and not resumed):
                raise FetchError(f"{url} answers {reply.status}, not with the file")
            with part.open("ab" if resumed else "wb") as file:
                _copy(reply, file, url, largest - (have if resumed else 0), timeout)
                file.flush()
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing behind its end: whole already, or another file's
            return
        raise FetchError(f"{url} answers {error.code}: {one_line(error.reason)}") from None
    except FetchError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        told = one_line(reason) or type(error).__name__
        raise FetchError(f"cannot download {url} ({told}): run it again to go on") from None


def _copy(reply: Any, file: IO[bytes], url: str, room: int, timeout: float) -> None:
    """Copy a reply of at most `room` bytes."""
    announced = int(reply.headers.get("Content-Length") or -1)
    if announced > room:
        raise FetchError(f"{url} is too long: {announced} bytes, {room} are allowed")
    received, since, begun = 0, 0, time.monotonic()
    while block := reply.read1(BLOCK):
        received += len(block)
        since += len(block)
        if received > room:
            raise FetchError(f"{url} is too long: more than {room} bytes")
        file.write(block)
        if time.monotonic() - begun > timeout:
            if since < SLOWEST * timeout:
                raise FetchError(f"{url} sends less than {SLOWEST} bytes a second")
            since, begun = 0, time.monotonic()
    if 0 <= announced != received:
        raise http.client.IncompleteRead(b"", announced - received)


def _check(path: Path, url: str, sha256: str | None) -> None:
    """Compare a file with its hash; a wrong one of ours is removed, so that it is not kept."""
    if sha256 is None:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == sha256.lower():
        return
    if path.name.startswith(".") and path.name.endswith(".part"):
        path.unlink()
    raise FetchError(
        f"{path.name.removeprefix('.').removesuffix('.part')} of {url} is another file than was "
        f"promised: its SHA-256 begins {digest[:12]}, not {sha256[:12]}"
    )
