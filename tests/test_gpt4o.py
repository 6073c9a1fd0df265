"""GPT-4o as a tagger, against an API that lives in the test: no network, no key, no money."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ovss
from clips import noise
from ovss import OvssError, Vocabulary, cli
from ovss.methods import METHODS
from ovss.taggers import Gpt4oTagger, https
from ovss.taggers.gpt4o import KEY, QUESTION
from toys import toy_segmenter

WORDS = Vocabulary.of("cat, dog, potted plant")
Reply = tuple[int, dict[str, str], Any]


class Api:
    """Answers with the given replies one after another, the last one for ever."""

    def __init__(self, *replies: Reply | OSError) -> None:
        self.replies = list(replies)
        self.seen: list[tuple[str, Mapping[str, str], dict[str, Any], float]] = []

    def __call__(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        self.seen.append((url, headers, json.loads(body), timeout))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, OSError):
            raise reply
        status, found, content = reply
        return (
            status,
            found,
            content if isinstance(content, bytes) else json.dumps(content).encode(),
        )


def said(text: str, tokens_in: int = 1000, tokens_out: int = 20) -> Reply:
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    return 200, {}, {"choices": [{"message": {"content": text}}], "usage": usage}


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A key, and no waiting: the seconds asked for are noted."""
    noted: list[float] = []
    monkeypatch.setenv(KEY, "secret")
    monkeypatch.setattr(https, "_sleep", noted.append)
    return noted


def tagger(api: Api, folder: Path, **options: Any) -> Gpt4oTagger:
    return Gpt4oTagger(cache=folder, post=api, workers=1, **options)


def test_what_is_asked(tmp_path: Path) -> None:
    api, image = Api(said("[2: dog, 1: 'cat', 3: potted plant], [71, 70, 99%]")), noise(9, 7)
    assert tagger(api, tmp_path)([image], WORDS) == [[1, 2]]  # type: ignore[list-item]
    ((url, headers, request, timeout),) = api.seen
    assert url == "https://api.openai.com/v1/chat/completions" and timeout == 60
    assert headers["Authorization"] == "Bearer secret"
    assert (request["model"], request["temperature"]) == ("gpt-4o", 0)
    text, picture = request["messages"][0]["content"]
    names = "{1: 'cat', 2: 'dog', 3: 'potted plant'}"
    assert text["text"] == QUESTION.replace("{CATEGORIES}", names)
    assert text["text"].startswith("Help me find as much and accurate as possible, categories")
    kind, _, data = picture["image_url"]["url"].partition(",")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/png;base64" and sent.tobytes() == image.tobytes()


def test_an_answer_is_paid_for_once(tmp_path: Path) -> None:
    api, images = Api(said("[1: cat], [99]"), said("[2: dog], [99]")), [noise(8, 8), noise(8, 8, 1)]
    first = tagger(api, tmp_path)
    assert first(images, WORDS) == [[0], [1]]  # type: ignore[arg-type]
    assert (first.bill.asked, first.bill.cached, len(api.seen)) == (2, 0, 2)
    second = tagger(api, tmp_path)
    assert second(images[::-1], WORDS) == [[1], [0]]  # type: ignore[arg-type]
    assert (second.bill.asked, second.bill.cached, len(api.seen)) == (0, 2, 2)
    assert second.bill.cost == 0
    for other in (Vocabulary.of("cat, dog"), WORDS.subset([1, 0, 2])):
        tagger(api, tmp_path)(images[:1], other)  # type: ignore[arg-type]
    tagger(api, tmp_path, model="gpt-4o-mini")(images[:1], WORDS)  # type: ignore[arg-type]
    tagger(api, tmp_path, question="{CATEGORIES}?")(images[:1], WORDS)  # type: ignore[arg-type]
    assert len(api.seen) == 6
    assert not list(tmp_path.glob("*.tmp")) and len(list(tmp_path.glob("*.json"))) == 6


def test_the_bill(tmp_path: Path) -> None:
    api = Api(said("[1: cat], [99]", 1100, 25))
    found = tagger(api, tmp_path, price_in=2.5, price_out=10)
    found([noise(8, 8, seed) for seed in range(4)], WORDS)  # type: ignore[arg-type]
    assert (found.bill.tokens_in, found.bill.tokens_out) == (4400, 100)
    assert found.bill.cost == pytest.approx((4400 * 2.5 + 100 * 10) / 1e6)
    assert str(found.bill) == (
        "GPT-4o: 4 images asked, 0 from the cache; 4400 + 100 tokens, 0.0120 USD"
    )


def test_waiting_for_a_busy_api(tmp_path: Path, waits: list[float]) -> None:
    busy: list[Reply | OSError] = [
        (429, {}, {"error": {"message": "slow down"}}),
        (503, {}, b"<html>out of order</html>"),
        TimeoutError("timed out"),
        (429, {"Retry-After": "7"}, {}),
    ]
    api = Api(*busy, said("[1: cat], [99]"))
    assert tagger(api, tmp_path)([noise(8, 8)], WORDS) == [[0]]  # type: ignore[list-item]
    assert len(api.seen) == 5 and waits[3] == 7
    assert all(low <= wait <= 1.25 * low for low, wait in zip((1, 2, 4), waits, strict=False))


def test_an_api_that_stays_busy(tmp_path: Path, waits: list[float]) -> None:
    api = Api((500, {}, {"error": {"message": "oh no"}}))
    with pytest.raises(OvssError, match=r"no answer after 3 attempts: 500 .*oh no"):
        tagger(api, tmp_path, attempts=3)([noise(8, 8)], WORDS)  # type: ignore[list-item]
    assert len(waits) == 2 and not list(tmp_path.iterdir())
    assert https._wait(20, {}) <= 1.25 * https.LONGEST_WAIT
    assert https._wait(0, {"retry-after": "9999"}) == https.LONGEST_WAIT


@pytest.mark.parametrize(
    "reply, message",
    [
        ((401, {}, {"error": {"message": "wrong key"}}), "answers 401: wrong key"),
        ((404, {}, {"error": {"message": "no such model"}}), "answers 404: no such model"),
        ((400, {}, {"error": {"message": "bad", "code": None}}), "answers 400: bad"),
        ((429, {}, {"error": {"message": "empty", "code": "insufficient_quota"}}), "429: empty"),
        ((200, {}, {"choices": []}), "gave no answer"),
        ((200, {}, b"<html>"), "gave no answer: .*html"),
        ((404, {}, {"error": "no such model"}), "answers 404: no such model"),
        ((404, {}, {"error": ["no such model"]}), "answers 404: .*no such model"),
        ((200, {}, {"error": "no such model"}), "gave no answer: .*no such model"),
        ((200, {}, {"choices": [{"message": {"content": 3}}]}), "gave no answer"),
        ((200, {}, {"choices": {"0": 1}}), "gave no answer"),
        ((200, {}, b"[" * 200_000), "gave no answer"),
        ((200, {}, b"9" * 10_000), "gave no answer"),
        (
            (401, {}, {"error": {"message": "you sent Bearer secret"}}),
            r"401: you sent Bearer \*\*\*",
        ),
        (
            (302, {"Location": "http://other/secret"}, b""),
            r"302, a redirect to http://other/\*\*\*",
        ),
        ((307, {}, b""), "307, a redirect to nowhere"),
    ],
)
def test_what_waiting_does_not_mend(
    tmp_path: Path, waits: list[float], reply: Reply, message: str
) -> None:
    api = Api(reply)
    with pytest.raises(OvssError, match=message) as caught:
        tagger(api, tmp_path)([noise(8, 8)], WORDS)  # type: ignore[list-item]
    assert len(api.seen) == 1 and waits == [] and not list(tmp_path.iterdir())
    assert "secret" not in str(caught.value)


def test_a_refused_image_is_an_image_without_classes(tmp_path: Path) -> None:
    api = Api((400, {}, {"error": {"message": "no", "code": "content_policy_violation"}}))
    for _ in range(2):
        assert tagger(api, tmp_path)([noise(8, 8)], WORDS) == [[]]  # type: ignore[list-item]
    assert len(api.seen) == 1


@pytest.mark.parametrize("text", ["", None, "I see nothing.", "[9: x], [99]", "[0: y], [99]"])
def test_hostile_answers(tmp_path: Path, text: Any) -> None:
    assert tagger(Api(said(text)), tmp_path)([noise(8, 8)], WORDS) == [[]]  # type: ignore[list-item]


@pytest.mark.parametrize("reason", ["length", "LENGTH", "max_tokens", "tool_calls", "error", 7])
def test_an_answer_that_was_cut_off_is_not_kept(tmp_path: Path, reason: Any) -> None:
    choice = {"finish_reason": reason, "message": {"content": "[1: cat, 2: do"}}
    with pytest.raises(OvssError, match=r"cut its answer off \(finish_reason"):
        tagger(Api((200, {}, {"choices": [choice]})), tmp_path)([noise(8, 8)], WORDS)  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())
    for whole in ("stop", None, "content_filter"):
        api = Api((200, {}, {"choices": [{**choice, "finish_reason": whole}]}))
        found = tagger(api, tmp_path / str(whole))([noise(8, 8)], WORDS)  # type: ignore[list-item]
        assert found == [[] if whole == "content_filter" else [0, 1]]


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "many",
        [1],
        {},
        {"prompt_tokens": None, "completion_tokens": 3},
        {"prompt_tokens": float("inf"), "completion_tokens": 3},
        {"prompt_tokens": "12", "completion_tokens": 3},
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": True, "completion_tokens": 10**12},
    ],
)
def test_a_bill_without_a_count_of_tokens(tmp_path: Path, usage: Any) -> None:
    reply = {"choices": [{"message": {"content": "[1: cat], [99]"}}], "usage": usage}
    found = tagger(Api((200, {}, reply)), tmp_path)
    assert found([noise(8, 8)], WORDS) == [[0]]  # type: ignore[list-item]
    assert (found.bill.asked, found.bill.uncounted, found.bill.cost) == (1, 1, 0)
    assert "unknown cost" in str(found.bill)


@pytest.mark.parametrize("content", ["", '{"answ', "[]", '{"answer": 3}', "[" * 10**5, "\xff\xfe"])
def test_a_damaged_answer_on_the_disk_is_asked_again(tmp_path: Path, content: str) -> None:
    api = Api(said("[1: cat], [99]"))
    assert tagger(api, tmp_path)([noise(8, 8)], WORDS) == [[0]]  # type: ignore[list-item]
    (place,) = tmp_path.glob("*.json")
    place.write_text(content, encoding="latin-1")
    assert tagger(api, tmp_path)([noise(8, 8)], WORDS) == [[0]]  # type: ignore[list-item]
    assert len(api.seen) == 2 and json.loads(place.read_text())["answer"] == "[1: cat], [99]"


def test_where_answers_cannot_be_kept_nothing_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    api = Api(said("[1: cat], [99]"))
    with pytest.raises(OvssError, match="no folder for the answers"):
        tagger(api, tmp_path / "file" / "cache")([noise(8, 8)], WORDS)  # type: ignore[list-item]
    assert not api.seen


@pytest.mark.parametrize("key", ["se\ncret", "\u201csecret\u201d", "se cret", "secrét", "se\0cret"])
def test_keys_that_no_header_can_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    api = Api(said("[1: cat], [99]"))
    monkeypatch.setattr("os.environ", {**os.environ, KEY: key})
    with pytest.raises(OvssError, match="the key for the API holds") as caught:
        tagger(api, tmp_path)([noise(8, 8)], WORDS)  # type: ignore[list-item]
    assert not api.seen and key not in str(caught.value) and "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.openai.com/v1",
        "ftp://x/y",
        "https://",
        "https://a b/",
        "file:///etc/passwd",
        "https://me:secret@host/",
        "https://host:99999/",
        "nonsense",
        "https://h\nost/",
    ],
)
def test_addresses_that_get_no_key(tmp_path: Path, url: str) -> None:
    with pytest.raises(OvssError, match=r"https") as caught:
        tagger(Api(said("")), tmp_path, url=url)
    assert "secret" not in str(caught.value)
    for options in ({"attempts": 0}, {"timeout": 0}, {"timeout": float("nan")}):
        with pytest.raises(OvssError, match="needs an attempt"):
            tagger(Api(said("")), tmp_path, **options)


def test_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(said("[1: cat], [99]"))
    tagger(api, tmp_path)([noise(8, 8)], WORDS)  # type: ignore[list-item]
    monkeypatch.delenv(KEY)
    assert tagger(api, tmp_path)([noise(8, 8)], WORDS) == [[0]]  # type: ignore[list-item]
    with pytest.raises(OvssError, match="set the environment variable OPENAI_API_KEY"):
        tagger(api, tmp_path)([noise(8, 8, 1)], WORDS)  # type: ignore[list-item]


def test_the_question_needs_a_place_for_the_classes() -> None:
    with pytest.raises(OvssError, match="CATEGORIES"):
        Gpt4oTagger(question="What do you see?")


def test_many_questions_at_once(tmp_path: Path) -> None:
    api, images = Api(said("[1: cat], [99]")), [noise(8, 8, seed) for seed in range(20)]
    found = Gpt4oTagger(cache=tmp_path, post=api, workers=8)
    assert found(images, WORDS) == [[0]] * 20  # type: ignore[arg-type]
    assert found.bill.asked == 20 and found.bill.tokens_in == 20_000


def test_an_evaluation_prints_the_bill(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api, segmenter = Api(said("[1: aeroplane], [99]")), toy_segmenter()
    made = tagger(api, tmp_path / "cache")
    monkeypatch.setattr("ovss.taggers.named.Gpt4oTagger", lambda: made)
    monkeypatch.setitem(METHODS, "colours", lambda *_, **__: (segmenter.method, segmenter.decision))
    command = ["evaluate", "--method", "colours", "--dataset", "voc21", "--root", str(voc)]
    command += ["--limit", "3", "--resume", str(tmp_path / "run"), "--classes", "gpt-4o"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "(mmseg-gpt-4o-classes)" in printed and "GPT-4o: 3 images asked" in printed
    journal = (tmp_path / "run" / "journal.jsonl").read_text()
    assert "secret" not in journal and str(tmp_path) not in journal
    assert cli.main(command) == 0  # resumed: nothing is asked again
    assert len(api.seen) == 3
    ovss.evaluate(segmenter, "voc21", root=voc, limit=3, classes=made, progress=False)
    assert made.bill.cached == 3
