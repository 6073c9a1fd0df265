"""The recipe of the lab DINO: its crops, losses, measures; killed and resumed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTConfig

from ovss import paths
from ovss.backbones.dino import DinoBackbone
from ovss.errors import OvssError
from ovss.lab.pretrain.attention_in_mask import attention_in_mask, majority
from ovss.lab.pretrain.batches import MEAN, take
from ovss.lab.pretrain.clusters import Grouping, colour_grid, judge_clusters, kmeans
from ovss.lab.pretrain.dino import measure as measure_file
from ovss.lab.pretrain.dino import train as recipe_file
from ovss.lab.pretrain.dino.contrast import (
    LIKE,
    NEAR,
    TEMPERATURE,
    Encoder,
    contrast_loss,
    cosines,
    draw,
    matched_similarity,
    settle_loss,
    waves,
)
from ovss.lab.pretrain.dino.crops import crops, jitter
from ovss.lab.pretrain.dino.measure import neighbours
from ovss.lab.pretrain.dino.recipe import LONE, MODEL, STILL, Recipe, Stage
from ovss.lab.pretrain.dino.train import DinoTrainer
from ovss.lab.pretrain.probe import class_ious, fit_ridge
from ovss.lab.scenes import World
from resuming import assert_same_weights, kill

TINY = Recipe(
    stages=(
        Stage(4, 4, (LONE,), frames=2, side=48),
        Stage(12, 4, (World(pan=1.0), World()), frames=3, seen=0.5, settle=1.0),
    ),
    warmup=0,
    asked=4,
    evaluate_every=8,
    curve_scenes=2,
    card_scenes=2,
)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A smaller model of the same kind, not compiled."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setattr(recipe_file, "MODEL", {**MODEL, **small, "intermediate_size": 32})
    monkeypatch.setattr(measure_file, "PROBE_SCENES", 4)
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


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


# ---- the encoder


def encoder_of(**changes: int) -> Encoder:
    """A small one."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Encoder(ViTConfig(**{**MODEL, **small, "intermediate_size": 32, **changes}))


def test_the_encoder_reads_a_whole_image_as_the_library_does() -> None:
    torch.manual_seed(0)
    encoder, pixels = encoder_of().eval(), torch.randn(2, 3, 128, 128)
    expected = encoder.vit(pixels).last_hidden_state
    corner, seen = torch.zeros(2, 2, dtype=torch.long), torch.arange(256).expand(2, -1)
    torch.testing.assert_close(encoder(pixels, corner, seen), expected)


def test_a_crop_gets_the_positions_of_its_window() -> None:
    encoder = encoder_of()
    encoder.vit.layers, encoder.vit.layernorm = torch.nn.ModuleList(), torch.nn.Identity()
    encoder.vit.embeddings.patch_embeddings.projection.weight.data.zero_()
    positions = encoder.vit.embeddings.position_embeddings[0, 1:].view(16, 16, -1)
    corner = torch.tensor([[0, 0], [10, 3]])
    whole = torch.arange(36).expand(2, -1)
    found = encoder(torch.randn(2, 3, 48, 48), corner, whole)[:, 1:].unflatten(1, (6, 6))
    torch.testing.assert_close(found[0], positions[:6, :6])
    torch.testing.assert_close(found[1], positions[10:16, 3:9])
    seen = torch.tensor([[35, 0], [1, 6]])
    few = encoder(torch.randn(2, 3, 48, 48), corner, seen)[:, 1:]
    torch.testing.assert_close(few[0], torch.stack([positions[5, 5], positions[0, 0]]))
    torch.testing.assert_close(few[1], torch.stack([positions[10, 4], positions[11, 3]]))


def test_neighbours_have_like_positions() -> None:
    found = torch.nn.functional.normalize(waves(16, 64), dim=-1).view(16, 16, -1)
    cosines = found[8] @ found[8].T  # of a row's places
    assert (cosines[8, 8:].diff()[:4] < 0).all() and 0.9 < cosines[8, 9] < 1
    torch.testing.assert_close(waves(16, 64)[0, :32], waves(16, 64)[15, :32])  # the same row


def test_indices_are_drawn_without_repetition() -> None:
    torch.manual_seed(1)
    found = draw(50, 9, 4)
    assert found.shape == (50, 4) and all(len(set(row.tolist())) == 4 for row in found)
    tokens = torch.arange(50 * 9.0).view(50, 9, 1)
    torch.testing.assert_close(take(tokens, found)[7, :, 0], found[7] + 63.0)


# ---- losses


FILM = torch.tensor([0, 0, 1, 1])  # two films of two frames


def test_contrast_by_hand() -> None:
    # Of three other frames one is right, with a logit of 1 / T, and two have 0.
    right = 1 / TEMPERATURE
    expected = math.log(math.exp(right) + 2) - right
    found = contrast_loss(cosines(torch.eye(2)[FILM]), FILM)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    confused = contrast_loss(cosines(torch.eye(2)[[0, 1, 0, 1]]), FILM)
    assert float(confused) > expected + 1


def test_several_right_answers_count_alike() -> None:
    film = torch.tensor([0, 0, 0, 1, 1, 1])
    torch.manual_seed(2)
    units = torch.nn.functional.normalize(torch.randn(6, 4), dim=-1)
    total = 0.0
    for i in range(6):
        logits = {j: float(units[i] @ units[j]) / TEMPERATURE for j in range(6) if j != i}
        whole = math.log(sum(math.exp(v) for v in logits.values()))
        total += sum(whole - logits[j] for j in logits if film[j] == film[i]) / 2
    assert float(contrast_loss(cosines(units), film)) == pytest.approx(total / 6, rel=1e-5)


def test_a_frame_is_not_compared_with_itself() -> None:
    alike = torch.zeros(4, 4).requires_grad_()
    found = contrast_loss(alike, FILM)
    assert float(found.detach()) == pytest.approx(math.log(3), rel=1e-5)
    found.backward()
    assert alike.grad is not None and torch.isfinite(alike.grad).all()
    assert (alike.grad.diagonal() == 0).all()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_matched_similarity_by_plain_loops(share: float) -> None:
    """Equal to the double loop, and its gradient too."""
    torch.manual_seed(3)
    raw = torch.randn(5, 8, 6, dtype=torch.float64, requires_grad=True)
    units = torch.nn.functional.normalize(raw, dim=-1)
    count = round(share * 8)
    rows = []
    for one in units:
        row = []
        for other in units:
            best = (one @ other.T).amax(1)  # of each patch of `one`
            row.append(best.sort(descending=True).values[:count].mean())
        rows.append(torch.stack(row))
    expected = torch.stack(rows)
    found = matched_similarity(units, share)
    weights = torch.randn(5, 5, dtype=torch.float64)
    wanted, got = (
        torch.autograd.grad((weights * x).sum(), raw, retain_graph=True)[0]
        for x in (expected, found)
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(got, wanted)


def test_a_few_matching_patches_are_enough() -> None:
    """Two frames that share a quarter of their patches are as alike as can be."""
    torch.manual_seed(4)
    units = torch.nn.functional.normalize(torch.randn(2, 16, 32), dim=-1)
    units[1, :4] = units[0, 12:]
    found = matched_similarity(units, 0.25)
    assert float(found[0, 1]) == pytest.approx(1, abs=1e-5)
    assert float(matched_similarity(units, 1.0)[0, 1]) < 0.7


PLACES = torch.tensor([[[0, 0], [0, 1], [5, 5]]])


def test_a_patch_settles_with_its_neighbours() -> None:
    """By hand: two neighbours that are a little apart, and a patch far away that is not asked."""
    tokens = torch.tensor([[[1.0, 0.4], [1.0, -0.4], [-2.0, 0.0]]], requires_grad=True)  # mean 0
    units = torch.nn.functional.normalize(tokens.detach()[0], dim=-1)
    near = math.exp((float(units[0] @ units[1]) - 1) / LIKE - 1 / (2 * NEAR**2))  # itself: 1
    target = units[0] + near * units[1]
    found = settle_loss(tokens + 7, PLACES)
    expected = 2 / 3 * (1 - float(units[0] @ target / target.norm()))  # the third stays
    assert float(found.detach()) == pytest.approx(expected, rel=1e-3)
    (gradient,) = torch.autograd.grad(found, tokens)
    assert float(gradient[0, 0, 1]) > 0 > float(gradient[0, 1, 1]), "towards each other"


def test_what_differs_by_chance_is_settled_and_a_border_stays() -> None:
    """Noise on two halves: steps down the loss take the noise away, not the halves."""
    torch.manual_seed(5)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    places = torch.stack([rows, columns], 2).view(1, 64, 2)
    side = (columns.flatten() < 4).float()
    clean = torch.stack([side, 1 - side] + [torch.zeros(64)] * 14, 1)
    raw = (clean + 0.15 * torch.randn(64, 16))[None].requires_grad_()

    def unit(tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(tokens - tokens.mean(0), dim=-1)

    def off() -> float:
        return float((unit(raw.detach()[0]) - unit(clean)).norm(dim=-1).mean())

    before = off()
    for _ in range(30):
        loss = settle_loss(raw, places)
        (gradient,) = torch.autograd.grad(loss, raw)
        raw.data -= 10 * gradient
    assert off() < 0.6 * before


# ---- training


def test_every_step_sees_fresh_films_of_the_pretrain_split(narrow: None) -> None:
    batches = DinoTrainer(TINY).batches()
    whole = [batches[step][0] for step in range(len(batches))]
    assert len(whole) == 4 and torch.equal(whole[3], batches[3][0])
    assert whole[0].shape == (4, 2, 3, 64, 64) and whole[0].dtype == torch.uint8
    frames = {frame.numpy().tobytes() for batch in whole for film in batch for frame in film}
    assert len(frames) == 4 * 2 + 12 * 3


def test_where_the_grounds_stay_all_patches_count(
    narrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []

    def judge(units: torch.Tensor, share: float) -> torch.Tensor:
        shares.append(share)
        return matched_similarity(units, share)

    monkeypatch.setattr(recipe_file, "matched_similarity", judge)
    trainer = DinoTrainer(replace(TINY, stages=(Stage(8, 4, (LONE, STILL), 2),)))
    for step in range(2):
        trainer.step(trainer.batches()[step])
    assert shares == [trainer.recipe.matched, 1.0]
    assert set(trainer.parts) == {"class_loss", "mean_loss", "matched_loss"}


def test_the_frames_of_a_batch_are_learnt(narrow: None) -> None:
    """Of one batch, seen again and again."""
    recipe = replace(TINY, stages=(Stage(400, 4, (LONE,), frames=3),), warmup=10)
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


def test_a_killed_training_ends_with_the_same_weights(narrow: None, tmp_path: Path) -> None:
    DinoTrainer(TINY).train(tmp_path / "whole")
    kill(lambda: DinoTrainer(TINY), tmp_path / "killed", 8)
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["training.pt"]
    DinoTrainer(TINY).train(tmp_path / "killed")
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
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


@pytest.mark.parametrize("wrong", [-1, 3])
def test_labels_that_are_no_class_are_refused(wrong: int) -> None:
    """A negative one would be counted as one of the last classes."""
    label = np.full((2, 2), wrong)
    with pytest.raises(ValueError, match="labels must be 0 to 2"):
        judge_clusters(np.zeros((1, 1, 1), dtype=np.int64), [label], [label.clip(0)], 3)


def test_group_counts_background_as_a_class_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []

    def judge(_: object, labels: list[np.ndarray], __: object, classes: int) -> Grouping:
        seen.append((min(int(x.min()) for x in labels), max(int(x.max()) for x in labels), classes))
        return Grouping(50.0, 50.0)

    monkeypatch.setattr(measure_file, "judge_clusters", judge)
    measure_file.group(DinoBackbone.load("mae"), "tune", 12)
    assert all(low == 0 and high < classes == 21 for low, high, classes in seen) and len(seen) == 2


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
