"""Seconds an image of every method on the lab's benchmark, and how fast scenes are rendered."""

from __future__ import annotations

import time

import torch

import ovss
from ovss.datasets.voc import open_dataset
from ovss.lab.scenes import render
from ovss.methods import METHODS

IMAGES, BATCH, SCENES = 32, 8, 200


def milliseconds(method: str) -> float:
    """Mean time to segment an image of `lab-all`, in batches; one batch warms up."""
    segmenter = ovss.load(method)
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
    for method in METHODS:
        print(f"{method:24} {milliseconds(method):8.2f} ms")


if __name__ == "__main__":
    main()
