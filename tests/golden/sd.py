"""The diffusion part of a golden case: what `check.py` compares of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ovss.backbones.diffusion import DiffusionBackbone
from ovss.refine.compensation import Compensation

Array = np.ndarray[Any, Any]
Mode = Literal["multiplication", "single", "mean"]
MODES: dict[str, Mode] = {"SFSA": "multiplication", "selection": "single", "mean": "mean"}


class Diffusion:
    """The case's diffusion model, image and noise."""

    def __init__(self, folder: Path, config: dict[str, Any], inputs: dict[str, Array]) -> None:
        self.backbone = DiffusionBackbone.load(find_folder(folder, config["sd"]))
        self.layers = tuple(config.get("attention_layers_to_use", (-4, -6)))
        self.step = int(config.get("time_step", 45))
        self.index = int(config.get("attention_idx", 1))
        self.noise = torch.from_numpy(inputs["sd_noise"])
        self.image = Image.fromarray(inputs["image_u8"])

    def compensation(self, refinement: str) -> Compensation:
        """ "SFSA", "mean" or "selection" with the case's settings."""
        mode = MODES[refinement]
        return Compensation(
            self.backbone, mode, self.index, self.layers, self.step, noise=self.noise
        )

    @cached_property
    def maps(self) -> dict[int, torch.Tensor]:
        """Layer -> [heads, L, L]."""
        found = self.backbone.attention(self.image, self.layers, self.step, self.noise)
        return dict(zip(self.layers, found, strict=True))


def find_folder(folder: Path, name: str) -> Path:
    """The diffusion model's folder: beside the case, or beside a folder that it lies in."""
    for parent in folder.resolve().parents:
        if (parent / name / "unet").is_dir():
            return parent / name
    raise FileNotFoundError(f"no diffusion model {name} above {folder}")


def latents(case: Diffusion, rest: list[str]) -> Array:
    """`sd_latents` (1, 4, 64, 64)."""
    return case.backbone.latents(case.backbone.preprocess(case.image)[None]).numpy()


def timestep(case: Diffusion, rest: list[str]) -> Array:
    """`sd_timestep` ()."""
    return case.backbone.timestep(case.step).numpy()


def prompt(case: Diffusion, rest: list[str]) -> Array:
    """`sd_prompt_embeds` (1, 77, C)."""
    return case.backbone.prompt.numpy()


def attention_rows(case: Diffusion, rest: list[str]) -> Array:
    """`sd_attn_rows|LAYER` (heads, 4, L): rows 0, L/4, L/2, 3L/4."""
    maps = case.maps[int(rest[0])]
    return maps[:, :: maps.shape[-1] // 4].numpy()


def column_maxima(case: Diffusion, rest: list[str]) -> Array:
    """`sd_attn_colmax|LAYER` (heads, L/8): every 8th column."""
    return case.maps[int(rest[0])].amax(1)[:, ::8].numpy()


READERS: dict[str, Callable[[Diffusion, list[str]], Array]] = {
    "sd_latents": latents,
    "sd_timestep": timestep,
    "sd_prompt_embeds": prompt,
    "sd_attn_rows": attention_rows,
    "sd_attn_colmax": column_maxima,
}
