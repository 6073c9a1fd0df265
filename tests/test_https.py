"""The gate of network replies: what a server may send, and how long it may take."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clips import noise
from ovss import OvssError, Vocabulary
from ovss.taggers import Gpt4oTagger, https
from ovss.taggers.gpt4o import KEY
from ovss.taggers.https import _hide, ask, https_post
from servers import reply, serve

SECRET = "sk-SECRET-0123456789-abcdef"
GOOD = json.dumps({"choices": [{"message": {"content": "[1: cat], [99%]"}}]}).encode()
WORDS = Vocabulary.of("cat, dog")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    monkeypatch.setattr(https, "_sleep", lambda _: None)


def tagger(port: int, folder: Path, **options: float) -> Gpt4oTagger:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    return Gpt4oTagger(url=url, cache=folder, attempts=2, **{"timeout": 5, **options})  # type: ignore[arg-type]


def test_a_plain_exchange(tmp_path: Path) -> None:
    with serve(lambda peer, _: peer.sendall(reply(200, GOOD))) as (port, seen):
        assert tagger(port, tmp_path)([noise(8, 8)], WORDS) == [[0]]  # type: ignore[list-item]
    (head,) = seen
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"Authorization: Bearer {SECRET}".encode() in head


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_redirect_is_never_followed(tmp_path: Path, status: int, host: str) -> None:
    with serve(lambda peer, _: peer.sendall(reply(200, GOOD))) as (other, stolen):
        place = f"http://{host}:{other}/steal"
        with serve(lambda peer, _: peer.sendall(reply(status, Location=place))) as (port, seen):
            with pytest.raises(OvssError, match=rf"answers {status}, a redirect to .*not followed"):
                tagger(port, tmp_path)([noise(8, 8)], WORDS)  # type: ignore[list-item]
            with pytest.raises(OvssError, match=r"a redirect to .*:1/v1/steal"):
                here = reply(status, Location="http://127.0.0.1:1/v1/steal")
                ask(lambda *_: https_reply(here), f"http://127.0.0.1:{port}", SECRET, {}, 1, 5)
    assert len(seen) == 1 and stolen == [] and not list(tmp_path.iterdir())


def https_reply(content: bytes) -> tuple[int, dict[str, str], bytes]:
    """A reply as `https_post` gives it."""
    head, _, body = content.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


BROKEN = {
    "cut off": reply(200, GOOD[:9], Content_Length="5000"),
    "no HTTP": b"garbage\r\n\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "odd status": b"HTTP/1.1 999999 WHAT\r\n\r\n",
    "no number": b"HTTP/1.1 abc WHAT\r\n\r\n",
    "odd chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nhello",
    "chunks cut off": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\nhello",
    "many headers": reply(200, GOOD, **{f"X{i}": "1" for i in range(300)}),
    "a long header": reply(200, GOOD, X="1" * 100_000),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_no_whole_answer_is_asked_again(tmp_path: Path, kind: str) -> None:
    with serve(lambda peer, _: peer.sendall(BROKEN[kind])) as (port, seen):
        with pytest.raises(OvssError, match="no answer after 2 attempts") as caught:
            tagger(port, tmp_path)([noise(8, 8)], WORDS)  # type: ignore[list-item]
        assert len(seen) == 2 and SECRET not in str(caught.value) and not list(tmp_path.iterdir())
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500

    def once(peer: socket.socket, _: bytes) -> None:
        peer.sendall(reply(200, GOOD) if len(again) > 1 else BROKEN[kind])

    with serve(once) as (port, again):
        assert tagger(port, tmp_path)([noise(8, 8)], WORDS) == [[0]]  # type: ignore[list-item]


@pytest.mark.parametrize("where", ["head", "body", "silence"])
def test_a_slow_server_costs_no_more_than_the_timeout(tmp_path: Path, where: str) -> None:
    def drip(peer: socket.socket, _: bytes) -> None:
        peer.sendall(b"" if where == "head" else reply(200, Content_Length="100000"))
        for _ in range(100):
            peer.sendall(b"" if where == "silence" else b"H")
            time.sleep(0.1)

    begun = time.monotonic()
    with serve(drip) as (port, _), pytest.raises(OvssError, match=r"no whole answer within 0\.5 s"):
        tagger(port, tmp_path, timeout=0.5)([noise(8, 8)], WORDS)  # type: ignore[list-item]
    assert time.monotonic() - begun < 8  # two attempts; a loaded machine may take its time


@pytest.mark.parametrize("announced", [True, False])
def test_an_endless_reply_is_not_read(tmp_path: Path, announced: bool) -> None:
    def flood(peer: socket.socket, _: bytes) -> None:
        peer.sendall(
            b"HTTP/1.1 200 OK\r\n" + b"Content-Length: 99999999999\r\n" * announced + b"\r\n"
        )
        while True:
            peer.sendall(b" " * 2**20)

    with serve(flood) as (port, seen), pytest.raises(OvssError, match="longer than 4 MiB"):
        tagger(port, tmp_path, timeout=60)([noise(8, 8)], WORDS)  # type: ignore[list-item]
    assert len(seen) == 1


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_the_key_is_not_shown_though_the_server_does(tmp_path: Path, status: int) -> None:
    echoed = ["".join(f"\\u{ord(one):04x}" for one in SECRET), SECRET, SECRET[:20], SECRET.lower()]
    for text in echoed:
        body = f'{{"error": {{"message": "x {text}", "{text}": ["{text}"]}}, "y": "{text}"}}'
        for content in (body, body[:-1]):
            sent = reply(status, content.encode(), Location=text)
            sender = serve(lambda peer, _, sent=sent: peer.sendall(sent))  # type: ignore[misc]
            with sender as (port, _), pytest.raises(OvssError) as caught:
                tagger(port, tmp_path)([noise(8, 8)], WORDS)  # type: ignore[list-item]
            told = str(caught.value).lower()
            assert "secret-0" not in told and "23456789" not in told


def test_a_proxy_does_not_see_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(lambda peer, _: peer.sendall(reply(407))) as (port, seen):
        monkeypatch.setenv("https_proxy", f"http://me:pass%20word@127.0.0.1:{port}")
        with pytest.raises(OSError, match="407"):
            https_post("https://api.example/v1", {"Authorization": SECRET}, b"{}", 10)
    (head,) = seen
    assert head.startswith(b"CONNECT api.example:443 HTTP/1.") and SECRET.encode() not in head
    assert b"Proxy-Authorization: Basic bWU6cGFzcyB3b3Jk" in head


def test_https_needs_a_certificate() -> None:
    sender = serve(lambda peer, _: peer.sendall(reply(200, GOOD)))
    with sender as (port, seen), pytest.raises(OSError):
        https_post(f"https://127.0.0.1:{port}/", {"Authorization": SECRET}, b"", 5)
    assert all(SECRET.encode() not in head for head in seen)


@given(st.text(alphabet="skSECRET-0123456789abcdef .", max_size=40), st.integers(0, 27))
def test_no_eight_letters_of_a_key_are_left(around: str, cut: int) -> None:
    text = _hide(around + SECRET[cut:] + around + SECRET[:cut], SECRET).lower()
    low = SECRET.lower()
    assert not any(low[start : start + 8] in text for start in range(len(low) - 7))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "choices", "message", "content", "usage"]), inner
        )
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=JSON, status=st.sampled_from([200, 400, 404, 429, 500]), raw=st.binary(max_size=20))
def test_replies_of_any_shape(
    value: object, status: int, raw: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An answer or one line: never anything else, and nothing is kept of what is no answer."""
    folder = tmp_path_factory.mktemp("cache")
    for content in (json.dumps(value).encode(), raw):
        asked = Gpt4oTagger(cache=folder, attempts=1, post=lambda *_, c=content: (status, {}, c))
        try:
            found = asked([noise(8, 8)], WORDS)  # type: ignore[list-item]
        except OvssError as error:
            assert "\n" not in str(error) and not list(folder.glob("*.json"))
        else:
            assert all(0 <= one < 2 for one in found[0])
