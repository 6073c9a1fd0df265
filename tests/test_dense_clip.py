"""CLIP, MaskCLIP, SCLIP, ClearCLIP and Table 6's attentions, each against its formula."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import ovss
from clips import noise, save_clip
from ovss import Vocabulary
from ovss.backbones.clip import ClipBackbone
from ovss.decide import Argmax, Threshold
from ovss.errors import OvssError, UnknownNameError
from ovss.methods.dense_clip import PRESETS, DenseClip

WORDS = Vocabulary((("cat", "kitten"), ("dog",), ("tree",)), ("sky",))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    """A tiny CLIP."""
    return ClipBackbone.load(save_clip(tmp_path_factory.mktemp("zoo") / "tiny"))


def method(backbone: ClipBackbone, preset: str) -> DenseClip:
    """The preset at a small size."""
    return DenseClip(backbone, **{**PRESETS[preset], "short_side": 32}, name=preset)


def by_the_formula(backbone: ClipBackbone, preset: str, pixels: torch.Tensor) -> torch.Tensor:
    """The papers' formulas, one head and one image at a time: [B, L, E]."""
    block, width = backbone.blocks[-1], backbone.width
    visual, heads = backbone.model.visual, backbone.heads
    outputs = []
    for tokens in backbone.features(pixels).inputs[-1]:
        x = block.ln_1(tokens)
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        q, k, v = (x @ weight.T + bias).split(width, dim=-1)
        mixed = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            sides = {"q": q[:, part], "k": k[:, part], "v": v[:, part]}

            def soft(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
                return (a @ b.T / math.sqrt(a.shape[-1])).softmax(-1)

            maps = {
                "clip": soft(sides["q"], sides["k"]),
                "sclip": soft(sides["q"], sides["q"]) + soft(sides["k"], sides["k"]),
                "maskclip": torch.eye(len(x)),
                "identity": torch.eye(len(x)),
                "clearclip": soft(sides["q"], sides["q"]),
                "vanilla": soft(sides["q"], sides["k"]),
                "qq": soft(sides["q"], sides["q"]),
                "kk": soft(sides["k"], sides["k"]),
                "vv": soft(sides["v"], sides["v"]),
            }
            mixed.append(maps[preset] @ sides["v"])
        out = block.attn.out_proj(torch.cat(mixed, -1))
        if preset in ("clip", "sclip"):
            out = tokens + out
            out = out + block.mlp(block.ln_2(out))
        outputs.append(visual.ln_post(out[1:]) @ visual.proj)
    return torch.stack(outputs)


@pytest.mark.parametrize("preset", PRESETS)
def test_embeddings_follow_the_formula(backbone: ClipBackbone, preset: str) -> None:
    pixels = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    features = backbone.features(pixels, attention=False)
    found = method(backbone, preset).embeddings(features)
    torch.testing.assert_close(found, by_the_formula(backbone, preset, pixels))


def test_clip_is_open_clips_own_patch_tokens(backbone: ClipBackbone) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    found = method(backbone, "clip").embeddings(backbone.features(pixels, attention=False))
    tokens = backbone.model.visual.forward_intermediates(
        pixels, indices=1, normalize_intermediates=True, output_fmt="NLC"
    )["image_intermediates"][0]
    torch.testing.assert_close(found, tokens @ backbone.model.visual.proj)


def test_classify_by_hand(backbone: ClipBackbone) -> None:
    dense = DenseClip(backbone, logit_scale=2.0)
    patches = torch.tensor([[[3.0, 0.0], [0.0, 0.5]]])  # B=1, L=2, E=2
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = dense.classify(patches, text, (1, 2))
    first, second = torch.tensor([2.0, 0, 0]).softmax(0), torch.tensor([0, 2.0, -2]).softmax(0)
    torch.testing.assert_close(found, torch.stack([first, second], 1)[None, :, None])


def test_score_takes_the_best_synonym_and_drops_the_background(backbone: ClipBackbone) -> None:
    dense, image = method(backbone, "clearclip"), noise(40, 32)
    (found,) = dense.score([image], WORDS)
    text = backbone.text_features(WORDS)
    features = backbone.features(backbone.preprocess(image, 32)[None], attention=False)
    cosine = F.normalize(dense.embeddings(features), dim=-1) @ text.T
    queries = (50 * cosine).softmax(-1)[0].T.reshape(5, 4, 5)
    expected = torch.stack([queries[:2].amax(0), queries[2], queries[3]])
    torch.testing.assert_close(found, expected)
    assert found.shape == (3, 4, 5) and not found.requires_grad


@pytest.mark.parametrize("preset", ["clip", "maskclip", "sclip", "clearclip", "kk", "vv"])
def test_batches_of_mixed_sizes_are_one_by_one(backbone: ClipBackbone, preset: str) -> None:
    images = [noise(40, 32, 1), noise(32, 48, 2), noise(80, 64, 3), noise(33, 32, 4)]
    dense = method(backbone, preset)
    together = dense.score(images, WORDS)
    assert [tuple(maps.shape) for maps in together] == [(3, 4, 5), (3, 6, 4), (3, 4, 5), (3, 4, 4)]
    for maps, image in zip(together, images, strict=True):
        torch.testing.assert_close(maps, dense.score([image], WORDS)[0], rtol=1e-4, atol=1e-6)


def test_templates_replace_the_vocabularys(backbone: ClipBackbone) -> None:
    own = DenseClip(backbone, short_side=32, templates=("{} here",))
    other = Vocabulary(WORDS.classes, WORDS.background, ("{} here",))
    found = own.score([noise(32, 32)], WORDS)[0]
    torch.testing.assert_close(
        found, DenseClip(backbone, short_side=32).score([noise(32, 32)], other)[0]
    )


def test_unknown_values(backbone: ClipBackbone) -> None:
    with pytest.raises(UnknownNameError, match="unknown attention 'q-v'"):
        DenseClip(backbone, "q-v")
    with pytest.raises(UnknownNameError, match="Known: attention, whole"):
        DenseClip(backbone, block="half")  # type: ignore[arg-type]


# ---- ovss.load


@pytest.mark.parametrize("name", [*PRESETS, "cliper"])
def test_load(backbone: ClipBackbone, name: str) -> None:
    segmenter = ovss.load(name, clip=backbone, short_side=32)
    assert segmenter.method.name == name and segmenter.decision == Argmax()
    out = segmenter(noise(40, 32), "cat, dog")
    assert out.labels.shape == (32, 40) and set(out.labels.unique().tolist()) <= {0, 1}


def test_profiles(backbone: ClipBackbone) -> None:
    def side(*arguments: str) -> int:
        built = ovss.load(*arguments, clip=backbone).method
        assert isinstance(built, DenseClip)
        return built.short_side

    assert side("clearclip") == side("clearclip", "smoke") == side("sclip", "lab") == 128
    assert (side("clearclip", "paper"), side("sclip", "paper")) == (448, 336)


def test_options_reach_the_method(backbone: ClipBackbone) -> None:
    rule = Threshold(0.3)
    segmenter = ovss.load("sclip", clip=backbone, logit_scale=7, templates="openai", decision=rule)
    assert isinstance(segmenter.method, DenseClip) and segmenter.decision is rule
    assert segmenter.method.logit_scale == 7 and segmenter.method.attention == "qq+kk"
    assert segmenter.method.templates is not None and len(segmenter.method.templates) == 80
    assert segmenter.method.templates[0] == "a bad photo of a {}."


def test_load_from_a_folder(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "mine")
    built = ovss.load("clip", clip=str(folder), dtype="float64", short_side=32).method
    assert isinstance(built, DenseClip) and built.backbone.dtype == torch.float64
    assert built.score([noise(32, 32)], WORDS)[0].dtype == torch.float32


def test_errors_name_the_known(backbone: ClipBackbone) -> None:
    with pytest.raises(UnknownNameError, match=r"option of sclip 'logit_scal'.*logit_scale"):
        ovss.load("sclip", clip=backbone, logit_scal=3)
    with pytest.raises(UnknownNameError, match=r"unknown profile 'labs'.*lab, paper"):
        ovss.load("sclip", "labs")
    with pytest.raises(UnknownNameError, match="unknown method 'slip'"):
        ovss.load("slip")
    with pytest.raises(UnknownNameError, match="unknown checkpoint"):
        ovss.load("sclip", clip="ViT-X")
    with pytest.raises(UnknownNameError, match="unknown dtype 'int8'"):
        ovss.load("sclip", clip="clip", dtype="int8")
    with pytest.raises(OvssError, match="clip must be a name"):
        ovss.load("sclip", clip=3)
