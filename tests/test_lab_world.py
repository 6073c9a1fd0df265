"""The lab world: scenes are reproducible, captions true, and the written benchmark is theirs."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ovss import paths
from ovss.lab.captions import Habits, Mention, caption
from ovss.lab.disguise import Coats, Disguise, weave
from ovss.lab.fine import FINE
from ovss.lab.pretrain.clusters import colour_grid, judge_clusters, kmeans
from ovss.lab.scenes import (
    COLOUR_NAMES,
    MOTLEY,
    NAMES,
    STUFF_NAMES,
    THING_NAMES,
    Scene,
    Split,
    World,
    film,
    render,
)
from ovss.lab.things import THINGS
from ovss.lab.write import SIDE, WRITTEN, Written, label_maps, scene_id, write_benchmark

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
    splits: tuple[Split, ...] = ("val", "tune", "pretrain")
    pictures = {render(split, i).image.tobytes() for split in splits for i in range(40)}
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


@pytest.mark.parametrize("split", list(WRITTEN))
def test_the_committed_benchmark_is_what_the_world_renders(split: str) -> None:
    root, written = paths.data("lab"), WRITTEN[split]
    listed = (root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
    assert len(listed) == written.count
    for index in range(0, written.count, 37):
        scene, name = written.render(index), scene_id(split, index)
        for folder, labels in label_maps(scene, "motley" not in split).items():
            with Image.open(root / folder / f"{name}.png") as stored:
                np.testing.assert_array_equal(
                    np.asarray(stored), labels, err_msg=f"{folder} {name}"
                )
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as stored:
            error = np.asarray(stored, dtype=float) - scene.image
        assert abs(error).mean() < 3, "no more than JPEG's own loss"


def test_writing_the_benchmark_gives_the_voc_layout(tmp_path) -> None:  # type: ignore[no-untyped-def]
    splits = {"val": Written("val", 2), "tune-motley": Written("tune", 1, world=MOTLEY)}
    write_benchmark(tmp_path, splits)
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    masks = ("Class", "Stuff", "Object")
    plain, ids = ("val_0000", "val_0001"), ("val_0000", "val_0001", "tune-motley_0000")
    assert written == {
        "captions.csv",
        *(f"ImageSets/Segmentation/{split}.txt" for split in splits),
        *(f"JPEGImages/{name}.jpg" for name in ids),
        *(f"Segmentation{mask}/{name}.png" for mask in masks for name in ids),
        *(f"SegmentationAttribute/{name}.png" for name in plain),
    }


# ---- disguises, thin parts, films


def test_a_disguise_changes_nothing_but_colours() -> None:
    for index in range(20):
        plain, motley = render("tune", index), render("tune", index, world=MOTLEY)
        np.testing.assert_array_equal(plain.labels, motley.labels)
        np.testing.assert_array_equal(plain.instances, motley.instances)
        assert plain.things == motley.things and plain.stuff == motley.stuff
        ground = plain.instances == 0
        error = abs(plain.image[ground].astype(int) - motley.image[ground])
        assert np.median(error) == 0
        assert not set(words_of(motley.caption)) & set(COLOUR_NAMES)


def coats(disguise: Disguise, seed: int, grounds: dict[str, tuple[int, int, int]]) -> list[object]:
    from random import Random

    tones = {0: (1, 1, 1), 1: (2, 2, 2), 2: (3, 3, 3)}
    means = {name: np.array(colour, dtype=np.float32) for name, colour in grounds.items()}
    drawn = Coats(Random(seed), disguise, tones, lambda rng: {0: (9, 9, 9)}, means)
    return [drawn.draw(0) for _ in range(4)]


def test_coats_by_hand() -> None:
    grounds = {"sand": (100, 50, 20)}
    for seed in range(20):
        plain = coats(Disguise(), seed, grounds)
        assert {(c.colour, c.material) for c in plain} == {((1, 1, 1), 0)}  # type: ignore[attr-defined]
        motley = coats(Disguise(motley=1.0), seed, grounds)
        assert {c.colour for c in motley} == {(9, 9, 9)}  # type: ignore[attr-defined]
        hidden = coats(Disguise(motley=0.0, camouflage=1.0), seed, grounds)
        sand = 1 + list(STUFF_NAMES).index("sand")
        textured = {c.material for c in hidden} == {sand}  # type: ignore[attr-defined]
        near = all(abs(c.colour[0] - 100) <= 8 for c in hidden)  # type: ignore[attr-defined]
        assert textured != near


def test_a_texture_keeps_the_mean_colour() -> None:
    from random import Random

    materials = np.zeros((64, 64), dtype=np.uint8)
    materials[:, 32:] = 1 + list(STUFF_NAMES).index("brick")
    gains = weave(Random(0), materials, 32)
    assert (gains[:, :16] == 1).all() and gains[:, 16:].std() > 0.05
    assert abs(gains[:, 16:].mean() - 1) < 0.1


def test_thin_parts_leave_gaps() -> None:
    """The same boxes, less than two thirds of the area, more border for each pixel inside."""
    assert len(FINE) >= 6 and set(FINE) <= set(THINGS)
    solid = [render("tune", i, 128) for i in range(60)]
    thin = [render("tune", i, 128, World(fine=1.0)) for i in range(60)]
    assert [s.things for s in solid] == [s.things for s in thin]

    def measure(scenes: list[Scene]) -> tuple[float, float]:
        area = border = 0.0
        for scene in scenes:
            for number, thing in enumerate(scene.things, 1):
                if thing.category in FINE:
                    mask = scene.instances == number
                    area += mask.sum()
                    border += (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
        return area, border / area

    (area, ratio), (thin_area, thin_ratio) = measure(solid), measure(thin)
    assert thin_area < 0.67 * area and thin_ratio > 2 * ratio


def test_a_film_shows_the_same_categories_elsewhere() -> None:
    world = World(pan=0.5, disguise=MOTLEY.disguise)
    grounds = 0
    for index in range(40):
        first, second = film("pretrain", index, 64, (world, world))
        np.testing.assert_array_equal(first.image, render("pretrain", index, 64, world).image)
        categories = Counter(t.category for t in first.things)
        assert Counter(t.category for t in second.things) <= categories
        assert [(t.x, t.y) for t in first.things] != [(t.x, t.y) for t in second.things]
        grounds += first.stuff == second.stuff
    assert 8 < grounds < 36
    still = [film("pretrain", i, 64, (World(), World())) for i in range(10)]
    assert all(first.stuff == second.stuff for first, second in still)


def test_colours_tell_less_in_the_motley_world() -> None:
    """The oracle mIoU of k-means on RGB (K = 8) falls by 15 points or more."""

    def oracle(split: str) -> float:
        scenes = [WRITTEN[split].render(i) for i in range(WRITTEN["tune-motley"].count)]
        pixels = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2) / 255
        clusters = kmeans(colour_grid(pixels, 16)).reshape(-1, 16, 16).numpy()
        labels = [np.where(s.instances > 0, s.labels + 1, 0) for s in scenes]
        return judge_clusters(clusters, labels, [s.instances for s in scenes], 21).oracle

    assert oracle("tune") - oracle("tune-motley") >= 15


def test_attributes_join_colour_and_thing() -> None:
    scene = render("val", 3, SIDE)
    labels = label_maps(scene)["SegmentationAttribute"]
    for number, thing in enumerate(scene.things, 1):
        value = 1 + 20 * COLOUR_NAMES.index(thing.colour) + THING_NAMES.index(thing.category)
        assert set(labels[scene.instances == number]) == {value}
    assert set(labels[scene.instances == 0]) == {0}
