"""Train the lab DINO from scratch on films alone: no caption, no label.

A film is a few frames of the same things, moved, in other colours and another light, often on other
grounds. So neither colour nor ground tells that two views belong together. The frames of a film are
found by contrast, by their best matched patches, too. The curriculum goes from one large thing to
the world of the benchmark in motley, at its size. The weights kept are selected by a ridge probe
and by clusters on `tune`. (The losses of DINO and iBOT stayed at those of uniform answers.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import ViTConfig

from ovss.backbones.dino import DinoBackbone
from ovss.evaluation.intervals import Interval
from ovss.lab.pretrain.batches import standardise, take
from ovss.lab.pretrain.dino.contrast import (
    Encoder,
    Projector,
    contrast_loss,
    cosines,
    draw,
    matched_similarity,
    settle_loss,
)
from ovss.lab.pretrain.dino.crops import crops, jitter
from ovss.lab.pretrain.dino.measure import OVER_COLOURS, attention_interval, measure
from ovss.lab.pretrain.dino.recipe import MODEL, PATCH, Recipe, make_batch
from ovss.lab.pretrain.trainer import Split, ZooTrainer, write_vit
from ovss.training.card import UNTRAINED, Gate
from ovss.training.curriculum import Batches


class DinoTrainer(ZooTrainer[Recipe]):
    """The vision transformer and a projector for each embedding that is compared."""

    name = "dino"
    what = "a ViT of transformers, trained from scratch on films of the lab world"
    default_recipe = Recipe()
    selected_by = ("probe_things", "best_cluster")
    gates = (
        Gate(
            "attention_in_mask",
            "of the proxy attention of a thing's patches the part inside the thing, %: above the "
            "same network's before training",
            UNTRAINED,
        ),
        Gate(
            "things",
            "how often a thing patch's nearest neighbour in other images is of its class, %",
            20.0,
        ),
        Gate("probe_things", "mIoU of things, a ridge probe on the patch tokens", 25.0),
        OVER_COLOURS,
    )
    model: nn.ModuleDict

    def __init__(self, recipe: Recipe | None = None, device: str | torch.device = "cpu") -> None:
        super().__init__(recipe, device)
        encoder, width = Encoder(ViTConfig(**MODEL)), MODEL["hidden_size"]
        heads = {"frame": Projector(width), "mean": Projector(width)}
        patch = nn.BatchNorm1d(width, affine=False)  # the tokens themselves are compared
        self.optimise(nn.ModuleDict({"encoder": encoder, **heads, "patch": patch}))
        self.encode: Any = torch.compile(self.model["encoder"], dynamic=False)
        self.parts: dict[str, float] = {}  # the losses of the last step

    def batches(self) -> Batches[Any]:
        """Films of every step."""
        return Batches(self.recipe, make_batch)

    def loss(self, films: Tensor) -> Tensor:
        """Add up the contrasts of films [B, V, 3, S, S] uint8: of class tokens, mean patches, and
        matched patches; and what patches differ from their surroundings."""
        stage, step, _ = self.recipe.at(self.done)
        frames = rearrange(films, "b v c h w -> (b v) c h w").float() / 255
        pixels = jitter(crops(frames, stage.side, (stage.least, 1.0)), self.recipe.jitter)
        film = torch.arange(len(frames), device=self.device) // films.shape[1]  # [n]
        grid = stage.side // PATCH
        seen = draw(len(frames), grid**2, round(stage.seen * grid**2)).to(self.device)  # [n, L]
        tokens = self._tokens(standardise(pixels), seen)  # [n, 1 + L, D]
        first, patches, heads = tokens[:, 0], tokens[:, 1:], self.model
        level = heads["patch"](patches.flatten(0, 1)).view_as(patches)  # [n, L, D]
        asked = draw(len(seen), seen.shape[1], self.recipe.asked).to(self.device)  # [n, A]
        share = 1.0 if stage.world(step).pan == 0 else self.recipe.matched
        compared = {
            "class_loss": cosines(heads["frame"](first)),
            "mean_loss": cosines(heads["mean"](patches.mean(1))),
            "matched_loss": matched_similarity(F.normalize(take(level, asked), dim=-1), share),
        }
        losses = {name: contrast_loss(alike, film) for name, alike in compared.items()}
        if stage.settle:
            places = torch.stack([seen // grid, seen % grid], 2)  # [n, L, 2]
            losses["settle_loss"] = stage.settle * settle_loss(level, places)
        self.parts = {name: float(value.detach()) for name, value in losses.items()}
        return torch.stack(list(losses.values())).sum()

    def _tokens(self, pixels: Tensor, seen: Tensor) -> Tensor:
        """Tokens [n, 1 + L, D] of the seen patches of crops at random places of the image."""
        encoder: Any = self.model["encoder"]
        room = encoder.side - pixels.shape[-1] // PATCH
        corner = torch.randint(0, room + 1, (len(pixels), 2))
        with self.precision():
            found: Tensor = self.encode(pixels, corner.to(self.device), seen)
        return found.float()

    @property
    def kept(self) -> nn.Module:
        """The vision transformer."""
        encoder: Any = self.model["encoder"]
        vit: nn.Module = encoder.vit
        return vit

    def measure(self) -> dict[str, float]:
        """The losses of the last step, and the metrics on `tune`."""
        return {**self.parts, **super().measure()}

    def metrics(self, backbone: Any, split: Split, scenes: int | None) -> dict[str, float]:
        """See `measure`."""
        return measure(backbone, split, scenes)

    def intervals(self, backbone: Any, scenes: int | None) -> dict[str, Interval]:
        """Of the attention inside things."""
        return {"attention_in_mask": attention_interval(backbone, "val", scenes)}

    def write(self, folder: Path) -> None:
        """Write the vision transformer, in the layout of transformers."""
        vit: Any = self.kept
        write_vit(folder, vit.config, vit.state_dict())

    def load(self, folder: Path) -> DinoBackbone:
        """The backbone in `folder`."""
        return DinoBackbone.load(folder, device=self.device)
