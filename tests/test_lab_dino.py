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

from ovss import paths
from ovss.backbones.dino import DinoBackbone
from ovss.errors import OvssError
from ovss.lab.pretrain.attention_in_mask import attention_in_mask, majority
from ovss.lab.pretrain.batches import MEAN
from ovss.lab.pretrain.clusters import Grouping, colour_grid, judge_clusters, kmeans
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
    others,
    sinkhorn_knopp,
)
from ovss.lab.pretrain.dino.measure import neighbours
from ovss.lab.pretrain.dino.recipe import MODEL, Recipe, Stage
from ovss.lab.pretrain.dino.train import DinoTrainer
from ovss.lab.pretrain.probe import class_ious, fit_ridge
from ovss.lab.scenes import World
from resuming import assert_same_weights, kill

TINY = Recipe(
    stages=(
        Stage(4, 4, frames=2, side=48),
        Stage(4, 4, frames=3, crops=1, mosaic=True),
        Stage(8, 4, (World(pan=1.0),), frames=2, distil=True),
    ),
    warmup=0,
    prototypes=16,
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


FILM = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])  # two films of two frames, two crops of each
FRAME = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])


def test_others_are_other_frames_of_the_same_film() -> None:
    found = others(FILM, FRAME)
    assert found[0].nonzero()[:, 0].tolist() == [1, 5]
    assert found[6].nonzero()[:, 0].tolist() == [3, 7]


def test_class_loss_compares_each_view_with_the_other_frames() -> None:
    torch.manual_seed(4)
    wanted, logits = torch.rand(8, 5).softmax(-1), torch.rand(8, 5)
    pairs = [(i, j) for i in range(8) for j in range(8) if others(FILM, FRAME)[i, j]]
    expected = torch.stack([cross_entropy(wanted[j], logits[i]) for i, j in pairs]).mean()
    torch.testing.assert_close(class_loss(wanted, logits, FILM, FRAME), expected)


def test_contrast_by_hand() -> None:
    units = torch.eye(2)[FILM]
    # Of six views in other frames two are right, with a logit of 1 / T, and four have 0.
    right = 1 / CONTRAST_TEMPERATURE
    expected = math.log(2 * math.exp(right) + 4) - right
    assert float(contrast_loss(units, FILM, FRAME)) == pytest.approx(expected, rel=1e-5)
    confused = torch.eye(2)[FRAME % 2]
    assert float(contrast_loss(confused, FILM, FRAME)) > expected + 1


def test_contrast_does_not_look_at_the_views_own_frame() -> None:
    """Views that only agree with the other crop of their frame are as bad as any."""
    units = torch.eye(4)[FRAME].requires_grad_()
    found = contrast_loss(units, FILM, FRAME)
    assert float(found.detach()) == pytest.approx(math.log(6), rel=1e-5)
    found.backward()
    assert units.grad is not None and torch.isfinite(units.grad).all()
    assert float(units.grad[0, 0]) == 0, "no pull towards its own frame, no push away from it"


def test_a_mosaic_holds_frames_of_four_films(narrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each quarter's patches are averaged and told which film they came from."""
    trainer = DinoTrainer(TINY)
    films, frames, side = 8, 3, 16
    pixels = torch.arange(films).repeat_interleave(frames)[:, None, None, None].float()
    pixels = pixels.expand(-1, 3, side, side)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def read(_: object, mosaics: torch.Tensor) -> torch.Tensor:
        assert mosaics.shape == (films * frames // 4, 3, 2 * side, 2 * side)
        patches = torch.nn.functional.avg_pool2d(mosaics, 8).flatten(2).mT  # [n, L, 3]
        return torch.cat([patches[:, :1], patches], 1)

    def judge(units: torch.Tensor, film: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        seen.append((units, film))
        return units.sum()

    monkeypatch.setattr(trainer, "_tokens", read)
    monkeypatch.setattr(trainer.model, "projector", torch.nn.Identity())
    monkeypatch.setattr(recipe_file, "contrast_loss", judge)
    trainer._mosaic_loss(pixels, frames)
    ((units, film),) = seen
    torch.testing.assert_close(units[:, 0], film.float())
    assert torch.equal(film.bincount(), torch.full((films,), frames))


@pytest.mark.parametrize("changes", [{"batch": 6}, {"crops": 2}, {"distil": True}])
def test_mosaics_that_cannot_be(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a mosaic takes a crop of four films"):
        Stage(**{"images": 8, "batch": 4, "crops": 1, "mosaic": True, **changes})


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


def test_hidden_patches_change_the_tokens(narrow: None) -> None:
    trainer = DinoTrainer(TINY)
    pixels, masked = torch.randn(5, 3, 48, 48), torch.rand(5, 36) < 0.5
    seen = trainer._tokens(trainer.student, pixels)
    hidden = trainer._tokens(trainer.student, pixels, masked)
    assert seen.shape == (5, 37, 16) and not torch.allclose(seen, hidden)


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
    assert len(frames) == 4 * 2 + 4 * 3 + 8 * 2


def test_the_student_learns_what_the_teacher_says(narrow: None) -> None:
    """Of one batch, from a teacher that stays as it is."""
    recipe = replace(
        TINY, stages=(Stage(400, 4, frames=2, distil=True),), momentum=(1.0, 1.0), warmup=10
    )
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
