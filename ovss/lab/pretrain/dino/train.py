"""Train the lab DINO from scratch on films alone: no caption, no label.

A film is a few frames of the same things, moved, in other colours and another light, often on other
grounds. So neither colour nor ground tells that two views belong together. First the frames of a
film are found by contrast; then DINOv2's losses join in. The curriculum goes from one large thing
to the world of the benchmark in motley, by way of mosaics of four frames, in which the patches must
know what is near them; it ends at the size at which the tokens are used. The weights kept are those
of the teacher, selected by a ridge probe and by clusters on `tune`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import ViTConfig

from ovss.backbones.dino import DinoBackbone
from ovss.evaluation.intervals import Interval
from ovss.lab.pretrain.batches import standardise
from ovss.lab.pretrain.dino.crops import block_mask, crops, hidden_counts, jitter
from ovss.lab.pretrain.dino.distil import (
    Pair,
    class_loss,
    contrast_loss,
    cross_entropy,
    koleo,
    sinkhorn_knopp,
)
from ovss.lab.pretrain.dino.measure import OVER_COLOURS, attention_interval, measure
from ovss.lab.pretrain.dino.recipe import MODEL, PATCH, Recipe, make_batch
from ovss.lab.pretrain.trainer import Split, ZooTrainer, write_vit
from ovss.training.card import UNTRAINED, Gate
from ovss.training.curriculum import Batches


class DinoTrainer(ZooTrainer[Recipe]):
    """Student and teacher."""

    name = "dino"
    what = "a ViT of transformers, self-distilled from scratch on films of the lab world"
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
    model: Pair

    def __init__(self, recipe: Recipe | None = None, device: str | torch.device = "cpu") -> None:
        super().__init__(recipe, device)
        self.optimise(Pair(ViTConfig(**MODEL), self.recipe.prototypes))
        self.student: Any = torch.compile(self.model.student, dynamic=False)
        self.teacher: Any = torch.compile(self.model.teacher, dynamic=False)
        self.parts: dict[str, float] = {}  # the losses of the last step

    def batches(self) -> Batches[Any]:
        """Films of every step."""
        return Batches(self.recipe, make_batch)

    def loss(self, films: Tensor) -> Tensor:
        """Add up the losses of `distil` for films [B, V, 3, S, S] uint8."""
        recipe, stage = self.recipe, self.recipe.at(self.done).stage
        frames = rearrange(films, "b v c h w -> (b v) c h w").float() / 255
        views = [crops(frames, stage.side, recipe.sizes) for _ in range(stage.crops)]
        pixels = standardise(jitter(torch.cat(views), recipe.jitter))  # [n, 3, s, s]
        if stage.mosaic:
            return self._mosaic_loss(pixels, stage.frames)
        frame = torch.arange(len(frames), device=films.device).repeat(stage.crops)  # [n]
        film = frame // stage.frames
        masked = self._hide(len(pixels), stage.side // PATCH) if stage.distil else None
        seen = self._tokens(self.student, pixels, masked)  # [n, 1 + L, D]
        project = self.model.projector
        losses = {
            "contrast": contrast_loss(project(seen[:, 0]), film, frame),
            "patch_contrast": contrast_loss(project(seen[:, 1:].mean(1)), film, frame),
        }
        if masked is not None:
            classes, patches = self._teach(pixels, masked)
            logits = self.model.head(seen[:, 0]), self.model.head(seen[:, 1:][masked])
            losses["class_loss"] = class_loss(classes, logits[0], film, frame)
            losses["patch_loss"] = cross_entropy(patches, logits[1])
            losses["koleo"] = recipe.koleo * koleo(seen[: len(frames), 0])
        return self._sum(losses)

    def _mosaic_loss(self, pixels: Tensor, frames: int) -> Tensor:
        """Contrast of the quarters of mosaics, each a frame of another film.

        Args:
            pixels: [B * V, 3, s, s].
            frames: V.
        """
        films = len(pixels) // frames
        order = torch.stack([torch.randperm(films) for _ in range(frames)], 1)  # [B, V]
        order = order.to(pixels.device)
        shuffled = pixels.unflatten(0, (films, frames))[order, torch.arange(frames)]
        mosaics = rearrange(
            shuffled, "(q r g) v c h w -> (g v) c (q h) (r w)", q=2, r=2
        ).contiguous()
        seen = self._tokens(self.student, mosaics)[:, 1:]  # [B V / 4, L, D]
        side = pixels.shape[-1] // PATCH
        quarters = rearrange(
            seen,
            "(g v) (q h r w) d -> (q r g v) (h w) d",
            v=frames,
            q=2,
            h=side,
            r=2,
        ).mean(1)  # [B V, D]
        frame = torch.arange(len(quarters), device=pixels.device)
        units = self.model.projector(quarters)
        return self._sum({"mosaic": contrast_loss(units, order.flatten(), frame)})

    def _sum(self, losses: dict[str, Tensor]) -> Tensor:
        self.parts = {name: float(value.detach()) for name, value in losses.items()}
        return torch.stack(list(losses.values())).sum()

    def _hide(self, views: int, grid: int) -> Tensor:
        """Which patches of each view are hidden from the student: [n, L]."""
        recipe = self.recipe
        counts = hidden_counts(views, grid**2, recipe.mask_ratio, recipe.masked_share)
        return block_mask(counts.to(self.device), grid)

    def _tokens(self, model: Any, pixels: Tensor, masked: Tensor | None = None) -> Tensor:
        """Last-layer tokens [n, 1 + L, D] of pixels of any side."""
        with self.precision():
            found = model(pixels, bool_masked_pos=masked, interpolate_pos_encoding=True)
        return torch.as_tensor(found.last_hidden_state.float())

    @torch.no_grad()
    def _teach(self, pixels: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities of class tokens [n, P] and of hidden patches [m, P]."""
        seen, head = self._tokens(self.teacher, pixels), self.model.teacher_head
        temperature = self.recipe.temperature
        return (
            sinkhorn_knopp(head(seen[:, 0]), temperature),
            sinkhorn_knopp(head(seen[:, 1:][masked]), temperature),
        )

    def after_step(self) -> None:
        """Update the teacher."""
        self.model.ema_update(self.recipe.teacher_momentum(self.done))

    @property
    def kept(self) -> nn.Module:
        """The teacher."""
        return self.model.teacher

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
        """Write the teacher, in the layout of transformers."""
        teacher = self.model.teacher
        weights = {k: v for k, v in teacher.state_dict().items() if not k.endswith("mask_token")}
        write_vit(folder, teacher.config, weights)

    def load(self, folder: Path) -> DinoBackbone:
        """The backbone in `folder`."""
        return DinoBackbone.load(folder, device=self.device)
