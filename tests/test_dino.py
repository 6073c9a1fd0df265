"""The DINO backbone: its tokens, its pixels, its files and what can be wrong with them."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTModel

from clips import noise, save_clip
from dinos import TINY, save_dino, save_dinov2
from ovss.backbones.dino import DinoBackbone
from ovss.backbones.loading import MEAN, STD
from ovss.errors import CheckpointError, OvssError, UnknownNameError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINO."""
    return save_dino(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture(scope="module")
def dino(folder: Path) -> DinoBackbone:
    """The same, loaded."""
    return DinoBackbone.load(folder)


def test_load(folder: Path, dino: DinoBackbone) -> None:
    assert (dino.name, dino.patch, dino.width) == ("tiny", 4, 24)
    assert dino.checkpoint.startswith("tiny@") and len(dino.checkpoint) == len("tiny@") + 12
    assert (dino.mean, dino.std) == (MEAN, STD)
    assert not any(p.requires_grad for p in dino.model.parameters()) and not dino.model.training
    half = DinoBackbone.load(str(folder), dtype=torch.float16)
    assert half.features(torch.zeros(1, 3, 16, 16)).dtype == torch.float16


def test_features_are_the_models_own_patch_tokens_row_by_row(
    folder: Path, dino: DinoBackbone
) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    found = dino.features(pixels)
    tokens = ViTModel.from_pretrained(folder, add_pooling_layer=False)(pixels).last_hidden_state
    assert found.shape == (2, 24, 8, 8)
    torch.testing.assert_close(found[1, :, 2, 5], tokens[1, 1 + 2 * 8 + 5])


def test_any_whole_number_of_patches(dino: DinoBackbone) -> None:
    pixels = torch.randn(3, 3, 48, 20)
    found = dino.features(pixels)
    assert found.shape == (3, 24, 12, 5)
    torch.testing.assert_close(found[1:2], dino.features(pixels[1:2]), rtol=1e-4, atol=1e-5)


def test_pixels_are_resized_to_whole_patches_and_normalised(dino: DinoBackbone) -> None:
    assert dino.preprocess(noise(50, 40), 33, 47).shape == (3, 32, 48)
    assert dino.preprocess(noise(50, 40), 1, 1).shape == (3, 4, 4)
    white = dino.preprocess(noise(8, 8).point(lambda _: 255), 8, 8)
    expected = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(white[:, 0, 0], expected)


def test_the_folders_own_mean_and_deviation(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "mine")
    values = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (copy / "preprocessor_config.json").write_text(json.dumps(values))
    found = DinoBackbone.load(copy)
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def test_zoo_names_come_from_the_data_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVSS_DATA", str(tmp_path))
    with pytest.raises(CheckpointError, match="make zoo MODEL=dino"):
        DinoBackbone.load("dino")
    zoo = shutil.copytree(folder, tmp_path / "lab" / "zoo" / "dino")
    assert DinoBackbone.load("dino").name == "dino"
    (zoo / "card.json").write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"SHA-256.*make zoo MODEL=dino"):
        DinoBackbone.load("dino")


def test_names_and_folders_that_are_no_dino(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'dino-vitb8'"):
        DinoBackbone.load("dino-vitb9")
    with pytest.raises(CheckpointError, match="sam-vit-huge is no DINO but: SAM"):
        DinoBackbone.load("sam-vit-huge")
    with pytest.raises(CheckpointError, match=r"is no DINO .* but: None"):
        DinoBackbone.load(save_clip(tmp_path / "clip"))
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        copy = shutil.copytree(folder, tmp_path / "bare")
        (copy / "model.safetensors").unlink()
        DinoBackbone.load(copy)
    with pytest.raises(OvssError, match="cannot use device"):
        DinoBackbone.load(folder, device="cuda:99")


# ---- DINOv2, and timm's reading of the same weights


TIMM = {  # names of transformers, DINO's and DINOv2's, and timm's
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layernorm.": "norm.",
}


def as_timm(folder: Path, registers: int = 0) -> dict[str, torch.Tensor]:
    """Name the saved weights as timm does; the queries, keys and values of a layer are one."""
    from safetensors.torch import load_file

    weights, named = load_file(folder / "model.safetensors"), {}
    for name, value in weights.items():
        if ".attention.attention.query." in name:
            parts = [name.replace("query", x) for x in ("query", "key", "value")]
            name = name.replace("attention.attention.query", "attn.qkv")
            value = torch.cat([weights[part] for part in parts])
        for old, new in TIMM.items():
            name = name.replace(old, new)
        if "attention.attention" not in name and "mask_token" not in name:
            named[name] = value
    if registers:  # timm adds positions to patches alone: the class token brings its own
        named["cls_token"] = named["cls_token"] + named["pos_embed"][:, :1]
        named["pos_embed"] = named["pos_embed"][:, 1:]
    return named


def timm_model(**options: Any) -> Any:
    """timm's vision transformer in the size of the tiny DINOs."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=TINY["image_size"],
        patch_size=TINY["patch_size"],
        embed_dim=TINY["hidden_size"],
        depth=TINY["num_hidden_layers"],
        num_heads=TINY["num_attention_heads"],
        mlp_ratio=2,
        num_classes=0,
        dynamic_img_size=True,
        **options,
    ).eval()


@pytest.mark.parametrize(
    ("kind", "side"),
    [("dino", 32), ("dinov2", 32), ("dinov2 with registers", 32), ("dinov2 with registers", 48)],
)
def test_the_tokens_are_those_of_timm(tmp_path: Path, kind: str, side: int) -> None:
    """At another size positions are interpolated, as the authors do: with a filter where there are
    registers, else without; timm always filters."""
    registers = 3 if "registers" in kind else 0
    if kind == "dino":
        folder = save_dino(tmp_path / "tiny")
        theirs = timm_model(norm_layer=partial(torch.nn.LayerNorm, eps=1e-12))
    else:
        folder = save_dinov2(tmp_path / "tiny", registers)
        theirs = timm_model(init_values=1.0, reg_tokens=registers, no_embed_class=registers > 0)
    theirs.load_state_dict(as_timm(folder, registers))
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        tokens = theirs.forward_features(pixels)[:, 1 + registers :]  # [2, L, 24]
    found = DinoBackbone.load(folder).features(pixels).flatten(2).mT
    assert found.std() > 0.1
    torch.testing.assert_close(found, tokens, rtol=0, atol=1e-4)


@pytest.mark.parametrize("registers", [0, 2])
def test_dinov2_gives_one_token_a_patch(tmp_path: Path, registers: int) -> None:
    found = DinoBackbone.load(save_dinov2(tmp_path / "v2", registers))
    assert (found.patch, found.width, found.checkpoint[:3]) == (4, 24, "v2@")
    assert found.features(torch.randn(2, 3, 48, 20)).shape == (2, 24, 12, 5)


def test_a_published_dinov2_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = save_dinov2(tmp_path / "v2")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub, **_: str(folder))
    with pytest.raises(CheckpointError, match="SHA-256"):
        DinoBackbone.load("dinov2-large")  # these are other weights than the registry knows


@pytest.mark.parametrize("damage", ["cut", "other shape", "layer gone", "config"])
def test_damaged_files(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "broken")
    config: dict[str, Any] = json.loads((copy / "config.json").read_text())
    if damage == "cut":
        whole = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    elif damage == "config":
        (copy / "config.json").write_text("{")
    else:
        change = {"hidden_size": 48} if damage == "other shape" else {"num_hidden_layers": 3}
        (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match="is damaged"):
        DinoBackbone.load(copy)


def test_without_a_network_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(hub: str, **_: object) -> None:
        raise OSError(f"no route to {hub}\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = r"cannot download dino-vitb8 \(340 MB; facebook/dino-vitb8: no route.*copy the folder"
    with pytest.raises(CheckpointError, match=message):
        DinoBackbone.load("dino-vitb8")


def test_published_files_come_from_the_hubs_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub, **_: str(folder))
    assert DinoBackbone.load("dino-vits8").checkpoint.startswith("dino-vits8@")
