"""Trainings that are killed and go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ovss.lab.pretrain.trainer import ZooTrainer


def kill(make: Callable[[], ZooTrainer], folder: Path, after: int) -> None:  # type: ignore[type-arg]
    """Train into `folder` and interrupt at the first point of the curve past `after` images."""
    trainer = make()
    kind = type(trainer)
    add_point = kind.add_point

    def die_later(trainer: ZooTrainer, loss: float) -> None:  # type: ignore[type-arg]
        if trainer.images > after:
            raise KeyboardInterrupt
        add_point(trainer, loss)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kind, "add_point", die_later)
        trainer.train(folder)


def assert_same_weights(one: Path, other: Path) -> None:
    """Two folders hold the same tensors, bit for bit."""
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
