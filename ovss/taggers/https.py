"""One JSON request to an API, asked again while the API is busy or out of order."""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import OvssError

Headers = Mapping[str, str]
# url, headers, body, timeout in seconds -> status, headers, body
Post = Callable[[str, Headers, bytes, float], tuple[int, Headers, bytes]]

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds
_sleep = time.sleep


def https_post(
    url: str, headers: Headers, body: bytes, timeout: float
) -> tuple[int, Headers, bytes]:
    """Send a POST request; an answer with an error status is an answer, too."""
    request = urllib.request.Request(url, body, dict(headers), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def ask(
    post: Post, url: str, key: str, request: Mapping[str, Any], attempts: int, timeout: float
) -> tuple[int, dict[str, Any]]:
    """Send a request; again after 429, 5xx or no answer, each time after a longer wait.

    Raises:
        OvssError: nothing but such answers came, `attempts` times.
    """
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = json.dumps(request).encode()
    said = ""
    for attempt in range(attempts):
        try:
            status, found, content = post(url, headers, body, timeout)
        except OSError as error:  # no connection, or no answer in time
            said = str(error) or type(error).__name__
            found = {}
        else:
            reply = _read(content)
            if not _passes(status, reply):
                return status, reply
            said = f"{status} {reply}"
        if attempt + 1 < attempts:
            _sleep(_wait(attempt, found))
    raise OvssError(f"{url} gives no answer after {attempts} attempts: {said}")


def _passes(status: int, reply: Mapping[str, Any]) -> bool:
    """Whether waiting may help; an empty account is "too many requests", too, but stays empty."""
    code = (reply.get("error") or {}).get("code")
    return status >= 500 or (status == 429 and code != "insufficient_quota")


def _wait(attempt: int, headers: Headers) -> float:
    """Seconds before the next attempt: what the API asks for, else twice as long each time."""
    asked = {name.lower(): value for name, value in headers.items()}.get("retry-after", "")
    if asked.replace(".", "", 1).isdigit():
        return min(float(asked), LONGEST_WAIT)
    jitter = random.uniform(1, 1.25)  # so that parallel questions do not come back together
    return min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * jitter


def _read(content: bytes) -> dict[str, Any]:
    """A JSON object, or what else came as its error message."""
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    return {"error": {"message": content[:200].decode(errors="replace")}}
