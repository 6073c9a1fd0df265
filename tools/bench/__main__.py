"""`make bench`: CLIPer and PnP-OVSS against plain transcriptions, and every method in the lab.

The first part runs both on the same random weights of the real sizes (ViT-B/16 and ViT-L/14 of
CLIP, Stable Diffusion 2.1-base) and one image of 336 x 448 pixels with 21 classes, in one process
and in turn, and checks that they agree. Times are the best of all rounds. The stage "compensation"
of our side makes the maps too, from queries and keys; the transcription has made them in the U-Net.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import lab
import pnp_stages
import torch
import weights
from stages import STAGES, Ours, Plain, Run, Task, compare
from table import table

from ovss.backbones.devices import find_device
from ovss.errors import OvssError
from ovss.provenance import device_name


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.part in ("cliper", "all"):
        for line in cliper(options):
            print(line, flush=True)
    if options.part in ("pnp", "all"):
        for line in pnp_stages.lines(options):
            print(line, flush=True)
    if options.part in ("lab", "all"):
        lab.main(options.device)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser("bench", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--part", choices=("all", "cliper", "pnp", "lab"), default="all")
    parser.add_argument("--quick", action="store_true", help="small networks: does it work?")
    parser.add_argument("--clip", action="append", help='"ViT-B/16" or "ViT-L/14" alone')
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 ...")
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=tuple(weights.SIDES),
        help="ways to run our diffusion model; default: float32 and bfloat16 (cuda: float16)",
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, help="of torch; default: as many as it likes")
    options = parser.parse_args()
    try:
        find_device(options.device)
    except OvssError as error:
        parser.error(str(error))
    low = "bfloat16" if options.device == "cpu" else "float16"
    options.sides = options.sides or ["float32", low]
    return options


def cliper(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the first part."""
    sizes = weights.QUICK if options.quick else weights.FULL
    image = weights.picture(*sizes.image)
    diffusion = weights.diffusion(sizes, image, options.device)
    ours = {name: weights.variant(diffusion, name) for name in options.sides}
    yield f"{image.width} x {image.height} pixels, {weights.CLASSES} classes, {machine(options)}"
    yield "random weights, but like attends to like and classes resemble patches: see weights.py"
    for name, vision in sizes.clips.items():
        if options.clip and name not in options.clip:
            continue
        method, text = weights.clip(vision, image, options.device)
        task = Task(image, method, text, diffusion.noise(0))
        sides: list[Ours] = [Plain(task, diffusion), *(Ours(task, one) for one in ours.values())]
        runs = compare(sides, options.rounds)
        named = dict(zip(("plain", *ours), runs, strict=True))
        yield from table(name, STAGES, named)
        yield from agreement(named)


def machine(options: argparse.Namespace) -> str:
    """Name what it runs on."""
    cores = f" on {os.cpu_count()} cores" if options.device == "cpu" else ""
    return device_name([options.device]) + cores


def agreement(runs: dict[str, Run]) -> Iterator[str]:
    """Labels and scores of our sides against the transcription's."""
    (_, plain), *others = runs.items()
    first = plain.side
    regions = len(first.decided.unique())
    yield f"the transcription's labels hold {regions} of {weights.CLASSES} classes"
    for name, run in others:
        same = (run.side.decided == first.decided).float().mean().item()
        error = (run.side.refined - first.refined).abs().max().item()
        coarse = (run.side.scores - first.scores).abs().max().item()
        yield (
            f"{name}: {100 * same:.3f} % of the labels equal; largest error of a score "
            f"{error:.2g} (coarse {coarse:.2g}, of up to {first.refined.max().item():.2f})"
        )


if __name__ == "__main__":
    main()
