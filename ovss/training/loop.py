"""A training loop that resumes exactly, and the trainer that it drives."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm

from .. import files
from ..backbones.devices import find_device
from ..errors import OvssError
from .curriculum import Batch, Batches, Recipe
from .optim import adamw

R = TypeVar("R", bound=Recipe[Any])
SAVE_EVERY = 300.0  # seconds of training that a killed run loses at most
AHEAD = 8  # batches that each worker holds ready
ANY_KERNEL = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]


class Trainer(Generic[R]):
    """A model in training with its optimiser, its curve and the weights worth keeping.

    A subclass makes `model` and `optimiser` (`optimise`) after the base's `__init__`, and defines
    `loss`. It may override `before_step`, `after_step`, `backward` and `measure`.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    selected_by: tuple[str, ...] = ()  # metrics whose sum selects the weights; none: the last ones
    cpu_attention: tuple[SDPBackend, ...] = ()  # kernels on the CPU, fastest first; none: any

    def __init__(self, recipe: R, device: str | torch.device = "cpu") -> None:
        """Seed all generators for the weights that the subclass is about to draw.

        Raises:
            OvssError: there is no such device here.
        """
        self.recipe = recipe
        self.device = find_device(device)
        seed_all(recipe.seed)
        self.done = self.images = 0  # steps and images so far
        self.seconds = 0.0
        self.best = -1.0
        self.best_weights: dict[str, Tensor] = {}
        self.curve: list[dict[str, float]] = []

    def optimise(self, model: nn.Module) -> None:
        """Move the model to the device and give its parameters to AdamW."""
        recipe = self.recipe
        self.model = model.to(self.device)
        self.optimiser = adamw(self.model, recipe.rate, recipe.weight_decay, recipe.beta2)

    def loss(self, *batch: Any, **_: Any) -> Tensor:  # a subclass names the parts of its batch
        """Compute a batch's loss, a scalar; the forward pass belongs into `self.precision()`."""
        raise NotImplementedError

    def step(self, batch: Batch) -> float:
        """Take one optimiser step on a batch (moved to the device); returns the loss.

        All generators are seeded by the recipe's seed and the number of the step, so that a resumed
        run draws what an unbroken one draws.
        """
        batch = tuple(part.to(self.device, non_blocking=True) for part in batch)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate(self.done)
        self.model.train()
        seed_all(self.recipe.seed * 1_000_003 + self.done)
        self.before_step(batch)
        loss = self.backward(batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.after_step()
        self.done, self.images = self.done + 1, self.images + len(batch[0])
        return loss

    def before_step(self, batch: Batch) -> None:
        """Hook: what a step of this stage needs first."""

    def after_step(self) -> None:
        """Hook: what follows the optimiser's step, such as a moving average."""

    def backward(self, batch: Batch) -> float:
        """Add up the gradients of the batch, in `recipe.accumulate` parts; returns the loss.

        A loss that compares the images of a batch sees those of its part alone: such a training
        overrides this with a gradient cache.
        """
        total = 0.0
        for parts in zip(*(tensor.chunk(self.recipe.accumulate) for tensor in batch), strict=True):
            loss = self.loss(*parts) * (len(parts[0]) / len(batch[0]))
            loss.backward()
            total += float(loss.detach())
        return total

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Within it matrix products run in the recipe's dtype, attention in the chosen kernels."""
        kernels = list(self.cpu_attention) if self.device.type == "cpu" else []
        half = self.recipe.dtype == "bfloat16"
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=half),
            sdpa_kernel(kernels or ANY_KERNEL),
        ):
            yield

    @property
    def kept(self) -> nn.Module:
        """The part of the model whose weights are kept."""
        return self.model

    def measure(self) -> dict[str, float]:
        """Hook: the metrics of a point of the curve; the model is in evaluation mode."""
        return {}

    def add_point(self, loss: float) -> None:
        """Add a point to the curve; keep the weights if `selected_by` says they are the best."""
        self.model.eval()
        point = self.measure()
        self.curve.append({"images": self.images, "seconds": self.seconds, "loss": loss, **point})
        score = sum(point[name] for name in self.selected_by)
        if self.selected_by and score > self.best:
            self.best = score
            weights = self.kept.state_dict()
            self.best_weights = {name: w.detach().clone() for name, w in weights.items()}

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; schedule, data and generators follow from `done`."""
        keep = ("done", "images", "seconds", "best", "best_weights", "curve")
        state = {key: getattr(self, key) for key in keep}
        state["recipe"] = repr(self.recipe)
        return {**state, "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            OvssError: the state belongs to another recipe.
        """
        if state["recipe"] != repr(self.recipe):
            raise OvssError("the saved state belongs to another recipe: delete it to start anew")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        for key in ("done", "images", "seconds", "best", "best_weights", "curve"):
            setattr(self, key, state[key])


def run(trainer: Trainer[Any], batches: Batches[Any], saved: Path, workers: int = 1) -> None:
    """Train to the end of the recipe, from the state in `saved` if a killed run left one there.

    Batches are made in background processes. The state is written atomically at each point of the
    curve and every few minutes; the caller removes it once the model is written.

    Args:
        workers: processes that make batches; with 0 the training waits for each batch.

    Raises:
        OvssError: `saved` is damaged or belongs to another recipe.
    """
    if saved.exists():
        trainer.restore(_read(saved, trainer.device))
    recipe, last_save = trainer.recipe, time.monotonic()
    loader = _loader(batches, trainer.done, workers, trainer.device)
    with tqdm(total=recipe.images, initial=trainer.images, unit="image", smoothing=0.01) as bar:
        for batch in loader:
            size, start = len(batch[0]), time.perf_counter()
            loss = trainer.step(tuple(batch))
            trainer.seconds += time.perf_counter() - start
            bar.update(size)
            point = trainer.images % recipe.evaluate_every < size or trainer.done == recipe.steps
            if point:
                trainer.add_point(loss)
                bar.set_postfix(trainer.curve[-1])
            if point or time.monotonic() - last_save > SAVE_EVERY:
                with files.atomic(saved) as file:
                    torch.save(trainer.state(), file)
                last_save = time.monotonic()


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _read(saved: Path, device: torch.device) -> dict[str, Any]:
    try:
        state = torch.load(saved, weights_only=True, map_location=device)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
        raise OvssError(f"{saved} is damaged: delete it to start anew") from None
    if not isinstance(state, dict) or "recipe" not in state:
        raise OvssError(f"{saved} is no state of a training: delete it to start anew")
    return state


def _loader(batches: Batches[Any], start: int, workers: int, device: torch.device) -> Any:
    """The batches from step `start` on, in order; a process that holds a GPU is never forked."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context="spawn" if workers and device.type != "cpu" else None,
        pin_memory=device.type == "cuda",
    )
