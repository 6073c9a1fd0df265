"""Files of the image-text backbone: names, folders, the hub, and what can be wrong with them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clips import save_clip
from itms import save_albef, save_blip, save_bridgetower
from ovss.backbones.itm import ItmBackbone
from ovss.backbones.registry import CHECKPOINTS
from ovss.errors import CheckpointError, OvssError, UnknownNameError


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BLIP."""
    return save_blip(tmp_path_factory.mktemp("zoo") / "blip")


@pytest.fixture(scope="module")
def bridgetower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BridgeTower."""
    return save_bridgetower(tmp_path_factory.mktemp("zoo") / "bridgetower")


def test_what_is_known_of_it(blip: Path, bridgetower: Path) -> None:
    for folder in (blip, bridgetower):
        found = ItmBackbone.load(folder)
        assert (found.name, found.layers, found.heads) == (folder.name, 4, 4)
        assert (found.patch, found.size, found.network.positions) == (
            8,
            32,
            found.network.positions,
        )
        assert found.checkpoint.startswith(f"{folder.name}@") and "model" not in repr(found)
        assert not found.network.model.training
    assert ItmBackbone.load(blip).network.positions == 40
    assert ItmBackbone.load(bridgetower).network.positions == 38  # RoBERTa's begin at 2


def test_zoo_names_come_from_the_data_folder(
    blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVSS_DATA", str(tmp_path))
    with pytest.raises(CheckpointError, match="make zoo MODEL=bridgetower"):
        ItmBackbone.load("bridgetower")
    zoo = shutil.copytree(blip, tmp_path / "lab" / "zoo" / "blip-itm")
    assert ItmBackbone.load("blip-itm").name == "blip-itm"
    (zoo / "card.json").write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"SHA-256.*make zoo MODEL=blip-itm"):
        ItmBackbone.load("blip-itm")


def test_blips_epsilon(tmp_path: Path) -> None:
    """The hub's configurations say 1e-5; a model of the lab was trained as its own says."""
    hub = save_blip(tmp_path / "hub", vision_config={"layer_norm_eps": 1e-5})
    with pytest.warns(UserWarning, match=r"says layer_norm_eps=1e-05 .* trained with 1e-06"):
        found = ItmBackbone.load(hub)
    vision = found.network.model.vision_model
    assert vision.encoder.layers[1].layer_norm2.eps == vision.post_layernorm.eps == 1e-6
    (hub / "card.json").write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mine = ItmBackbone.load(hub)
        ItmBackbone.load(save_blip(tmp_path / "right"))
    assert mine.network.model.vision_model.post_layernorm.eps == 1e-5


def test_the_token_that_begins_blips_captions(blip: Path, tmp_path: Path) -> None:
    """[DEC] and [ENC] follow the tokenizer's words, unless it knows them already."""
    words = len((blip / "vocab.txt").read_text().split())
    assert ItmBackbone.load(blip).first == words + 1
    for added, expected in ((["[DEC]"], words + 1), (["[DEC]", "[ENC]"], words + 1)):
        copy = shutil.copytree(blip, tmp_path / f"added {len(added)}")
        with (copy / "vocab.txt").open("a") as file:
            file.write("\n".join(added) + "\n")
        assert ItmBackbone.load(copy).first == expected
    full = shutil.copytree(blip, tmp_path / "full")
    with (full / "vocab.txt").open("a") as file:
        file.write("one\ntwo\n")
    with pytest.raises(CheckpointError, match=r"leave no place for \[ENC\]"):
        ItmBackbone.load(full)


def test_the_folders_own_mean_and_deviation(bridgetower: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bridgetower, tmp_path / "mine")
    values = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (copy / "preprocessor_config.json").write_text(json.dumps(values))
    found = ItmBackbone.load(copy)
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    (copy / "preprocessor_config.json").unlink()
    assert ItmBackbone.load(copy).mean == (0.48145466, 0.4578275, 0.40821073)


def test_weights_as_torch_saves_them(blip: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(blip, tmp_path / "old")
    (copy / "model.safetensors").unlink()
    torch.save(load_file(blip / "model.safetensors"), copy / "pytorch_model.bin")
    prompt, pixels = ItmBackbone.load(copy).prompt(["cat"]), torch.randn(1, 3, 32, 32)
    found, expected = (ItmBackbone.load(x).match(pixels, [prompt]) for x in (copy, blip))
    assert torch.equal(found.logits, expected.logits)


def test_names_and_folders_that_match_nothing(blip: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'blip-itm-large'"):
        ItmBackbone.load("blip-itm-larg")
    with pytest.raises(CheckpointError, match="sam-vit-huge is no image-text matching model but"):
        ItmBackbone.load("sam-vit-huge")
    with pytest.raises(CheckpointError, match=r"is no BLIP or BridgeTower .* but: None"):
        ItmBackbone.load(save_clip(tmp_path / "clip"))
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        ItmBackbone.load(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        ItmBackbone.load(tmp_path / "nowhere")
    with pytest.raises(OvssError, match="cannot use device"):
        ItmBackbone.load(blip, device="cuda:99")


def _cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _other_shape(folder: Path) -> None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))


def _no_head(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if name.startswith("itm_")]:
        del state[name]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _no_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("tokenizer*"), *folder.glob("vocab*")]:
        path.unlink()


def _bad_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("tokenizer.json"), *folder.glob("vocab.txt")]:
        path.write_bytes(b"\xff\xfe{")


DAMAGE: dict[Callable[[Path], None], str] = {
    _cut: "is damaged",
    _other_shape: "is damaged",
    _no_head: r"has no matching head \(it lacks itm_",
    _no_weights: r"holds no model\.safetensors or pytorch_model\.bin",
    _bad_config: "is damaged",
    _no_tokenizer: "holds no tokenizer",
    _bad_tokenizer: "its tokenizer is damaged",
}


@pytest.mark.parametrize("family", ["blip", "bridgetower"])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damaged_files(
    family: str, damage: Callable[[Path], None], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    copy = shutil.copytree(request.getfixturevalue(family), tmp_path / "broken")
    damage(copy)
    with pytest.raises(CheckpointError, match=DAMAGE[damage]):
        ItmBackbone.load(copy)


def test_published_files_come_from_the_hubs_cache(
    blip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def snapshot(hub: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((hub, allow_patterns[-1]))
        return str(blip)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert ItmBackbone.load("blip-itm-large").checkpoint.startswith("blip-itm-large@")
    assert asked == [("Salesforce/blip-itm-large-flickr", "model.safetensors")]


def test_without_a_network_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(hub: str, **_: object) -> None:
        raise OSError(f"no route to {hub}\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = r"cannot download blip-itm-large \(1790 MB; .*flickr: no route.*coco.*copy the folder"
    with pytest.raises(CheckpointError, match=message):
        ItmBackbone.load("blip-itm-large")
    with pytest.raises(CheckpointError, match=r"no hub has albef: download https://.*mscoco\.pth"):
        ItmBackbone.load("albef")
    assert not CHECKPOINTS["albef"].hubs


def test_albefs_words_come_from_beside_it_or_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertTokenizer

    path = save_albef(tmp_path)
    assert ItmBackbone.load(path).name == "albef"
    (tmp_path / "vocab.txt").open("a").write("more\n")
    with pytest.raises(CheckpointError, match="holds 38 words"):
        ItmBackbone.load(path)
    (tmp_path / "vocab.txt").unlink()

    def refuse(name: str, **_: object) -> None:
        raise OSError(f"no {name}")

    monkeypatch.setattr(BertTokenizer, "from_pretrained", refuse)
    with pytest.raises(CheckpointError, match=r"bert-base-uncased\): put its vocab.txt beside"):
        ItmBackbone.load(path)
