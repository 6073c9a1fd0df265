"""ClipBackbone against open_clip's own forward passes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clips import noise, save_clip
from ovss import Vocabulary
from ovss.backbones import clip_text
from ovss.backbones.clip import MAX_TOKENS, ClipBackbone
from ovss.backbones.clip_blocks import ATTENTIONS, attention_pairs, softmax_map
from ovss.errors import ImageError, UnknownNameError, VocabularyError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in the zoo's layout."""
    return save_clip(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> ClipBackbone:
    """The same, loaded."""
    return ClipBackbone.load(folder)


def pixels(*size: int, seed: int = 0) -> torch.Tensor:
    """Random pixels."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# ---- the network


def test_image_embedding_is_that_of_open_clip(backbone: ClipBackbone) -> None:
    images = pixels(3, 3, 32, 32)
    expected = backbone.model.encode_image(images, normalize=True)
    torch.testing.assert_close(backbone.image_embedding(images), expected)


def test_features_are_the_inputs_of_open_clips_blocks(backbone: ClipBackbone) -> None:
    images = pixels(2, 3, 32, 32)
    seen = []
    handles = [
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for block in backbone.blocks
    ]
    backbone.model.encode_image(images)
    for handle in handles:
        handle.remove()
    for attention in (True, "sum", False):
        features = backbone.features(images, attention=attention)
        assert features.grid == (4, 4)
        assert len(features.inputs) == len(features.attention) == len(backbone.blocks)
        for ours, theirs in zip(features.inputs, seen, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_attention_maps_are_those_of_open_clips_modules(backbone: ClipBackbone) -> None:
    features = backbone.features(pixels(2, 3, 24, 40), attention=True)
    assert features.attention[-1] is None and features.attention_sum is None
    maps = []
    for block, tokens in zip(backbone.blocks[:-1], features.inputs, strict=False):
        normed = block.ln_1(tokens)
        _, theirs = block.attn(normed, normed, normed, average_attn_weights=False)
        maps.append(theirs)
    for ours, theirs in zip(features.attention, maps, strict=False):
        torch.testing.assert_close(ours, theirs)
    total = backbone.features(pixels(2, 3, 24, 40), attention="sum").attention_sum
    torch.testing.assert_close(total, torch.stack(maps).sum(0))


def test_the_last_block_never_runs(backbone: ClipBackbone) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the last block ran")

    handle = backbone.blocks[-1].register_forward_pre_hook(fail)
    try:
        features = backbone.features(pixels(1, 3, 32, 32), attention=False)
    finally:
        handle.remove()
    assert features.attention == (None,) * len(backbone.blocks)
    assert features.attention_sum is None


def test_nothing_is_left_behind(backbone: ClipBackbone) -> None:
    features = backbone.features(pixels(1, 3, 32, 32))
    found = [
        *features.inputs,
        *features.attention[:-1],
        backbone.image_embedding(pixels(1, 3, 8, 8)),
    ]
    assert all(tensor is not None and not tensor.requires_grad for tensor in found)
    for module in backbone.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._backward_hooks and not module.training


def test_positions_are_resized_bilinearly(backbone: ClipBackbone) -> None:
    own = backbone.model.visual.positional_embedding
    assert backbone.positions((4, 4)) is own
    table = own[1:].T.reshape(1, -1, 4, 4)
    resized = F.interpolate(table, (3, 6), mode="bilinear", align_corners=False)
    expected = torch.cat([own[:1], resized[0].flatten(1).T])
    torch.testing.assert_close(backbone.positions((3, 6)), expected)


# ---- the last block


def test_softmax_map_by_hand() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 2.0]])[None, None]  # 2 tokens, d = 2
    found = softmax_map(query, query)[0, 0]
    first = torch.tensor([1 / 2**0.5, 0.0]).softmax(0)
    second = torch.tensor([0.0, 4 / 2**0.5]).softmax(0)
    torch.testing.assert_close(found, torch.stack([first, second]))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_replaced_attention_with_and_without_its_map(
    backbone: ClipBackbone, attention: str
) -> None:
    tokens = pixels(2, 7, 32)
    weights = backbone.last_map(tokens, attention)
    assert weights.shape == (2, 4, 7, 7)
    sums = weights.sum(-1)
    torch.testing.assert_close(sums, torch.full_like(sums, max(1, len(attention_pairs(attention)))))
    torch.testing.assert_close(
        backbone.last_attention(tokens, attention), backbone.last_attention(tokens, weights)
    )


def test_vanilla_attention_is_the_last_blocks(backbone: ClipBackbone) -> None:
    tokens = pixels(2, 7, 32)
    attended = backbone.last_attention(tokens, "vanilla")
    whole = backbone.last_residual(tokens, attended)
    torch.testing.assert_close(whole, backbone.blocks[-1](tokens))


def test_hyphens_are_understood_and_unknown_names_listed() -> None:
    assert attention_pairs("q-q") == attention_pairs("qq")
    with pytest.raises(UnknownNameError, match="identity, kk, qq"):
        attention_pairs("zz")


# ---- pixels


@pytest.mark.parametrize(
    ("width", "height", "size", "expected"),
    [(133, 90, 32, (32, 48)), (111, 147, 40, (56, 40)), (1, 1, 32, (32, 32)), (5, 40, 8, (64, 8))],
)
def test_preprocess_rounds_to_patches(
    backbone: ClipBackbone, width: int, height: int, size: int, expected: tuple[int, int]
) -> None:
    found = backbone.preprocess(noise(width, height), size)
    assert found.shape == (3, *expected) and found.dtype == torch.float32


def test_preprocess_normalises(backbone: ClipBackbone) -> None:
    from PIL import Image

    found = backbone.preprocess(Image.new("RGB", (16, 16), (255, 0, 0)), 16)[:, 0, 0]
    expected = (torch.tensor([1.0, 0, 0]) - torch.tensor(backbone.mean)) / torch.tensor(
        backbone.std
    )
    torch.testing.assert_close(found, expected)


def test_elongated_images_are_refused(backbone: ClipBackbone) -> None:
    with pytest.raises(ImageError, match=rf"10000 x 20 .*8000 patches.*{MAX_TOKENS}"):
        backbone.preprocess(noise(10_000, 20), 32)


def test_batches_group_equal_sizes(backbone: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [noise(40, 32), noise(32, 40), noise(80, 64), noise(32, 32), noise(41, 32)]
    batches = dict((tuple(members), tuple(b.shape)) for members, b in backbone.batches(images, 32))
    assert batches == {(0, 2, 4): (3, 3, 32, 40), (1,): (1, 3, 40, 32), (3,): (1, 3, 32, 32)}
    monkeypatch.setattr("ovss.backbones.devices.MAX_ATTENTION", 1)
    assert all(len(members) == 1 for members, _ in backbone.batches(images, 32))


# ---- text


def test_text_encoder_is_that_of_open_clip(backbone: ClipBackbone) -> None:
    prompts = ["a cat", "a much longer prompt", "x"]
    ids = backbone.text.tokens(prompts)
    assert ids.shape == (3, 24) and int(ids[0, 0]) == 1 and int(ids[0, 6]) == int(ids.max())
    torch.testing.assert_close(backbone.text.encode(prompts), backbone.model.encode_text(ids))


def test_text_features_are_normalised_means(backbone: ClipBackbone) -> None:
    words = Vocabulary((("cat", "kitten"), ("dog",)), ("sky",), ("a {}.", "one {}"))
    found = backbone.text_features(words)
    prompts = [t.replace("{}", w) for w in words.queries for t in words.templates]
    unit = F.normalize(backbone.text.encode(prompts), dim=-1).reshape(4, 2, -1)
    torch.testing.assert_close(found, F.normalize(unit.mean(1), dim=-1))
    assert not found.requires_grad


def test_text_features_are_remembered(
    backbone: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = backbone.text_features(Vocabulary.of("owl, fox"))
    monkeypatch.setattr(clip_text, "CACHE", 3)
    monkeypatch.setattr(backbone.text, "encode", None)  # must not be called again
    torch.testing.assert_close(backbone.text_features(Vocabulary.of("fox, owl")), first.flip(0))
    monkeypatch.undo()
    monkeypatch.setattr(clip_text, "CACHE", 3)
    backbone.text_features(Vocabulary.of("a1, a2, a3, a4, a5"))  # more than the cache holds
    assert len(backbone.text._known) == 3


def test_too_long_prompts_are_refused(backbone: ClipBackbone) -> None:
    backbone.text.tokens(["x" * 22])
    with pytest.raises(VocabularyError, match="at most 24 tokens"):
        backbone.text.tokens(["x" * 23])


def test_text_tower_of_another_vocabulary(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").unlink()  # now CLIP's own tokenizer, 49408 tokens
    with pytest.raises(VocabularyError, match="does not fit its tokenizer"):
        ClipBackbone.load(tmp_path / "clip").text_features(Vocabulary.of("cat"))
