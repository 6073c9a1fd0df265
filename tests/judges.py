"""A matcher that looks where it is told to, and a CLIP that knows three colours: no weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovss import Vocabulary
from ovss.backbones.itm import Matching, Prompt
from ovss.methods.pnp_ovss import PnpOvss
from ovss.methods.pnp_reward import Example

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}
SIDE = 16  # of the images, of the matcher's input and of CLIP's


@dataclass(eq=False)
class Looker:
    """A matcher on a grid of 2 x 2 with 3 layers of 2 heads.

    Head 0 of layer 0 looks where a class's colour is, head 1 where it is not. Layer 1 looks
    everywhere alike: into the picture's corners (head 0) and nowhere else (head 1); layer 2 looks
    right, but its gradient says that this hinders the match.
    """

    layers: int = 3
    heads: int = 2
    patch: int = 8
    name: str = "looker"
    checkpoint: str = "looker@0"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    calls: list[int] = field(default_factory=list)

    def patch_grid(self, size: int) -> int:
        return size // self.patch

    def prompt(self, names: Sequence[str], **_: Any) -> Prompt:
        length = len(names) + 2
        words = tuple((place,) for place in range(1, length - 1))
        ids = torch.tensor([0, *(list(COLOURS).index(name) for name in names), 0])
        return Prompt(" ".join(names), ids, ("",) * length, words)

    def pixels(self, images: Sequence[Image.Image], size: int, **_: Any) -> Tensor:
        squares = [np.array(image.resize((size, size))) for image in images]
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255

    def match(
        self, pixels: Tensor, prompts: Sequence[Prompt], layers: Sequence[int], **_: Any
    ) -> Matching:
        self.calls.append(len(pixels))
        longest = max(len(prompt.ids) for prompt in prompts)
        right = torch.zeros(len(prompts), longest, 5)
        for one, image, prompt in zip(right, pixels, prompts, strict=True):
            cells = torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(1)  # [3, 4]
            for place, colour in enumerate(prompt.ids.tolist()[1:-1], start=1):
                one[place, 1:] = cells[colour]
        wrong, flat = 1 - right, torch.ones_like(right)
        attention = {0: [right, wrong], 1: [flat, flat], 2: [right, right]}
        slopes = {0: [flat, flat], 1: [flat, flat], 2: [-flat, flat]}
        mask = torch.ones(len(prompts), longest, dtype=torch.bool)
        stacked = [{n: torch.stack(each[n], 1) for n in layers} for each in (attention, slopes)]
        return Matching(torch.zeros(len(prompts), 2), mask, *stacked)


class Judge:
    """Embeds an image as the direction of its mean colour; a black one as nothing."""

    mean, std, checkpoint = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "judge@0"
    device, dtype = torch.device("cpu"), torch.float32
    model = SimpleNamespace(
        visual=SimpleNamespace(image_size=(SIDE, SIDE)),
        logit_scale=torch.tensor(math.log(10.0)),
    )

    def text_features(self, words: Vocabulary) -> Tensor:
        return torch.tensor([COLOURS[name] for name in words.names])

    def image_embedding(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.normalize(pixels.mean((2, 3)), dim=1)


def method(**options: Any) -> PnpOvss:
    """PnP-OVSS on `Looker`."""
    backbone: Any = Looker()
    return PnpOvss(backbone, layer=0, head=0, size=SIDE, crf=None, **options)


def judge() -> Any:
    """A `Judge` in the place of a `ClipBackbone`."""
    return Judge()


def striped(*names: str) -> Example:
    """An image with one vertical stripe for each name."""
    pixels = np.zeros((SIDE, SIDE, 3))
    for place, columns in enumerate(np.array_split(np.arange(SIDE), len(names))):
        pixels[:, columns] = COLOURS[names[place]]
    return Example("-".join(names), Image.fromarray((255 * pixels).astype(np.uint8)), names)
