"""`make attend`: the lab's diffusion model with and without its attention's auxiliary loss.

Both are the package's recipe, from the same weights, scenes and noise, up to the same number of
scenes; what is compared is how much of a thing's self-attention stays inside the thing on `val`,
and the error of the predicted noise. The numbers go to data/results/lab/sd-attend.csv. Two to four
hours on one core each; a killed run goes on where it was, under build/attend.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovss import paths
from ovss.evaluation import intervals
from ovss.lab.pretrain.sd.measure import Scores, read_scores
from ovss.lab.pretrain.sd.recipe import Recipe
from ovss.lab.pretrain.sd.train import SdTrainer
from ovss.reporting import results
from ovss.training.curriculum import Batches
from ovss.training.loop import run

EXPERIMENT = "sd-attend"
KINDS = ("with", "without")
IMAGES = 98_304  # a point of the curve, so that a training under way leaves its state there
Array = NDArray[Any]


class Beginning(Batches[Any]):
    """The first `steps` batches of a training."""

    def __init__(self, whole: Batches[Any], steps: int) -> None:
        super().__init__(whole.recipe, whole.make)
        self.steps = steps

    def __len__(self) -> int:
        return self.steps


def train(kind: str, images: int, folder: Path, device: str) -> SdTrainer:
    """Train one of `KINDS` up to `images` scenes, those of the autoencoder included."""
    recipe = Recipe() if kind == "with" else replace(Recipe(), attend=0.0)
    steps = sum(recipe.at(step).images.stop <= images for step in range(recipe.steps))
    trainer = SdTrainer(recipe, device)
    (folder / kind).mkdir(parents=True, exist_ok=True)
    run(trainer, Beginning(trainer.batches(), steps), folder / kind / "training.pt")
    return trainer


def mean(drawn: Array) -> Array:
    """The mean of sums [..., 2], of values and of how many they are."""
    return np.asarray(drawn[..., 0] / drawn[..., 1])


def compare(found: dict[str, Scores], images: int, checkpoints: dict[str, str]) -> None:
    """Write both kinds' numbers and their differences, with intervals over images."""
    sums = {
        kind: {
            "attention_in_mask": one.inside * (100, 1),  # percent
            "noise": np.stack([one.noise, np.ones_like(one.noise)], 1),
        }
        for kind, one in found.items()
    }
    rows = []
    for metric, one in sums["with"].items():
        other = sums["without"][metric]
        origin = {
            "experiment": EXPERIMENT, "dataset": "val", "protocol": f"{images} scenes",
            "metric": metric, "images": len(one), "seed": Recipe().seed, "profile": "lab",
        }  # fmt: skip
        for kind, part in zip(KINDS, (one, other), strict=True):
            number = {"value": float(mean(part.sum(0))), "checkpoint": checkpoints[kind]}
            between = intervals.bootstrap(part, mean)._asdict()
            rows.append({**origin, "row": kind, **number, **between})
        change = intervals.paired_bootstrap(one, other, mean)._asdict()
        both = " ".join(checkpoints.values())
        rows.append({**origin, "row": "with - without", **change, "checkpoint": both})
    results.write(results.file_of(EXPERIMENT), rows)


def main() -> None:
    """Train both, measure both, write the numbers."""
    parser = argparse.ArgumentParser("attend", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", type=int, default=IMAGES, help="scenes that each sees")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=paths.root() / "build" / "attend")
    options = parser.parse_args()
    found, checkpoints, seen = {}, {}, 0
    for kind in KINDS:
        trainer = train(kind, options.images, options.folder, options.device)
        backbone = trainer.snapshot()
        found[kind] = read_scores(backbone, "val")
        checkpoints[kind], seen = backbone.checkpoint, trainer.images
    compare(found, seen, checkpoints)
    print(results.read(results.file_of(EXPERIMENT)).to_string(columns=["row", "metric", "value"]))


if __name__ == "__main__":
    main()
