"""The recipe of the lab DINO: its crops, losses, measures; killed and resumed."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ovss import paths
from ovss.backbones.dino import DinoBackbone
from ovss.errors import OvssError
from ovss.lab.pretrain.attention_in_mask import attention_in_mask, majority
from ovss.lab.pretrain.batches import MEAN
from ovss.lab.pretrain.clusters import colour_grid, judge_clusters, kmeans
from ovss.lab.pretrain.dino import measure as measure_file
from ovss.lab.pretrain.dino import train as recipe_file
from ovss.lab.pretrain.dino.crops import block_mask, crops, hidden_counts, jitter
from ovss.lab.pretrain.dino.distil import (
    CONTRAST_TEMPERATURE,
    Pair,
    class_loss,
    contrast_loss,
    cross_entropy,
    koleo,
    sinkhorn_knopp,
)
from ovss.lab.pretrain.dino.measure import neighbours
from ovss.lab.pretrain.dino.recipe import MODEL, Recipe, Stage
from ovss.lab.pretrain.dino.train import DinoTrainer, tokens_of
from ovss.lab.pretrain.probe import class_ious, fit_ridge
from ovss.lab.scenes import World

TINY = Recipe(
    stages=(Stage(8, 4, side=48), Stage(8, 4, (World(pan=1.0),))),
    warmup=0,
    prototypes=16,
    evaluate_every=8,
    curve_scenes=2,
    card_scenes=2,
)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller model of the same kind."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setattr(recipe_file, "MODEL", {**MODEL, **small, "intermediate_size": 32})
    monkeypatch.setattr(measure_file, "PROBE_SCENES", 4)


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
    hidden = torch.arange(40, 80)
    masked = block_mask(hidden, 16)
    assert torch.equal(masked.sum(1), hidden)
    maps = masked.reshape(40, 16, 16)
    alike = (maps[:, 1:] == maps[:, :-1]).float().mean()
    assert alike > 0.8, "neighbours of random masks agree for about 0.65 of all pairs"


def test_hidden_counts_always_have_the_same_sum() -> None:
    torch.manual_seed(4)
    counts = hidden_counts(20, 64, (0.1, 0.5), 0.5)
    assert (counts == 0).sum() == 10
    assert counts.max() == 32 and counts[counts > 0].min() == 6
    assert counts.sum() == hidden_counts(20, 64, (0.1, 0.5), 0.5).sum()


# ---- losses


def test_cross_entropy_by_hand() -> None:
    wanted = torch.tensor([[0.25, 0.75]])
    logits = torch.tensor([[0.1, 0.2]])  # of cosines: the temperature is 0.1
    first, second = math.exp(1) / (math.exp(1) + math.exp(2)), 1 / (1 + math.exp(-1))
    expected = -(0.25 * math.log(first) + 0.75 * math.log(second))
    assert float(cross_entropy(wanted, logits)) == pytest.approx(expected, rel=1e-5)


def test_class_loss_compares_each_crop_with_the_other_frame() -> None:
    torch.manual_seed(4)
    wanted = torch.rand(2, 3, 5).softmax(-1)
    large, small = torch.rand(2, 3, 5), torch.rand(2, 3, 5)
    pairs = [(wanted[1 - view], crop[view]) for crop in (large, small) for view in (0, 1)]
    expected = torch.stack([cross_entropy(*pair) for pair in pairs]).mean()
    torch.testing.assert_close(class_loss(wanted, [large, small]), expected)


def test_contrast_by_hand() -> None:
    keys = torch.eye(3)[:2].expand(2, 2, 3)  # two frames, two films
    # Standardised over the films, the keys are (1, -1, 0) / sqrt(2) and its opposite.
    right = math.log1p(math.exp(-2 / CONTRAST_TEMPERATURE))
    wrong = right + 2 / CONTRAST_TEMPERATURE
    assert float(contrast_loss(keys, [keys])) == pytest.approx(right, abs=1e-6)
    confused = torch.stack([keys[0], keys[1].flip(0)])
    found = float(contrast_loss(keys, [keys, confused]))
    assert found == pytest.approx((3 * right + wrong) / 4, rel=1e-4)
    shifted = keys + torch.tensor([[[5.0, 0, 0]], [[0, 0, 7.0]]])  # of each frame in all films
    torch.testing.assert_close(contrast_loss(keys, [shifted]), contrast_loss(keys, [keys]))


def test_contrast_looks_at_the_other_frame() -> None:
    keys = torch.stack([torch.eye(2), torch.eye(2).flip(0)])
    assert float(contrast_loss(keys, [keys.flip(0)])) < 1e-3 < float(contrast_loss(keys, [keys]))


def test_sinkhorn_knopp_uses_all_prototypes_alike() -> None:
    torch.manual_seed(5)
    logits = torch.rand(64, 8) + torch.arange(8) * 0.3  # the last prototypes are nearest to all
    found = sinkhorn_knopp(logits, 0.5, rounds=50)
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    torch.testing.assert_close(found.sum(0), torch.full((8,), 8.0), rtol=1e-3, atol=0)
    plain = (logits / 0.5).softmax(1)
    assert plain.sum(0).max() > 20
    ratio = (found / plain).log()  # rows and columns are scaled, nothing else
    torch.testing.assert_close(
        ratio - ratio.mean(1, keepdim=True) - ratio.mean(0) + ratio.mean(),
        torch.zeros(64, 8),
        atol=1e-4,
        rtol=0,
    )


def test_koleo_by_hand() -> None:
    tokens = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])  # the nearest are sqrt(2) away
    assert float(koleo(tokens)) == pytest.approx(-math.log(math.sqrt(2)), abs=1e-5)
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 0.01], [1.0, 0.0]]), dim=1)
    assert float(koleo(near)) == pytest.approx(-math.log(0.01), rel=1e-2)


def test_the_teacher_is_a_moving_average(narrow: None) -> None:
    model = DinoTrainer(TINY).model
    with torch.no_grad():
        for own in model.student.parameters():
            own.add_(1.0)
    before = model.teacher.embeddings.cls_token.clone()
    model.ema_update(0.9)
    torch.testing.assert_close(model.teacher.embeddings.cls_token, before + 0.1)
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_tokens_do_not_depend_on_the_chunks(narrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    student = DinoTrainer(TINY).model.student
    pixels, masked = torch.randn(5, 3, 48, 48), torch.rand(5, 36) < 0.5
    whole = tokens_of(student, pixels, masked)
    monkeypatch.setattr(recipe_file, "CHUNK", 2)
    torch.testing.assert_close(tokens_of(student, pixels, masked), whole)
    assert not torch.allclose(tokens_of(student, pixels), whole)


# ---- training


def test_schedules() -> None:
    recipe = Recipe()
    assert recipe.teacher_momentum(0) == pytest.approx(recipe.momentum[0])
    assert recipe.teacher_momentum(recipe.steps) == pytest.approx(recipe.momentum[1])
    assert recipe.learning_rate(recipe.steps - 1) < 0.011 * recipe.rate


def test_every_step_sees_fresh_films_of_the_pretrain_split(narrow: None) -> None:
    batches = DinoTrainer(TINY).batches()
    whole = [batches[step][0] for step in range(len(batches))]
    assert len(whole) == 4 and torch.equal(whole[3], batches[3][0])
    assert whole[0].shape == (4, 2, 3, 64, 64) and whole[0].dtype == torch.uint8
    frames = {frame.numpy().tobytes() for batch in whole for film in batch for frame in film}
    assert len(frames) == 2 * TINY.images


def test_prototypes_are_frozen_first(narrow: None) -> None:
    trainer = DinoTrainer(replace(TINY, frozen_prototypes=0.5))
    prototypes = trainer.model.head.prototypes
    first = prototypes.detach().clone()
    for step in range(3):
        trainer.step(trainer.batches()[step])
        assert torch.equal(prototypes, first) == (step < 2)


def test_the_student_learns_what_the_teacher_says(narrow: None) -> None:
    """Of one batch, from a teacher that stays as it is."""
    recipe = replace(TINY, stages=(Stage(400, 4),), momentum=(1.0, 1.0), warmup=10)
    trainer = DinoTrainer(recipe)
    (films,) = trainer.batches()[0]

    def losses() -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            return sum(float(trainer.loss(films)) for _ in range(20))

    before = losses()
    for _ in range(60):
        trainer.step((films,))
    assert losses() < 0.9 * before


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
    probes = {"probe_things", "probe_stuff", "oracle", "best_cluster", "over_colours"}
    assert set(card["val"]) == {"attention_in_mask", "area", "things", "stuff"} | probes
    threshold = card["untrained"]["attention_in_mask"]["high"]
    assert [gate["threshold"] for gate in card["gates"]] == [threshold, 20.0, 25.0, 3.0]
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


def test_kmeans_finds_groups_that_are_apart() -> None:
    torch.manual_seed(6)
    groups = torch.tensor([[0, 1, 2, 0, 1, 2] * 4, [2, 1, 0, 0, 0, 1] * 4])
    points = 10.0 * torch.eye(3)[groups] + torch.randn(2, 24, 3)
    found = kmeans(points, 3)
    assert torch.equal(found, kmeans(points, 3)), "a function of points and seed"
    for clusters, group in zip(found, groups, strict=True):
        assert len({(int(a), int(b)) for a, b in zip(clusters, group, strict=True)}) == 3


def test_clusters_by_hand() -> None:
    """Two patches, a thing (class 1) on one of them and on half of the other's pixels."""
    clusters = np.array([[[0, 1]]])
    label = np.zeros((2, 4), dtype=np.int64)
    label[:, :2], label[0, 2:] = 1, 1
    label[1, 3] = 0
    found = judge_clusters(clusters, [label[:, :4]], [label], 3)
    # Cluster 0 is class 1; cluster 1 holds two pixels of each: the lower number, background.
    iou_thing, iou_ground = 4 / 6, 2 / 4
    assert found.oracle == pytest.approx(100 * (iou_thing + iou_ground) / 2)
    assert found.best_cluster == pytest.approx(100 * 4 / 6)


def test_the_colour_grid_averages_cells() -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    assert colour_grid(images, 2)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


def test_a_ridge_probe_reads_what_is_linear() -> None:
    torch.manual_seed(7)
    classes = (torch.rand(600) < 0.1).long() + (torch.rand(600) < 0.2).long()  # 0, 1, 2
    tokens = torch.randn(600, 8) + 3 + 4 * torch.eye(3, 8)[classes]
    weights, bias = fit_ridge(tokens, classes, 4)
    found = (tokens @ weights + bias).argmax(1)
    ious = class_ious(found, classes, 4)
    assert (ious[:3] > 0.9).all() and np.isnan(ious[3])
    assert class_ious(classes, classes, 4)[:3].tolist() == [1, 1, 1]


def test_gates_are_not_judged_by_the_card_of_an_earlier_recipe(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(paths.data("lab", "zoo", "dino"), tmp_path / "dino"))
    content = json.loads((folder / "card.json").read_text())
    content["val"].pop("probe_things", None)
    card = json.dumps(content)
    (folder / "card.json").write_text(card)
    with pytest.raises(OvssError, match=r"an earlier recipe's.*make zoo MODEL=dino"):
        DinoTrainer(TINY).judge_again(folder)
    assert (folder / "card.json").read_text() == card
