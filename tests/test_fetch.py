"""Downloads: whole or not at all, resumed, bounded, checked, and never outside their folder."""

from __future__ import annotations

import hashlib
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovss.fetch import FetchError, check_url, fetch, inside
from servers import reply, serve

BODY = bytes(range(256)) * 4000
HASH = hashlib.sha256(BODY).hexdigest()


def send(peer: socket.socket, head: bytes) -> None:
    """A server that knows ranges."""
    if found := re.search(rb"Range: bytes=(\d+)-", head):
        start = int(found[1])
        if start >= len(BODY):
            peer.sendall(reply(416))
        rest = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        peer.sendall(reply(206, BODY[start:], Content_Range=rest))
    else:
        peer.sendall(reply(200, BODY))


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".w.bin.lock"}


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    with serve(send) as (port, seen):
        for _ in range(2):
            path = fetch(
                f"http://127.0.0.1:{port}/w", tmp_path / "w.bin", largest=2**21, sha256=HASH
            )
    assert path.read_bytes() == BODY and len(seen) == 1 and leftovers(tmp_path) == {"w.bin"}
    path.write_bytes(BODY[:-1])
    with pytest.raises(FetchError, match="another file than was promised"):
        fetch("https://127.0.0.1:1/w", path, largest=2**21, sha256=HASH)


def test_it_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    cut = len(BODY) // 3

    def broken(peer: socket.socket, head: bytes) -> None:
        if b"Range" in head:
            send(peer, head)
        peer.sendall(reply(200, BODY[:cut], Content_Length=str(len(BODY))))

    with serve(broken) as (port, seen):
        url, target = f"http://127.0.0.1:{port}/w", tmp_path / "w.bin"
        with pytest.raises(FetchError, match="run it again to go on"):
            fetch(url, target, largest=2**21, sha256=HASH)
        assert leftovers(tmp_path) == {".w.bin.part"}
        assert fetch(url, target, largest=2**21, sha256=HASH).read_bytes() == BODY
    assert f"Range: bytes={cut}-".encode() in seen[1] and leftovers(tmp_path) == {"w.bin"}


def test_servers_without_ranges_begin_again(tmp_path: Path) -> None:
    (tmp_path / ".w.bin.part").write_bytes(b"old")
    with serve(lambda peer, _: peer.sendall(reply(200, BODY))) as (port, _):
        path = fetch(f"http://127.0.0.1:{port}/", tmp_path / "w.bin", largest=2**21)
    assert path.read_bytes() == BODY


def test_another_file_than_promised_is_not_kept(tmp_path: Path) -> None:
    with (
        serve(send) as (port, _),
        pytest.raises(FetchError, match="another file than was promised"),
    ):
        fetch(f"http://127.0.0.1:{port}/", tmp_path / "w.bin", largest=2**21, sha256="0" * 64)
    assert leftovers(tmp_path) == set()


@pytest.mark.parametrize(
    "answer, message",
    [
        (reply(200, BODY), "too long"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + BODY, "too long"),
        (reply(404), "answers 404"),
        (reply(206, b"x", Content_Range="bytes 5-5/9"), "answers 206"),
        (b"garbage\r\n\r\n", "cannot download"),
        (b"", "cannot download"),
        (reply(200, b"", Content_Length="many"), "cannot download"),
        (reply(302, Location="http://example.org/"), "no https address"),
        (reply(302, Location="file:///etc/passwd"), "not allowed"),
    ],
)
def test_servers_that_send_something_else(tmp_path: Path, answer: bytes, message: str) -> None:
    sent = serve(lambda peer, _: peer.sendall(answer))
    with sent as (port, _), pytest.raises(FetchError, match=message) as caught:
        fetch(f"http://127.0.0.1:{port}/", tmp_path / "w.bin", largest=1000, timeout=5)
    assert "\n" not in str(caught.value) and not (tmp_path / "w.bin").exists()


def test_addresses() -> None:
    check_url("https://host/path")
    for url in ("http://host/", "ftp://host/", "file:///x", "https://", "https://a b", "x", ""):
        with pytest.raises(FetchError, match="no https address"):
            check_url(url)


def test_names_within_a_folder(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b.txt") == tmp_path / "a" / "b.txt"
    (tmp_path / "out").symlink_to("/")
    for name in ("../x", "/x", "a/../../x", "", "~/x", "a\\b", "C:x", "a\nb", ".", "out/x"):
        with pytest.raises(FetchError):
            inside(tmp_path, name)


@given(st.text(alphabet="./\\~ab:\0", max_size=12))
def test_no_name_leaves_its_folder(name: str) -> None:
    try:
        path = inside("/tmp/folder", name)
    except FetchError:
        return
    assert path.resolve().is_relative_to("/tmp/folder")
