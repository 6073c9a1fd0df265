"""The committed lab CLIP, from the command line and from Python, and what it must be able to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ovss
from ovss import cli, paths
from ovss.backbones.clip import ClipBackbone
from ovss.datasets import open_dataset
from ovss.lab.pretrain.clip import measure
from ovss.lab.scenes import STUFF_NAMES, THING_NAMES

SCENE = paths.data("lab", "JPEGImages", "val_0000.jpg")
WORDS = "house, sky, grass, fish"


@pytest.fixture(scope="module")
def clip() -> ClipBackbone:
    return ClipBackbone.load("clip")


def test_three_lines_of_python_and_the_command_agree(tmp_path: Path) -> None:
    segmenter = ovss.load("cliper")
    out = segmenter(SCENE, WORDS)
    assert out.labels.shape == (128, 128)
    assert (
        cli.main(["segment", str(SCENE), "--classes", WORDS, "--out", str(tmp_path / "o.png")]) == 0
    )
    written = np.asarray(Image.open(tmp_path / "o.png")).astype(int) - 1
    np.testing.assert_array_equal(written, out.labels.numpy())
    truth = open_dataset("lab-all")[0].target
    house = truth == THING_NAMES.index("house")
    assert (out.labels.numpy()[house] == 0).mean() > 0.6, "the house is found where it is"
    assert out.shares.get("fish", 0.0) < 0.1, "there is no fish"


def test_images_of_any_size_go_together() -> None:
    segmenter = ovss.load("cliper")
    image = Image.open(SCENE)
    sizes = [(128, 128), (200, 90), (1, 1), (128, 128)]
    found = segmenter([image.resize(size) for size in sizes], ["house", "grass"])
    assert [tuple(f.labels.shape[::-1]) for f in found] == sizes
    alone = segmenter(image.resize((200, 90)), ["house", "grass"])
    assert (found[1].labels == alone.labels).float().mean() > 0.999


def test_a_single_thing_is_named(clip: ClipBackbone) -> None:
    right, interval, scenes = measure.naming(clip, "val")
    assert scenes >= 100
    assert right >= 80
    assert interval.low <= right <= interval.high


def test_things_and_stuff_are_found(clip: ClipBackbone) -> None:
    given = measure.given_classes(clip, "val", limit=120)
    assert given.miou >= 40
    assert given.group(THING_NAMES)[0] >= 30  # a part of val; the card has the whole
    assert given.group(STUFF_NAMES)[0] >= 50
    assert measure.all_things(clip, "val", limit=120).miou >= 25


def test_the_command_compensates(tmp_path: Path) -> None:
    """`--compensation sd` changes borders, not what the picture is of; a wrong option says so."""
    plain = ovss.load("cliper", compensation=None)(SCENE, WORDS)
    arguments = ["segment", str(SCENE), "--classes", WORDS, "--out", str(tmp_path / "o.png")]
    assert cli.main([*arguments, "--compensation", "sd"]) == 0
    written = np.asarray(Image.open(tmp_path / "o.png")).astype(int) - 1
    same = (written == plain.labels.numpy()).mean()
    assert 0.6 < same < 1
    assert cli.main([*arguments, "--method", "maskclip", "--compensation", "sd"]) == 2
