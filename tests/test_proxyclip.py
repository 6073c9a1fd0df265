"""ProxyCLIP: its map by hand, its value path, grids that differ, and how it is loaded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import ovss
from clips import noise, save_clip
from dinos import save_dino
from ovss import Vocabulary
from ovss.backbones.clip import ClipBackbone, ClipFeatures
from ovss.backbones.dino import DinoBackbone
from ovss.errors import CheckpointError, OvssError, UnknownNameError
from ovss.methods.dense_clip import DenseClip
from ovss.methods.proxyclip import ProxyClip, proxy_map, resize

WORDS = Vocabulary((("cat", "kitten"), ("dog",), ("tree",)), ("sky",))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    """A tiny CLIP with patches of 8 pixels."""
    return ClipBackbone.load(save_clip(tmp_path_factory.mktemp("zoo") / "tiny"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> DinoBackbone:
    """A tiny DINO with patches of 4 pixels."""
    return DinoBackbone.load(save_dino(tmp_path_factory.mktemp("zoo") / "proxy"))


@pytest.fixture
def method(clip: ClipBackbone, dino: DinoBackbone) -> ProxyClip:
    """Both at a small size."""
    return ProxyClip(clip, dino, short_side=32)


@pytest.fixture
def features(clip: ClipBackbone) -> ClipFeatures:
    """Of two images on a grid of 3 x 5."""
    pixels = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    return clip.features(pixels, attention=False)


# ---- the map


def test_the_map_by_hand() -> None:
    """Three patches, the first two alike: cosines 1, 0.8 and 0, their mean (3 + 1.6) / 9."""
    tokens = torch.tensor([[2.0, 0.0], [0.8, 0.6], [0.0, 0.0]]).T
    tokens = torch.cat([tokens, torch.tensor([[0.0, 0.0, 5.0]])])[:, None]  # [D=3, h=1, w=3]
    mean = 4.6 / 9
    itself, other = math.exp(3 * (1 - 1.2 * mean)), math.exp(3 * (0.8 - 1.2 * mean))
    row = [itself / (itself + other), other / (itself + other), 0.0]
    expected = torch.tensor([row, [row[1], row[0], 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(proxy_map(tokens, beta=1.2, gamma=3.0), expected)


def test_beta_masks_and_gamma_sharpens() -> None:
    tokens = torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(2))
    assert (proxy_map(tokens, beta=-100.0) > 0).all()  # nothing is below -100 times a positive mean
    assert (proxy_map(tokens, beta=3.0) > 0).sum() < (proxy_map(tokens, beta=1.0) > 0).sum()
    soft, sharp = proxy_map(tokens, gamma=1.0), proxy_map(tokens, gamma=20.0)
    assert (sharp.diagonal() > soft.diagonal()).all()
    torch.testing.assert_close(sharp.sum(-1), torch.ones(24))


def test_equal_tokens_see_each_other_equally() -> None:
    torch.testing.assert_close(proxy_map(torch.ones(5, 2, 3)), torch.full((6, 6), 1 / 6))


def test_resize_is_bilinear_for_every_head() -> None:
    values = torch.randn(2, 3, 6, 4)  # [B, heads, 2 * 3, d]
    found = resize(values, (2, 3), (4, 6))
    one = values[1, 2].T.reshape(1, 4, 2, 3)
    expected = F.interpolate(one, (4, 6), mode="bilinear")[0].flatten(1).T
    torch.testing.assert_close(found[1, 2], expected)
    assert resize(values, (2, 3), (2, 3)) is values


# ---- the embeddings


def test_a_proxy_whose_patches_are_alike_to_none_is_maskclip(
    method: ProxyClip, features: ClipFeatures, clip: ClipBackbone
) -> None:
    proxy = torch.eye(15).reshape(1, 15, 3, 5).expand(2, -1, -1, -1)
    found = method.embeddings(features, proxy)
    maskclip = DenseClip(clip, attention="identity").embeddings(features)  # [B, L, E]
    torch.testing.assert_close(found.flatten(2).mT, maskclip)


def test_a_uniform_proxy_gives_one_embedding_everywhere(
    method: ProxyClip, features: ClipFeatures, clip: ClipBackbone
) -> None:
    found = method.embeddings(features, torch.ones(2, 7, 6, 10))
    assert found.shape == (2, 16, 6, 10)
    torch.testing.assert_close(found, found[..., :1, :1].expand_as(found))
    assert not torch.allclose(found[0], found[1])


def test_embeddings_follow_the_formula(
    method: ProxyClip, features: ClipFeatures, clip: ClipBackbone
) -> None:
    """One image and one head at a time, on a proxy grid twice as fine."""
    proxy = torch.randn(2, 7, 6, 10, generator=torch.Generator().manual_seed(3))
    found = method.embeddings(features, proxy)
    block, visual, width = clip.blocks[-1], clip.model.visual, clip.width
    for tokens, own, result in zip(features.inputs[-1], proxy, found, strict=True):
        weight, bias = block.attn.in_proj_weight[-width:], block.attn.in_proj_bias[-width:]
        values = (block.ln_1(tokens) @ weight.T + bias)[1:]  # [15, D]
        fine = F.interpolate(values.T.reshape(1, width, 3, 5), (6, 10), mode="bilinear")
        unit = own.flatten(1) / own.flatten(1).norm(dim=0)
        cosine = unit.T @ unit
        shifted = (cosine - 1.2 * cosine.mean()) * 3
        weights = torch.where(shifted < 0, 0, shifted.exp())
        weights = weights / weights.sum(1, keepdim=True)
        mixed = weights @ fine[0].flatten(1).T
        expected = visual.ln_post(block.attn.out_proj(mixed)) @ visual.proj  # [60, E]
        torch.testing.assert_close(result.flatten(1).T, expected, rtol=1e-4, atol=1e-5)


# ---- the scores


def test_scores_lie_on_the_proxys_grid(method: ProxyClip, clip: ClipBackbone) -> None:
    (found,) = method.score([noise(40, 32)], WORDS)
    assert found.shape == (3, 8, 10) and not found.requires_grad
    pixels = clip.preprocess(noise(40, 32), 32)[None]
    proxy = method.dino.features(method.dino.preprocess(noise(40, 32), 32, 40)[None])
    embeddings = method.embeddings(clip.features(pixels, attention=False), proxy)
    unit = F.normalize(embeddings[0].flatten(1).T, dim=-1)
    queries = (40 * unit @ clip.text_features(WORDS).T).softmax(-1).T.reshape(5, 8, 10)
    expected = torch.stack([queries[:2].amax(0), queries[2], queries[3]])
    torch.testing.assert_close(found, expected)


def test_batches_of_mixed_sizes_are_one_by_one(method: ProxyClip) -> None:
    images = [noise(40, 32, 1), noise(32, 48, 2), noise(80, 64, 3), noise(33, 32, 4)]
    together = method.score(images, WORDS)
    shapes = [(3, 8, 10), (3, 12, 8), (3, 8, 10), (3, 8, 8)]
    assert [tuple(maps.shape) for maps in together] == shapes
    for maps, image in zip(together, images, strict=True):
        torch.testing.assert_close(maps, method.score([image], WORDS)[0], rtol=1e-4, atol=1e-6)


# ---- ovss.load


def test_load(clip: ClipBackbone, dino: DinoBackbone, tmp_path: Path) -> None:
    segmenter = ovss.load("proxyclip", clip=clip, dino=dino, beta=1.1, short_side=32)
    built = segmenter.method
    assert isinstance(built, ProxyClip) and built.dino is dino and built.beta == 1.1
    assert segmenter(noise(40, 32), "cat, dog").labels.shape == (32, 40)
    folder = save_dino(tmp_path / "mine")
    built = ovss.load("proxyclip", clip=clip, dino=folder, dtype="float64").method
    assert isinstance(built, ProxyClip) and built.dino.dtype == torch.float64
    assert (built.short_side, built.gamma, built.logit_scale) == (128, 3.0, 40.0)


def test_errors_name_what_was_given(clip: ClipBackbone, dino: DinoBackbone) -> None:
    with pytest.raises(OvssError, match="dino must be a name, a folder or a DinoBackbone"):
        ovss.load("proxyclip", clip=clip, dino=3)
    with pytest.raises(OvssError, match="dino must be a DinoBackbone"):
        ProxyClip(clip, "dino")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="is no DINO but: CLIP"):
        ovss.load("proxyclip", clip=clip, dino="ViT-H-14/laion2b_s32b_b79k")
    with pytest.raises(UnknownNameError, match="option of proxyclip 'betta'"):
        ovss.load("proxyclip", clip=clip, dino=dino, betta=1)


@pytest.mark.slow
def test_the_papers_profile_with_patches_of_its_sizes(tmp_path: Path) -> None:
    """CLIP /16 and DINO /8 at 336 pixels, both narrow and shallow."""
    vision = {"image_size": 224, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 300, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    folder = save_dino(tmp_path / "dino", image_size=224, patch_size=8)
    segmenter = ovss.load(
        "proxyclip", "paper", clip=save_clip(tmp_path / "clip", config), dino=folder
    )
    (maps,) = segmenter.method.score([noise(500, 375)], WORDS)
    assert maps.shape == (3, 42, 56) and maps.isfinite().all()
