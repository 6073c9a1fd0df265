"""Servers on this machine that answer as a test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Answer = Callable[[socket.socket, bytes], None]


@contextmanager
def serve(answer: Answer) -> Iterator[tuple[int, list[bytes]]]:
    """A TCP server: its port, and the head of each request that came.

    `answer` gets the socket once the head has been read; it is closed afterwards.
    """
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(peer: socket.socket) -> None:
        with peer:
            try:
                head = b""
                while b"\r\n\r\n" not in head and (more := peer.recv(65536)):
                    head += more
                seen.append(head)
                answer(peer, head)
            except OSError:
                pass  # the other side has gone

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        listener.close()


def reply(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A whole HTTP reply; `headers` by names with _ for -."""
    lines = [f"HTTP/1.1 {status} X", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    lines += [] if "Content_Length" in headers else [f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body
