"""The curriculum of a training: stages of images and batches, and which images each step sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from .optim import warmup_cosine

Batch = tuple[Tensor, ...]  # the first tensor is [B, ...]: its length counts the images
SEED_STRIDE = 1_000_000_000  # image numbers of two seeds never meet


@dataclass(frozen=True)
class Stage:
    """Steps that share their batch size: `images` images in batches of `batch`, a rest left out.

    Subclasses add what else the stage decides: image size, augmentation, losses.
    """

    images: int
    batch: int

    @property
    def steps(self) -> int:
        """Optimiser steps of the stage."""
        return self.images // self.batch


S = TypeVar("S", bound=Stage)


class Position(NamedTuple, Generic[S]):
    """Where a step lies.

    Attributes:
        stage: the stage that it belongs to.
        step: its number within the stage, from 0.
        images: the numbers of its images; no two steps or seeds share one.
    """

    stage: S
    step: int
    images: range


@dataclass(frozen=True)
class Recipe(Generic[S]):
    """A curriculum and the hyperparameters of its optimiser; subclasses add their own.

    Attributes:
        stages: trained one after the other.
        seed: of the weights, the images and all that is drawn at random.
        rate: peak of the learning rate.
        weight_decay: AdamW's, of matrices.
        beta2: AdamW's second.
        warmup: steps until the peak.
        max_norm: to which gradients are clipped.
        accumulate: parts a batch is split into, whose gradients are added up.
        dtype: of matrix products in the forward pass; "bfloat16" is autocast.
        evaluate_every: images between two points of the curve.
    """

    stages: tuple[S, ...] = ()
    seed: int = 0
    rate: float = 1e-3
    weight_decay: float = 0.05
    beta2: float = 0.98
    warmup: int = 0
    max_norm: float = 1.0
    accumulate: int = 1
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    evaluate_every: int = 10_000

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(stage.steps for stage in self.stages)

    @property
    def images(self) -> int:
        """Images in all."""
        return sum(stage.steps * stage.batch for stage in self.stages)

    def at(self, step: int) -> Position[S]:
        """The position of step `step`, from 0.

        Raises:
            IndexError: the curriculum has no such step.
        """
        first, within = self.seed * SEED_STRIDE, step
        for stage in self.stages:
            if 0 <= within < stage.steps:
                first += within * stage.batch
                return Position(stage, within, range(first, first + stage.batch))
            first, within = first + stage.steps * stage.batch, within - stage.steps
        raise IndexError(f"step {step} of {self.steps}")

    def learning_rate(self, step: int) -> float:
        """The rate of step `step`: linear warm-up, then a cosine to 1 % of the peak."""
        return self.rate * warmup_cosine(step, self.warmup, self.steps)


class Batches(Dataset[Batch], Generic[S]):
    """The batch of every step of a recipe; `make` must be a function of the position alone.

    So a resumed run goes on with the batch that comes next, whatever number of workers made the
    batches before.
    """

    def __init__(self, recipe: Recipe[S], make: Callable[[Position[S]], Batch]) -> None:
        self.recipe, self.make = recipe, make

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> Batch:
        return self.make(self.recipe.at(step))
