"""Fine-grained compensation against the plain formulas."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ovss
from clips import noise, save_clip
from diffusions import save_diffusion
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.diffusion import DiffusionBackbone
from ovss.backbones.diffusion.backbone import LazyMap
from ovss.errors import OvssError, UnknownNameError
from ovss.methods.cliper import Cliper
from ovss.refine import compensation
from ovss.refine.compensation import MODES, Compensation, apply_map, compensate, refine
from ovss.vocabulary import Vocabulary

L, K, HEADS = 36, 5, 3
THRESHOLDS = (None, 0.1, 0.35)


@pytest.fixture
def maps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(2 * torch.randn(HEADS, L, L, generator=generator)).softmax(-1) for _ in range(2)]


@pytest.fixture
def scores() -> Tensor:
    return torch.rand(L, K, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> DiffusionBackbone:
    return DiffusionBackbone.load(save_diffusion(tmp_path_factory.mktemp("zoo") / "sd"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    return ClipBackbone.load(save_clip(tmp_path_factory.mktemp("zoo") / "clip"))


def plain(attention: Tensor, threshold: float | None) -> Tensor:
    """The normalised map, as the authors' program writes it."""
    if threshold is None:
        return attention
    attention = attention / (attention.max(0, keepdim=True).values + 1e-5)
    attention = torch.where(attention < threshold, 0.0, attention)
    return attention / (attention.sum(1, keepdim=True) + 1e-5)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("mode", MODES)
def test_from_the_right_equals_the_full_product(
    maps: list[Tensor], scores: Tensor, mode: str, threshold: float | None
) -> None:
    heads = [plain(head.double(), threshold) for layer in maps for head in layer]
    combined = {
        "multiplication": lambda: reduce(torch.matmul, heads, torch.eye(L).double()),
        "single": lambda: heads[4],
        "mean": lambda: torch.stack(heads).mean(0),
    }[mode]()
    before = [layer.clone() for layer in maps]
    found = compensate(scores, maps, mode, 4, threshold)
    torch.testing.assert_close(found, (combined @ scores.double()).float())
    assert all(map(torch.equal, maps, before)) and found.dtype == torch.float32


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", [1, 5 * L, 7 * L, 36 * L])
def test_chunks_change_nothing(
    maps: list[Tensor], scores: Tensor, mode: str, threshold: float | None, chunk: int
) -> None:
    whole = compensate(scores, maps, mode, 1, threshold)
    torch.testing.assert_close(compensate(scores, maps, mode, 1, threshold, chunk), whole)


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_sum_to_one_keep_a_constant_map(maps: list[Tensor], mode: str) -> None:
    ones = torch.ones(L, 2)
    torch.testing.assert_close(compensate(ones, maps, mode, threshold=None), ones)
    for threshold in (0.0, 0.1):  # + 1e-5 in the row's sum, once a map
        torch.testing.assert_close(
            compensate(ones, maps, mode, threshold=threshold), ones, rtol=0, atol=1e-3
        )


def test_the_order_of_the_maps_counts(maps: list[Tensor], scores: Tensor) -> None:
    there, back = compensate(scores, maps), compensate(scores, maps[::-1])
    assert not torch.allclose(there, back)
    first = apply_map(maps[0][0], scores, 0.1)
    torch.testing.assert_close(compensate(scores, [maps[0][:1]]), first)


def test_the_threshold_itself_is_kept() -> None:
    exact = 1 / (1 + 1e-5)  # the value beside each maximum after the division, in float32
    attention = torch.eye(4)
    limit = float(torch.tensor(1.0) / (torch.tensor(1.0) + 1e-5))
    assert limit == pytest.approx(exact)
    columns = torch.arange(4.0)[:, None]
    kept = apply_map(attention, columns, limit)
    torch.testing.assert_close(kept, columns, rtol=1e-4, atol=0)
    assert not apply_map(attention, columns, 1.0).any()


def test_lower_precision_maps_give_float32_scores(maps: list[Tensor], scores: Tensor) -> None:
    half = [layer.half() for layer in maps]
    found = compensate(scores, half)
    assert found.dtype == torch.float32
    assert (found - compensate(scores, maps)).abs().mean() < 0.01


def test_values_that_do_not_fit(maps: list[Tensor], scores: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="unknown mode 'product'"):
        compensate(scores, maps, "product")
    with pytest.raises(OvssError, match="index must be 0 to 5, got 6"):
        compensate(scores, maps, "single", 6)
    with pytest.raises(OvssError, match="square number of positions, got 35"):
        refine(torch.zeros(1, 2, 2), [torch.ones(1, 35, 35)])


def test_large_maps_are_not_held(
    maps: list[Tensor], scores: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = compensate(scores, maps)
    monkeypatch.setattr(compensation, "HELD_VALUES", L * L - 1)
    torch.testing.assert_close(compensate(scores, maps), held)


# ---- in CLIPer


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("mode", MODES)
def test_maps_made_from_queries_and_keys_refine_as_those_made_before(
    diffusion: DiffusionBackbone, mode: Any, threshold: float | None
) -> None:
    picture, coarse = noise(60, 44), torch.rand(3, 5, 4)
    index = 2 * diffusion.self_attention(-4).heads - 1  # of the second layer
    (found,) = Compensation(diffusion, mode, index)([coarse], [picture], threshold)
    expected = refine(coarse, diffusion.attention(picture), mode, index, threshold)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_batch_goes_through_the_model_together(
    diffusion: DiffusionBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, coarse = [noise(60, 44, seed) for seed in range(3)], torch.rand(3, 2, 5, 4)
    refiner = Compensation(diffusion)
    alone = [refiner([scores], [one])[0] for scores, one in zip(coarse, pictures, strict=True)]
    sizes: list[int] = []
    encode = diffusion.latents
    monkeypatch.setattr(
        diffusion, "latents", lambda pixels: sizes.append(len(pixels)) or encode(pixels)
    )
    monkeypatch.setattr(compensation, "BATCH_PIXELS", 2 * diffusion.size**2)
    together = refiner(list(coarse), pictures)
    assert sizes == [2, 1] and not torch.allclose(together[0], together[1])
    for ours, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_single_makes_one_map_of_one_layer(
    diffusion: DiffusionBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    made: list[LazyMap] = []
    run, make = diffusion.projections, LazyMap.__getitem__
    monkeypatch.setattr(
        diffusion,
        "projections",
        lambda images, layers, *rest: asked.append(layers) or run(images, layers, *rest),
    )
    monkeypatch.setattr(
        LazyMap, "__getitem__", lambda one, rows: made.append(one) or make(one, rows)
    )
    heads = diffusion.self_attention(-4).heads
    Compensation(diffusion, "single", heads)([torch.rand(2, 5, 4)], [noise(60, 44)])
    assert asked == [(-6,)] and len({id(one) for one in made}) == 1
    with pytest.raises(OvssError, match=f"index must be 0 to {2 * heads - 1}, got {2 * heads}"):
        Compensation(diffusion, "single", 2 * heads)([torch.rand(2, 5, 4)], [noise(60, 44)])


def test_unknown_mode(diffusion: DiffusionBackbone) -> None:
    with pytest.raises(UnknownNameError, match="mean, multiplication, single"):
        Compensation(diffusion, "sum")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variant", "threshold"), [("paper", None), ("official-2024", 0.1), ("official", 0.3)]
)
def test_variants_normalise_in_their_own_ways(
    clip: ClipBackbone, diffusion: DiffusionBackbone, variant: str, threshold: float | None
) -> None:
    picture, words = noise(60, 44), Vocabulary.of("cat, dog, grass")
    method = Cliper(clip, variant, attention_threshold=0.3, compensation=Compensation(diffusion))  # type: ignore[arg-type]
    (coarse,) = method.score([picture], words)
    (refiner,) = method.refiners
    (found,) = refiner([coarse], [picture])
    side = F.interpolate(coarse[None], (8, 8), mode="bilinear")[0].flatten(1)  # [K, L]
    heads = [plain(head, threshold) for layer in diffusion.attention(picture) for head in layer]
    expected = (reduce(torch.matmul, heads) @ side.T).T.reshape(3, 8, 8)
    torch.testing.assert_close(found, expected)


def test_segmenter_scores_images_by_coarse_and_refined_maps(
    clip: ClipBackbone, diffusion: DiffusionBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def decision(scores: Tensor, image_scores: Tensor | None = None) -> Tensor:
        assert image_scores is not None
        seen.append(image_scores)
        return scores.argmax(0)

    picture = noise(60, 44)
    segmenter = ovss.load("cliper", clip=clip, compensation=diffusion, decision=decision)
    found = segmenter(picture, "cat, dog")
    (coarse,) = segmenter.method.score([picture], Vocabulary.of("cat, dog"))
    assert found.scores.shape == (2, 8, 8) and found.labels.shape == (44, 60)
    expected = 0.5 * found.scores.amax((1, 2)) + 0.5 * coarse.amax((1, 2))
    torch.testing.assert_close(seen[0], expected)
    again = segmenter([noise(30, 30, 5), picture], "cat, dog")[1]
    torch.testing.assert_close(again.scores, found.scores, rtol=1e-4, atol=1e-4)


def test_load_takes_folders_and_compensations(
    clip: ClipBackbone, diffusion: DiffusionBackbone, tmp_path: Path
) -> None:
    folder = save_diffusion(tmp_path / "mine")
    made = ovss.load("cliper", clip=clip, compensation=folder, dtype="float32").method
    assert isinstance(made, Cliper) and made.compensation is not None
    assert made.compensation.backbone.checkpoint.startswith("mine@")
    mean = Compensation(diffusion, "mean")
    kept = ovss.load("cliper", clip=clip, compensation=mean).method
    assert isinstance(kept, Cliper) and kept.compensation is mean
    none = ovss.load("cliper", clip=clip, compensation=None).method
    assert isinstance(none, Cliper) and not none.refiners
    with pytest.raises(OvssError, match="a name or a folder, got 3"):
        ovss.load("cliper", clip=clip, compensation=3)
