"""One JSON request to an API, asked again while the API is busy or out of order.

The key goes to the one address that was given and to no other: a redirect is never followed. What
comes back is bounded in bytes and in time, and the key is cut out of it before anything is read.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import queue
import random
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ..errors import OvssError, one_line
from ..fetch import HERE

Headers = Mapping[str, str]
# url, headers, body, timeout in seconds -> status, headers, body
Post = Callable[[str, Headers, bytes, float], tuple[int, Headers, bytes]]

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds
LONGEST_REPLY = 4 * 2**20  # bytes; an answer has some hundreds
WINDOW = 8  # so many letters of a key in a row are hidden
_sleep = time.sleep


def https_post(
    url: str, headers: Headers, body: bytes, timeout: float
) -> tuple[int, Headers, bytes]:
    """Send a POST request; an answer with an error status is an answer, too.

    The exchange runs in a thread of its own, so that names that are not found and servers that send
    a byte now and then end after `timeout` seconds as well.

    Raises:
        OSError: no whole answer in time: no connection, no HTTP, or broken off.
        OvssError: `url` is no address for a key, or the reply is longer than `LONGEST_REPLY`.
    """
    connection, target = _connection(check_address(url), timeout + 1)  # the wait below ends first
    open_sockets: list[socket.socket] = []
    outcomes: queue.SimpleQueue[tuple[int, Headers, bytes] | Exception] = queue.SimpleQueue()

    def exchange() -> None:
        try:
            connection.connect()
            open_sockets.append(connection.sock)
            connection.request("POST", target, body, {**headers, "Connection": "close"})
            outcomes.put(_receive(connection.getresponse()))
        except Exception as error:  # raised again by the thread that waits
            outcomes.put(error)

    threading.Thread(target=exchange, daemon=True).start()
    try:
        outcome = outcomes.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError(f"no whole answer within {timeout:g} s") from None
    finally:
        for opened in open_sockets:
            _hang_up(opened)
    if isinstance(outcome, OvssError | OSError):
        raise outcome
    if isinstance(outcome, Exception):  # of http.client, and what odd headers make of it
        raise ConnectionError(f"{type(outcome).__name__}: {outcome}")
    return outcome


def check_address(url: str) -> SplitResult:
    """The parts of an API's address.

    Raises:
        OvssError: it is no address, holds a password, or would send a key without TLS.
    """
    try:
        parts = urlsplit(url) if re.fullmatch(r"[\x21-\x7e]+", url) else SplitResult(*[""] * 5)
        known = bool(parts.hostname) and (parts.port or 1) > 0 and parts.username is None
    except ValueError:
        known = False
    if not known or parts.scheme not in ("http", "https"):
        raise OvssError("the API's address must be https://host/path, without name and password")
    if parts.scheme == "http" and parts.hostname not in HERE:
        raise OvssError(
            f"http://{parts.hostname} would get the key unencrypted: give an https address"
        )
    return parts


def check_key(key: str) -> str:
    """The key, if a header can carry it; the message never shows it."""
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise OvssError(
            "the key for the API holds a blank, a line break or a letter that is not ASCII (such "
            "as a typographic quote), which no key has: copy it again"
        )
    return key


def ask(
    post: Post, url: str, key: str, request: Mapping[str, Any], attempts: int, timeout: float
) -> tuple[int, dict[str, Any]]:
    """Send a request; again after 429, 5xx or no answer, each time after a longer wait.

    Raises:
        OvssError: nothing but such answers came, `attempts` times; the answer is a redirect; or
            the key or the address cannot be used. No message shows the key.
    """
    headers = {"Authorization": f"Bearer {check_key(key)}", "Content-Type": "application/json"}
    body = json.dumps(request).encode()
    said = ""
    for attempt in range(attempts):
        found: Headers = {}
        try:
            status, found, content = post(url, headers, body, timeout)
        except (OSError, http.client.HTTPException) as error:  # no connection, no whole answer
            said = _hide(str(error) or type(error).__name__, key)
        else:
            if 300 <= status < 400:
                raise OvssError(_redirected(url, status, found, key))
            reply = _read(content, key)
            if not _passes(status, reply):
                return status, reply
            said = f"{status} {reply}"
        if attempt + 1 < attempts:
            _sleep(_wait(attempt, found))
    raise OvssError(f"{url} gives no answer after {attempts} attempts: {one_line(said)}")


def error_of(reply: Mapping[str, Any]) -> tuple[str, str]:
    """The code and the message of a reply's error, whatever its shape; empty without one."""
    error = reply.get("error")
    if not isinstance(error, dict):
        return "", "" if error is None else one_line(error)
    return str(error.get("code")), one_line(error.get("message") or error)


def _connection(address: SplitResult, timeout: float) -> tuple[http.client.HTTPConnection, str]:
    """A connection that is not open yet, through the system's proxy if it has one, and the path."""
    host, port = str(address.hostname), address.port
    target = (address.path or "/") + (f"?{address.query}" if address.query else "")
    if address.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout), target
    proxy = "" if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https")
    if not proxy:
        return http.client.HTTPSConnection(host, port, timeout=timeout), target
    gate = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    connection = http.client.HTTPSConnection(str(gate.hostname), gate.port or 80, timeout=timeout)
    login = f"{unquote(gate.username or '')}:{unquote(gate.password or '')}".encode()
    permit = {"Proxy-Authorization": f"Basic {base64.b64encode(login).decode()}"}
    connection.set_tunnel(host, port, permit if gate.username else {})
    return connection, target


def _receive(reply: http.client.HTTPResponse) -> tuple[int, Headers, bytes]:
    content = reply.read(LONGEST_REPLY + 1)
    if len(content) > LONGEST_REPLY:
        raise OvssError(f"the API's reply is longer than {LONGEST_REPLY // 2**20} MiB: not read")
    headless = reply.status == 200 and not content and reply.length is None and not reply.chunked
    if reply.length or headless:  # it broke off: before its last byte, or within its head
        raise http.client.IncompleteRead(content, reply.length)
    return reply.status, dict(reply.headers), content


def _hang_up(opened: socket.socket) -> None:
    """End what another thread may be waiting for."""
    with contextlib.suppress(OSError):  # it may be closed already
        opened.shutdown(socket.SHUT_RDWR)
    opened.close()


def _redirected(url: str, status: int, headers: Headers, key: str) -> str:
    place = _lower(headers).get("location", "nowhere")
    return (
        f"{url} answers {status}, a redirect to {one_line(_hide(place, key))}: it is not followed, "
        "because the key would go along; give the address that answers itself"
    )


def _passes(status: int, reply: Mapping[str, Any]) -> bool:
    """Whether waiting may help; an empty account is "too many requests", too, but stays empty."""
    code, _ = error_of(reply)
    return status >= 500 or (status == 429 and code != "insufficient_quota")


def _wait(attempt: int, headers: Headers) -> float:
    """Seconds before the next attempt: what the API asks for, else twice as long each time."""
    asked = _lower(headers).get("retry-after", "")
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", asked):
        return min(float(asked), LONGEST_WAIT)
    jitter = random.uniform(1, 1.25)  # so that parallel questions do not come back together
    return min(FIRST_WAIT * 2 ** min(attempt, 16), LONGEST_WAIT) * jitter


def _lower(headers: Headers) -> dict[str, str]:
    return {str(name).lower(): str(value).strip() for name, value in headers.items()}


def _read(content: bytes, key: str) -> dict[str, Any]:
    """A JSON object without the key, or what else came as its error message."""
    try:
        found = _without_key(json.loads(content), key)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    return {"error": {"message": one_line(_hide(content[:65536].decode(errors="replace"), key))}}


def _without_key(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return _hide(value, key)
    if isinstance(value, list):
        return [_without_key(one, key) for one in value]
    if isinstance(value, dict):
        return {_hide(name, key): _without_key(one, key) for name, one in value.items()}
    return value


def _hide(text: str, key: str) -> str:
    """The text with *** for the key, for pieces of it, and for its form within an address."""
    low, hidden = text.lower(), [False] * len(text)
    for form in {key.lower(), quote(key, safe="").lower()}:
        width = min(WINDOW, len(form))
        for piece in {form[start : start + width] for start in range(len(form) - width + 1)}:
            start = low.find(piece)
            while start >= 0:
                hidden[start : start + width] = [True] * width
                start = low.find(piece, start + 1)
    if not any(hidden):
        return text
    shown = [
        "" if gone and place and hidden[place - 1] else "***" if gone else letter
        for place, (letter, gone) in enumerate(zip(text, hidden, strict=True))
    ]
    return "".join(shown)
