"""What the lab's diffusion model can do: reconstruct, predict noise, attend within objects."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovss.backbones.diffusion import DiffusionBackbone
from ovss.datasets import open_dataset
from ovss.evaluation.counting import draw
from ovss.lab.pretrain.attention_in_mask import attention_in_mask, instances
from ovss.lab.pretrain.trainer import Split

Array = NDArray[Any]
TIMES = (50, 150, 300, 500, 700, 900)  # of 1000, at which the noise is predicted
BATCH = 10


class Scores(NamedTuple):
    """What each image of a split says of a diffusion model.

    Attributes:
        psnr: of its reconstruction [N], in dB.
        noise: mean squared error of the predicted noise over `TIMES`, with the empty prompt [N].
        inside: summed over its things [N, 2]: the part of a thing's self-attention (all heads'
            mean) that falls inside the thing's mask, and 1.
    """

    psnr: Array
    noise: Array
    inside: Array


def measure(
    backbone: DiffusionBackbone, split: Split, limit: int | None = None
) -> dict[str, float]:
    """Measure a diffusion model as the training curve has it: the means of `read_scores`.

    "psnr" in dB, "noise", and "attention_in_mask" in percent, a mean over things.
    """
    found = read_scores(backbone, split, limit)
    mass, things = found.inside.sum(0)
    means = float(found.psnr.mean()), float(found.noise.mean()), float(100 * mass / things)
    return dict(zip(("psnr", "noise", "attention_in_mask"), means, strict=True))


@torch.no_grad()
def read_scores(backbone: DiffusionBackbone, split: Split, limit: int | None = None) -> Scores:
    """Score `limit` images of `lab-20` drawn from a split (None: all)."""
    data = open_dataset("lab-20", split=split)
    order = draw(len(data), limit, 0)
    psnr, noise, inside = [], [], []
    for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        images = [data[i].image for i in chosen]
        pixels = torch.stack([backbone.preprocess(image) for image in images])  # [B, 3, S, S]
        pixels = pixels.to(backbone.device)
        latents = backbone.latents(pixels)
        psnr += _psnr(backbone, pixels, latents)
        noise += _noise_error(backbone, latents)
        attention = torch.cat(backbone.attention(images), 1).mean(1)  # [B, L, L]
        for maps, i in zip(attention, chosen, strict=True):
            mass = attention_in_mask(maps, instances(data.ids[i])).mass  # [things]
            inside.append([float(mass.sum()), len(mass)])
    return Scores(np.array(psnr), np.array(noise), np.array(inside, dtype=np.float64))


def _psnr(backbone: DiffusionBackbone, pixels: Tensor, latents: Tensor) -> list[float]:
    """Peak signal to noise ratio of each reconstruction."""
    decoded = backbone.vae.decode(latents / backbone.vae.config.scaling_factor).sample
    error = (decoded.float().clamp(-1, 1) - pixels).square().mean((1, 2, 3)) / 4  # of [0, 1]
    return list((-10 * error.log10()).tolist())


def _noise_error(backbone: DiffusionBackbone, latents: Tensor) -> list[float]:
    """Of each image, the mean squared error of the predicted noise over `TIMES`."""
    noise = backbone.noise(0).to(latents).expand_as(latents)
    prompt = backbone.prompt.expand(len(latents), -1, -1)
    errors = torch.zeros(len(latents), device=latents.device)
    for time in TIMES:
        at = torch.tensor([time], device=latents.device)
        noisy = backbone.scheduler.add_noise(latents, noise, at)
        predicted = backbone.unet(noisy, time, encoder_hidden_states=prompt).sample
        errors += (predicted - noise).square().mean((1, 2, 3)) / len(TIMES)
    return list(errors.tolist())
