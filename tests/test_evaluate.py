"""Evaluation: right counts, the same ones however it is batched, killed and started again."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ovss
from conftest import REPOSITORY
from ovss import Result, Segmenter, Vocabulary
from ovss.datasets import Sample, VocDataset, open_dataset
from ovss.decide import Threshold
from ovss.errors import DatasetError, OvssError, ScoreError
from ovss.evaluation import fingerprint, metrics
from ovss.evaluation.journal import ResumeError, open_journal
from ovss.labels import BACKGROUND
from ovss.provenance import describe, find
from toys import ColourMethod, toy_segmenter


def run(segmenter: Segmenter, voc: Path, **options: Any) -> Result:
    return ovss.evaluate(segmenter, "voc21", root=voc, progress=False, **options)


def same(first: Result, second: Result) -> bool:
    return (
        np.array_equal(first.areas, second.areas)
        and np.array_equal(first.confusion, second.confusion)
        and first.ids == second.ids
        and np.array_equal(first.image_scores, second.image_scores)  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def whole(voc: Path) -> Result:
    """The undisturbed run."""
    return run(toy_segmenter(), voc)


def test_counts_equal_a_loop(voc: Path, segmenter: Segmenter, whole: Result) -> None:
    data = open_dataset("voc21", voc)
    tables = [
        metrics.confusion(segmenter(one.image, data.vocabulary).labels, one.target, 20)
        for one in data
    ]
    np.testing.assert_array_equal(whole.confusion, sum(tables))
    np.testing.assert_array_equal(whole.areas, metrics.areas(np.stack(tables)))
    assert whole.miou == pytest.approx(100 * metrics.miou(sum(tables)))
    assert 20 < whole.miou < 95  # the toy is neither useless nor perfect: errors would show
    assert whole.images == 23 and whole.ids == data.ids
    assert list(whole.per_class)[:2] == ["background", "aeroplane"] and len(whole.per_class) == 21
    assert np.nanmean(list(whole.per_class.values())) == pytest.approx(whole.miou)
    low, high = whole.interval
    assert low < whole.miou < high and whole.seconds_per_image > 0
    scores = [segmenter(one.image, data.vocabulary).scores.amax((1, 2)).numpy() for one in data]
    np.testing.assert_array_equal(whole.image_scores, np.stack(scores))
    truth = [[(one.target == k).any() for k in range(20)] for one in data]
    np.testing.assert_array_equal(whole.present, truth)
    assert whole.classification(0.5)["mAP"][0] > 50  # the toy knows its colours


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 5, "workers": 2}, {"batch": 100}])
def test_batches_do_not_matter(
    voc: Path, segmenter: Segmenter, whole: Result, options: dict[str, Any]
) -> None:
    assert same(run(segmenter, voc, **options), whole)


def test_order_of_the_images_does_not_matter(
    voc: Path, segmenter: Segmenter, whole: Result
) -> None:
    data = open_dataset("voc21", voc)
    turned = dataclasses.replace(data)
    turned.__dict__["ids"] = data.ids[::-1]
    result = ovss.evaluate(segmenter, turned, progress=False)
    np.testing.assert_array_equal(result.confusion, whole.confusion)
    np.testing.assert_array_equal(result.areas[::-1], whole.areas)


def test_limit_draws_by_seed(voc: Path, segmenter: Segmenter, whole: Result) -> None:
    few, more = run(segmenter, voc, limit=5), run(segmenter, voc, limit=9)
    assert few.images == 5 and set(few.ids) < set(more.ids) < set(whole.ids)
    assert run(segmenter, voc, limit=5, seed=1).ids != few.ids
    assert same(run(segmenter, voc, limit=1000), whole)
    places = [whole.ids.index(name) for name in few.ids]
    np.testing.assert_array_equal(few.areas, whole.areas[places])
    for limit in (0, -3):
        with pytest.raises(OvssError, match="at least 1"):
            run(segmenter, voc, limit=limit)


class Asked(ColourMethod):
    """Remembers what it was asked for."""

    seen: list[tuple[str, ...]] = []  # noqa: RUF012

    def score(self, images: Any, vocabulary: Vocabulary) -> list[torch.Tensor]:
        self.seen.append(vocabulary.names)
        return super().score(images, vocabulary)


def test_classes_of_the_image_only(voc: Path) -> None:
    Asked.seen.clear()
    segmenter = Segmenter(Asked(), decision=Threshold(0.2))
    result = run(segmenter, voc, classes="image")
    data = open_dataset("voc21", voc)
    present = [np.unique(one.target[one.target >= 0]) for one in data]
    assert Asked.seen == [tuple(data.names[k] for k in some) for some in present if some.size]
    for area, some in zip(result.areas, present, strict=True):
        predicted = np.flatnonzero(area[2, 1:])
        assert set(predicted) <= set(some)
    assert result.protocol == "mmseg-image-classes" and result.image_scores is None
    argmax = Segmenter(ColourMethod())
    asked, all_asked = (
        ovss.evaluate(argmax, "voc20", root=voc, classes=classes, progress=False).miou
        for classes in ("image", "all")
    )
    assert asked > all_asked  # fewer classes to be mistaken for


class Empty:
    """One image without any class."""

    name, split, protocol, has_background = "empty", "val", "mmseg", True
    ids, names, vocabulary = ("a",), ("cat",), Vocabulary.of("cat")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        from PIL import Image

        return Sample("a", Image.new("RGB", (4, 3)), np.full((3, 4), BACKGROUND))


def test_an_image_without_classes_is_all_background(segmenter: Segmenter) -> None:
    result = ovss.evaluate(segmenter, Empty(), classes="image", progress=False)
    assert result.confusion.tolist() == [[12, 0], [0, 0]] and result.miou == 100


def test_other_words_for_the_same_classes(voc: Path, segmenter: Segmenter, whole: Result) -> None:
    plain = open_dataset("voc21", voc).vocabulary
    words = Vocabulary.of([[name, f"{name} too"] for name in plain.names], background="sky")
    assert not same(run(segmenter, voc, vocabulary=words), whole)
    with pytest.raises(OvssError, match="has 1 classes, voc21 has 20"):
        run(segmenter, voc, vocabulary=Vocabulary.of("cat"))


def test_arguments_are_checked(voc: Path, segmenter: Segmenter) -> None:
    wrong: dict[str, tuple[Any, ...]] = {
        "batch": (0, -1, 2.5, True),
        "seed": (-1, 2**63, 0.5, "0"),
        "workers": (-1,),
        "limit": (0, 1.5),
        "bootstrap": (0,),
    }
    for option, values in wrong.items():
        for value in values:
            with pytest.raises(OvssError, match=f"{option} must be a whole number.*got"):
                run(segmenter, voc, **{option: value})
    with pytest.raises(OvssError, match="classes"):
        run(segmenter, voc, classes="some")


def test_groups_of_classes(whole: Result) -> None:
    names = ["cat", "dog", "train"]
    value, interval = whole.group(names)
    assert value == pytest.approx(np.nanmean([whole.per_class[name] for name in names]))
    assert interval.low <= value <= interval.high
    everything, _ = whole.group(whole.names)
    assert everything == pytest.approx(100 * metrics.miou(whole.confusion, background=False))


class Fragile(ColourMethod):
    """Fails at the n-th call."""

    left = 10**9

    def score(self, images: Any, vocabulary: Vocabulary) -> list[torch.Tensor]:
        type(self).left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().score(images, vocabulary)


def test_an_interrupted_run_goes_on(
    voc: Path, tmp_path: Path, whole: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter = Segmenter(Fragile(), decision=Threshold(0.2))
    Fragile.left = 3
    with pytest.raises(KeyboardInterrupt):
        run(segmenter, voc, resume=tmp_path, batch=4)
    assert "again to go on" in capsys.readouterr().err
    Fragile.left = 3  # 23 images in batches of 4 are 6 calls: none may be repeated
    assert same(run(segmenter, voc, resume=tmp_path, batch=4), whole)
    assert Fragile.left == 0
    assert same(run(segmenter, voc, resume=tmp_path, batch=4), whole)
    assert Fragile.left == 0


@pytest.mark.parametrize("cut", [1, 2, 9, 60, 500])
def test_a_torn_tail_is_cut_off(voc: Path, tmp_path: Path, whole: Result, cut: int) -> None:
    segmenter = Segmenter(Fragile(), decision=Threshold(0.2))
    Fragile.left = 100
    run(segmenter, voc, resume=tmp_path, batch=4)
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert same(run(segmenter, voc, resume=tmp_path, batch=3), whole)
    Fragile.left = 0  # what was measured anew was kept: nothing is left to do
    assert same(run(segmenter, voc, resume=tmp_path), whole)


def test_a_damaged_line_is_measured_again(
    voc: Path, segmenter: Segmenter, tmp_path: Path, whole: Result
) -> None:
    run(segmenter, voc, resume=tmp_path, batch=4)
    journal = tmp_path / "journal.jsonl"
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)
    assert same(run(segmenter, voc, resume=tmp_path, batch=4), whole)


@pytest.mark.parametrize("head", [b"", b"0", b"12345678 {", b"\x00\x00\x00"])
def test_a_torn_first_line_starts_anew(
    voc: Path, segmenter: Segmenter, tmp_path: Path, whole: Result, head: bytes
) -> None:
    (tmp_path / "journal.jsonl").write_bytes(head)
    assert same(run(segmenter, voc, resume=tmp_path), whole)


def test_another_evaluation_is_refused(voc: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    run(segmenter, voc, resume=tmp_path, limit=4)
    changed: list[tuple[Segmenter, dict[str, Any]]] = [
        (segmenter, {"limit": 5}),
        (segmenter, {"limit": 4, "seed": 1}),
        (segmenter, {"limit": 4, "classes": "image"}),
        (Segmenter(ColourMethod(patch=4), decision=Threshold(0.2)), {"limit": 4}),
        (toy_segmenter(0.3), {"limit": 4}),
    ]
    before = (tmp_path / "journal.jsonl").read_bytes()
    for other, options in changed:
        with pytest.raises(ResumeError, match="choose another resume folder"):
            run(other, voc, resume=tmp_path, **options)
    with pytest.raises(ResumeError, match=r"dataset: voc21 there, voc20 now"):
        ovss.evaluate(segmenter, "voc20", root=voc, resume=tmp_path, limit=4, progress=False)
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_a_strange_file_is_not_overwritten(voc: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text("my diary\nof two lines\n")
    with pytest.raises(ResumeError, match="not a journal"):
        run(segmenter, voc, resume=tmp_path)
    assert (tmp_path / "journal.jsonl").read_text().startswith("my diary")


def restarted(voc: Path, folder: Path, segmenter: Segmenter, **options: Any) -> Result:
    """The same folder and images, some of them counted before."""
    return run(segmenter, voc, resume=folder, limit=6, batch=2, **options)


def test_what_does_not_change_counts_may_change(voc: Path, tmp_path: Path) -> None:
    """Device, workers and images at once; and the data set lies on another disk now."""

    @dataclasses.dataclass(frozen=True)
    class Placed(ColourMethod):
        device: str = "cpu"
        batch: int = 8
        together: bool = False

        @property
        def depends_on_batch(self) -> bool:
            return self.together

        @property
        def speed_options(self) -> tuple[str, ...]:
            return () if self.together else ("batch",)

    def placed(**options: Any) -> Segmenter:
        return Segmenter(Placed(**options), decision=Threshold(0.2))

    first = restarted(voc, tmp_path / "run", placed())
    shutil.copytree(voc, tmp_path / "copy")
    more = {"batch": 5, "workers": 2}
    moved = placed(device="mps", batch=1)
    again = run(moved, tmp_path / "copy", resume=tmp_path / "run", limit=6, **more)
    assert same(again, first)
    restarted(voc, tmp_path / "together", placed(together=True))
    with pytest.raises(ResumeError, match=r"segmenter\.method\.batch: 8 there, 1 now"):
        restarted(voc, tmp_path / "together", placed(together=True, batch=1))
    with pytest.raises(ResumeError, match="batch: 2 there, 3 now"):
        run(placed(together=True), voc, resume=tmp_path / "together", limit=6, batch=3)


def test_other_data_are_refused(voc: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    """A mask that was drawn anew, of the same size and on the same day."""
    root = tmp_path / "voc"
    shutil.copytree(voc, root)
    first = restarted(root, tmp_path / "run", segmenter)
    masks = root / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    mask = masks / f"{first.ids[2]}.png"
    before, stat = mask.read_bytes(), mask.stat()
    content = bytearray(before)
    content[-20] ^= 1
    mask.write_bytes(content)
    os.utime(mask, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ResumeError, match=r"\(data: \w+ there, \w+ now\)"):
        restarted(root, tmp_path / "run", segmenter)
    mask.write_bytes(before)
    assert same(restarted(root, tmp_path / "run", segmenter), first)
    mask.unlink()
    with pytest.raises(DatasetError, match=mask.name):
        restarted(root, tmp_path / "run", segmenter)


def test_data_without_files_are_told_by_their_pixels() -> None:
    class Changed(Empty):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            sample.image.putpixel((0, 0), (0, 0, 1))
            return sample

    assert fingerprint.content(Empty(), [0]) == fingerprint.content(Empty(), [0])
    assert fingerprint.content(Empty(), [0]) != fingerprint.content(Changed(), [0])


def test_counted_anew_if_asked(voc: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    other = toy_segmenter(0.6)
    first, second = restarted(voc, tmp_path, segmenter), run(other, voc, limit=6, batch=2)
    with pytest.raises(ResumeError, match="restart=True"):
        restarted(voc, tmp_path, other)
    assert same(restarted(voc, tmp_path, other, restart=True), second)
    assert not same(first, second) and len(list(tmp_path.glob("journal-*.jsonl"))) == 1
    Fragile.left = 0  # equal ones go on
    same_one = Segmenter(Fragile(), decision=Threshold(0.2))
    Fragile.left = 100
    whole = restarted(voc, tmp_path / "f", same_one)
    Fragile.left = 0
    assert same(restarted(voc, tmp_path / "f", same_one, restart=True), whole)


def closing_over(tau: float) -> Any:
    def rule(scores: torch.Tensor, image_scores: Any = None) -> torch.Tensor:
        best, index = scores.max(0)
        return index.masked_fill(best < tau, BACKGROUND)

    return rule


def test_code_and_values_of_a_notebook_are_options_too(voc: Path, tmp_path: Path) -> None:
    first, other = (Segmenter(ColourMethod(), decision=closing_over(tau)) for tau in (0.2, 0.7))
    restarted(voc, tmp_path, first)
    with pytest.raises(ResumeError, match=r"segmenter\.decision\.code"):
        restarted(voc, tmp_path, other)
    cells = ("x + 1", "x + 2", "x + 1  # a remark")
    found = []
    for cell in cells:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(f"class Mine:\n    def f(self, x): return {cell}", space)
        found.append(fingerprint.identity(space["Mine"]()))
    assert found[0] == found[2] != found[1]
    assert "code" not in fingerprint.identity(Threshold(0.2))


def test_tensors_are_told_by_their_values() -> None:
    zeros, ones = (
        fingerprint.identity({"noise": make(2, 3)}) for make in (torch.zeros, torch.ones)
    )
    assert zeros != ones and zeros == fingerprint.identity({"noise": torch.zeros(2, 3)})
    assert zeros != fingerprint.identity({"noise": torch.zeros(3, 2)})
    array = fingerprint.identity(np.arange(3.0))
    assert array == fingerprint.identity(np.arange(3.0)) != fingerprint.identity(np.arange(4.0))
    nan = fingerprint.identity(float("nan"))
    assert nan == fingerprint.identity(np.float32("nan")) and json.loads(json.dumps(nan)) == nan


PROGRAM = """
import sys
import ovss
from toys import toy_segmenter
found = ovss.evaluate(toy_segmenter(), "voc21", root=sys.argv[1], resume=sys.argv[2] or None,
                      limit=8, batch=2, progress=False)
print(f"{found.miou:.2f} on {found.images}")
"""


@pytest.mark.slow
def test_two_programs_do_not_count_together(voc: Path, tmp_path: Path) -> None:
    """One half counted by this program, then a line of it changed: two numbers once became one."""
    for part in ("ovss", "tests", "data/vocabularies"):
        shutil.copytree(REPOSITORY / part, tmp_path / "other" / part)
    decide = tmp_path / "other" / "ovss" / "decide.py"
    program_text = decide.read_text()
    assert program_text.count("best < self.tau, BACKGROUND") == 1
    decide.write_text(program_text.replace("best < self.tau,", "best < 9 + self.tau,"))

    def program(home: Path, resume: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(home), str(home / "tests")])
        command = [sys.executable, "-c", PROGRAM, str(voc), resume]
        more = {"env": {**environment(), "PYTHONPATH": path}, "cwd": tmp_path}
        return subprocess.run(command, capture_output=True, text=True, **more)  # type: ignore[call-overload]

    folder = tmp_path / "run"
    ours = program(REPOSITORY, str(folder))
    theirs = program(tmp_path / "other", "")
    assert ours.returncode == theirs.returncode == 0, ours.stderr + theirs.stderr
    assert ours.stdout != theirs.stdout
    journal = folder / "journal.jsonl"
    half = journal.read_bytes().splitlines(keepends=True)[:3]
    journal.write_bytes(b"".join(half))
    mixed = program(tmp_path / "other", str(folder))
    assert mixed.returncode == 1 and mixed.stdout == ""
    last = mixed.stderr.splitlines()[-1]
    assert "ResumeError" in last and "code: " in last
    assert journal.read_bytes() == b"".join(half)
    done = program(REPOSITORY, str(folder))
    assert done.stdout == ours.stdout


# ---- damaged journals


def counted(voc: Path, folder: Path) -> Path:
    """The journal of a whole run in six batches."""
    run(toy_segmenter(), voc, resume=folder, batch=4)
    return folder / "journal.jsonl"


def test_what_follows_a_damaged_line_is_kept(
    voc: Path, tmp_path: Path, whole: Result, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter = Segmenter(Fragile(), decision=Threshold(0.2))
    Fragile.left = 100
    run(segmenter, voc, resume=tmp_path, batch=4)
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:40] + b"\n"
    journal.write_bytes(b"".join(lines))
    Fragile.left = 1  # one batch of four is missing
    assert same(run(segmenter, voc, resume=tmp_path, batch=4), whole)
    assert Fragile.left == 0 and "1 damaged line" in caplog.text


def test_a_record_that_stands_twice_counts_once(voc: Path, tmp_path: Path, whole: Result) -> None:
    journal = counted(voc, tmp_path)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines, lines[3], lines[1]]))
    assert same(run(toy_segmenter(), voc, resume=tmp_path, batch=4), whole)


@pytest.mark.parametrize(
    "change",
    [
        {"indices": [100000, 1, 2, 3]},
        {"indices": [0, 0, 1, 2]},
        {"indices": "0"},
        {"areas": [[10**9], [1]]},
        {"confusion": None},
        {"scores": "AAAA"},
    ],
)
def test_records_of_something_else_are_one_line(
    voc: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    journal = counted(voc, tmp_path)
    lines = journal.read_bytes().splitlines(keepends=True)
    record = json.loads(lines[1].partition(b" ")[2]) | change
    payload = json.dumps(record).encode()
    lines[1] = b"%08x %s\n" % (zlib.crc32(payload), payload)
    journal.write_bytes(b"".join(lines))
    with pytest.raises(ResumeError, match="not this evaluation's") as caught:
        run(toy_segmenter(), voc, resume=tmp_path, batch=4)
    assert "\n" not in str(caught.value)


def test_a_journal_without_its_first_line_is_left_alone(voc: Path, tmp_path: Path) -> None:
    journal = counted(voc, tmp_path)
    content = b"x" + journal.read_bytes()
    journal.write_bytes(content)
    with pytest.raises(ResumeError, match="not a journal"):
        run(toy_segmenter(), voc, resume=tmp_path)
    assert journal.read_bytes() == content


def test_a_resume_folder_that_cannot_be(voc: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResumeError, match="is a file"):
            run(segmenter, voc, resume=folder)


# ---- scores that are none


class Broken(ColourMethod):
    """NaN from the n-th image on."""

    def score(self, images: Any, vocabulary: Vocabulary) -> list[torch.Tensor]:
        maps = super().score(images, vocabulary)
        maps[2][1, 0, 0] = float(self.name)
        return maps


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_scores_that_are_no_numbers_are_never_counted(
    voc: Path, tmp_path: Path, value: str
) -> None:
    with pytest.raises(ScoreError, match=f"^{value} gives NaN or infinite .* 2007_000002 "):
        run(Segmenter(Broken(name=value)), voc, resume=tmp_path, batch=4)
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1


def test_two_processes_do_not_share_a_folder(
    voc: Path, segmenter: Segmenter, tmp_path: Path
) -> None:
    holder = "import sys; from ovss.evaluation.journal import open_journal\n"
    holder += "with open_journal(sys.argv[1], {}): print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with pytest.raises(ResumeError, match="another process"):
        run(segmenter, voc, resume=tmp_path)
    process.kill()  # the lock goes with its holder
    process.communicate()
    with pytest.raises(ResumeError, match="choose another"):
        run(segmenter, voc, resume=tmp_path)


def test_a_damaged_image_keeps_the_state(
    voc: Path, segmenter: Segmenter, tmp_path: Path, whole: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    intact = VocDataset.__getitem__

    def broken(self: VocDataset, index: int) -> Sample:
        if index == 17:
            raise DatasetError("image 17 is damaged")
        return intact(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(VocDataset, "__getitem__", broken)
        with pytest.raises(DatasetError, match="17"):
            run(segmenter, voc, resume=tmp_path, batch=4)
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 4  # the header and images 0..15
    assert same(run(segmenter, voc, resume=tmp_path, batch=4), whole)


def environment() -> dict[str, str]:
    paths = [str(REPOSITORY), str(REPOSITORY / "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


KILLED = """
import sys, time
from toys import ColourMethod, toy_segmenter
from ovss import Segmenter, cli
class Slow(ColourMethod):
    def score(self, images, vocabulary):
        time.sleep(0.02)
        return ColourMethod.score(self, images, vocabulary)
cli._load = lambda options: Segmenter(Slow(), decision=toy_segmenter().decision)
raise SystemExit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kill_nine_and_again(voc: Path, tmp_path: Path, whole: Result, seed: int) -> None:
    """`ovss evaluate` killed at random moments counts what an undisturbed run counts."""
    folder, draw = tmp_path / "run", random.Random(seed)
    command = [sys.executable, "-c", KILLED, "evaluate", "--dataset", "voc21"]
    command += ["--root", str(voc), "--resume", str(folder), "--batch", "1"]
    journal, kills = folder / "journal.jsonl", 0
    for _ in range(3):
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
        before = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and (not journal.exists() or journal.stat().st_size <= before):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.12))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        if draw.random() < 0.5:  # a machine that dies may leave a torn line behind
            with open(journal, "ab") as file:
                file.write(b'1234abcd {"indices":[0],"ar')
    assert kills >= 1
    assert subprocess.run(command, env=environment(), capture_output=True).returncode == 0
    with open_journal(folder, _header(journal)) as state:
        indices = [index for record in state.records for index in record["indices"]]
        confusion = np.zeros(21 * 21, dtype=np.int64)
        for record in state.records:
            confusion[record["confusion"][0]] += record["confusion"][1]
    assert sorted(indices) == list(range(23))
    np.testing.assert_array_equal(confusion.reshape(21, 21), whole.confusion)


def _header(journal: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(journal.read_text().splitlines()[0].partition(" ")[2])
    return header


def test_describe_names_options_and_checkpoints() -> None:
    @dataclasses.dataclass
    class Backbone:
        checkpoint: str = "clip@abc"
        device: str = "cpu"
        weights: Any = None

    @dataclasses.dataclass(frozen=True)
    class Method:
        backbone: Any
        layers: tuple[int, ...] = (-1, -2)
        dtype: Any = torch.float32

    found = describe(Method(Backbone(weights=torch.zeros(3))))
    assert found["layers"] == [-1, -2] and found["dtype"] == "torch.float32"
    backbone = found["backbone"]
    assert backbone["checkpoint"] == "clip@abc" and backbone["device"] == "cpu"
    assert backbone["weights"]["class"] == "Tensor"  # never the values
    assert find([found, found], "checkpoint") == ["clip@abc"]
    assert json.loads(json.dumps(found)) == found
