"""Train the lab DINO from scratch on scenes alone: no caption, no label.

Every step sees fresh scenes at 128 px. Large crops (64 px) show from a quarter of a scene to all
of it, small ones (32 px) a detail; patches are known at the scale at which they are used. The
weights kept are those of the teacher, the best on `tune`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import ViTConfig

from ovss.backbones.dino import DinoBackbone
from ovss.evaluation.intervals import Interval
from ovss.lab.pretrain.batches import MEAN, STD, VARIED, draw_scenes, stack_pixels, standardise
from ovss.lab.pretrain.dino.crops import block_mask, crops, jitter
from ovss.lab.pretrain.dino.distil import Pair, class_loss, cross_entropy
from ovss.lab.pretrain.dino.measure import attention_interval, measure
from ovss.lab.pretrain.trainer import LabRecipe, Split, ZooTrainer, write_weights
from ovss.lab.scenes import World
from ovss.training import curriculum
from ovss.training.card import UNTRAINED, Gate, write_json
from ovss.training.curriculum import Batch, Batches, Position
from ovss.training.optim import cosine

SCENE, LARGE, SMALL = 128, 64, 32  # pixels
MODEL: dict[str, Any] = {
    "image_size": LARGE,
    "patch_size": 8,
    "hidden_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 384,
    "attn_implementation": "eager",  # on a CPU the fused kernel's backward pass is slower
}


@dataclass(frozen=True)
class Stage(curriculum.Stage):
    """Scenes of `worlds`, by turns."""

    worlds: tuple[World, ...] = (VARIED, World())


@dataclass(frozen=True)
class Recipe(LabRecipe[Stage]):
    """Crops, masks, and what the teacher does.

    Attributes:
        small: number of small crops of a scene, beside two large ones.
        large_sizes, small_sizes: least and largest side of a crop in sides of the scene.
        mask_ratio: of the student's patches in large crops.
        prototypes: outputs of the head.
        momentum: of the teacher, first and last.
        temperature: of the teacher, first and after the warm-up.
    """

    small: int = 2
    large_sizes: tuple[float, float] = (0.5, 1.0)
    small_sizes: tuple[float, float] = (0.2, 0.45)
    mask_ratio: float = 0.3
    prototypes: int = 1024
    warmup: int = 300
    momentum: tuple[float, float] = (0.99, 1.0)
    temperature: tuple[float, float] = (0.04, 0.07)
    evaluate_every: int = 4_000
    stages: tuple[Stage, ...] = (Stage(48_000, 16),)

    def teacher_momentum(self, step: int) -> float:
        """A cosine from first to last."""
        return cosine(*self.momentum, step / self.steps)

    def teacher_temperature(self, step: int) -> float:
        """Linear over the warm-up."""
        progress = min(1.0, step / max(1, self.warmup))
        return self.temperature[0] + progress * (self.temperature[1] - self.temperature[0])


def make_batch(position: Position[Stage]) -> Batch:
    """Fresh scenes: pixels [B, 3, 128, 128] uint8."""
    worlds = position.stage.worlds
    scenes = draw_scenes(position.images, SCENE, worlds[position.step % len(worlds)])
    return (stack_pixels([scene.image for scene in scenes]),)


class DinoTrainer(ZooTrainer[Recipe]):
    """Student and teacher, compiled."""

    name = "dino"
    what = "a ViT of transformers, self-distilled from scratch on scenes of the lab world"
    default_recipe = Recipe()
    selected_by = ("attention_in_mask", "things")
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
    )
    model: Pair

    def __init__(self, recipe: Recipe | None = None, device: str | torch.device = "cpu") -> None:
        super().__init__(recipe, device)
        self.optimise(Pair(ViTConfig(**MODEL), self.recipe.prototypes))
        self.student: Any = torch.compile(self.model.student, dynamic=False)
        self.teacher: Any = torch.compile(self.model.teacher, dynamic=False)

    def batches(self) -> Batches[Any]:
        """Scenes of every step."""
        return Batches(self.recipe, make_batch)

    def loss(self, pixels: Tensor) -> Tensor:
        """Class tokens of all crops and masked patches of the large ones, equally weighted."""
        recipe, scenes = self.recipe, pixels.float() / 255  # [B, 3, 128, 128]
        large = crops(scenes.repeat(2, 1, 1, 1), LARGE, recipe.large_sizes)
        large = standardise(jitter(large))  # [2B, 3, 64, 64]
        small = crops(scenes.repeat(recipe.small, 1, 1, 1), SMALL, recipe.small_sizes)
        side = LARGE // MODEL["patch_size"]
        masked = block_mask(len(large), side, round(recipe.mask_ratio * side**2), large.device)
        with self.precision():
            classes, patches = self._teach(large, masked)
            seen = self.student(large, bool_masked_pos=masked).last_hidden_state  # [2B, 1 + L, D]
            small = standardise(jitter(small))
            details = self.student(small, interpolate_pos_encoding=True).last_hidden_state
            logits = self.model.head(torch.cat([seen[:, 0], details[:, 0], seen[:, 1:][masked]]))
        parts = logits.float().split([len(large), len(small), int(masked.sum())])
        views = [rearrange(part, "(v b) p -> v b p", b=len(scenes)) for part in parts[:2]]
        return (class_loss(classes, *views) + cross_entropy(patches, parts[2])) / 2

    @torch.no_grad()
    def _teach(self, large: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities of class tokens [2, B, P] and of masked patches [n, P]."""
        temperature = self.recipe.teacher_temperature(self.done)
        seen = self.teacher(large).last_hidden_state
        logits = self.model.teacher_head(torch.cat([seen[:, 0], seen[:, 1:][masked]])).float()
        classes = self.model.targets(logits[: len(large)], 0, temperature)
        patches = self.model.targets(logits[len(large) :], 1, temperature)
        return rearrange(classes, "(v b) p -> v b p", v=2), patches

    def after_step(self) -> None:
        """Update the teacher."""
        self.model.ema_update(self.recipe.teacher_momentum(self.done))

    @property
    def kept(self) -> nn.Module:
        """The teacher."""
        return self.model.teacher

    def metrics(self, backbone: Any, split: Split, scenes: int | None) -> dict[str, float]:
        """See `measure`."""
        return measure(backbone, split, scenes)

    def intervals(self, backbone: Any, scenes: int | None) -> dict[str, Interval]:
        """Of the attention inside things."""
        return {"attention_in_mask": attention_interval(backbone, "val", scenes)}

    def write(self, folder: Path) -> None:
        """Write the teacher, in the layout of transformers."""
        teacher = self.model.teacher
        write_json(folder / "preprocessor_config.json", {"image_mean": MEAN, "image_std": STD})
        config = {**teacher.config.to_dict(), "architectures": ["ViTModel"]}
        write_json(folder / "config.json", config)
        weights = {k: v for k, v in teacher.state_dict().items() if not k.endswith("mask_token")}
        write_weights(folder / "model.safetensors", weights)

    def load(self, folder: Path) -> DinoBackbone:
        """The backbone in `folder`."""
        return DinoBackbone.load(folder, device=self.device)
