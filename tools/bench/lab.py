"""Seconds an image of every method on the lab's benchmark, and how fast scenes are rendered."""

from __future__ import annotations

import time
from typing import Any

import ovss
from ovss.backbones.registry import ZOO
from ovss.datasets import open_dataset
from ovss.lab.scenes import render
from ovss.methods import METHODS
from ovss.provenance import device_name

IMAGES, BATCH, SCENES = 32, 8, 200


def rows() -> dict[str, dict[str, Any]]:
    """What is timed: names of the methods with options; CLIPer without and with compensation."""
    plain: dict[str, dict[str, Any]] = {method: {} for method in METHODS}
    plain["cliper"] = {"compensation": None}
    return {**plain, "cliper, sd": {"compensation": "sd"}} if "sd" in ZOO else plain


def milliseconds(method: str, device: str, **options: Any) -> float:
    """Measure the mean time to segment an image of `lab-all`, in batches; one batch warms up.

    What a segmenter gives is on the CPU, so a GPU's work is over when it returns.
    """
    segmenter = ovss.load(method, device=device, **options)
    dataset = open_dataset("lab-all")
    images = [dataset[index].image for index in range(IMAGES)]
    segmenter(images[:BATCH], dataset.vocabulary)
    start = time.perf_counter()
    for first in range(0, IMAGES, BATCH):
        segmenter(images[first : first + BATCH], dataset.vocabulary)
    return 1000 * (time.perf_counter() - start) / IMAGES


def main(device: str = "cpu") -> None:
    """Print the times, methods on a device and scenes on the CPU."""
    print(f"{device_name([device])}, batches of {BATCH}, 128 px")
    start = time.perf_counter()
    for index in range(SCENES):
        render("tune", index, side=64)
    print(f"{'scene, 64 px':24} {1000 * (time.perf_counter() - start) / SCENES:8.2f} ms")
    for name, options in rows().items():
        mean = milliseconds(name.split(",")[0], device, **options)
        print(f"{name:24} {mean:8.2f} ms", flush=True)


if __name__ == "__main__":
    main()
