"""Benchmarks in VOC layout, made on the spot, and what is said about damaged ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovss.datasets import DATASETS, open_dataset, read_batches
from ovss.datasets.base import read_words
from ovss.errors import DatasetError, UnknownNameError
from ovss.labels import BACKGROUND, IGNORE
from toys import make_voc, save_mask


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a lab of one scene: a red car (1) and a green fish (2) on sand (1 + 2)."""
    words = {"things": ["car", "fish"], "stuff": ["sand", "sky"], "colours": ["red", "green"]}
    (tmp_path / "vocabularies").mkdir()
    for name, lines in words.items():
        (tmp_path / "vocabularies" / f"lab-{name}.txt").write_text("\n".join(lines) + "\n\n")
    masks = {
        "SegmentationClass": [[1, 1, 2], [0, 0, 0]],
        "SegmentationStuff": [[1, 1, 2], [3, 3, 3]],
        "SegmentationAttribute": [[1, 1, 4], [0, 0, 0]],
    }
    base = tmp_path / "lab"
    for folder in ("JPEGImages", "ImageSets/Segmentation", *masks):
        (base / folder).mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(base / "JPEGImages" / "val_0000.jpg")
    for folder, mask in masks.items():
        save_mask(np.array(mask), base / folder / "val_0000.png")
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text("val_0000\n")
    monkeypatch.setenv("OVSS_DATA", str(tmp_path))
    return base


def test_voc21_and_voc20(voc: Path) -> None:
    with_background, without = open_dataset("voc21", voc), open_dataset("voc20", voc)
    assert len(with_background) == len(without) == 23
    assert with_background.names == without.names == read_words("voc20")
    assert with_background.has_background and not without.has_background
    path = voc / "VOCdevkit/VOC2012/SegmentationClass" / f"{with_background.ids[4]}.png"
    raw = np.asarray(Image.open(path)).astype(int)
    first, second = with_background[4], without[4]
    assert first.id == "2007_000004" and first.target.dtype == np.int64
    assert first.target.shape == (first.image.height, first.image.width)
    assert (raw == 255).any() and (raw == 0).any()
    np.testing.assert_array_equal(first.target, np.where(raw == 255, IGNORE, raw - 1))
    ignored = (raw == 255) | (raw == 0)
    np.testing.assert_array_equal(second.target, np.where(ignored, IGNORE, raw - 1))


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_root_may_be_the_folder_or_above(voc: Path, below: str) -> None:
    assert open_dataset("voc21", voc / below).root == voc / "VOCdevkit" / "VOC2012"


def test_lab_benchmarks(lab: Path) -> None:
    things, only, both, attributes = (
        open_dataset(f"lab-{name}") for name in ("21", "20", "all", "attributes")
    )
    b, i = BACKGROUND, IGNORE
    assert things.names == ("car", "fish") and things.vocabulary.background == ("sand", "sky")
    assert things[0].target.tolist() == [[0, 0, 1], [b, b, b]]
    assert only[0].target.tolist() == [[0, 0, 1], [i, i, i]]
    assert both.names == ("car", "fish", "sand", "sky") and not both.has_background
    assert both[0].target.tolist() == [[0, 0, 1], [2, 2, 2]]
    assert attributes.names == ("red car", "red fish", "green car", "green fish")
    assert attributes[0].target.tolist() == [[0, 0, 3], [i, i, i]]
    assert [one.has_background for one in (things, only, both, attributes)] == [True] + [False] * 3


@pytest.mark.parametrize("split, images", [("val", 400), ("tune", 150)])
@pytest.mark.parametrize("name", [name for name in DATASETS if name.startswith("lab")])
def test_the_lab_in_the_repository(name: str, split: str, images: int) -> None:
    data = open_dataset(name, split=split)
    assert len(data) == len(set(data.ids)) == images
    for index in (0, images // 2, images - 1):
        target = data[index].target
        assert target.shape == (128, 128) and target.max() < len(data.names)
        assert (target >= 0).any() and (IGNORE in target) <= (not data.has_background)


def test_batches_are_the_samples_in_order(voc: Path) -> None:
    data = open_dataset("voc21", voc)
    order = [20, 3, 7, 8, 9, 1, 0, 22, 5, 6, 11]
    for workers in (0, 1, 3):
        for batch in (1, 4, 50):
            got = list(read_batches(data, order, batch, workers))
            assert [index for indices, _ in got for index in indices] == order
            names = [sample.id for _, samples in got for sample in samples]
            assert names == [data.ids[index] for index in order]
            assert max(len(samples) for _, samples in got) <= batch


def test_a_failed_read_ahead_is_raised(voc: Path) -> None:
    data = open_dataset("voc21", voc)
    with pytest.raises(IndexError):
        list(read_batches(data, [1, 2, 99], batch=1, workers=2))


def test_unknown_names_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'voc21'\? Known: .*lab-21.*voc20"):
        open_dataset("voc12")
    with pytest.raises(DatasetError) as caught:
        open_dataset("voc21", tmp_path)
    for part in ("JPEGImages/<id>.jpg", "SegmentationClass/<id>.png", "Segmentation/val.txt"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match="<root>"):
        open_dataset("voc20")


def test_missing_split_and_vocabulary(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatasetError, match=r"no list .*train\.txt"):
        open_dataset("voc21", voc, split="train")
    monkeypatch.setenv("OVSS_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match="no such vocabulary"):
        _ = open_dataset("voc21", voc).names


def damage(base: Path, kind: str) -> None:
    mask = base / "SegmentationClass" / "2007_000001.png"
    photo = base / "JPEGImages" / "2007_000001.jpg"
    if kind == "mask is cut":
        mask.write_bytes(mask.read_bytes()[:100])
    elif kind == "mask is text":
        mask.write_text("a letter")
    elif kind == "mask is gone":
        mask.unlink()
    elif kind == "mask is a photo":
        Image.new("RGB", (4, 4)).save(mask)
    elif kind == "mask has another size":
        save_mask(np.zeros((4, 5)), mask)
    elif kind == "mask holds an unknown label":
        save_mask(np.full(np.asarray(Image.open(mask)).shape, 21), mask)
    elif kind == "photo is cut":
        photo.write_bytes(photo.read_bytes()[:100])
    else:
        photo.unlink()


@pytest.mark.parametrize(
    "kind, said",
    [
        ("mask is cut", r"mask .*2007_000001\.png is damaged"),
        ("mask is text", r"mask .*2007_000001\.png is damaged"),
        ("mask is gone", r"no such mask: .*2007_000001\.png"),
        ("mask is a photo", r"2007_000001\.png is RGB"),
        ("mask has another size", r"2007_000001\.png is 5 x 4, its image"),
        ("mask holds an unknown label", r"2007_000001\.png holds the label 21, voc21 ends at 20"),
        ("photo is cut", r"2007_000001\.jpg"),
        ("photo is gone", r"no such image file: .*2007_000001\.jpg"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, kind: str, said: str) -> None:
    root = make_voc(tmp_path, images=2)
    damage(root / "VOCdevkit" / "VOC2012", kind)
    data = open_dataset("voc21", root)
    assert data[0].id == "2007_000000"
    with pytest.raises(DatasetError, match=said):
        _ = data[1]


def test_empty_list(tmp_path: Path) -> None:
    base = make_voc(tmp_path, images=1) / "VOCdevkit" / "VOC2012"
    (base / "ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(DatasetError, match="names no image"):
        open_dataset("voc21", base)
    shutil.rmtree(base / "SegmentationClass")
    with pytest.raises(DatasetError, match=r"no folder .*SegmentationClass"):
        open_dataset("voc21", base)


def test_vocabularies_are_the_data_sets_names() -> None:
    assert len(read_words("voc20")) == 20 and read_words("voc20") == read_words("voc21")
    assert set(DATASETS) == {"voc21", "voc20", "lab-21", "lab-20", "lab-all", "lab-attributes"}
