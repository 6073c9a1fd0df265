"""Write the lab benchmark in VOC layout: the splits of `WRITTEN`.

python -m ovss.lab.write --out data/lab
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ovss import paths
from ovss.lab.disguise import Disguise
from ovss.lab.scenes import (
    COLOUR_NAMES,
    MOTLEY,
    STUFF_NAMES,
    THIN,
    THING_NAMES,
    Scene,
    Split,
    World,
    render,
)
from ovss.labels import palette

SIDE = 128


@dataclass(frozen=True)
class Written:
    """The first `count` scenes of a split in a world, written at `side` pixels."""

    scenes: Split
    count: int
    side: int = SIDE
    world: World = field(default_factory=World)

    def render(self, index: int) -> Scene:
        """Render a scene."""
        return render(self.scenes, index, self.side, self.world)


WRITTEN: dict[str, Written] = {
    "val": Written("val", 400),
    "tune": Written("tune", 150),
    "val-motley": Written("val", 200, world=MOTLEY),
    "tune-motley": Written("tune", 80, world=MOTLEY),
    "val-fine": Written("val", 100, 256, THIN),
}
BACKGROUND = 0


def scene_id(split: str, index: int) -> str:
    return f"{split}_{index:04d}"


def label_maps(scene: Scene, one_colour: bool = True) -> dict[str, NDArray[np.uint8]]:
    """List the label files of a scene, by folder; each [S, S] uint8.

    SegmentationClass: 0 background, 1-20 things. SegmentationStuff: 1-20 things, 21-28 stuff.
    SegmentationObject: 0 background, i + 1 for things[i]. SegmentationAttribute: 0 background,
    1 + 20 * colour + thing; left out where a thing is not of one colour.
    """
    thing = scene.instances > 0
    maps = {
        "SegmentationClass": np.where(thing, scene.labels + 1, BACKGROUND).astype(np.uint8),
        "SegmentationStuff": (scene.labels + 1).astype(np.uint8),
        "SegmentationObject": scene.instances,
    }
    if not one_colour:
        return maps
    colours = np.array([0] + [COLOUR_NAMES.index(t.colour) for t in scene.things], dtype=np.uint8)
    attribute = 1 + len(THING_NAMES) * colours[scene.instances] + scene.labels
    attributes = np.where(thing, attribute, BACKGROUND).astype(np.uint8)
    return {**maps, "SegmentationAttribute": attributes}


def write_scene(root: Path, split: str, index: int, written: Written) -> Scene:
    """Render one scene and write its picture and label files below `root`."""
    scene, name = written.render(index), scene_id(split, index)
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(
        root / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0
    )
    for folder, labels in label_maps(scene, written.world.disguise == Disguise()).items():
        (root / folder).mkdir(exist_ok=True)
        picture = Image.fromarray(labels)
        picture.putpalette(palette(255).reshape(-1).tolist())
        picture.save(root / folder / f"{name}.png", optimize=True)
    return scene


def write_benchmark(root: Path, splits: Mapping[str, Written] = WRITTEN) -> None:
    """Write all splits, their lists and captions.csv below `root`."""
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, int]] = []
    for split, written in splits.items():
        for index in tqdm(range(written.count), desc=f"writing {split}"):
            scene = write_scene(root, split, index, written)
            rows.append((scene_id(split, index), scene.caption, len(scene.things)))
        names = "".join(f"{scene_id(split, index)}\n" for index in range(written.count))
        (lists / f"{split}.txt").write_text(names)
    with (root / "captions.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("id", "caption", "things"), *rows])


def write_vocabularies(folder: Path) -> None:
    """The names that the lab's benchmarks are made of, one a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in {
        "lab-things": THING_NAMES,
        "lab-stuff": STUFF_NAMES,
        "lab-colours": COLOUR_NAMES,
    }.items():
        (folder / f"{name}.txt").write_text("".join(f"{word}\n" for word in words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="folder (default: data/lab)")
    out = parser.parse_args().out
    write_benchmark(out or paths.data("lab"))
    if out is None:
        write_vocabularies(paths.data("vocabularies"))


if __name__ == "__main__":
    main()
