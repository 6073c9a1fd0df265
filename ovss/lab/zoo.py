"""Retrain the lab's models: `make zoo`, or `make zoo MODEL=clip DEVICE=cuda` for one of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ovss import paths
from ovss.errors import OvssError
from ovss.lab.cards import read_card
from ovss.lab.pretrain.clip.train import ClipTrainer
from ovss.lab.pretrain.dino.train import DinoTrainer
from ovss.lab.pretrain.itm.train import BlipTrainer, BridgeTowerTrainer
from ovss.lab.pretrain.mae.train import MaeTrainer
from ovss.lab.pretrain.sam.train import SamTrainer
from ovss.lab.pretrain.sd.train import SdTrainer
from ovss.lab.pretrain.trainer import ZooTrainer

KINDS = (
    ClipTrainer,
    MaeTrainer,
    DinoTrainer,
    SamTrainer,
    SdTrainer,
    BlipTrainer,
    BridgeTowerTrainer,
)
TRAINERS: dict[str, type[ZooTrainer[Any]]] = {kind.name: kind for kind in KINDS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the named models, or judge the gates of the committed ones; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ovss.lab.zoo", description=__doc__)
    parser.add_argument("model", nargs="*", help=f"of {', '.join(TRAINERS)} (default: all)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: cuda if there is one)")
    parser.add_argument("--gates", action="store_true", help="only judge the gates on the cards")
    options = parser.parse_args(arguments)
    for name in options.model:
        if name not in TRAINERS:
            parser.error(f"unknown model {name!r}; known: {', '.join(TRAINERS)}")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if not options.gates:
            print(estimate(options.model or TRAINERS), file=sys.stderr)
        for name in options.model or TRAINERS:
            print(f"{name} on {device}", file=sys.stderr)
            trainer, folder = TRAINERS[name](device=device), paths.data("lab", "zoo", name)
            if options.gates:
                trainer.judge_again(folder)
            else:
                trainer.train(folder, workers=_workers(device))
    except OvssError as error:
        print(f"ovss: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\novss: interrupted; run it again to go on where it was saved", file=sys.stderr)
        return 130
    return 0


def estimate(names: Iterable[str]) -> str:
    """How long the trainings will take, by the time that the committed networks took."""
    lines, total = [], 0.0
    for name in names:
        images = TRAINERS[name].default_recipe.images
        try:
            card = read_card(name)
            minutes = float(card["minutes"]) * images / int(card["images_seen"])
            told = f"about {minutes:.0f} minutes at the pace of {card['machine']}"
            total += minutes
        except (OSError, KeyError, ValueError):  # never trained
            told = "no estimate, there is no card"
        lines.append(f"{name}: {images:,} images, {told}")
    if len(lines) > 1:
        lines.append(f"in all about {total / 60:.1f} hours; a killed run goes on where it was")
    return "\n".join(lines)


def _workers(device: str) -> int:
    """Processes that render: one beside a CPU that trains, more to keep a GPU busy."""
    return 1 if device.startswith("cpu") else max(1, min(8, (os.cpu_count() or 2) - 1))


if __name__ == "__main__":
    sys.exit(main())
