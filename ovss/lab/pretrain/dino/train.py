"""Train the lab DINO from scratch on films alone: no caption, no label.

The two large views of a step are two frames of one film: the same things, moved, in other colours
and another light, often on another ground. So neither colour nor ground tells that two views belong
together. Small views show a detail of a frame. The curriculum goes from one large thing to the
world of the benchmark in motley, and ends at the size at which the tokens are used. The weights
kept are those of the teacher, selected by a ridge probe and by clusters on `tune`.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from ovss.training.curriculum import Batch, Batches

CHUNK = 64  # images of a forward pass: larger ones leave the cache of a CPU


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
        self.parts: dict[str, float] = {}  # the losses of the last step

    def batches(self) -> Batches[Any]:
        """Films of every step."""
        return Batches(self.recipe, make_batch)

    def before_step(self, batch: Batch) -> None:
        """Keep the prototypes as they are for the first steps."""
        frozen = self.done < self.recipe.frozen_prototypes * self.recipe.steps
        self.model.head.prototypes.requires_grad_(not frozen)

    def loss(self, films: Tensor) -> Tensor:
        """Add up the losses of `distil` for films [B, 2, 3, S, S] uint8."""
        recipe, stage = self.recipe, self.recipe.at(self.done).stage
        side = stage.side
        frames = rearrange(films, "b v c h w -> (v b) c h w").float() / 255  # [2B, 3, S, S]
        large = standardise(jitter(crops(frames, side, recipe.large_sizes), recipe.jitter))
        small = frames.repeat(recipe.small, 1, 1, 1)  # [2nB, 3, S, S]
        small = crops(small, side // 2, recipe.small_sizes)
        small = standardise(jitter(small, recipe.jitter))
        grid = side // PATCH
        share = recipe.masked_share if stage.distil else 0.0
        counts = hidden_counts(len(large), grid**2, recipe.mask_ratio, share)
        masked = block_mask(counts.to(large.device), grid)  # [2B, L]
        with self.precision():
            keys, classes, patches = self._teach(large, masked)
            seen = tokens_of(self.model.student, large, masked)  # [2B, 1 + L, D]
            details = tokens_of(self.model.student, small)[:, 0]  # [2nB, D]
            local, hidden = seen[:, 1:].mean(1), seen[:, 1:][masked]  # [2B, D], [n, D]
            tokens = torch.cat([seen[:, 0], details, local, hidden])
            units, logits = (part.float() for part in self.model.head(tokens))
        first, count = len(tokens) - len(hidden), len(films)
        units, views = _by_view(units[:first], count), _by_view(logits[:first], count)
        losses = {
            "contrast": contrast_loss(keys, units),
            "class_loss": class_loss(classes, views[:-1]),
            "patch_loss": cross_entropy(patches, logits[first:])
            if share
            else units[0].new_zeros(()),
            "koleo": torch.stack([koleo(view) for view in seen[:, 0].chunk(2)]).mean(),
        }
        self.parts = {name: float(value.detach()) for name, value in losses.items()}
        weights = (stage.contrast, stage.distil, stage.distil, recipe.koleo)
        terms = zip(weights, losses.values(), strict=True)
        return torch.stack([weight * loss for weight, loss in terms if weight]).sum()

    @torch.no_grad()
    def _teach(self, large: Tensor, masked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's keys [2, B, N], probabilities of class tokens [2, B, P] and patches [n, P].

        The patches are those that are hidden from the student.
        """
        seen = tokens_of(self.model.teacher, large)
        units, logits = self.model.teacher_head(torch.cat([seen[:, 0], seen[:, 1:][masked]]))
        count, temperature = len(large), self.recipe.temperature
        classes = sinkhorn_knopp(logits[:count].float(), temperature)
        patches = sinkhorn_knopp(logits[count:].float(), temperature)
        return units[:count].float().unflatten(0, (2, -1)), classes.unflatten(0, (2, -1)), patches

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


def _by_view(vectors: Tensor, films: int) -> Sequence[Tensor]:
    """Split the vectors of large crops, of small ones and of patch means: [2, B, D] each."""
    return tuple(rearrange(vectors, "(n v b) d -> n v b d", v=2, b=films))


def tokens_of(model: Any, pixels: Tensor, masked: Tensor | None = None) -> Tensor:
    """Compute last-layer tokens [B, 1 + L, D] of pixels of any side, CHUNK images at a time."""
    masks = [None] * len(pixels) if masked is None else masked.split(CHUNK)
    found = [
        model(part, bool_masked_pos=mask, interpolate_pos_encoding=True).last_hidden_state
        for part, mask in zip(pixels.split(CHUNK), masks, strict=False)
    ]
    return torch.cat(found)
