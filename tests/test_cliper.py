"""Early-layer fusion against slow re-statements of the paper and of the authors' description."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import ovss
from clips import noise, save_clip
from ovss import Vocabulary
from ovss.backbones.clip import ClipBackbone
from ovss.decide import Argmax, CliperRule
from ovss.errors import OvssError, UnknownNameError
from ovss.methods.cliper import Cliper, FusedMaps, affinity, sinkhorn, threshold
from ovss.methods.cliper_configs import CONFIGS

WORDS = Vocabulary((("cat", "kitten"), ("dog",), ("tree",)), ("sky",))
VARIANTS = ("paper", "official-2024", "official")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    """A tiny CLIP."""
    return ClipBackbone.load(save_clip(tmp_path_factory.mktemp("zoo") / "tiny"))


def cliper(backbone: ClipBackbone, variant: str, **options: Any) -> Cliper:
    """The method at a small size."""
    return Cliper(backbone, variant, **{"short_side": 32, **options})  # type: ignore[arg-type]


# ---- the pieces


def test_sinkhorn_is_the_sweep_in_place() -> None:
    total = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    kept, swept = total.clone(), total.clone()
    for rows, columns in sinkhorn(total, 4):
        swept /= swept.sum(-2, keepdim=True)
        swept /= swept.sum(-1, keepdim=True)
        scaled = rows[..., :, None] * total * columns[..., None, :]
        torch.testing.assert_close(scaled, swept)
    assert torch.equal(total, kept)


def test_affinity_by_hand() -> None:
    total = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    # symmetric: [[1.6, 0.6], [0.6, 1.2]] / 2; column means .55, .45; above: [[.25, 0], [0, .15]]
    found = affinity(total, torch.ones(2), torch.ones(2))
    torch.testing.assert_close(found, torch.eye(2))
    assert torch.isfinite(affinity(torch.ones(3, 3), torch.ones(3), torch.ones(3))).all()


def test_fused_maps_do_not_change_what_they_read() -> None:
    total = torch.rand(1, 2, 5, 5)
    kept, maps = total.clone(), FusedMaps(total, 3)
    first = [maps[k] for k in range(3)]
    torch.testing.assert_close([maps[k] for k in (2, 1, 0)], first[::-1], rtol=0, atol=0)
    assert torch.equal(total, kept) and len(maps) == 3
    torch.testing.assert_close(first[1].sum(-1), torch.ones(1, 2, 5))


def test_cut_by_hand() -> None:
    maps = torch.tensor([[[1.0, 0.1, 0.3], [0.02, 0.01, 0.001]]])
    expected = torch.tensor([[[1.0, 0.0, 0.3], [0.02, 0.01, 0.0]]])
    torch.testing.assert_close(threshold(maps, 0.2), expected)


# ---- the variants


def test_paper_is_equation_8(backbone: ClipBackbone) -> None:
    image = noise(40, 32)
    (found,) = cliper(backbone, "paper").score([image], WORDS)
    features = backbone.features(backbone.preprocess(image, 32)[None])
    layers = len(backbone.blocks)
    average = torch.stack([a for a in features.attention if a is not None]).sum(0) / layers
    torch.testing.assert_close(average.sum(-1), torch.full((1, 4, 21), (layers - 1) / layers))
    cosines = []
    for tokens in features.inputs[1:]:  # F^1 ... F^{N-1}
        embedding = backbone.project(backbone.last_attention(tokens, average))[0, 1:]
        cosines.append(F.normalize(embedding, dim=-1) @ backbone.text_features(WORDS).T)
    queries = torch.stack(cosines)  # [N-1, L, Q]
    classes = torch.stack([queries[..., :2].amax(-1), queries[..., 2], queries[..., 3]])
    torch.testing.assert_close(found, classes.mean(1).reshape(3, 4, 5))


def official(backbone: ClipBackbone, image: Any, select: int, head: bool) -> torch.Tensor:
    """The codes' steps as AUDIT.md describes them, with their in-place operations: [K, L]."""
    features = backbone.features(backbone.preprocess(image, 32)[None])
    early = [b.ln_1(f) for b, f in zip(backbone.blocks, features.inputs, strict=True)][:-1]
    shared = torch.stack([a for a in features.attention if a is not None]).sum(0)
    text = backbone.text_features(WORDS)
    text = torch.cat([text, F.normalize(text[:4].mean(0, keepdim=True), dim=-1)])
    seg = []
    for tokens in [*early, features.inputs[-1]]:
        shared /= shared.sum(-2, keepdim=True)
        shared /= shared.sum(-1, keepdim=True)
        attention = (shared + shared.mT) / 2
        attention = (attention - attention.mean(-2, keepdim=True)).clamp(min=0)
        attention = attention / attention.sum(-1, keepdim=True)
        embedding = backbone.project(backbone.last_attention(tokens, attention))[0, 1:]
        probability = (100 * F.normalize(embedding, dim=-1) @ text.T).softmax(-1)
        seg.append(WORDS.reduce(probability.T[:5, :, None])[..., 0])
    maps, patches = torch.stack(seg), attention.mean(1)[0, 1:, 1:]
    selected = maps[select]  # a view: what follows changes `maps`
    selected[selected < 0.2 * selected.amax(-1, keepdim=True)] = 0
    return (
        maps.mean(0) + selected @ patches if head else maps[:-1].mean(0) + (patches @ selected.T).T
    )


@pytest.mark.parametrize(
    ("variant", "select"), [("official", -1), ("official", -2), ("official-2024", -1)]
)
def test_official_steps(backbone: ClipBackbone, variant: str, select: int) -> None:
    image = noise(40, 32)
    (found,) = cliper(backbone, variant, select_layer=select).score([image], WORDS)
    expected = official(backbone, image, select, variant == "official")
    torch.testing.assert_close(found, expected.reshape(3, 4, 5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["fused", "qq", "kk", "vv", "vanilla", "identity"])
def test_2024_without_early_embeddings_averages_zero_layers(
    backbone: ClipBackbone, attention: str
) -> None:
    """The shortcut of one token for all-zero layers, against running them."""
    method = cliper(backbone, "official-2024", attention=attention, fuse_features=False)
    pixels = backbone.preprocess(noise(40, 32), 32)[None]
    text = backbone.text_features(WORDS)
    features = backbone.features(pixels, attention="sum")
    zeros, weights = torch.zeros_like(features.inputs[0]), method.weights(features)
    everything = torch.cat([text, F.normalize(text[:4].mean(0, keepdim=True), dim=-1)])

    def scores(tokens: torch.Tensor, weights: torch.Tensor | str) -> torch.Tensor:
        embedding = backbone.project(backbone.last_attention(tokens, weights))[:, 1:]
        values = (100 * F.normalize(embedding, dim=-1) @ everything.T).softmax(-1)
        return WORDS.reduce(values.mT[:, :5, :, None])[..., 0]  # [1, K, L]

    layers = [scores(zeros, weights[k]) for k in range(len(features.inputs) - 1)]
    early = torch.stack(layers).mean(0)
    found = method.coarse_map(pixels, text, WORDS)
    last = scores(features.inputs[-1], weights[-1])
    expected = early + (found.attention @ threshold(last, 0.2).mT).mT
    torch.testing.assert_close(found.scores.flatten(2), expected)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("attention", ["fused", "q-q", "kk", "identity"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_of_mixed_sizes_are_one_by_one(
    backbone: ClipBackbone, variant: str, attention: str, fuse: bool
) -> None:
    images = [noise(40, 32, 1), noise(32, 48, 2), noise(80, 64, 3), noise(33, 32, 4)]
    method = cliper(backbone, variant, attention=attention, fuse_features=fuse)
    together = method.score(images, WORDS)
    assert [tuple(maps.shape) for maps in together] == [(3, 4, 5), (3, 6, 4), (3, 4, 5), (3, 4, 4)]
    for maps, image in zip(together, images, strict=True):
        assert not maps.requires_grad and torch.isfinite(maps).all()
        torch.testing.assert_close(maps, method.score([image], WORDS)[0], rtol=1e-4, atol=1e-5)


def test_ranges(backbone: ClipBackbone) -> None:
    for variant, low, high in (("paper", -1, 1), ("official-2024", 0, 2), ("official", 0, 2)):
        (maps,) = cliper(backbone, variant).score([noise(40, 32)], WORDS)
        assert low <= maps.min() <= maps.max() <= high


def test_the_classes_mean_competes_unless_switched_off(backbone: ClipBackbone) -> None:
    images = [noise(40, 32)]
    (on,) = cliper(backbone, "official-2024").score(images, WORDS)
    (off,) = cliper(backbone, "official-2024", mean_background=False).score(images, WORDS)
    assert (on < off).float().mean() > 0.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_query_and_a_tiny_image(backbone: ClipBackbone, variant: str) -> None:
    (maps,) = cliper(backbone, variant).score([noise(1, 1)], Vocabulary.of("cat"))
    assert maps.shape == (1, 4, 4) and torch.isfinite(maps).all()


# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "2024"}, "official, official-2024, paper"),
        ({"attention": "proxy"}, "unknown attention 'proxy'"),
    ],
)
def test_unknown_values(backbone: ClipBackbone, options: dict[str, str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        Cliper(backbone, **options)  # type: ignore[arg-type]


def test_layers_that_cannot_be_selected(backbone: ClipBackbone) -> None:
    with pytest.raises(OvssError, match="compensation must be a Compensation or None: 'sd'"):
        Cliper(backbone, compensation="sd")  # type: ignore[arg-type]
    with pytest.raises(OvssError, match="must be a whole number from -4 to -1, got -5"):
        Cliper(backbone, "official", select_layer=-5)
    with pytest.raises(OvssError, match="belongs to variant"):
        Cliper(backbone, select_layer=-2)


def test_configurations_of_the_authors() -> None:
    assert len(CONFIGS) == 16 + 14
    row = CONFIGS["L/14", "voc21", "official"]
    assert (row.select_layer, row.logit_scale, row.attention_threshold) == (-2, 50, 0.1)
    assert row.rule == CliperRule(0.5, 0.4, True)
    assert CONFIGS["B/16", "voc21", "official-2024"].rule == CliperRule(0.7, 0.6, False)
    assert CONFIGS["B/16", "cityscapes", "official"].short_side == 560
    windows = {key: row.sliding_crop for key, row in CONFIGS.items() if row.sliding_crop}
    assert windows == {
        ("B/16", "voc21", "official"): 336,
        ("B/16", "coco-object", "official"): 224,
        ("B/16", "context60", "official"): 224,
        ("B/16", "context59", "official"): 224,
    }


def test_dataset_option(
    backbone: ClipBackbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = r"only for ViT-B/16 and L/14.*width 32, patch 8.*short_side.*decision=CliperRule"
    with pytest.raises(OvssError, match=said):
        ovss.load("cliper", "paper", clip=backbone, dataset="voc21")
    monkeypatch.setattr(ClipBackbone, "width", 768)
    monkeypatch.setattr(ClipBackbone, "patch", 16)
    with pytest.raises(UnknownNameError, match=r"configuration .*B/16 voc21 official"):
        ovss.load("cliper", "paper", clip=backbone, dataset="lab")
    with pytest.raises(OvssError, match=r"car_template\.txt.*known: plain, openai"):
        monkeypatch.setenv("OVSS_DATA", str(tmp_path))
        ovss.load("cliper", "paper", clip=backbone, dataset="voc21")
    chosen = {"dataset": "voc21", "templates": "plain", "logit_scale": 3.0, "variant": "official"}
    segmenter = ovss.load("cliper", "paper", clip=backbone, **chosen)
    assert segmenter.decision == CliperRule(0.7, 0.6, True)
    assert isinstance(segmenter.method, Cliper)
    assert (segmenter.method.logit_scale, segmenter.method.attention_threshold) == (3, 0.1)
    assert (segmenter.method.sliding_crop, segmenter.method.sliding_stride) == (336, 112)
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "car_template.txt").write_text("a {}.\n\nthe {}\n")
    segmenter = ovss.load("cliper", "paper", clip=backbone, dataset="voc20", decision=Argmax())
    assert isinstance(segmenter.method, Cliper) and segmenter.decision == Argmax()
    assert segmenter.method.templates == ("a {}.", "the {}")


# ---- the three sizes of the paper, random weights

H_14: dict[str, Any] = {  # ViT-H/14 but narrow and with fewer positions
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 56,
        "patch_size": 14,
        "width": 160,
        "layers": 32,
        "head_width": 80,
    },
    "text_cfg": {"context_length": 24, "vocab_size": 300, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def h14(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    """A CLIP of ViT-H/14's structure: 32 layers, heads of 80 channels, patch 14, exact GELU."""
    return ClipBackbone.load(save_clip(tmp_path_factory.mktemp("zoo") / "h14", H_14))


@pytest.mark.parametrize("variant", VARIANTS)
def test_structure_of_h14(h14: ClipBackbone, variant: str) -> None:
    assert (len(h14.blocks), h14.heads, h14.patch, h14.width) == (32, 2, 14, 160)
    assert type(h14.blocks[0].mlp.gelu) is torch.nn.GELU
    images = [noise(80, 56, 1), noise(56, 56, 2), noise(80, 56, 3)]
    method = cliper(h14, variant, short_side=56)
    found = method.score(images, WORDS)
    assert [tuple(maps.shape) for maps in found] == [(3, 4, 6), (3, 4, 4), (3, 4, 6)]
    alone = torch.cat([method.score([image], WORDS)[0].flatten() for image in images])
    together = torch.cat([maps.flatten() for maps in found])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_h14_runs_its_own_blocks(h14: ClipBackbone) -> None:
    """Our pieces of a block, and the model's own forward pass."""
    pixels = h14.preprocess(noise(56, 56), 56)[None]
    features = h14.features(pixels, attention="sum")
    plain = h14.features(pixels, attention=False)
    torch.testing.assert_close(features.inputs[-1], plain.inputs[-1], rtol=1e-4, atol=1e-4)
    own = F.normalize(h14.model.encode_image(pixels), dim=-1)
    torch.testing.assert_close(h14.image_embedding(pixels), own, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["ViT-B-16-quickgelu", "ViT-L-14-quickgelu"])
def test_full_size_from_a_folder(tmp_path: Path, architecture: str) -> None:
    import open_clip

    config = open_clip.get_model_config(architecture)
    folder = save_clip(tmp_path / "clip", config, layout="open_clip", dtype=torch.float16)
    segmenter = ovss.load("cliper", profile="paper", clip=folder, compensation=None)
    image, words = noise(448, 336), Vocabulary.of("cat, grass")
    out = segmenter(image, words)
    patch = config["vision_cfg"]["patch_size"]
    assert out.labels.shape == (336, 448)
    assert out.scores.shape == (2, 336 // patch, 448 // patch)
    assert torch.isfinite(out.scores).all()
    assert isinstance(segmenter.method, Cliper)
    (slid,) = replace(segmenter.method, variant="official", sliding_crop=224).score([image], words)
    assert slid.shape == out.scores.shape and torch.isfinite(slid).all()
