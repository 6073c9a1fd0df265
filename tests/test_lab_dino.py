"""The recipe of the lab DINO: its crops, losses, measures; killed and resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ovss.backbones.dino import DinoBackbone
from ovss.lab.pretrain.attention_in_mask import attention_in_mask, majority
from ovss.lab.pretrain.batches import MEAN
from ovss.lab.pretrain.dino import train as recipe_file
from ovss.lab.pretrain.dino.crops import block_mask, crops, jitter
from ovss.lab.pretrain.dino.distil import Pair, class_loss, cross_entropy
from ovss.lab.pretrain.dino.measure import neighbours
from ovss.lab.pretrain.dino.train import MODEL, DinoTrainer, Recipe, Stage

TINY = Recipe(
    stages=(Stage(16, 4),),
    warmup=0,
    prototypes=16,
    evaluate_every=8,
    curve_scenes=2,
    card_scenes=2,
)


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Compiling takes longer than these few steps."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller model of the same kind."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setattr(recipe_file, "MODEL", {**MODEL, **small, "intermediate_size": 32})


# ---- crops


def test_a_whole_crop_is_the_scene_or_its_mirror() -> None:
    torch.manual_seed(0)
    scenes = torch.rand(8, 3, 16, 16)
    found = crops(scenes, 16, (1.0, 1.0))
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(found, scenes, strict=True)]
    mirrored = [torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(found, scenes, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert any(same) and any(mirrored)


def test_a_crop_stays_inside_and_has_its_size() -> None:
    """On a ramp from 0 to 1, the range that a crop of half the side shows is half as wide."""
    torch.manual_seed(1)
    ramp = torch.linspace(0, 1, 65).expand(1, 3, 65, 65).repeat(64, 1, 1, 1)
    found = crops(ramp, 32, (0.5, 0.5))
    width = found.amax((1, 2, 3)) - found.amin((1, 2, 3))
    torch.testing.assert_close(width, torch.full((64,), 0.5 * 31 / 32 * 65 / 64), atol=1e-3, rtol=0)
    centres = found.mean((1, 2, 3))
    assert 0.24 < centres.min() < 0.35 and 0.65 < centres.max() < 0.76


def test_jitter_keeps_the_range_and_the_picture() -> None:
    torch.manual_seed(2)
    pixels = torch.rand(4, 3, 8, 8)
    found = jitter(pixels)
    assert found.min() >= 0 and found.max() <= 1 and not torch.equal(found, pixels)
    assert torch.corrcoef(torch.stack([pixels[0].flatten(), found[0].flatten()]))[0, 1] > 0.9
    torch.testing.assert_close(jitter(pixels, 0.0), pixels)


def test_block_masks_hide_as_many_as_asked_in_few_pieces() -> None:
    torch.manual_seed(3)
    masked = block_mask(20, 16, 77, torch.device("cpu"))
    assert (masked.sum(1) == 77).all()
    maps = masked.reshape(20, 16, 16)
    alike = (maps[:, 1:] == maps[:, :-1]).float().mean()
    assert alike > 0.75, "neighbours of random masks agree for 0.58 of all pairs"


# ---- losses


def test_cross_entropy_by_hand() -> None:
    wanted = torch.tensor([[0.25, 0.75]])
    logits = torch.tensor([[0.1, 0.2]])  # of cosines: the temperature is 0.1
    first, second = math.exp(1) / (math.exp(1) + math.exp(2)), 1 / (1 + math.exp(-1))
    expected = -(0.25 * math.log(first) + 0.75 * math.log(second))
    assert float(cross_entropy(wanted, logits)) == pytest.approx(expected, rel=1e-5)


def test_class_loss_is_the_mean_over_all_pairs_of_different_crops() -> None:
    torch.manual_seed(4)
    wanted = torch.rand(2, 3, 5).softmax(-1)
    large, small = torch.rand(2, 3, 5), torch.rand(4, 3, 5)
    pairs = [(0, large[1]), (1, large[0]), *((t, one) for t in (0, 1) for one in small)]
    expected = torch.stack([cross_entropy(wanted[t], one) for t, one in pairs]).mean()
    torch.testing.assert_close(class_loss(wanted, large, small), expected)


def test_the_teacher_is_a_moving_average_and_its_centre_moves(narrow: None) -> None:
    model = DinoTrainer(TINY).model
    with torch.no_grad():
        for own in model.student.parameters():
            own.add_(1.0)
    before = model.teacher.embeddings.cls_token.clone()
    model.ema_update(0.9)
    torch.testing.assert_close(model.teacher.embeddings.cls_token, before + 0.1)
    logits = torch.rand(6, 16)
    plain = model.targets(logits, 1, 0.5)
    torch.testing.assert_close(plain, (logits / 0.5).softmax(-1))  # the first centre is zero
    torch.testing.assert_close(model.centres[1], 0.1 * logits.mean(0))
    assert (model.centres[0] == 0).all()
    assert not any(p.requires_grad for p in model.teacher.parameters())


# ---- training


def test_schedules() -> None:
    recipe = Recipe()
    assert recipe.teacher_momentum(0) == pytest.approx(recipe.momentum[0])
    assert recipe.teacher_momentum(recipe.steps) == pytest.approx(recipe.momentum[1])
    assert recipe.teacher_temperature(0) == recipe.temperature[0]
    assert recipe.teacher_temperature(recipe.steps // 2) == recipe.temperature[1]
    assert recipe.learning_rate(recipe.steps - 1) < 0.011 * recipe.rate


def test_every_step_sees_fresh_scenes_of_the_pretrain_split(narrow: None) -> None:
    batches = DinoTrainer(TINY).batches()
    whole = [batches[step][0] for step in range(len(batches))]
    assert len(whole) == 4 and torch.equal(whole[3], batches[3][0])
    assert whole[0].shape == (4, 3, 128, 128) and whole[0].dtype == torch.uint8
    assert len({picture.numpy().tobytes() for batch in whole for picture in batch}) == TINY.images


def test_the_student_learns_what_the_teacher_says(narrow: None) -> None:
    """Of one batch, from a teacher that stays as it is, once its centres have settled."""
    recipe = Recipe(
        stages=(Stage(400, 4),),
        warmup=10,
        prototypes=16,
        momentum=(1.0, 1.0),
        temperature=(0.07, 0.07),
    )
    trainer = DinoTrainer(recipe)
    (scenes,) = trainer.batches()[0]

    def losses() -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            return sum(float(trainer.loss(scenes)) for _ in range(30))

    losses()
    before = losses()
    for _ in range(60):
        trainer.step((scenes,))
    assert losses() < 0.97 * before


def test_a_killed_training_ends_with_the_same_weights(
    narrow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DinoTrainer(TINY).train(tmp_path / "whole")
    add_point = DinoTrainer.add_point

    def die_later(trainer: DinoTrainer, loss: float) -> None:
        if trainer.images > 8:
            raise KeyboardInterrupt
        add_point(trainer, loss)

    monkeypatch.setattr(DinoTrainer, "add_point", die_later)
    with pytest.raises(KeyboardInterrupt):
        DinoTrainer(TINY).train(tmp_path / "killed")
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["training.pt"]
    monkeypatch.setattr(DinoTrainer, "add_point", add_point)
    DinoTrainer(TINY).train(tmp_path / "killed")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    resumed = load_file(tmp_path / "killed" / "model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert not (tmp_path / "killed" / "training.pt").exists()
    card = json.loads((tmp_path / "killed" / "card.json").read_text())
    assert card["images_seen"] == TINY.images
    assert set(card["val"]) == {"attention_in_mask", "area", "things", "stuff"}
    threshold = card["untrained"]["attention_in_mask"]["high"]
    assert [gate["threshold"] for gate in card["gates"]] == [threshold, 20.0]
    loaded = DinoBackbone.load(tmp_path / "killed")
    assert loaded.width == 16 and loaded.mean == MEAN
    assert loaded.features(torch.randn(2, 3, 128, 64)).shape == (2, 16, 16, 8)


# ---- measures


def test_attention_in_mask_by_hand() -> None:
    """Four patches, two things of one patch each; a patch half covered belongs to nobody."""
    instances = torch.zeros(4, 4, dtype=torch.long)
    instances[:2, :2], instances[2:, 2:], instances[0, 2:] = 1, 2, 3  # patches 0, 3; half of 1
    attention = torch.tensor(
        [[0.6, 0.2, 0.1, 0.1], [0.25] * 4, [0.25] * 4, [0.1, 0.1, 0.2, 0.1]]  # the last sums to 0.5
    )
    inside = attention_in_mask(attention, instances)
    torch.testing.assert_close(inside.mass, torch.tensor([0.6, 0.2]))
    torch.testing.assert_close(inside.area, torch.tensor([0.25, 0.25]))
    heads = attention_in_mask(torch.stack([attention, torch.eye(4)]), instances)
    torch.testing.assert_close(heads.mass[1], torch.ones(2))


def test_uniform_attention_gets_the_area() -> None:
    instances = torch.zeros(8, 16, dtype=torch.long)
    instances[:4, :12] = 1
    inside = attention_in_mask(torch.ones(32, 32), instances)
    torch.testing.assert_close(inside.mass, inside.area)
    torch.testing.assert_close(inside.area, torch.tensor([12 * 4 / (8 * 16)]))


def test_majority_on_a_grid_that_does_not_divide_the_image() -> None:
    numbers = torch.zeros(30, 45, dtype=torch.long)
    numbers[:, :20] = 1
    owned = majority(numbers, 4 * 6).reshape(4, 6)
    assert owned[:, :2].all() and not owned[:, 3:].any()


def test_neighbours_look_at_other_images_only() -> None:
    tokens = torch.eye(3)[torch.tensor([[0, 1], [1, 2]])]  # [2 images, 2 patches, 3]
    found = neighbours(tokens, torch.tensor([[0, 1], [1, 25]]))
    # Patch 0: all others equally far, the first is taken (class 1: wrong). 1 and 2 find each other.
    assert float(found["things"]) == pytest.approx(2 / 3)
    assert float(found["stuff"]) == 0


def test_the_pair_starts_equal() -> None:
    from transformers import ViTConfig

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Pair(ViTConfig(**{**MODEL, **small}), 8)
    for own, other in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
        assert torch.equal(own, other)
