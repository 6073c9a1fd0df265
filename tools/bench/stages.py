"""Both sides of the comparison, cut into the same stages, timed in turn."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field

import peak
import plain
import torch
import weights
from PIL import Image
from torch import Tensor

from ovss.backbones.diffusion import DiffusionBackbone
from ovss.backbones.diffusion.backbone import LAYERS
from ovss.decide import Argmax, decide
from ovss.methods.cliper import Cliper
from ovss.refine.compensation import refine

STAGES = ("CLIP, coarse map", "VAE, encode", "U-Net", "compensation", "labels")


@dataclass(frozen=True)
class Task:
    """An image to segment, and everything that both sides share."""

    image: Image.Image
    coarse: Cliper
    text: Tensor  # [K, E]
    noise: Tensor  # [1, 4, h, w]

    def pixels(self) -> Tensor:
        """CLIP's input [1, 3, H, W]."""
        clip = self.coarse.backbone
        pixels = clip.preprocess(self.image, self.coarse.short_side)[None]
        return pixels.to(clip.device, clip.dtype)


class Ours:
    """`ovss`, stage by stage as `Segmenter` calls it."""

    def __init__(self, task: Task, diffusion: DiffusionBackbone) -> None:
        self.task, self.diffusion = task, diffusion

    def clip(self) -> None:
        """The coarse map [K, h, w]."""
        found = self.task.coarse.coarse_map(self.task.pixels(), self.task.text, weights.words())
        self.scores = found.scores[0]

    def vae(self) -> None:
        """The latent [1, 4, h, w]."""
        self.latents = self.diffusion.latents(self.diffusion.preprocess(self.task.image)[None])

    def unet(self) -> None:
        """Queries and keys."""
        self.found = self.diffusion.latent_projections(self.latents, self.task.noise, LAYERS)

    def compensation(self) -> None:
        """The refined map [K, side, side]."""
        self.refined = refine(self.scores, [layer.heads(0) for layer in self.found])
        del self.found, self.latents

    def labels(self) -> None:
        """[H, W]."""
        image = self.task.image
        self.decided = decide(Argmax(), self.refined, (image.height, image.width))


class Plain(Ours):
    """The transcription."""

    def clip(self) -> None:
        """The coarse map [K, h, w]."""
        backbone = self.task.coarse.backbone
        self.scores = plain.coarse_map(backbone, self.task.pixels(), self.task.text)

    def vae(self) -> None:
        """The latent [1, 4, h, w]."""
        pixels = self.diffusion.preprocess(self.task.image)[None]
        self.latents = plain.latents(self.diffusion, pixels)

    def unet(self) -> None:
        """All maps."""
        self.maps = plain.attention_maps(self.diffusion, self.latents, self.task.noise)

    def compensation(self) -> None:
        """The refined map [K, side, side]."""
        self.refined = plain.compensate(self.scores, self.maps)
        del self.maps, self.latents

    def labels(self) -> None:
        """[H, W]."""
        self.decided = plain.labels(self.refined, self.task.image.height, self.task.image.width)


@dataclass
class Run:
    """What one side took: per stage seconds (the best of all rounds) and the peak in bytes."""

    side: Ours
    seconds: list[float] = field(default_factory=lambda: [float("inf")] * len(STAGES))
    bytes: list[int] = field(default_factory=lambda: [0] * len(STAGES))
    total: float = float("inf")


@torch.no_grad()
def compare(sides: list[Ours], rounds: int) -> list[Run]:
    """Run all sides in turn, `rounds` times each, after one round that is not counted.

    With 0 rounds it is: one round without warming up.
    """
    runs = [Run(side) for side in sides]
    for number in range(rounds + 1):
        for run in runs:
            once(run, counted=number > 0 or not rounds)
    return runs


def once(run: Run, counted: bool) -> None:
    """All stages of a side, timed; the memory of each beside what lay there before the first."""
    side = run.side
    device = side.task.coarse.backbone.device
    steps = (side.clip, side.vae, side.unet, side.compensation, side.labels)
    taken = []
    with closing(peak.meter(device)) as meter:
        for index, step in enumerate(steps):
            start = now(device)
            step()
            taken.append(now(device) - start)
            run.bytes[index] = meter.lap()
    if counted:
        run.seconds = [min(pair) for pair in zip(run.seconds, taken, strict=True)]
        run.total = min(run.total, sum(taken))


def now(device: torch.device) -> float:
    """Seconds, once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
