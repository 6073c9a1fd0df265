"""The command line: what it prints, and one line for everything that can go wrong."""

from __future__ import annotations

import errno
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from ovss import __version__, cli, paths
from ovss.datasets import open_dataset
from ovss.datasets.base import read_words
from ovss.decide import Argmax, Threshold
from ovss.methods import METHODS
from ovss.methods.builders import NoSettingsError
from ovss.reporting import results
from test_evaluate import environment
from toys import colour_of, toy_segmenter


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method without weights under the name "colours"."""

    def build(profile: str, **options: Any) -> tuple[Any, Any]:
        """Compares colours."""
        segmenter = toy_segmenter()
        return segmenter.method, segmenter.decision

    monkeypatch.setitem(METHODS, "colours", build)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.full((24, 32, 3), colour_of("car"), dtype=np.uint8)
    pixels[:, 16:] = colour_of("boat")
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def segment(photo: str, out: Path, classes: str = "car, boat", method: str = "colours") -> int:
    return cli.main(["segment", photo, "--classes", classes, "--out", str(out), "--method", method])


def test_segment(photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment(photo, tmp_path / "out.png") == 0
    assert capsys.readouterr().out == f"car 50.0 %, boat 50.0 % -> {tmp_path / 'out.png'}\n"
    labels = np.asarray(Image.open(tmp_path / "out.png"))
    assert (labels[:, :16] == 1).all() and (labels[:, 16:] == 2).all()


def test_evaluate(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--method", "colours", "--dataset", "voc21", "--root", str(voc)]
    command += ["--limit", "6", "--resume", str(tmp_path / "run"), "--out", str(tmp_path / "r.csv")]
    assert cli.main(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[0] == "background" and len(out) == 23
    assert out[-2].startswith("few images, little to rest on: aeroplane, bicycle, ")
    assert "on 6 images of voc21 (mmseg)" in out[-1]
    frame = results.read(tmp_path / "r.csv")
    assert f"mIoU {frame['value'][0]:.2f}" in out[-1]
    assert frame["row"].tolist() == ["colours limit=6 seed=0"] * 2
    assert cli.main([*command, "--seed", "1"]) == 2
    assert "choose another resume folder" in capsys.readouterr().err
    assert cli.main([*command, "--seed", "1", "--restart"]) == 0
    assert len(results.read(tmp_path / "r.csv")) == 4


def evaluate(voc: Path, *more: str, method: str = "colours") -> int:
    command = ["evaluate", "--method", method, "--dataset", "voc21", "--root", str(voc)]
    return cli.main([*command, *more])


def test_no_row_takes_the_place_of_another(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command again is the same row; whatever else was measured is one more."""
    names = read_words("voc21")
    (tmp_path / "words.txt").write_text("\n".join(f"{name}, {name}s" for name in names))
    (tmp_path / "answers.json").write_text(
        json.dumps({name: "[1: aeroplane], [90%]" for name in open_dataset("voc21", voc).ids})
    )
    runs: list[list[str]] = [
        [], ["--limit", "3"], ["--limit", "3", "--seed", "1"], ["--no-settings"],
        ["--vocabulary", str(tmp_path / "words.txt")], ["--templates", "plain"],
        ["--classes", str(tmp_path / "answers.json")], ["--classes", "image"], ["--no-crf"],
        ["--profile", "smoke"], [],
    ]  # fmt: skip
    out = str(tmp_path / "r.csv")
    for more in runs:
        assert evaluate(voc, "--out", out, *more) == 0, capsys.readouterr().err
    frame = results.read(out).query("metric == 'mIoU'")
    assert len(frame) == len(runs) - 1
    assert frame["row"].iloc[0] == "colours"
    assert any(name.startswith("colours vocabulary=words.txt@") for name in frame["row"])


def test_a_benchmark_comes_with_its_settings(
    voc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `load(..., dataset=)` takes; where there is none, a line says what that means."""
    asked: list[Any] = []

    def build(profile: str, **options: Any) -> tuple[Any, Any]:
        asked.append(options.get("dataset"))
        if options.get("dataset") == "voc20":
            raise NoSettingsError("nothing is known")
        return toy_segmenter().method, Threshold(0.5) if "dataset" in options else Argmax()

    monkeypatch.setitem(METHODS, "colours", build)
    assert evaluate(voc, "--limit", "1") == 0
    told = capsys.readouterr().err
    assert "with its settings for voc21: decision=Threshold(tau=0.5)" in told
    assert evaluate(voc, "--limit", "1", "--no-settings") == 0
    told = capsys.readouterr().err
    assert "no settings for voc21 (--no-settings)" in told
    assert "argmax never predicts background" in told
    assert evaluate(voc, "--limit", "1", "--dataset", "voc20") == 0
    told = capsys.readouterr().err
    assert "no settings for voc20 (nothing is known)" in told and "never predicts" not in told
    assert asked == ["voc21", None, "voc20", None]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--seed", "-1"], "seed must be a whole number"),
        (["--seed", str(2**70)], "seed must be a whole number"),
        (["--workers", "-1"], "workers"),
        (["--batch", "0"], "batch"),
        (["--limit", "0"], "limit"),
        (["--out", "{here}/other.csv"], "no results file"),
        (["--out", "{here}"], "folder"),
        (["--out", "{here}/other.csv/r.csv"], "cannot write"),
        (["--resume", "{here}/other.csv"], "is a file"),
        (["--vocabulary", "{here}/few.txt"], "has 1 classes, voc21 has 20"),
        (["--vocabulary", "{here}/none.txt"], "none.txt"),
    ],
)
def test_options_are_checked_before_the_work(
    voc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
    said: str,
) -> None:
    def never(options: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(cli, "_load", never)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "few.txt").write_text("cat\n")
    assert evaluate(voc, *(word.format(here=tmp_path) for word in wrong)) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_numbers_are_told_whatever_becomes_of_the_file(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(results, "write", full)
    assert evaluate(voc, "--out", str(tmp_path / "r.csv")) == 2
    printed = capsys.readouterr()
    assert "mIoU" in printed.out and "the disk is full" in printed.err


def test_scores_that_are_no_numbers_are_one_line(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that are NaN make a plausible picture otherwise, and a number."""
    folder = tmp_path / "nan"
    shutil.copytree(paths.data("lab", "zoo", "clip"), folder)
    (folder / "card.json").unlink()
    weights = load_file(folder / "model.safetensors")
    weights["visual.proj"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    for more in (["--method", "maskclip"], ["--method", "cliper"]):
        out = str(tmp_path / "r.csv")
        assert evaluate(voc, *more, "--limit", "1", "--clip", str(folder), "--out", out) == 2
        printed = capsys.readouterr()
        assert "NaN" in printed.err.splitlines()[-1] and "mIoU" not in printed.out
        assert not Path(out).exists()


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    for part in ("methods:", "cliper", "colours", "Compares colours.", "datasets:", "lab-21",
                 "checkpoints:", "ViT-B-16-quickgelu/openai"):  # fmt: skip
        assert part in out
    assert cli.main(["list", "methods"]) == 0
    assert "datasets" not in capsys.readouterr().out
    assert cli.main(["list", "method"]) == 2
    assert "did you mean 'methods'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"classes": ""}, "empty"),
        ({"classes": "car, car"}, "twice"),
        ({"photo": "no.jpg"}, "no such image file: no.jpg"),
        ({"photo": __file__}, "not an image"),
        ({"method": "clipper"}, "did you mean 'cliper'"),
        ({"out": Path("out.tiff")}, "end it in .png or .json"),
        ({"out": Path("/proc/no/out.png")}, "/proc/no"),
    ],
)
def test_errors_are_one_line_and_exit_2(
    photo: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    said: str,
) -> None:
    assert segment(**{"photo": photo, "out": tmp_path / "out.png", **changes}) == 2
    err = capsys.readouterr().err
    assert err.startswith("ovss: error: ") and said in err and err.count("\n") == 1


def test_missing_data_set_shows_the_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--method", "colours", "--dataset", "voc21", "--root", str(tmp_path)]
    assert cli.main(command) == 2
    err = capsys.readouterr().err
    assert "ImageSets/Segmentation/val.txt" in err and err.count("\n") == 1
    command[4] = "voc22"
    assert cli.main(command) == 2
    assert "lab-attributes" in capsys.readouterr().err


def test_a_full_disk(
    photo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def full(*_: Any, **__: Any) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(Image.Image, "save", full)
    assert segment(photo, Path(photo).with_name("out.png")) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not Path(photo).with_name("out.png").exists()


def test_interrupt_exits_130(photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", interrupt)
    assert segment(photo, Path(photo).with_name("out.png")) == 130


def test_usage_errors_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["segment"], ["paint"], ["evaluate", "--dataset", "x", "--limit", "many"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(command)
        assert caught.value.code == 2
    assert "usage: ovss" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["ovss", "ovss.cli"])
def test_as_a_program(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"ovss {__version__}\n")


def test_what_needs_no_network_imports_none() -> None:
    """`import ovss`, its command line and the gates of files import no torch."""
    code = (
        "import sys, ovss, ovss.cli, ovss.paths\n"
        "print({'torch', 'numpy', 'PIL', 'pandas'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "set()\n"


def test_an_interrupt_while_it_starts_is_one_line(tmp_path: Path) -> None:
    """The libraries are imported within the command, where an interrupt is expected."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    place = {**environment(), "PYTHONPATH": f"{tmp_path}:{environment()['PYTHONPATH']}"}
    command = [sys.executable, "-m", "ovss", "segment", "x", "--classes", "a", "--out", "o.png"]
    done = subprocess.run(command, env=place, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "ovss: interrupted\n")


def test_output_that_is_closed_or_full(tmp_path: Path) -> None:
    script = "{python} -m ovss list datasets {where}; echo $? >&2"
    for where, wanted in [(">&-", "0\n"), ("> /dev/full", "2\n")]:
        command = script.format(python=sys.executable, where=where)
        done = subprocess.run(
            ["bash", "-c", command], env=environment(), capture_output=True, text=True
        )
        lines = done.stderr.splitlines(keepends=True)
        assert lines[-1] == wanted and len(lines) <= 2 and "Traceback" not in done.stderr


class Ascii(io.TextIOWrapper):
    """A terminal that shows ASCII alone."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii")

    def text(self) -> str:
        self.seek(0)
        return self.read()


def test_letters_that_the_terminal_lacks_are_escaped(
    photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Ascii()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert segment(photo, tmp_path / "o.png", classes="vélo, 汽车") == 0
    assert "v\\xe9lo" in terminal.text() or "\\u6c7d" in terminal.text()


def test_a_long_path_and_control_characters(
    photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(photo, tmp_path / "a\x1b[31m.png") == 0
    assert "\x1b" not in capsys.readouterr().out
    assert segment(photo, tmp_path / "o.png", classes="car\x1b[31mRED") == 2
    assert segment(photo, tmp_path / "o.png", method="\x1b[31m" * 1000) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err and err.count("\n") == 2 and len(err) < 2500
    with pytest.raises(SystemExit):
        cli.main(["segment", photo, "--classes", "a", "--out", "o.png", "\x1b[31m\n" * 1000])
    err = capsys.readouterr().err
    assert "\x1b" not in err and err.count("\n") == 1 and len(err) < 1200


def test_the_photo_stays(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(photo).read_bytes()
    assert segment(photo, Path(photo)) == 2
    assert "would replace" in capsys.readouterr().err and Path(photo).read_bytes() == before


def test_the_destination_is_checked_before_the_model_loads(
    photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_load", lambda options: pytest.fail("the model was loaded"))
    (tmp_path / "folder.png").mkdir()
    for out in ("o.jpg", "folder.png", "photo.png/o.png"):
        assert segment(photo, tmp_path / out) == 2


def test_a_new_user_is_told_of_the_miniature(
    photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["segment", photo, "--classes", "car, boat", "--out", str(tmp_path / "o.png")]
    assert cli.main([*command, "--method", "colours"]) == 0
    err = capsys.readouterr().err
    assert "only the lab's" in err and "--profile paper" in err and err.count("\n") == 1
    assert cli.main([*command, "--method", "colours", "--profile", "lab"]) == 0
    assert cli.main([*command, "--method", "colours", "--clip", "folder"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("library", ["transformers", "diffusers", "pydensecrf"])
def test_a_missing_library_is_one_line(
    photo: str,
    tmp_path: Path,
    library: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def build(profile: str, **options: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {library!r}", name=f"{library}.models")

    monkeypatch.setitem(METHODS, "colours", build)
    assert segment(photo, tmp_path / "o.png") == 2
    err = capsys.readouterr().err
    assert f"{library} is not installed: pip install" in err and err.count("\n") == 1


def test_what_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the repository (an installed wheel): what to do, in one line each."""
    monkeypatch.setenv("OVSS_DATA", str(tmp_path))
    assert cli.main(["list", "datasets"]) == 0
    out = capsys.readouterr().out
    assert out.count("not here: the lab's images and models come with the repository") == 4
    for dataset, said in [("lab-20", "set OVSS_DATA"), ("voc21", "give root= (--root)")]:
        assert cli.main(["evaluate", "--method", "colours", "--dataset", dataset]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_a_reader_that_leaves_early() -> None:
    command = f"{sys.executable} -m ovss.cli list datasets | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], env=environment(), capture_output=True, text=True
    )
    assert done.stderr == "" and done.stdout == "0\n"
