"""Seconds an image of every method on the lab's benchmark, and how fast scenes are rendered."""

from __future__ import annotations

import time
from typing import Any

import torch

import ovss
from ovss.backbones.registry import ZOO
from ovss.datasets import open_dataset
from ovss.lab.scenes import render
from ovss.methods import METHODS

IMAGES, BATCH, SCENES = 32, 8, 200


def rows() -> dict[str, dict[str, Any]]:
    """What is timed: names of the methods with options; CLIPer without and with compensation."""
    plain: dict[str, dict[str, Any]] = {method: {} for method in METHODS}
    plain["cliper"] = {"compensation": None}
    return {**plain, "cliper, sd": {"compensation": "sd"}} if "sd" in ZOO else plain


def milliseconds(method: str, **options: Any) -> float:
    """Mean time to segment an image of `lab-all`, in batches; one batch warms up."""
    segmenter = ovss.load(method, **options)
    dataset = open_dataset("lab-all")
    images = [dataset[index].image for index in range(IMAGES)]
    segmenter(images[:BATCH], dataset.vocabulary)
    start = time.perf_counter()
    for first in range(0, IMAGES, BATCH):
        segmenter(images[first : first + BATCH], dataset.vocabulary)
    return 1000 * (time.perf_counter() - start) / IMAGES


def main() -> None:
    print(f"{torch.get_num_threads()} threads, batches of {BATCH}, 128 px")
    start = time.perf_counter()
    for index in range(SCENES):
        render("tune", index, side=64)
    print(f"{'scene, 64 px':24} {1000 * (time.perf_counter() - start) / SCENES:8.2f} ms")
    for name, options in rows().items():
        print(f"{name:24} {milliseconds(name.split(',')[0], **options):8.2f} ms", flush=True)


if __name__ == "__main__":
    main()
