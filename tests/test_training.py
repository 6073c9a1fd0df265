"""The training loop: positions, exact resume, accumulation; cards, gates and whole folders."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ovss import files
from ovss.errors import OvssError
from ovss.training.card import UNTRAINED, Gate, card, write_curve
from ovss.training.curriculum import SEED_STRIDE, Batch, Batches, Position, Recipe, Stage
from ovss.training.loop import Trainer, run
from ovss.training.losses import symmetric_cross_entropy
from ovss.training.optim import cosine, ema_update, warmup_cosine


@dataclass(frozen=True)
class Noisy(Stage):
    """A stage with an option of its own."""

    noise: float = 0.1


RECIPE: Recipe[Noisy] = Recipe(
    stages=(Noisy(12, 4), Noisy(7, 2, 0.5)), warmup=2, evaluate_every=8, dtype="float32"
)


def make_batch(position: Position[Noisy]) -> Batch:
    """Points that follow from their numbers: [B, 3]."""
    rows = [torch.tensor(np.random.default_rng(i).normal(size=3)) for i in position.images]
    return (torch.stack(rows).float(),)


class Toy(Trainer[Recipe[Noisy]]):
    """A small network with dropout, and a loss that draws from all three generators."""

    selected_by = ("score",)

    def __init__(self, recipe: Recipe[Noisy] = RECIPE) -> None:
        super().__init__(recipe)
        self.optimise(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)))

    def loss(self, points: Tensor) -> Tensor:
        noise = self.recipe.at(self.done).stage.noise
        target = points + noise * (random.random() + np.random.rand() + torch.rand(()))
        with self.precision():
            return (self.model(points).float() - target).square().mean()

    def measure(self) -> dict[str, float]:
        return {"score": float(self.done % 3)}


def train(folder: Path, recipe: Recipe[Noisy] = RECIPE, workers: int = 0) -> Toy:
    trainer = Toy(recipe)
    run(trainer, Batches(recipe, make_batch), folder / "training.pt", workers)
    return trainer


def test_positions_follow_one_another() -> None:
    assert RECIPE.steps == 6 and RECIPE.images == 18, "what fills no batch is left out"
    found = [RECIPE.at(step) for step in range(RECIPE.steps)]
    assert [p.step for p in found] == [0, 1, 2, 0, 1, 2]
    assert [p.stage for p in found] == [RECIPE.stages[0]] * 3 + [RECIPE.stages[1]] * 3
    assert [number for p in found for number in p.images] == list(range(18))
    assert replace(RECIPE, seed=2).at(0).images.start == 2 * SEED_STRIDE
    for wrong in (-1, 6):
        with pytest.raises(IndexError, match="of 6"):
            RECIPE.at(wrong)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_weights(tmp_path: Path, workers: int) -> None:
    alone, helped = train(tmp_path / "a"), train(tmp_path / "b", workers=workers)
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(helped.model.state_dict()[name], tensor)


@pytest.mark.parametrize("killed_at", range(1, 6))
def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, step = train(tmp_path / "whole"), Toy.step

    def killed(trainer: Toy, batch: Batch) -> float:
        if trainer.done == killed_at:
            raise KeyboardInterrupt
        return step(trainer, batch)

    monkeypatch.setattr(Toy, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts")
    monkeypatch.setattr(Toy, "step", step)
    random.seed(99)
    torch.manual_seed(99)
    resumed = train(tmp_path / "parts")
    first, second = whole.state(), resumed.state()
    assert [p["images"] for p in resumed.curve] == [p["images"] for p in whole.curve]
    assert [p["loss"] for p in resumed.curve] == [p["loss"] for p in whole.curve]
    for part in ("model", "best_weights"):
        for name, tensor in first[part].items():
            assert torch.equal(second[part][name], tensor), (part, name)
    again = train(tmp_path / "parts")  # killed after the last step, before the state is removed
    assert torch.equal(again.model.state_dict()["0.weight"], first["model"]["0.weight"])


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    trainer = train(tmp_path)
    assert [point["score"] for point in trainer.curve] == [2.0, 2.0, 0.0]
    assert trainer.best == 2.0
    assert not torch.equal(trainer.best_weights["0.weight"], trainer.model.state_dict()["0.weight"])


def test_a_state_of_another_recipe_or_no_state_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(OvssError, match="another recipe: delete it"):
        train(tmp_path, replace(RECIPE, rate=0.5))
    saved = tmp_path / "training.pt"
    whole = saved.read_bytes()
    for content in (b"", b"no state", whole[: len(whole) // 2]):
        saved.write_bytes(content)
        with pytest.raises(OvssError, match=r"training\.pt is damaged: delete it"):
            train(tmp_path)
    torch.save([1], saved)
    with pytest.raises(OvssError, match="no state of a training"):
        train(tmp_path)


def test_accumulated_gradients_are_those_of_the_batch() -> None:
    whole, parts = Toy(), Toy(replace(RECIPE, accumulate=3))
    for trainer in (whole, parts):
        trainer.model[1].p = 0.0  # type: ignore[index]
        trainer.loss = lambda points, t=trainer: t.model(points).square().mean()  # type: ignore[method-assign]
    batch = (torch.randn(7, 3),)
    losses = [trainer.backward(batch) for trainer in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    pairs = zip(whole.model.parameters(), parts.model.parameters(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad)


def test_bfloat16_is_an_option() -> None:
    trainer = Toy(replace(RECIPE, dtype="bfloat16"))
    with trainer.precision():
        assert trainer.model(torch.randn(2, 3)).dtype == torch.bfloat16
    with Toy().precision():
        assert Toy().model(torch.randn(2, 3)).dtype == torch.float32


def test_a_wrong_device_is_one_line() -> None:
    with pytest.raises(OvssError, match="cannot use device"):
        Trainer(RECIPE, "cuda:99")


def test_schedules() -> None:
    assert [warmup_cosine(step, 4, 10) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert warmup_cosine(10, 4, 10) == pytest.approx(0.01)
    assert cosine(2.0, 1.0, 0.5) == pytest.approx(1.5)
    average, current = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    ema_update([average], [current], 0.9)
    torch.testing.assert_close(average.data, torch.full((2,), 0.1))


def test_the_contrastive_loss_is_clips_when_all_texts_differ() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 5), torch.arange(5)
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(symmetric_cross_entropy(logits, torch.eye(5)), expected)


def test_gates_are_judged_on_val() -> None:
    gates = (
        Gate("accuracy", "names things, %", 80.0),
        Gate("attention", "above the untrained", UNTRAINED),
    )
    untrained = {"attention": {"low": 40.0, "high": 50.0}}

    def passed(accuracy: float, attention: float) -> list[bool]:
        val = {"accuracy": accuracy, "attention": attention}
        found: dict[str, Any] = card(Toy(), "toy", "a toy", 1, {"val": val}, untrained, gates)
        assert [gate["threshold"] for gate in found["gates"]] == [80.0, 50.0]
        assert [gate["measured"] for gate in found["gates"]] == [accuracy, attention]
        return [gate["passed"] for gate in found["gates"]]

    assert passed(80.0, 50.0) == [True, False]
    assert passed(79.9, 50.1) == [False, True]


def test_a_loss_that_joins_in_late_has_a_column_of_its_own(tmp_path: Path) -> None:
    write_curve(tmp_path / "curve.csv", [{"images": 8, "a": 1.5}, {"images": 16, "b": 2, "a": 1}])
    text = (tmp_path / "curve.csv").read_text()
    assert text == "images,a,b\n8,1.5,nan\n16,1,2\n"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    (folder / "gone").write_text("old")
    (folder / "diary").write_text("kept")
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(folder, keep=["diary"]) as new:
        (new / "weights").write_text("half")
        raise KeyboardInterrupt
    assert sorted(p.name for p in folder.iterdir()) == ["diary", "gone", "weights"]
    assert (folder / "weights").read_text() == "old"
    with files.atomic_folder(folder, keep=["diary", "absent"]) as new:
        (new / "weights").write_text("new")
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"weights": "new", "diary": "kept"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"], "nothing is left beside it"
    with files.atomic_folder(tmp_path / "first" / "time") as new:
        (new / "weights").write_text("new")
    assert (tmp_path / "first" / "time" / "weights").read_text() == "new"
