"""GPT-4o as a tagger, asked over HTTPS with the paper's own question."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .. import files
from ..datasets import Sample
from ..errors import OvssError, one_line
from ..images import data_url
from ..vocabulary import Vocabulary
from .answers import read_answer
from .base import image_of
from .https import LONGEST_REPLY, Post, ask, check_address, error_of, https_post

# Section 3, word for word.
QUESTION = (
    "Help me find as much and accurate as possible, categories appear in the image. "
    "The the available categories are {CATEGORIES}. Double check if there is anything missing. "
    "You may output unsure categories and give them lower probability. "
    "Output strictly in the format [id1: classname1, id2: classname2, …], [probability of class1 "
    "in percentage, probability of class2 in percentage, …] without other words. "
)
KEY = "OPENAI_API_KEY"
REFUSALS = ("content_policy_violation", "content_filter", "invalid_image")
WHOLE = (
    "stop",
    "eos",
    "eos_token",
    "end_turn",
    "stop_sequence",
)  # why an answer ended that is whole


@dataclass
class Bill:
    """What was asked so far, and what it costs.

    Attributes:
        asked, cached: answers that came from the API, and from the disk.
        tokens_in, tokens_out: that were paid for.
        cost: in US dollars.
        uncounted: answers whose reply does not tell the tokens; what they cost is not known.
    """

    asked: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    uncounted: int = 0

    def __str__(self) -> str:
        """One line to print."""
        cost = f"{self.cost:.4f} USD"
        if self.uncounted:
            cost += f" and an unknown cost ({self.uncounted} replies do not tell their tokens)"
        return (
            f"GPT-4o: {self.asked} images asked, {self.cached} from the cache; "
            f"{self.tokens_in} + {self.tokens_out} tokens, {cost}"
        )


@dataclass(frozen=True)
class Gpt4oTagger:
    """Asks GPT-4o which classes are in an image, as section 3 does.

    Answers are kept on the disk under the image's pixels, the question and the model; what was
    answered once is never asked and paid for again.

    Attributes:
        model: the API's name of the model.
        question: with `{CATEGORIES}` where the classes and their ids go.
        threshold: a class needs more than this many percent (section 3: 70).
        cache: the folder of the answers; None takes `~/.cache/ovss/gpt-4o`.
        price_in, price_out: US dollars for a million tokens of questions and answers (list prices
            of 2024; look up what holds for you).
        workers: questions under way at once.
        attempts: how often a question is asked when the API is busy or out of order.
        timeout: seconds to wait for a whole answer.
        url: the API's address; https, unless it is this machine's.
        post: what sends a request; tests give one that answers by itself.
        bill: what was spent.
    """

    model: str = "gpt-4o"
    question: str = QUESTION
    threshold: float = 70.0
    cache: str | os.PathLike[str] | None = field(default=None, repr=False)
    price_in: float = field(default=2.50, repr=False)
    price_out: float = field(default=10.00, repr=False)
    workers: int = field(default=4, repr=False)
    attempts: int = field(default=6, repr=False)
    timeout: float = field(default=60.0, repr=False)
    url: str = field(default="https://api.openai.com/v1/chat/completions", repr=False)
    post: Post = field(default=https_post, repr=False)
    bill: Bill = field(default_factory=Bill, repr=False, compare=False)
    name: str = field(default="gpt-4o", kw_only=True)
    _lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if "{CATEGORIES}" not in self.question:
            raise OvssError("the question must hold {CATEGORIES}, where the classes go")
        if self.attempts < 1 or not 0 < self.timeout < float("inf"):
            given = f"attempts={self.attempts}, timeout={self.timeout}"
            raise OvssError(f"a question needs an attempt and some seconds, got {given}")
        check_address(self.url)

    def __call__(
        self, samples: Sequence[Sample | Image.Image], vocabulary: Vocabulary
    ) -> list[list[int]]:
        """The classes of samples, or of bare images; an image may have none.

        Raises:
            OvssError: there is no key, or the API refuses or stays out of order.
        """
        images = [image_of(sample) for sample in samples]
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            texts = list(pool.map(lambda image: self.answer(image, vocabulary), images))
        size = range(len(vocabulary))
        chosen = ([one - 1 for one in read_answer(text).above(self.threshold)] for text in texts)
        return [list(dict.fromkeys(one for one in some if one in size)) for some in chosen]

    def answer(self, image: Image.Image, vocabulary: Vocabulary) -> str:
        """The answer's text, from the disk or from the API; empty if the image was refused."""
        request = self.request(image, vocabulary)
        place = self._place(image, request)
        answer = _kept(place)
        if answer is not None:
            self._charge(cached=1)
            return answer
        _check_place(place)  # before anything is paid for
        kept = self._ask(request)
        with files.atomic(place) as file:
            file.write(json.dumps(kept, indent=1).encode())
        self._charge(kept["usage"], asked=1)
        return str(kept["answer"])

    def request(self, image: Image.Image, vocabulary: Vocabulary) -> dict[str, Any]:
        """What is sent: the question and the image, losslessly."""
        categories = str(dict(enumerate(vocabulary.names, start=1)))
        text = self.question.replace("{CATEGORIES}", categories)
        picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
        content = [{"type": "text", "text": text}, picture]
        return {
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "user", "content": content}],
        }

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask the API: the answer, and the tokens used."""
        key = os.environ.get(KEY, "").strip()
        if not key:
            raise OvssError(
                f"no key for the API: set the environment variable {KEY}, or use published answers"
            )
        status, reply = ask(self.post, self.url, key, request, self.attempts, self.timeout)
        code, message = error_of(reply)
        if status == 400 and code.startswith(REFUSALS):
            return {"answer": "", "refused": message, "usage": reply.get("usage")}
        if status != 200:
            raise OvssError(f"GPT-4o's API answers {status}: {message or one_line(reply)}")
        return {"answer": _answer_in(reply), "usage": reply.get("usage")}

    def _charge(self, usage: Any = None, asked: int = 0, cached: int = 0) -> None:
        given = usage if isinstance(usage, dict) else {}
        counts = [given.get(name) for name in ("prompt_tokens", "completion_tokens")]
        told = [one for one in counts if type(one) is int and 0 <= one < 10**9]
        tokens_in, tokens_out = told if len(told) == 2 else (0, 0)
        with self._lock:
            self.bill.asked += asked
            self.bill.cached += cached
            self.bill.uncounted += asked if len(told) < 2 else 0
            self.bill.tokens_in += tokens_in
            self.bill.tokens_out += tokens_out
            self.bill.cost += (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def _place(self, image: Image.Image, request: dict[str, Any]) -> Path:
        """Where an answer is kept."""
        text = request["messages"][0]["content"][0]["text"]
        mark = hashlib.sha256(f"{self.model}\0{text}\0{image.size}\0".encode())
        mark.update(image.tobytes())
        folder = Path("~/.cache/ovss/gpt-4o") if self.cache is None else Path(self.cache)
        return folder.expanduser() / f"{mark.hexdigest()}.json"


def _answer_in(reply: dict[str, Any]) -> str:
    """The text of a reply of the API, empty if it was refused.

    Raises:
        OvssError: the reply has another form, tells an error, or its answer was cut off.
    """
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    content = message.get("content", 0) if isinstance(message, dict) else 0
    if reply.get("error") or not isinstance(content, str | None):
        raise OvssError(f"GPT-4o's API gave no answer: {one_line(reply)}")
    ended = choice.get("finish_reason") if isinstance(choice, dict) else None
    if ended == "content_filter":
        return ""
    if ended is not None and str(ended).lower() not in WHOLE:
        raise OvssError(
            f"GPT-4o's API cut its answer off (finish_reason {one_line(repr(ended), 40)}), nothing "
            f"of it was kept: {one_line(content or '', 100)}"
        )
    return content or ""


def _kept(place: Path) -> str | None:
    """The answer in a file of the cache; None where there is none that can be read."""
    if not place.is_file() or place.stat().st_size > LONGEST_REPLY:
        return None
    try:
        content = json.loads(place.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    answer = content.get("answer") if isinstance(content, dict) else None
    return answer if isinstance(answer, str) else None


def _check_place(place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OvssError(f"no folder for the answers at {place.parent}: {error.strerror}") from None
    if not os.access(place.parent, os.W_OK) or (place.exists() and not place.is_file()):
        raise OvssError(f"answers cannot be kept in {place.parent}: give another `cache`")
