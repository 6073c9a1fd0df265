"""The sliding window of CLIPer's code of 2025 against one window at a time, in plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clips import noise, save_clip
from ovss import Vocabulary
from ovss.backbones.clip import ClipBackbone
from ovss.errors import OvssError
from ovss.methods.cliper import Cliper, threshold
from ovss.methods.cliper_sliding import Windows, propagate

WORDS = Vocabulary((("cat", "kitten"), ("dog",), ("tree",)), ("sky",))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    """A tiny CLIP, patch 8."""
    return ClipBackbone.load(save_clip(tmp_path_factory.mktemp("zoo") / "tiny"))


def sliding(backbone: ClipBackbone, **options: Any) -> Cliper:
    """The method of 2025 at a small size, windows of 4x4 patches every 3."""
    small = {"short_side": 48, "sliding_crop": 32, "sliding_stride": 24}
    return Cliper(backbone, "official", **{**small, **options})


@pytest.mark.parametrize(
    ("grid", "crop", "stride", "corners"),
    [
        ((4, 4), 4, 3, [(0, 0)]),
        ((4, 6), 4, 3, [(0, 0), (0, 2)]),
        ((2, 7), 4, 3, [(0, 0), (0, 3)]),  # narrower than the window
        ((8, 4), 4, 4, [(0, 0), (4, 0)]),
        ((9, 4), 4, 4, [(0, 0), (4, 0), (5, 0)]),  # the last one is shifted back
        ((5, 5), 4, 1, [(0, 0), (0, 1), (1, 0), (1, 1)]),
    ],
)
def test_corners_by_hand(
    grid: tuple[int, int], crop: int, stride: int, corners: list[tuple[int, int]]
) -> None:
    windows = Windows.over(grid, crop, stride)
    assert list(windows.corners) == corners
    assert windows.size == (min(grid[0], crop), min(grid[1], crop))
    assert len(windows.places.unique()) == math.prod(grid)  # no patch is left out


def test_windows_are_cut_and_averaged_where_they_lie() -> None:
    windows = Windows.over((5, 7), 4, 2)
    pixels = torch.rand(2, 3, 5 * 8, 7 * 8)
    parts = windows.crop(pixels)
    assert parts.shape == (2 * len(windows.corners), 3, 32, 32)
    top, left = windows.corners[-1]
    assert torch.equal(parts[-1], pixels[1, :, top * 8 : top * 8 + 32, left * 8 : left * 8 + 32])
    patches = F.avg_pool2d(parts, 8).flatten(2)  # [2 * n, 3, 16]
    torch.testing.assert_close(windows.mean(patches), F.avg_pool2d(pixels, 8).flatten(2))


def test_attention_of_a_pair_is_the_mean_over_its_windows() -> None:
    windows = Windows.over((1, 3), 2, 1)  # patches 0 1 and 1 2
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[6.0, 7.0], [8.0, 9.0]]])
    expected = torch.tensor([[[1.0, 2.0, 0.0], [3.0, 5.0, 7.0], [0.0, 8.0, 9.0]]])
    torch.testing.assert_close(windows.attention(maps), expected, rtol=2e-5, atol=0)


def test_spread_takes_the_transposed_direction_and_survives_empty_rows() -> None:
    logits = torch.tensor([[[1.0, 3.0], [0.0, 2.0]]])  # [1, Q, L]
    attention = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])
    (found,) = propagate([logits], attention)  # columns: 1/4 and 3/4 of patch 0's logits
    expected = torch.tensor([[[0.25, 0.75], [0.0, 0.0]]]).softmax(1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("attention", ["fused", "qq"])
@pytest.mark.parametrize(("fuse", "select"), [(True, -1), (True, -2), (False, -1), (False, -2)])
def test_one_window_at_a_time(
    backbone: ClipBackbone, attention: str, fuse: bool, select: int
) -> None:
    """AUDIT.md's description in plain loops, windows of 32 pixels every 24 over 48 x 64."""
    options: Any = {"attention": attention, "fuse_features": fuse, "select_layer": select}
    method, image = sliding(backbone, **options), noise(64, 48)
    pixels = backbone.preprocess(image, 48)[None]
    text = backbone.text_features(WORDS)
    queries = torch.cat([text, F.normalize(text[:4].mean(0, keepdim=True), dim=-1)])

    def look(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = backbone.features(pixels, attention="sum")
        embeddings = method.embeddings(features)[:, 0, 1:]  # [layers, L, E]
        patches = method.coarse_map(pixels, text, WORDS).attention[0]
        return 100 * F.normalize(embeddings, dim=-1) @ queries.T, patches

    whole, attended = look(pixels)  # [layers, L, Q], [L, L]
    total, count = torch.zeros(len(whole), 6, 8, 6), torch.zeros(6, 8, 1)
    pairs, seen = torch.zeros(6, 8, 6, 8), torch.zeros(6, 8, 6, 8)
    for y in (0, 2):
        for x in (0, 3, 4):
            logits, part = look(pixels[:, :, y * 8 : y * 8 + 32, x * 8 : x * 8 + 32])
            area = (slice(y, y + 4), slice(x, x + 4))
            total[:, *area] += logits.view(-1, 4, 4, 6)
            count[area] += 1
            pairs[*area, *area] += part.view(4, 4, 4, 4)
            seen[*area, *area] += 1
    rows = (pairs / (seen + 1e-5)).view(48, 48)
    mixed = ((total / count).flatten(1, 2).mT @ (rows / rows.sum(-1, keepdim=True))).softmax(1)
    maps = WORDS.reduce((0.5 * mixed + 0.5 * whole.mT.softmax(1))[:, :5, :, None])[..., 0]
    selected = select if fuse else 0
    maps[selected] = threshold(maps[selected], 0.2)
    expected = maps[selected] @ attended + (maps.mean(0) if fuse else 0)
    (found,) = method.score([image], WORDS)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_batches_of_windows_do_not_matter(
    backbone: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [noise(64, 48, 1), noise(48, 48, 2), noise(64, 48, 3), noise(48, 96, 4)]
    method, sizes = sliding(backbone), []
    together = method.score(images, WORDS)
    whole = ClipBackbone.features

    def count(self: ClipBackbone, pixels: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(pixels))
        return whole(self, pixels, **options)

    monkeypatch.setattr(ClipBackbone, "features", count)
    for maps, image in zip(together, images, strict=True):
        torch.testing.assert_close(maps, method.score([image], WORDS)[0], rtol=1e-4, atol=1e-5)
    assert sizes == [1, 6, 1, 4, 1, 6, 1, 8]  # the whole image, then all its windows at once
    monkeypatch.setattr("ovss.backbones.devices.MAX_ATTENTION", 1)
    assert torch.allclose(method.score(images[:1], WORDS)[0], together[0], rtol=1e-4, atol=1e-5)
    assert sizes[8:] == [1] * 7


def test_one_window_is_not_run_twice(
    backbone: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = sliding(backbone, sliding_crop=48)
    calls, whole = [], ClipBackbone.features
    monkeypatch.setattr(ClipBackbone, "features", lambda *a, **o: calls.append(1) or whole(*a, **o))
    (maps,) = method.score([noise(48, 48)], WORDS)
    assert len(calls) == 1 and torch.isfinite(maps).all()
    (plain,) = sliding(backbone, sliding_crop=0).score([noise(48, 48)], WORDS)
    assert not torch.allclose(maps, plain, atol=1e-3)  # its logits are spread all the same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "paper"}, "sliding_crop belongs to variant=\"official\", not 'paper'"),
        ({"variant": "official-2024"}, 'belongs to variant="official"'),
        ({"sliding_stride": 40}, "sliding_crop=32 every sliding_stride=40 pixels leave gaps"),
        ({"sliding_crop": 30}, "sliding_crop must be a multiple of the patch, 8 pixels, got 30"),
        ({"sliding_stride": 0}, "sliding_stride must be a multiple of the patch"),
        ({"sliding_crop": -8}, "sliding_crop must be a"),
    ],
)
def test_windows_that_make_no_sense(
    backbone: ClipBackbone, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OvssError, match=message):
        Cliper(
            backbone, **{"variant": "official", "sliding_crop": 32, "sliding_stride": 24} | options
        )
