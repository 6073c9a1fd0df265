"""The lab world: scenes are reproducible, captions true, and the written benchmark is theirs."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ovss import paths
from ovss.lab.captions import Habits, Mention, caption
from ovss.lab.scenes import COLOUR_NAMES, NAMES, STUFF_NAMES, THING_NAMES, World, render
from ovss.lab.write import COUNTS, SIDE, label_maps, scene_id, write_benchmark

SINGULAR = {"people": "person", "butterflies": "butterfly", "fish": "fish"}


def words_of(text: str) -> list[str]:
    found = re.findall(r"[a-z]+", text)
    return [SINGULAR.get(w, w if w in NAMES else w.removesuffix("s")) for w in found]


def test_vocabulary_is_as_promised() -> None:
    assert len(THING_NAMES) == 20
    assert len(STUFF_NAMES) == 8
    assert len(set(NAMES)) == 28


@pytest.mark.parametrize("side", [64, 128])
def test_a_scene_is_a_function_of_its_seed(side: int) -> None:
    first, again = render("pretrain", 5, side), render("pretrain", 5, side)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.caption == again.caption
    assert not np.array_equal(first.image, render("pretrain", 6, side).image)


def test_splits_share_no_scene() -> None:
    pictures = {render(split, i).image.tobytes() for split in COUNTS for i in range(40)}
    pictures |= {render("pretrain", i).image.tobytes() for i in range(40)}
    assert len(pictures) == 120


def test_labels_do_not_depend_on_the_resolution() -> None:
    for index in range(10):
        small, large = render("val", index, 64).labels, render("val", index, 128).labels
        assert np.mean(small == large[1::2, 1::2]) > 0.95


def test_labels_instances_and_contents_agree() -> None:
    for index in range(60):
        scene = render("tune", index)
        for number, thing in enumerate(scene.things, 1):
            inside = scene.labels[scene.instances == number]
            assert inside.size > 0, "every thing is seen"
            assert set(inside) == {THING_NAMES.index(thing.category)}
        ground = {NAMES[label] for label in np.unique(scene.labels[scene.instances == 0])}
        assert ground <= set(scene.stuff)


def test_captions_name_only_what_is_there() -> None:
    for index in range(400):
        scene = render("pretrain", index)
        present = Counter(t.category for t in scene.things)
        named = [w for w in words_of(scene.caption) if w in NAMES]
        assert named, scene.caption
        assert set(named) <= set(present) | set(scene.stuff), scene.caption
        colours = {w for w in words_of(scene.caption) if w in COLOUR_NAMES}
        assert colours <= {t.colour for t in scene.things}, scene.caption


@pytest.mark.parametrize(
    ("x", "y", "how"),
    [(0.8, 0.5, "left of"), (0.1, 0.5, "right of"), (0.4, 0.9, "above"), (0.4, 0.1, "below")],
)
def test_relations_are_true(x: float, y: float, how: str) -> None:
    from random import Random

    things = [Mention("car", "red", 0.4, 0.5), Mention("cup", "blue", x, y)]
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    habits = Habits(1.0, name_stuff=0.0, name_colour=0.0, relate=1.0, stuff_only=0.0)
    for seed in range(20):
        text = caption(things, ["sky"], Random(seed), habits)
        assert f"a car {how} a cup" in text or f"a cup {opposite[how]} a car" in text


def test_colour_does_not_tell_the_thing() -> None:
    pairs = Counter((t.category, t.colour) for i in range(3000) for t in render_things(i))
    assert len(pairs) == len(THING_NAMES) * len(COLOUR_NAMES)
    assert max(pairs.values()) < 3 * min(pairs.values())


def render_things(index: int) -> list:  # type: ignore[type-arg]
    """What a scene holds, without rendering it."""
    from random import Random

    from ovss.lab.scenes import _arrange

    return list(_arrange(Random(f"pretrain/{index}"), World()))


@pytest.mark.parametrize("side", [0, -64, 100, 192])
def test_a_side_must_be_one_of_four(side: int) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        render("val", 0, side)


@pytest.mark.parametrize("split", list(COUNTS))
def test_the_committed_benchmark_is_what_the_world_renders(split: str) -> None:
    root = paths.data("lab")
    listed = (root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
    assert len(listed) == COUNTS[split]  # type: ignore[index]
    for index in range(0, COUNTS[split], 37):  # type: ignore[index]
        scene, name = render(split, index, SIDE), scene_id(split, index)  # type: ignore[arg-type]
        for folder, labels in label_maps(scene).items():
            with Image.open(root / folder / f"{name}.png") as stored:
                np.testing.assert_array_equal(
                    np.asarray(stored), labels, err_msg=f"{folder} {name}"
                )
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as stored:
            error = np.asarray(stored, dtype=float) - scene.image
        assert abs(error).mean() < 3, "no more than JPEG's own loss"


def test_writing_the_benchmark_gives_the_voc_layout(tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_benchmark(tmp_path, {"val": 2, "tune": 1})
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    masks = ("Class", "Stuff", "Object", "Attribute")
    ids = ("val_0000", "val_0001", "tune_0000")
    assert written == {
        "captions.csv",
        *(f"ImageSets/Segmentation/{split}.txt" for split in ("val", "tune")),
        *(f"JPEGImages/{name}.jpg" for name in ids),
        *(f"Segmentation{mask}/{name}.png" for mask in masks for name in ids),
    }


def test_attributes_join_colour_and_thing() -> None:
    scene = render("val", 3, SIDE)
    labels = label_maps(scene)["SegmentationAttribute"]
    for number, thing in enumerate(scene.things, 1):
        value = 1 + 20 * COLOUR_NAMES.index(thing.colour) + THING_NAMES.index(thing.category)
        assert set(labels[scene.instances == number]) == {value}
    assert set(labels[scene.instances == 0]) == {0}
