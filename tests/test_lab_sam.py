"""The recipe of the lab SAM: prompts, losses, what is measured; killed and resumed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovss.backbones.sam import SamBackbone
from ovss.lab.pretrain.batches import WorldStage
from ovss.lab.pretrain.sam import train as sam
from ovss.lab.pretrain.sam.losses import (
    correction,
    dice_loss,
    focal_loss,
    judge,
    mask_iou,
)
from ovss.lab.pretrain.sam.measure import centre
from ovss.lab.pretrain.sam.recipe import LOW, MODEL, SIDE, Recipe, inner_points, prompt
from ovss.lab.pretrain.sam.train import SamTrainer, make_model
from ovss.lab.scenes import MOTLEY, World, render
from resuming import assert_same_weights, kill

TINY = Recipe(
    warmup=2,
    prompts=3,
    evaluate_every=8,
    curve_scenes=2,
    card_scenes=2,
    dtype="float32",
    stages=(WorldStage(16, 4, (World(), MOTLEY)),),
)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A smaller model of the same kind, not compiled."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "global_attn_indexes": [1], "mlp_dim": 32}
    vision = {**MODEL["vision_config"], **small}
    monkeypatch.setattr(sam, "MODEL", {**MODEL, "vision_config": vision})
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


# ---- prompts


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_points_lie_in_what_they_mean(kind: int) -> None:
    """In the part, the thing or the ground, which is one whole of the scene."""
    meant = tuple(float(kind == i) for i in range(3))
    for index in range(12):
        scene = render("pretrain", index, SIDE)
        found = prompt(scene, meant, np.random.default_rng(index))  # type: ignore[arg-type]
        x, y = found.points.astype(int).T
        maps = (scene.parts, scene.instances, np.where(scene.instances, 0, scene.labels + 1))
        numbers = maps[kind][y, x]
        assert numbers[0] > 0 and (numbers == numbers[0]).all()
        whole = (maps[kind] == numbers[0]).reshape(LOW, 2, LOW, 2).mean((1, 3)) >= 0.5
        assert np.array_equal(found.target, whole)


def test_parts_belong_to_one_thing_each() -> None:
    for index in range(20):
        scene = render("val", index, SIDE)
        for part in range(1, scene.parts.max() + 1):
            assert len(np.unique(scene.instances[scene.parts == part])) <= 1
        assert not scene.parts[scene.instances == 0].any()
        assert (scene.parts[scene.instances > 0] > 0).mean() > 0.9


def test_all_prompts_of_a_batch_have_as_many_points() -> None:
    batches = SamTrainer(TINY).batches()
    counts = []
    for step in range(len(batches)):
        pixels, points, targets = batches[step]
        counts.append(points.shape[2])
        assert pixels.shape == (4, 3, SIDE, SIDE) and pixels.dtype == torch.uint8
        assert points.shape == (4, 3, counts[-1], 2) and targets.shape == (4, 3, LOW, LOW)
        assert targets.dtype == torch.bool and targets.flatten(2).any(-1).all()
        assert torch.equal(points, batches[step][1])
    assert len(set(counts)) > 1


# ---- losses


def test_focal_loss_by_hand() -> None:
    logits, wanted = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])
    wrong = 1 / (1 + math.exp(-2.0))  # of the second pixel, which is outside
    first = 0.25 * 0.5**2 * math.log(2)
    second = 0.75 * wrong**2 * -math.log(1 - wrong)
    assert float(focal_loss(logits, wanted)) == pytest.approx((first + second) / 2, rel=1e-5)


def test_dice_loss_by_hand() -> None:
    logits = torch.tensor([[[50.0, 50.0, -50.0, -50.0]]])
    wanted = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]])
    assert float(dice_loss(logits, wanted)) == pytest.approx(1 - (2 + 1) / (4 + 1))


def test_iou_by_hand() -> None:
    a, b = torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])
    assert float(mask_iou(a, b)) == pytest.approx(1 / 3)
    assert float(mask_iou(a & False, b & False)) == 1


def test_only_the_best_mask_learns_and_every_predicted_iou() -> None:
    target = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    target[..., :2] = True
    good = torch.where(target, 3.0, -3.0)[:, :, None]
    logits = torch.cat([torch.zeros_like(good), good, -good], 2).requires_grad_()  # [1, 1, 3, 4, 4]
    predicted = torch.tensor([[[0.2, 0.5, 0.1]]], requires_grad=True)
    found = judge(logits, predicted, target, 20.0)
    assert found.best.item() == 1
    (found.mask + found.iou).backward()
    assert logits.grad is not None and predicted.grad is not None
    assert logits.grad[0, 0, [0, 2]].abs().max() == 0 < logits.grad[0, 0, 1].abs().min()
    true = [0.0, 1.0, 0.0]  # a logit of zero is outside
    expected = sum((a - b) ** 2 for a, b in zip((0.2, 0.5, 0.1), true, strict=True)) / 3
    assert float(found.iou) == pytest.approx(expected, rel=1e-5)


def test_a_correction_points_at_what_is_wrong() -> None:
    torch.manual_seed(0)
    target = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    target[..., 2:4, 5] = True
    missed = torch.full((2, 3, 8, 8), -1.0)
    points, labels = correction(missed, target)
    assert points.shape == (2, 3, 1, 2) and bool((labels == 1).all())
    assert bool((points[..., 0] == 5.5).all()) and set(points[..., 1].flatten().tolist()) == {
        2.5,
        3.5,
    }
    spilt = torch.where(target, 1.0, -1.0)
    spilt[..., 7, 0] = 1.0
    points, labels = correction(spilt, target)
    assert bool((labels == 0).all()) and points[0, 0, 0].tolist() == [0.5, 7.5]
    _, labels = correction(torch.where(target, 1.0, -1.0), target)
    assert labels.shape == (2, 3, 1), "where nothing is wrong any point will do"


# ---- training


def test_the_start_is_the_authors() -> None:
    """Embeddings of variance one and no places like hashes: else nothing is learnt."""
    torch.manual_seed(0)
    model = make_model()
    tokens = model.mask_decoder.mask_tokens.weight
    assert 0.7 < float(tokens.std()) < 1.3
    assert 0.7 < float(model.shared_image_embedding.positional_embedding.std()) < 1.3
    assert not model.shared_image_embedding.positional_embedding.requires_grad


def test_the_trainer_decodes_as_the_model_and_the_backbone_do() -> None:
    torch.manual_seed(0)
    trainer = SamTrainer(TINY)
    points, labels = torch.rand(1, 3, 2, 2) * SIDE, torch.tensor([[[1, 0]] * 3])
    image = torch.from_numpy(render("val", 0, SIDE).image.copy())
    features = trainer.model.vision_encoder(sam.normalise(image.permute(2, 0, 1)[None]))[0]
    with torch.no_grad():
        logits, iou = trainer._decode(features, points, labels, True)
        expected = trainer.model(
            image_embeddings=features, input_points=points, input_labels=labels
        )
    torch.testing.assert_close(logits, expected.pred_masks)
    torch.testing.assert_close(iou, expected.iou_scores)
    from PIL import Image

    found = trainer.snapshot().predict(Image.fromarray(image.numpy()), points[0], labels[0])
    torch.testing.assert_close(found.iou, iou[0], rtol=2e-2, atol=2e-2)  # weights in float16


def test_a_few_scenes_are_learnt_by_heart() -> None:
    trainer = SamTrainer(TINY)
    batch = trainer.batches()[0]
    losses = [trainer.step(batch) for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    SamTrainer(TINY).train(tmp_path / "whole")
    kill(lambda: SamTrainer(TINY), tmp_path / "killed", 8)
    SamTrainer(TINY).train(tmp_path / "killed")
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    assert SamBackbone.load(tmp_path / "killed").size == SIDE


# ---- measures


def test_the_centre_is_farthest_from_the_border() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[0:9, 4:19] = True
    mask[0:9, 25] = True
    x, y = centre(mask)
    assert y == 4 and 8 <= x <= 14
    points = inner_points(mask, 50, np.random.default_rng(0)).astype(int)
    assert mask[points[:, 1], points[:, 0]].all() and len(np.unique(points, axis=0)) > 20


def test_measures_are_percentages() -> None:
    found: dict[str, Any] = SamTrainer(TINY).metrics(SamTrainer(TINY).snapshot(), "tune", 2)
    assert set(found) == {"click", "best_of_three", "five", "click_motley"}
    assert all(0 <= value <= 100 for value in found.values())
    assert found["best_of_three"] >= found["click"]
