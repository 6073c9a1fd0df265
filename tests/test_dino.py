"""The DINO backbone: its tokens, its pixels, its files and what can be wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTModel

from clips import noise, save_clip
from dinos import save_dino
from ovss.backbones.dino import DinoBackbone
from ovss.backbones.dino_loading import MEAN, STD
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
