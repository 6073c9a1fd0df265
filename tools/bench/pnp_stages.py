"""PnP-OVSS against a plain transcription of it: stages, timed in turn.

Both sides run the same random BLIP of the large size on one image, in four passes. Between them lie
the choice of patches and all that happens to maps ("maps").
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import peak
import pnp_plain
import pnp_weights
import torch
import weights
from PIL import Image
from stages import now
from table import table
from torch import Tensor

from ovss.backbones.itm import ItmBackbone, Matching
from ovss.methods.pnp_ovss import PnpOvss
from ovss.refine.crf import DenseCrf
from ovss.vocabulary import Vocabulary

STAGES = ("image encoder", "text", "gradient", "maps", "blur", "CRF")


class Clock:
    """Adds up the seconds of each stage and keeps its highest peak."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.meter = device, peak.meter(device)
        self.seconds, self.bytes = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0)
        self.mark = now(device)

    def lap(self, stage: str) -> None:
        """What was done since the last lap belongs to `stage`."""
        self.seconds[stage] += now(self.device) - self.mark
        self.bytes[stage] = max(self.bytes[stage], self.meter.lap())
        self.mark = now(self.device)

    def close(self) -> None:
        """The meter ends."""
        self.meter.close()


@contextmanager
def heard(network: Any, clock: Clock) -> Iterator[None]:
    """While open, the network tells the clock when its parts are done."""
    model = network.model
    with ExitStack() as stack:
        for hook in (
            model.vision_model.register_forward_pre_hook(lambda *_: clock.lap("maps")),
            model.vision_model.register_forward_hook(lambda *_: clock.lap("image encoder")),
            model.itm_head.register_forward_hook(lambda *_: clock.lap("text")),
        ):
            stack.callback(hook.remove)
        yield


class Timed(ItmBackbone):
    """A backbone that tells the clock when it has the gradient."""

    clock: Clock

    def match(self, *given: Any, **options: Any) -> Matching:
        """As `ItmBackbone.match`."""
        found = super().match(*given, **options)
        self.clock.lap("gradient")
        return found


class Ours:
    """`ovss`, step by step as `Segmenter` calls it."""

    def __init__(
        self, backbone: ItmBackbone, image: Image.Image, words: Vocabulary, **options: Any
    ):
        self.image, self.words = image, words
        self.backbone = Timed(**vars(backbone))
        self.method = PnpOvss(self.backbone, crf=DenseCrf(), **options)

    def run(self, clock: Clock) -> None:
        """From the image to its labels [H, W], the background's 0."""
        self.backbone.clock = clock
        with heard(self.backbone.network, clock):
            maps = self.method.score([self.image], self.words)
        for refine, stage in zip(self.method.refiners, ("maps", "blur", "CRF"), strict=True):
            maps = refine(maps, [self.image])
            clock.lap(stage)
        self.labels = maps[0].argmax(0)
        clock.lap("maps")


class Plain(Ours):
    """The transcription."""

    def run(self, clock: Clock) -> None:
        """From the image to its labels [H, W]."""
        method = self.method
        pixels, prompt = method.pixels([self.image]), method.prompt(self.words)
        place = method.layer, method.head or 0
        with heard(self.backbone.network, clock), pnp_plain.training(self.backbone):
            total = pnp_plain.dropout(self.backbone, pixels, prompt, place, clock.lap)
        maps = pnp_plain.class_maps(total, prompt.words, (self.image.height, self.image.width))
        clock.lap("maps")
        maps = pnp_plain.blurred(maps)
        clock.lap("blur")
        self.labels = pnp_plain.crf(maps, self.image)
        clock.lap("CRF")


@dataclass
class Run:
    """What one side took: seconds of the fastest round, by stage, and the highest peaks."""

    side: Ours
    seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=lambda: [0] * len(STAGES))

    @property
    def total(self) -> float:
        """Seconds from the image to its labels."""
        return sum(self.seconds)


def compare(sides: list[Ours], rounds: int) -> list[Run]:
    """Run all sides in turn, `rounds` times each, after one round that is not counted.

    With 0 rounds it is: one round without warming up.
    """
    runs = [Run(side) for side in sides]
    for number in range(rounds + 1):
        for run in runs:
            with closing(Clock(run.side.backbone.device)) as clock:
                run.side.run(clock)
            run.bytes = [max(pair) for pair in zip(run.bytes, clock.bytes.values(), strict=True)]
            taken = list(clock.seconds.values())
            if (number or not rounds) and (not run.seconds or sum(taken) < run.total):
                run.seconds = taken
    return runs


def lines(options: argparse.Namespace) -> Iterator[str]:
    """The lines of this part."""
    sizes = pnp_weights.QUICK if options.quick else pnp_weights.FULL
    backbone, image = pnp_weights.blip(sizes, options.device), weights.picture(*sizes.image)
    words = Vocabulary.of(list(pnp_weights.NAMES))
    chosen = {"size": sizes.side, "layer": sizes.layer, "head": sizes.head}
    sides = [kind(backbone, image, words, **chosen) for kind in (Plain, Ours)]
    yield (
        f"\nPnP-OVSS: {image.width} x {image.height} pixels, squashed to {sizes.side}; "
        f"{len(words.names)} classes, {sides[0].method.rounds + 1} passes"
    )
    plain, ours = compare(sides, options.rounds)
    yield from table(sizes.name, STAGES, {"plain": plain, "float32": ours})
    yield agreement(plain.side.labels, ours.side.labels)


def agreement(expected: Tensor, found: Tensor) -> str:
    """How many labels are equal."""
    same = 100 * (found.cpu() == expected.cpu()).float().mean().item()
    return f"float32: {same:.3f} % of the labels equal, of {len(expected.unique())} kinds"
