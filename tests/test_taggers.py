"""Taggers: which classes are in an image, by the truth, by CLIP, by stored answers."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ovss
from clips import noise, save_clip
from conftest import REPOSITORY
from ovss import OvssError, Segmenter, Vocabulary, cli
from ovss.backbones.clip import ClipBackbone
from ovss.datasets import Sample, open_dataset
from ovss.datasets.base import read_words
from ovss.errors import UnknownNameError
from ovss.evaluation.journal import ResumeError
from ovss.methods import METHODS
from ovss.taggers import ClipTagger, Oracle, PublishedAnswers, Tagger, find_tagger
from ovss.taggers.answers import Answer, read_answer
from ovss.taggers.published import COCO_IDS, class_ids
from toys import ColourMethod, toy_segmenter

GOLDEN = REPOSITORY / "tests" / "golden" / "pnp" / "functions.json"
SETS = {  # the authors' names: our data set, our list of names, means of classes, few
    "voc": ("voc20", "voc20", 1.40, 93),
    "psc": ("context59", "context59", 3.29, 38),
    "ade20k": ("ade150", "ade150", 6.05, 6),
    "coco_object": ("coco-object", "coco-object", 2.01, 78),
    "coco_stuff": ("coco-stuff", "coco-stuff", 3.41, 34),
}


def answers(texts: dict[str, str], classes: int = 20, **options: Any) -> PublishedAnswers:
    return PublishedAnswers(texts, class_ids("voc20", classes), **options)


# ---- answers as text


@pytest.mark.parametrize(
    "text, ids, percent, issue",
    [
        ("[1: 'aeroplane'], [100%]", (1,), (100,), None),
        ("[19: train, 15: person], [95, 70]", (19, 15), (95, 70), None),
        ('[2: "bicycle"],\n\n[90 %]', (2,), (90,), None),
        ("[7: 'car']\n[69%]", (7,), (69,), None),
        ("[[1: 'wall', 2: 'building;edifice'], [90%, 80%]]", (1, 2), (90, 80), None),
        ("[2: 'building, edifice', 3: sky, blue], [90%, 80%]", (2, 3), (90, 80), None),
        ("[12: 'dog', 8: 'cat'], \n[dog: 99%, cat: 85%]", (12, 8), (99, 85), None),
        ("[1: cow], [95% probability of class1]", (1,), (95,), None),
        ("[61: cake], [probability of class1 in percentage: 95]", (61,), (95,), None),
        ("[87: scissors], [95: 100]", (87,), (100,), None),
        ("[5: a, 6: b], [95% , 72.5%,]", (5, 6), (95, 72.5), None),
        ("1: cat, 2: dog", (1, 2), (100, 100), "unlisted"),
        ("[2: bicycle]", (2,), (100,), "unlisted"),
        ("[1: a, 2: b, 3: c], [90, 80]", (1, 2, 3), (90, 80, None), "uneven"),
        ("[1: a], [90, 80]", (1,), (90,), "uneven"),
        ("[1: a, 2: b], [100%: 100%]", (1, 2), (100, None), "uneven"),
        ("[1: a, 2: b], [high, 90]", (1, 2), (None, 90), "uneven"),
        ("[1: a], []", (1,), (None,), "uneven"),
        ("", (), (), "empty"),
        (" \n", (), (), "empty"),
        ("I cannot help with that.", (), (), "unreadable"),
        ("[], []", (), (), "unreadable"),
        ("[cat, dog], [90, 80]", (), (), "unreadable"),
        ("[15: person, 8: cat], [0.95, 0.80]", (15, 8), (95, 80), None),
        ("[15: person, 8: cat], [1.0, .8]", (15, 8), (100, 80), None),
        ("[15: person, 8: cat], [1, 0]", (15, 8), (1, 0), None),
        ("[15: person], [0.95%]", (15,), (0.95,), None),
        ("[15: person, 8: cat], [95, 0.5]", (15, 8), (95, 0.5), None),
        ("[15: person], [9.5e1]", (15,), (95,), None),
        ("[15: person, 8: cat], [-5, 130%]", (15, 8), (-5, 130), "outside"),
        ("['15': 'person', '8': 'cat'], ['95%', '80%']", (15, 8), (95, 80), None),
        ('{"15": "person", "8": "cat"}', (15, 8), (100, 100), "unlisted"),
        ('{"15": 95, "8": "80%"}', (15, 8), (95, 80), None),
        ('{"15": 0.95, "8": 0.8}', (15, 8), (95, 80), None),
        ('["15: person", "8: cat"]', (15, 8), (100, 100), "unlisted"),
        ('[["15: person", "8: cat"], ["95%", "80%"]]', (15, 8), (95, 80), None),
        ('[{"15": "person", "8": "cat"}, [95, 80]]', (15, 8), (95, 80), None),
        (f"[{'1' * 10_000}: person, 8: cat], [95, 80]", (-1, 8), (95, 80), None),
        (f"[0008: cat], [{'9' * 400}]", (8,), (float("inf"),), "outside"),
    ],
)
def test_answers_of_all_forms(
    text: str, ids: tuple[int, ...], percent: tuple[float, ...], issue: str | None
) -> None:
    found = read_answer(text)
    assert (found.ids, found.percent, found.issue) == (ids, percent, issue)
    assert len(found.names) == len(ids)


def test_names_keep_what_belongs_to_them() -> None:
    found = read_answer("[33: 'fence;fencing', 2: traffic light, 3: \"stop sign\"], [1, 2, 3]")
    assert found.names == ("fence;fencing", "traffic light", "stop sign")


@given(st.text(alphabet="[]{}0123456789:,'\"% \nabc;.", max_size=60))
def test_no_text_is_an_error(text: str) -> None:
    found = read_answer(text)
    assert len(found.ids) == len(found.names) == len(found.percent)
    kept = answers({"a": text}).classes("a")
    assert len(kept) == len(set(kept)) and all(0 <= one < 20 for one in kept)
    assert kept or answers({"a": text}).report().nothing == ("a",)
    assert answers({"a": text}, first_if_none=True).classes("a") == (kept or [0])


def test_the_threshold_is_strict_and_an_id_may_repeat() -> None:
    found = Answer((1, 2, 3, 1), ("a", "b", "c", "a"), (71, 70, None, 90))
    assert found.above(70) == [1, 1]
    assert answers({"i": "[4: x, 4: x, 9: y], [80, 90, 75]"}).classes("i") == [3, 8]


# ---- published answers


def test_coco_counts_its_ids_with_gaps() -> None:
    assert len(COCO_IDS) == 171 and COCO_IDS[79] == 90 and COCO_IDS[80] == 92
    assert class_ids("coco-object", 80)[-1] == 90 and class_ids("coco-stuff", 171)[-1] == 182
    assert class_ids("ade150", 150) == tuple(range(1, 151))


def test_golden_answers() -> None:
    """The authors' own reader on 28 answers of five data sets: the same classes, in order."""
    golden = json.loads(GOLDEN.read_text())["gpt"]
    assert set(golden) == set(SETS)
    for key, cases in golden.items():
        dataset, words, *_ = SETS[key]
        ids = class_ids(dataset, len(read_words(words)))
        texts = {str(i): one["answer"] for i, one in enumerate(cases)}
        found = PublishedAnswers(texts, ids, first_if_none=True)
        for i, one in enumerate(cases):
            assert found.classes(str(i)) == one["best_class_idx"], one["answer"]


def test_without_a_class_the_first_one_counts_or_none() -> None:
    texts = {"low": "[7: 'car'], [70%]", "none": "", "zero": "[0: None], [100]"}
    assert [answers(texts).classes(one) for one in texts] == [[], [], []]
    authors = answers(texts, first_if_none=True)
    assert [authors.classes(one) for one in texts] == [[0], [0], [0]]
    assert (answers(texts).name, authors.name) == ("published", "published-first")
    assert answers(texts, threshold=50).classes("low") == [6]


def test_a_report_names_the_images() -> None:
    texts = {
        "a": "[1: x, 2: y, 3: z], [90, 80, 95]",
        "b": "",
        "c": "Sorry.",
        "d": "[4: w]",
        "e": "[5: v, 6: u], [90]",
        "f": "[99: t, 1: x], [90, 90]",
        "g": "[1: x], [10]",
    }
    report = answers(texts).report()
    assert report.entries == 7 and report.mean == pytest.approx(6 / 7)
    assert answers(texts, first_if_none=True).report().mean == pytest.approx(9 / 7)
    assert report.few == pytest.approx(100 * 6 / 7)
    assert (report.empty, report.unreadable, report.unlisted) == (("b",), ("c",), ("d",))
    assert (report.uneven, report.unknown) == (("e",), ("f",))
    assert report.nothing == ("b", "c", "g") and report.missing == ()
    assert "7 images, 0.86 classes an image, 86 % with fewer than three" in str(report)
    assert "nothing: 3 (b, c, g)" in str(report) and "missing" not in str(report)
    part = answers(texts).report(["a", "z"])
    assert part.entries == 1 and part.missing == ("z",) and part.mean == 3


def test_what_is_no_file_of_answers(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    with pytest.raises(OvssError, match="No such file"):
        PublishedAnswers.read(path, "voc21", 20)
    path.write_text("{")
    with pytest.raises(OvssError, match="is not JSON"):
        PublishedAnswers.read(path, "voc21", 20)
    path.write_text("[1]")
    with pytest.raises(OvssError, match="not a list"):
        PublishedAnswers.read(path, "voc21", 20)
    path.write_text('{"a": null, "b": ["1: cat"], "c": "[2: dog]"}')
    found = PublishedAnswers.read(path, "voc21", 20)
    assert found.source.startswith("answers.json@") and len(found.source) == 25
    assert found.report().empty == ("a",) and found.classes("c") == [1]
    assert found.classes("b") == [0]
    for content, message in (
        ("[" * 100_000, "is not JSON"),
        ('{"a": "[1: x]", "a": "[2: y]"}', "holds 'a' twice"),
        ('{"a": ' + "9" * 10_000 + "}", "is not JSON"),
        ('{"a": ["person", "cat"]}', r"form of an answer is \[15: person"),
        ('{"a": 15, "b": null}', r"form of an answer is \[15: person"),
    ):
        path.write_text(content)
        with pytest.raises(OvssError, match=message):
            PublishedAnswers.read(path, "voc21", 20)
    path.write_bytes('{"a": "[2: dog], [80]"}'.encode("utf-16"))
    assert PublishedAnswers.read(path, "voc21", 20).classes("a") == [1]
    with pytest.raises(OvssError, match="are no file"):
        PublishedAnswers.read(tmp_path, "voc21", 20)


def test_a_file_decides_what_its_numbers_are(tmp_path: Path) -> None:
    """Fractions if none of the unsigned ones is above 1; an odd answer is named, not guessed."""
    fractions = answers(
        {"a": "[1: x, 2: y], [0.95, 0.6]", "b": "[3: z], [1]", "c": "[4: w], [75%]"}
    )
    assert [fractions.classes(one) for one in "abc"] == [[0], [2], [3]]
    assert "are fractions" in str(fractions.report())
    mixed = {"a": "[1: x], [90]", "b": "[2: y], [0.95]", "c": "Sorry."}
    assert answers(mixed).report().fraction == ("b",) and answers(mixed).classes("b") == []
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(mixed))
    with pytest.warns(UserWarning, match=r"unreadable: 1 \(c\); fraction: 1 \(b\)"):
        PublishedAnswers.read(path, "voc21", 20)


def test_images_and_words_must_fit() -> None:
    words, sample = Vocabulary.of("cat, dog"), Sample("a", noise(8, 8), np.zeros((8, 8), int))
    found = answers({"a": "[2: dog]"}, classes=2)
    assert found([sample], words) == [[1]]
    with pytest.raises(OvssError, match="2 classes apart, the vocabulary has 1"):
        found([sample], Vocabulary.of("cat"))
    with pytest.raises(OvssError, match="no answer for the image 'b'"):
        found.classes("b")
    with pytest.raises(OvssError, match="give samples"):
        found([noise(8, 8)], words)  # type: ignore[list-item]


@pytest.mark.skipif("OVSS_GPT4O" not in os.environ, reason="OVSS_GPT4O names no folder of answers")
@pytest.mark.parametrize("key", SETS)
def test_the_published_files(key: str) -> None:
    """Every entry is read; means and shares are those of the authors' rules."""
    dataset, words, mean, few = SETS[key]
    names = read_words(words)
    path = Path(os.environ["OVSS_GPT4O"]) / f"{key}_classification_noboundary.json"
    found = PublishedAnswers.read(path, dataset, len(names), first_if_none=True)
    report = found.report()
    assert (round(report.mean, 2), round(report.few)) == (mean, few)
    assert report.empty == report.unreadable == report.unlisted == ()
    assert len(report.nothing) == {"voc": 8, "psc": 2, "ade20k": 0}.get(key, len(report.nothing))
    spelt: dict[int, Counter[str]] = {}
    for text in found.answers.values():
        answer = read_answer(text)
        for one, name in zip(answer.ids, answer.names, strict=True):
            spelt.setdefault(one, Counter())[name.replace(";", " ")] += 1
    for one, name in zip(found.ids, names, strict=True):
        usual = spelt[one].most_common(1)[0][0] if one in spelt else name
        renamed = {"diningtable": "table", "armchair": "seat", "television receiver": "television"}
        assert f"{usual} ".startswith(f"{name} ") or usual.startswith(renamed.get(name, "-"))


def test_the_lists_of_names() -> None:
    sizes = {"context59": 59, "coco-object": 80, "coco-stuff": 171, "ade150": 150}
    for name, size in sizes.items():
        assert len(Vocabulary.of(read_words(name))) == size  # no name appears twice
    assert read_words("coco-stuff")[:80] == read_words("coco-object")


# ---- the truth, CLIP


def sample(target: list[list[int]]) -> Sample:
    return Sample("a", noise(len(target[0]), len(target)), np.array(target))


def test_the_oracle_reads_the_target() -> None:
    words = Vocabulary.of("a, b, c")
    assert Oracle()([sample([[2, -1], [0, -2]]), sample([[-1, -2]])], words) == [[0, 2], []]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    return ClipBackbone.load(save_clip(tmp_path_factory.mktemp("zoo") / "clip"))


WORDS = Vocabulary.of([["cat", "kitten"], "dog", "grass"], background="sky")


def test_clip_compares_views_with_words(clip: ClipBackbone) -> None:
    """The scores, view by view and image by image."""
    tagger, images = ClipTagger(clip, windows=2), [noise(40, 40, 1), noise(60, 33, 2)]
    found = tagger.scores(images, WORDS)
    assert found.shape == (2, 3)
    text = clip.text_features(WORDS)
    for image, scores in zip(images, found, strict=True):
        views = tagger.views(image)
        half = ((image.width + 1) // 2, (image.height + 1) // 2)
        assert [view.size for view in views] == [image.size, *[half] * 4]
        best = np.zeros(3)
        for view in views:
            embedded = clip.image_embedding(clip.preprocess(view, 32)[None])
            logits = clip.model.logit_scale.exp() * embedded @ text.T
            likely = logits.softmax(1)[0].detach().numpy()
            best = np.maximum(best, [max(likely[:2]), likely[2], likely[3]])
        np.testing.assert_allclose(scores.numpy(), best, rtol=1e-4)


def test_windows_reach_the_borders() -> None:
    tagger = ClipTagger(None, windows=3)  # type: ignore[arg-type]
    image = Image.fromarray(np.arange(9 * 7, dtype=np.uint8).reshape(9, 7)).convert("RGB")
    views = tagger.views(image)
    assert len(views) == 10 and views[1].size == (4, 5)
    assert views[1].getpixel((0, 0)) == (0, 0, 0) and views[9].getpixel((3, 4)) == (62, 62, 62)
    assert len(ClipTagger(None, windows=0).views(image)) == 1  # type: ignore[arg-type]
    middle = ClipTagger(None, windows=1).views(image)[1]  # type: ignore[arg-type]
    assert middle.getpixel((0, 0)) == (2 * 7 + 1,) * 3


def test_clip_keeps_what_comes_near_the_best(clip: ClipBackbone) -> None:
    images = [noise(40, 40, seed) for seed in range(4)]
    scores = ClipTagger(clip).scores(images, WORDS)
    for keep in (0.0, 0.9, 1.0):
        found = ClipTagger(clip, keep)(images, WORDS)  # type: ignore[arg-type]
        assert found == [[k for k in range(3) if row[k] >= keep * row.max()] for row in scores]
    assert ClipTagger(clip)([], WORDS) == []
    alone = ClipTagger(clip)(images[:1], WORDS)  # type: ignore[arg-type]
    assert alone == ClipTagger(clip)(images, WORDS)[:1]  # type: ignore[arg-type]


def test_options_are_checked(clip: ClipBackbone) -> None:
    with pytest.raises(OvssError, match="keep"):
        ClipTagger(clip, 1.5)
    with pytest.raises(OvssError, match="windows"):
        ClipTagger(clip, windows=-1)


# ---- evaluations


class Names:
    """Says the first class of every image, and counts."""

    name = "first"
    calls = 0

    def __call__(self, samples: Any, vocabulary: Vocabulary) -> list[list[int]]:
        type(self).calls += len(samples)
        return [[0] if i % 2 == 0 else [] for i in range(len(samples))]


def test_an_evaluation_asks_the_tagger(voc: Path, tmp_path: Path) -> None:
    tagger: Tagger = Names()
    options: dict[str, Any] = {"root": voc, "progress": False, "resume": tmp_path, "batch": 4}
    result = ovss.evaluate(toy_segmenter(), "voc21", classes=tagger, **options)
    assert result.protocol == "mmseg-first-classes" and result.image_scores is None
    predicted = result.areas[:, 2, 1:] > 0
    assert predicted[:, 1:].sum() == 0  # no other class than the first one
    assert (result.areas[1::4, 2, 1:] == 0).all()  # nothing but background where none is named
    calls = Names.calls
    again = ovss.evaluate(toy_segmenter(), "voc21", classes=tagger, **options)
    assert Names.calls == calls and (again.areas == result.areas).all()
    with pytest.raises(ResumeError, match="classes"):
        ovss.evaluate(toy_segmenter(), "voc21", classes="image", **options)


def test_the_oracle_is_the_image_protocol(voc: Path) -> None:
    by_word, by_tagger = (
        ovss.evaluate(toy_segmenter(), "voc21", root=voc, limit=6, progress=False, classes=classes)
        for classes in ("image", Oracle())
    )
    assert by_word.protocol == by_tagger.protocol == "mmseg-image-classes"
    np.testing.assert_array_equal(by_word.areas, by_tagger.areas)


def test_the_tagger_is_part_of_the_checkpoint(voc: Path, clip: ClipBackbone) -> None:
    words = Vocabulary.of(open_dataset("voc21", voc).names, templates=("{}",))
    options: dict[str, Any] = {"root": voc, "limit": 2, "progress": False, "vocabulary": words}
    found = ovss.evaluate(toy_segmenter(), "voc21", classes=ClipTagger(clip), **options)
    assert found.protocol == "mmseg-clip-classes" and clip.checkpoint in found.checkpoint


@pytest.mark.parametrize("classes", ["some", 3, None])
def test_no_tagger(voc: Path, classes: Any) -> None:
    with pytest.raises(OvssError, match="'image' or a tagger"):
        ovss.evaluate(toy_segmenter(), "voc21", root=voc, classes=classes)


def test_the_command_line(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter = Segmenter(ColourMethod(), decision=toy_segmenter().decision)
    built = (segmenter.method, segmenter.decision)
    monkeypatch.setitem(METHODS, "colours", lambda profile, **options: built)
    data = open_dataset("voc21", voc)
    present = Oracle()(list(data), data.vocabulary)
    texts = [", ".join(f"{k + 1}: {data.names[k]}" for k in classes) for classes in present]
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(dict(zip(data.ids, texts, strict=True))))
    command = ["evaluate", "--method", "colours", "--dataset", "voc21", "--root", str(voc)]
    printed = []
    for classes in ("image", str(path), f"{path}:first"):
        assert cli.main([*command, "--classes", classes]) == 0
        printed.append(capsys.readouterr().out)
    assert "(mmseg-published-classes)" in printed[1]
    assert "(mmseg-published-first-classes)" in printed[2]
    assert printed[0].splitlines()[:-1] == printed[1].splitlines()[:-1]
    assert cli.main([*command, "--classes", "clipp"]) == 2
    assert "did you mean 'clip'" in capsys.readouterr().err


def test_taggers_by_name(voc: Path) -> None:
    data = open_dataset("voc21", voc)
    assert isinstance(find_tagger("image", data), Oracle)
    assert find_tagger("gpt-4o", data).name == "gpt-4o"
    with pytest.raises(UnknownNameError, match=r"FILE\.json"):
        find_tagger("everything", data)
    with pytest.raises(UnknownNameError, match="profile"):
        find_tagger("clip", data, "laboratory")
