"""PnP-OVSS written down step by step: what the bench measures `ovss` against.

As its authors' program computes it, with nothing left out: all weights ask for gradients, the
backward pass runs through the whole network, and GradCAM is made for every head of every layer and
moved to the CPU, where one is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ovss.backbones.itm import ItmBackbone, Prompt

ROUNDS, DROPPED, THRESHOLD, BLUR = 4, 10, 0.15, 0.05


@contextmanager
def training(backbone: ItmBackbone) -> Iterator[None]:
    """Weights that ask for gradients, as a freshly loaded model's do."""
    model = backbone.network.model.requires_grad_(True)
    with torch.enable_grad():
        yield
    model.requires_grad_(False).zero_grad()


def gradcams(
    backbone: ItmBackbone, pixels: Tensor, prompt: Prompt, lap: Callable[[str], None]
) -> list[list[Tensor]]:
    """Eq. 1 of each layer and head: [T-1, h, w], without the first token."""
    maps: list[Tensor] = []

    def keep(_: object, __: object, output: tuple[Tensor, Tensor]) -> None:
        output[1].retain_grad()
        maps.append(output[1])

    modules = backbone.network.cross_attention
    hooks = [module.register_forward_hook(keep) for module in modules]
    ids = prompt.ids[None].to(backbone.device)
    image = backbone.network.encode(pixels.to(backbone.device))
    logits = backbone.network.logits(image, ids, torch.ones_like(ids))
    for hook in hooks:
        hook.remove()
    backbone.network.model.zero_grad()
    logits[:, 1].sum().backward(retain_graph=True)
    lap("gradient")
    side = pixels.shape[-1] // backbone.patch
    found = []
    for weights in maps:
        assert weights.grad is not None
        cam = (weights * weights.grad.clamp(min=0)).detach()[0, :, 1:, 1:]  # [heads, T-1, L]
        found.append([head.unflatten(1, (side, side)).cpu() for head in cam])
    return found


def dropout(
    backbone: ItmBackbone,
    pixels: Tensor,
    prompt: Prompt,
    place: tuple[int, int],
    lap: Callable[[str], None],
) -> Tensor:
    """Salience DropOut (section 3.2): the tokens' maps of all passes, the first twice."""
    patch, pixels = backbone.patch, pixels.clone()
    side = pixels.shape[-1] // patch
    dropped: list[int] = []
    maps = []
    for _ in range(ROUNDS):
        for number in dropped:
            row, column = patch * (number // side), patch * (number % side)
            pixels[0, :, row : row + patch, column : column + patch] = 0
        cam = gradcams(backbone, pixels, prompt, lap)[place[0]][place[1]]  # [T-1, h, w]
        seen = cam.flatten(1).clone()
        seen[:, dropped] = 0
        maps.append(seen.unflatten(1, (side, side)))
        salience = cam[3:-1].sum(0).flatten().numpy().copy()
        salience[dropped] = 0
        dropped.extend(np.argsort(salience)[-DROPPED:].tolist())
    total = maps[0].clone()
    for one in maps:
        total += one
    return total


def class_maps(tokens: Tensor, words: Sequence[Sequence[int]], size: tuple[int, int]) -> Tensor:
    """[T-1, h, w] -> maps [1 + K, H, W], cut at the threshold, the background's first."""
    parts = [tokens[[place - 1 for place in word]] for word in words]
    maps = torch.stack([part.mean(0) for part in parts[:-1]] + [parts[-1].sum(0)])
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    kept = maps * ((maps - low) / (high - low) >= THRESHOLD)
    large = F.interpolate(kept[None], size, mode="bilinear", align_corners=True)[0]
    return torch.cat([(large.amax(0, keepdim=True) == 0).float(), large])


def blurred(maps: Tensor) -> Tensor:
    """Each map blurred by SciPy and stretched to [0, 1]."""
    from scipy.ndimage import gaussian_filter

    deviation = BLUR * max(maps.shape[1:])
    smooth = [gaussian_filter(one.numpy(), sigma=deviation) for one in maps]
    return torch.stack([torch.from_numpy((x - x.min()) / (x.max() - x.min())) for x in smooth])


def crf(maps: Tensor, image: Image.Image) -> Tensor:
    """Labels [H, W] of the dense CRF with the parameters of CutLER."""
    from pydensecrf import densecrf

    unary = -maps.softmax(0).log()
    model = densecrf.DenseCRF2D(image.width, image.height, len(maps))
    model.setUnaryEnergy(np.ascontiguousarray(unary.flatten(1).numpy()))
    model.addPairwiseGaussian(sxy=3, compat=7)
    model.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.array(image), compat=10)
    found = np.array(model.inference(10)).argmax(0)
    return torch.from_numpy(found).unflatten(0, (image.height, image.width))
