"""Make the picture of the README and the title page: a scene, what CLIPer finds in it, the words.

usage: readme_picture.py [SCENE]
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
from matplotlib.patches import Patch

import ovss
from ovss import paths
from ovss.datasets import open_dataset

SCENE = "val_0016"


def main(scene: str) -> None:
    data = open_dataset("lab-all")
    sample = data[data.ids.index(scene)]
    words = [data.names[i] for i in sorted(set(sample.target.ravel().tolist())) if i >= 0]
    found = ovss.load("cliper")(sample.image, words)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6))
    for axes, picture in ((left, sample.image), (right, found.overlay(0.75))):
        axes.imshow(picture)
        axes.axis("off")
    colours = found.legend()
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    right.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    left.set_title("an image …")
    right.set_title("… and words")
    figure.savefig(
        paths.root() / "book" / "images" / "segmentation.png", dpi=130, bbox_inches="tight"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else SCENE)
