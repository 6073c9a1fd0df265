"""Checkpoints in all their layouts, and what can be wrong with their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from clips import OPENAI, TINY, save_clip
from ovss.backbones import loading, registry
from ovss.backbones.clip import ClipBackbone
from ovss.errors import CheckpointError, OvssError, UnknownNameError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in the zoo's layout."""
    return save_clip(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", ["zoo", "open_clip"])
def test_layouts(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    found = ClipBackbone.load(save_clip(tmp_path / "mine", layout=layout, dtype=dtype))
    assert found.name == "mine" and found.patch == 8 and found.heads == 4 and found.width == 32
    assert found.checkpoint.startswith("mine@") and len(found.checkpoint) == len("mine@") + 12
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in found.model.parameters())


def test_openai_state_dict(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.CLIP(**OPENAI).half().float().eval()
    save_file({k: v.half() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    found = ClipBackbone.load(tmp_path / "w.safetensors")
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(found.image_embedding(images), model.encode_image(images, True))
    texts = open_clip.tokenize(["a cat"])
    torch.testing.assert_close(found.text.encode(["a cat"]), model.encode_text(texts))


def test_zoo_names_come_from_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVSS_DATA", str(tmp_path))
    with pytest.raises(CheckpointError, match="make zoo MODEL=clip"):
        ClipBackbone.load("clip")
    save_clip(tmp_path / "lab" / "zoo" / "clip")
    assert ClipBackbone.load("clip").name == "clip"
    weights = tmp_path / "lab" / "zoo" / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is damaged.*make zoo MODEL=clip"
    ):
        ClipBackbone.load("clip")


def test_unknown_and_missing_names(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"ViT-B-16-quickgelu/openai.*clip"):
        ClipBackbone.load("ViT-B-17")
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere"):
        ClipBackbone.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere"):
        ClipBackbone.load(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="dino-vits8 is no CLIP"):
        ClipBackbone.load("dino-vits8")


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "noise"])
def test_damaged_weights(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "clip")
    whole = (copy / "model.safetensors").read_bytes()
    broken = {
        "truncated": whole[: len(whole) // 2],
        "header": b"\xff" * 8 + whole[8:],
        "empty": b"",
        "noise": bytes(range(256)) * 40,
    }[damage]
    (copy / "model.safetensors").write_bytes(broken)
    with pytest.raises(CheckpointError, match=r"clip/model\.safetensors is damaged.*make zoo"):
        ClipBackbone.load(copy)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no CLIP"):
        ClipBackbone.load(copy / "model.safetensors")


def test_a_flipped_byte_is_seen_by_the_card(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "clip")
    weights = copy / "model.safetensors"
    (copy / "card.json").write_text(json.dumps({"sha256": loading.sha256(weights)}))
    ClipBackbone.load(copy)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"SHA-256 is not that of card\.json"):
        ClipBackbone.load(copy)


def test_weights_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "clip")
    state = load_file(copy / "model.safetensors")
    state["visual.proj"] = state["visual.proj"][:, :3].contiguous()
    save_file(state, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit.*visual\.proj"):
        ClipBackbone.load(copy)
    del state["visual.proj"]
    save_file(state, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit.*visual\.proj"):
        ClipBackbone.load(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[1]", "JSON object"),
        ("{}", "describes no CLIP"),
        ('{"model_cfg": {"embed_dim": 3}}', "describes no CLIP"),
    ],
)
def test_bad_configurations(folder: Path, tmp_path: Path, content: str, message: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "clip")
    (copy / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        ClipBackbone.load(copy)


def test_missing_files_and_other_architectures(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "clip")
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        ClipBackbone.load(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        ClipBackbone.load(copy)
    vision = {**TINY["vision_cfg"], "pool_type": "avg"}
    with pytest.raises(CheckpointError, match="plain vision transformer"):
        ClipBackbone.load(save_clip(tmp_path / "avg", {**TINY, "vision_cfg": vision}))


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(loading, "fetch", fail)
    with pytest.raises(CheckpointError, match=r"600 MB.*no route to host.*give its path"):
        ClipBackbone.load("ViT-B-16-quickgelu/openai")


def test_openais_own_file_is_the_second_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    asked: dict[str, Any] = {}

    def fetch(url: str, target: Path, **options: Any) -> Path:
        asked.update(options, url=url)
        target.parent.mkdir(parents=True)
        torch.save(
            {name: v.half() for name, v in open_clip.CLIP(**OPENAI).state_dict().items()}, target
        )
        return target

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(loading, "fetch", fetch)
    monkeypatch.setattr(loading, "CACHE", str(tmp_path / "cache"))
    found = ClipBackbone.load("ViT-B-16-quickgelu/openai")
    assert found.checkpoint.startswith("ViT-B-16-quickgelu/openai@")
    assert found.checkpoint.endswith(f"{asked['sha256']}/ViT-B-16.pt)") and found.heads == 1


def test_published_names_are_known_to_open_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry in registry.CHECKPOINTS.values():
        if entry.open_clip:
            recipe = open_clip.get_pretrained_cfg(*entry.open_clip)
            assert recipe["hf_hub"].strip("/") in entry.hubs
            assert open_clip.get_model_config(entry.open_clip[0])
    saved = save_clip(tmp_path / "hub", layout="open_clip")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(saved))
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: TINY)
    found = ClipBackbone.load("ViT-L-14-336-quickgelu/openai")
    assert found.checkpoint.startswith("ViT-L-14-336-quickgelu/openai@")
    with pytest.raises(CheckpointError, match="another file than was published"):
        ClipBackbone.load("ViT-H-14/laion2b_s32b_b79k")  # whose hash is known


def test_unusable_device(folder: Path) -> None:
    with pytest.raises(OvssError, match="cannot use device 'nonsense'"):
        ClipBackbone.load(folder, device="nonsense")
