"""The command line: what it prints, and one line for everything that can go wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovss import __version__, cli
from ovss.methods import METHODS
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
    assert out[0].split()[0] == "background" and len(out) == 22
    assert "on 6 images of voc21 (mmseg)" in out[-1]
    frame = results.read(tmp_path / "r.csv")
    assert f"mIoU {frame['value'][0]:.2f}" in out[-1]
    assert frame["row"].tolist() == ["colours", "colours"]
    assert cli.main([*command, "--seed", "1"]) == 2
    assert "choose another resume folder" in capsys.readouterr().err


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


def test_as_a_program() -> None:
    command = [sys.executable, "-m", "ovss.cli", "--version"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"ovss {__version__}\n")


def test_a_reader_that_leaves_early() -> None:
    command = f"{sys.executable} -m ovss.cli list datasets | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], env=environment(), capture_output=True, text=True
    )
    assert done.stderr == "" and done.stdout == "0\n"
