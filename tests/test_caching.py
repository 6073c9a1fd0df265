"""Caches of the networks are bounded in bytes and drop the least recently used first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clips import save_clip
from diffusions import save_diffusion
from itms import save_blip
from ovss.backbones.caching import (
    CAPACITY,
    ByteCache,
    CachedClip,
    CachedDiffusion,
    CachedItm,
    tensor_bytes,
)


@dataclass
class Pair:
    """Two tensors."""

    first: torch.Tensor
    second: dict[str, list[torch.Tensor | None]]


def test_bytes_of_nested_tensors() -> None:
    half, long = torch.zeros(3, dtype=torch.float16), torch.zeros(2, 5, dtype=torch.int64)
    assert tensor_bytes(Pair(half, {"a": [long, None], "b": []})) == 3 * 2 + 10 * 8
    assert tensor_bytes(((half, "text"), 1)) == 6


def test_the_least_recently_used_goes_first() -> None:
    cache: ByteCache[str, torch.Tensor] = ByteCache()
    for name in "abc":
        cache.put(name, torch.zeros(10, dtype=torch.uint8), 30)
    assert cache.size == 30 and cache.get("a") is not None
    cache.put("d", torch.zeros(15, dtype=torch.uint8), 30)  # b and c make room
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, False, True]
    assert cache.size == 25


def test_what_was_asked_last_stays_however_large() -> None:
    cache: ByteCache[str, torch.Tensor] = ByteCache()
    cache.put("a", torch.zeros(3), 0)
    cache.put("b", torch.zeros(30), 0)
    assert cache.get("a") is None and cache.get("b") is not None and len(cache) == 1


def test_a_value_that_grew_is_measured_again() -> None:
    cache: ByteCache[str, list[torch.Tensor]] = ByteCache()
    grows = [torch.zeros(10, dtype=torch.uint8)]
    cache.put("a", [torch.zeros(10, dtype=torch.uint8)], 25)
    cache.put("b", grows, 25)
    grows.append(torch.zeros(10, dtype=torch.uint8))
    cache.put("b", grows, 25)
    assert cache.size == 20 and cache.get("a") is None


# ---- the three networks


def test_clip_keeps_bytes_not_images(tmp_path: Path) -> None:
    clip = CachedClip.load(save_clip(tmp_path / "clip"))
    assert clip.capacity == CAPACITY
    batches = [torch.rand(2, 3, 32, 32) for _ in range(3)]
    first = clip.features(batches[0])
    assert clip.features(batches[0].clone()) is first
    assert clip.features(batches[0], attention="sum") is not first
    clip.capacity = clip.cache.size  # room for the first batch as it was asked for, twice
    for pixels in batches[1:]:
        clip.features(pixels)
        assert clip.cache.size <= clip.capacity
    assert clip.features(batches[0]) is not first
    assert torch.equal(clip.features(batches[0]).inputs[-1], first.inputs[-1])


def test_clip_counts_what_methods_made_of_features(tmp_path: Path) -> None:
    clip = CachedClip.load(save_clip(tmp_path / "clip"))
    pixels = torch.rand(1, 3, 32, 32)
    before = clip.cache.size
    features = clip.features(pixels)
    plain = clip.cache.size - before
    made = torch.zeros(1000)
    features.derived["reading"] = [made], made  # as `CachedCliper` does
    clip.features(pixels)
    assert clip.cache.size == plain + 2 * tensor_bytes(made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixels_of_any_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    clip = CachedClip.load(save_clip(tmp_path / "clip"), dtype=dtype)
    pixels = torch.rand(1, 3, 32, 32).to(dtype)
    assert clip.features(pixels) is clip.features(pixels)
    assert clip.features(pixels).inputs[0].dtype == dtype


def test_diffusion_keeps_bytes_not_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = CachedDiffusion.load(save_diffusion(tmp_path / "sd"))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(4)]
    network.projections(images[:1])
    one = network.cache.size
    network.capacity = 3 * one
    network.projections(images)  # all four at once are answered, three are kept
    assert network.cache.size == 3 * one and len(network.cache) == 3
    passes: list[int] = []
    forward = network.latent_projections
    monkeypatch.setattr(
        network,
        "latent_projections",
        lambda latents, *rest: passes.append(len(latents)) or forward(latents, *rest),  # type: ignore[func-returns-value]
    )
    network.projections(images[1:])
    assert passes == []
    network.projections(images[:1])
    assert passes == [1]


def test_whole_maps_are_bounded(tmp_path: Path) -> None:
    network = CachedDiffusion.load(save_diffusion(tmp_path / "sd"))
    image = Image.new("RGB", (40, 40), "red")
    (layer, other) = network.projections([image])
    network.map_capacity = tensor_bytes([one[:] for one in layer.heads(0)])
    assert network.map_cache.size == network.map_capacity
    first = layer.heads(0)
    assert layer.heads(0)[0] is first[0]
    other.heads(0)
    assert len(network.map_cache) == 1 and layer.heads(0)[0] is not first[0]


def test_matching_keeps_bytes(tmp_path: Path) -> None:
    itm = CachedItm.load(save_blip(tmp_path / "itm"))
    prompts = [itm.prompt(["cat"])]
    batches = [torch.rand(1, 3, 32, 32) for _ in range(3)]
    first = itm.match(batches[0], prompts, (1,))
    itm.capacity = 2 * itm.cache.size
    for pixels in (batches[1], batches[0], batches[2]):  # the second was used least recently
        itm.match(pixels, prompts, (1,))
    assert len(itm.cache) == 2
    assert itm.match(batches[0], prompts, (1,)).attention[1] is first.attention[1]
