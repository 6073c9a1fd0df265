"""What every recipe shares: a state that a killed run goes on from, the loop, the schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from ovss import paths
from ovss.errors import OvssError

Batch = tuple[Tensor, ...]  # the first tensor is [B, ...]: its length counts the images


class Recipe(Protocol):
    """What the loop asks of a recipe."""

    @property
    def seed(self) -> int:
        """Of weights, scenes and chance."""

    @property
    def evaluate_every(self) -> int:
        """Images between two points of the curve."""

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""

    @property
    def images(self) -> int:
        """Images in all."""


class Progress:
    """A model in training, its optimiser and how far it is; saved and restored as one."""

    model: nn.Module
    optimiser: torch.optim.Optimizer

    def __init__(self, recipe: Recipe, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe: Any = recipe
        self.device = device
        self.step = self.images = 0
        self.seconds = 0.0
        self.best = -1.0
        self.best_weights: dict[str, Tensor] = {}
        self.curve: list[dict[str, float]] = []

    def advance(self, batch: Batch) -> float:
        """One step of training; returns the loss."""
        raise NotImplementedError

    def add_point(self, point: dict[str, float], score: float, model: nn.Module) -> None:
        """Add a point to the curve; keep the weights of `model` if it is the best so far."""
        self.curve.append({"images": self.images, "seconds": self.seconds, **point})
        if score > self.best:
            self.best = score
            self.best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def state(self) -> dict[str, Any]:
        keep = ("step", "images", "seconds", "best", "best_weights", "curve")
        state = {key: getattr(self, key) for key in keep}
        state["recipe"] = repr(self.recipe)
        return {**state, "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            OvssError: the state belongs to another recipe.
        """
        if state.pop("recipe") != repr(self.recipe):
            raise OvssError("training.pt belongs to another recipe: delete it to start anew")
        self.model.load_state_dict(state.pop("model"))
        self.optimiser.load_state_dict(state.pop("optimiser"))
        for key, value in state.items():
            setattr(self, key, value)


def run(
    progress: Progress,
    folder: Path,
    batches: Callable[[int], IterableDataset[Batch]],
    examine: Callable[[float], None],
    finish: Callable[[], None],
) -> None:
    """Train to the end of the recipe, from `folder`/training.pt if a run was killed there.

    Args:
        batches: the batches from a given step on.
        examine: given the loss, adds a point to the curve.
        finish: writes the model; the saved state goes after it.
    """
    recipe, saved = progress.recipe, folder / "training.pt"
    if saved.exists():
        progress.restore(torch.load(saved, weights_only=True, map_location=progress.device))
    loader = DataLoader(batches(progress.step), batch_size=None, num_workers=1, prefetch_factor=8)
    with tqdm(total=recipe.images, initial=progress.images, unit="image", smoothing=0.01) as bar:
        for batch in loader:
            size = len(batch[0])
            loss = _timed(progress, batch)
            bar.update(size)
            if progress.images % recipe.evaluate_every < size or progress.step == recipe.steps:
                examine(loss)
                bar.set_postfix(progress.curve[-1])
                with paths.atomic(saved) as file:
                    torch.save(progress.state(), file)
    finish()
    saved.unlink()


def adamw(model: nn.Module, rate: float, weight_decay: float, beta: float) -> torch.optim.AdamW:
    """AdamW of the parameters in training; vectors (biases, norms) do not decay."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learnt if p.ndim < 2]},
    ]
    return torch.optim.AdamW(groups, rate, (0.9, beta), weight_decay=0.0, fused=True)


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up to 1, then a cosine to 0.01."""
    if step < warmup:
        return (step + 1) / warmup
    return cosine(1.0, 0.01, (step - warmup) / (steps - warmup))


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _timed(progress: Progress, batch: Batch) -> float:
    start = time.perf_counter()
    loss = progress.advance(tuple(part.to(progress.device) for part in batch))
    progress.seconds += time.perf_counter() - start
    return loss
