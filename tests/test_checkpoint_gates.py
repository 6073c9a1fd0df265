"""The gates of configurations and weights: files from anywhere load, or are refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clips import OPENAI, TINY, save_clip
from diffusions import save_diffusion
from dinos import save_dino
from itms import save_albef, save_blip, save_bridgetower
from ovss.backbones import loading, registry, tensor_files
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.diffusion import DiffusionBackbone
from ovss.backbones.dino import DinoBackbone
from ovss.backbones.itm import ItmBackbone
from ovss.errors import CheckpointError

LOAD: dict[str, Callable[[Path], Any]] = {
    "clip": ClipBackbone.load,
    "dino": DinoBackbone.load,
    "blip": ItmBackbone.load,
    "bridgetower": ItmBackbone.load,
    "sd": DiffusionBackbone.load,
}
CONFIG = {name: "config.json" for name in LOAD} | {"sd": "unet/config.json"}
WEIGHTS = {name: "model.safetensors" for name in LOAD}
WEIGHTS["sd"] = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind."""
    home = tmp_path_factory.mktemp("models")
    savers = {"clip": save_clip, "dino": save_dino, "blip": save_blip}
    savers |= {"bridgetower": save_bridgetower, "sd": save_diffusion}
    return {name: save(home / name) for name, save in savers.items()}


def refuse(kind: str, folder: Path, message: str) -> None:
    """The folder is refused in one line of bearable length."""
    with pytest.raises(CheckpointError, match=message) as caught:
        LOAD[kind](folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


# ---- weights


@pytest.mark.parametrize("kind", LOAD)
def test_weights_that_are_no_numbers(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    copy = shutil.copytree(models[kind], tmp_path / "copy")
    for value in (float("nan"), float("inf"), -float("inf")):
        state = load_file(models[kind] / WEIGHTS[kind])
        name = sorted(one for one in state if state[one].is_floating_point())[-1]
        state[name].view(-1)[-1] = value
        save_file(state, copy / WEIGHTS[kind], metadata={"format": "pt"})
        refuse(kind, copy, "holds NaN or infinite numbers")


FILES = {
    "empty": (b"", "it is empty"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS"),
    "page": (b"<!DOCTYPE html><html>sign in</html>", "a web page"),
    "noise": (bytes(range(256)) * 99, "is damaged"),
    "header": (b"\xff" * 8 + b"{}" * 99, "is damaged"),
}


@pytest.mark.parametrize("kind", LOAD)
@pytest.mark.parametrize("damage", FILES)
def test_files_that_are_no_weights(
    models: dict[str, Path], tmp_path: Path, kind: str, damage: str
) -> None:
    copy = shutil.copytree(models[kind], tmp_path / "copy")
    content, message = FILES[damage]
    (copy / WEIGHTS[kind]).write_bytes(content)
    refuse(kind, copy, message)
    if kind == "clip":
        for ending in ("pt", "bin", "safetensors"):
            path = tmp_path / f"file.{ending}"
            path.write_bytes(content)
            refuse("clip", path, rf"no CLIP.*{message}")


def test_numbers_of_eight_bits(models: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(models["clip"], tmp_path / "copy")
    state = load_file(copy / "model.safetensors")
    state["visual.proj"] = state["visual.proj"].to(torch.float8_e4m3fn)
    save_file(state, copy / "model.safetensors")
    assert torch.equal(ClipBackbone.load(copy).model.visual.proj, state["visual.proj"].float())
    state["visual.proj"] = torch.full_like(state["visual.proj"], float("nan"))
    save_file(state, copy / "model.safetensors")
    refuse("clip", copy, "holds NaN or infinite numbers")


@pytest.mark.parametrize("kind", LOAD)
def test_pipes_are_not_waited_for(tmp_path: Path, kind: str) -> None:
    for name in ("pipe", "pipe.pt", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
        refuse(kind, tmp_path / name, "pipe")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_the_card_of_a_diffusion_model_covers_all_parts(
    models: dict[str, Path], tmp_path: Path, part: str
) -> None:
    copy = shutil.copytree(models["sd"], tmp_path / "sd")
    files = {
        one: next((copy / one).glob("*.safetensors")) for one in ("unet", "vae", "text_encoder")
    }
    hashes = {str(path.relative_to(copy)): loading.sha256(path) for path in files.values()}
    first = hashes.pop(str(files["unet"].relative_to(copy)))
    before = DiffusionBackbone.load(copy).checkpoint
    (copy / "card.json").write_text(json.dumps({"sha256": first, "files": hashes}))
    assert DiffusionBackbone.load(copy).checkpoint == before
    content = bytearray(files[part].read_bytes())
    content[-2] ^= 1
    files[part].write_bytes(content)
    refuse("sd", copy, r"SHA-256 is not that of card\.json")
    (copy / "card.json").unlink()
    assert DiffusionBackbone.load(copy).checkpoint != before


def test_the_labs_cards_cover_their_weights() -> None:
    for name in registry.ZOO:
        folder = registry.zoo_folder(name)
        weights = sorted(folder.rglob("*.safetensors"))
        card = json.loads((folder / "card.json").read_text())
        known = {card["sha256"], *card.get("files", {}).values()}
        assert {loading.sha256(path) for path in weights} == known


# ---- archives


class Hostile(torch.nn.Module):
    """Its archive writes a file when torch.jit.load reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self):  # type: ignore[no-untyped-def]
        return (self.w, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):  # type: ignore[no-untyped-def]
        torch.save(state[0], "PWNED")
        self.w = state[0]
        self.training = state[1]


class Command:
    """A pickle that runs a command."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch PWNED",))


def test_no_program_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Hostile()).save("script.pt")  # type: ignore[no-untyped-call]
    torch.jit.load("script.pt")  # type: ignore[no-untyped-call]
    (tmp_path / "PWNED").unlink()  # so the archive does what it is made for
    torch.save({"x": Command()}, "pickle.pt")
    torch.save({"x": Command()}, "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile("script.pt") as old, zipfile.ZipFile("mixed.pt", "w") as new:
        for info in old.infolist():  # a TorchScript archive whose module tree is that pickle
            evil = b"cposix\nsystem\n(Vtouch PWNED\ntR."
            content = evil if info.filename.endswith("/data.pkl") else old.read(info)
            new.writestr(info.filename, content)
    for name in ("script.pt", "pickle.pt", "old.pt", "mixed.pt"):
        refuse("clip", tmp_path / name, "is no CLIP")
        with pytest.raises(CheckpointError):
            ItmBackbone.load(tmp_path / name)
        assert not (tmp_path / "PWNED").exists()


def test_openais_archives_are_read_without_running_them(tmp_path: Path) -> None:
    """Their module tree holds numbers beside the weights, which are float16."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**OPENAI).half().float().eval()

    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual, self.transformer = model.visual, model.transformer
            self.token_embedding, self.ln_final = model.token_embedding, model.ln_final
            for name in ("positional_embedding", "text_projection", "logit_scale"):
                self.register_parameter(name, getattr(model, name))
            for name in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(name, torch.tensor(7))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.visual(x)

    path = tmp_path / "ViT.pt"
    pixels = torch.randn(1, 3, 32, 32)
    torch.jit.trace(Archive().half().float(), pixels).save(path)
    found = tensor_files.read_archive(path)
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value)
    backbone = ClipBackbone.load(path)
    torch.testing.assert_close(backbone.image_embedding(pixels), model.encode_image(pixels, True))
    assert backbone.checkpoint == f"ViT@{loading.sha256(path)[:12]}"


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {1: 2},
        {1: torch.ones(2)},
        {"a": 3},
        {},
        torch.ones(3),
        {"state_dict": [1]},
        None,
        {"a": torch.ones(1).expand(10**9)},
        {"visual.proj": torch.ones(2, 2)},
    ],
    ids=str,
)
def test_pickles_of_something_else(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "x.pt"
    torch.save(content, path)
    refuse("clip", path, "is no CLIP")
    with pytest.raises(CheckpointError, match="is no ALBEF"):
        ItmBackbone.load(path)


def test_a_training_runs_file(tmp_path: Path) -> None:
    model = open_clip.CLIP(**OPENAI)
    state = {f"module.{name}": value.half() for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, tmp_path / "epoch_3.pt")
    assert ClipBackbone.load(tmp_path / "epoch_3.pt").name == "epoch_3"


def test_albef_is_checked_like_the_others(tmp_path: Path) -> None:
    path = save_albef(tmp_path)
    whole = torch.load(path, weights_only=True)
    state = whole["model"]
    for change, message in (
        ({"itm_head.bias": torch.tensor([0.0, float("nan")])}, "NaN or infinite"),
        ({"visual_encoder.blocks.999999999.norm1.bias": torch.zeros(24)}, "is no ALBEF"),
        ({"itm_head.weight": torch.zeros(())}, "is no ALBEF"),
    ):
        torch.save({"model": {**state, **change}}, path)
        with pytest.raises(CheckpointError, match=message):
            ItmBackbone.load(path)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_one_line(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.mktemp("archive") / "a.pt"
    torch.save({"state_dict": {"a": torch.arange(6.0)}}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        tensor_files.read_tensors(path)
    except CheckpointError as error:
        assert "\n" not in str(error)


# ---- configurations


def change(path: Path, keys: tuple[str, ...], value: Any) -> None:
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


SIZES: dict[str, list[tuple[str, ...]]] = {
    "clip": [("model_cfg", "embed_dim")]
    + [("model_cfg", "vision_cfg", one) for one in ("layers", "width", "head_width", "patch_size")]
    + [("model_cfg", "text_cfg", one) for one in ("context_length", "vocab_size", "heads")],
    "dino": [("hidden_size",), ("num_hidden_layers",), ("patch_size",), ("image_size",)],
    "blip": [
        ("vision_config", "patch_size"),
        ("text_config", "vocab_size"),
        ("text_config", "num_hidden_layers"),
        ("vision_config", "hidden_size"),
    ],
    "bridgetower": [("hidden_size",), ("text_config", "num_hidden_layers")],
    "sd": [("block_out_channels",), ("cross_attention_dim",), ("layers_per_block",)],
}
WRONG = (-192, 0, 10**7, 10**12, 10**30, "x", 5.5, True, {}, [], [-1, 4], "9" * 5000)


@pytest.mark.parametrize("kind", LOAD)
def test_sizes_that_are_none(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    copy = shutil.copytree(models[kind], tmp_path / "copy")
    whole = (copy / CONFIG[kind]).read_text()
    for keys in SIZES[kind]:
        for value in WRONG:
            change(copy / CONFIG[kind], keys, value)
            refuse(kind, copy, ".")
            (copy / CONFIG[kind]).write_text(whole)


@pytest.mark.parametrize("kind", LOAD)
@pytest.mark.parametrize(
    "content",
    [
        "",
        "[",
        "[" * 10**5,
        "{}",
        "[1]",
        "null",
        '{"a": NaN}',
        '{"a": 1e999}',
        "\x00",
        "9" * 10**4,
        '{"a":' * 100 + "1" + "}" * 100,
        '{"model_type": "vit", "hidden_size": null}',
    ],
    ids=lambda content: content[:12],
)
def test_configurations_that_are_none(
    models: dict[str, Path], tmp_path: Path, kind: str, content: str
) -> None:
    copy = shutil.copytree(models[kind], tmp_path / "copy")
    (copy / CONFIG[kind]).write_text(content)
    refuse(kind, copy, ".")


def test_configurations_of_a_size() -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        loading.read_json(Path("/dev/null"))


STATISTICS = {
    "clip": ("config.json", ("preprocess_cfg", "mean"), ("preprocess_cfg", "std")),
    "dino": ("preprocessor_config.json", ("image_mean",), ("image_std",)),
    "blip": ("preprocessor_config.json", ("image_mean",), ("image_std",)),
}


@pytest.mark.parametrize("kind", STATISTICS)
def test_means_and_deviations(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    copy = shutil.copytree(models[kind], tmp_path / "copy")
    file, mean, std = STATISTICS[kind]
    path = copy / file
    if not path.exists():
        path.write_text("{}")
    usual = LOAD[kind](copy)
    wrong: list[Any] = [
        "abc",
        5,
        [0.5, 0.5],
        [0.5] * 4,
        ["a", "b", "c"],
        [None] * 3,
        {},
        [True] * 3,
    ]
    wrong += [[[0.5]] * 3, [123.7, 116.3, 103.5], [-1, 0, 0]]
    for keys, more in ((mean, []), (std, [[0, 0, 0], [1e-300] * 3, [-0.2] * 3, [1e300] * 3])):
        for value in [*wrong, *more]:
            change(path, keys, value)
            refuse(kind, copy, rf"{keys[-1]} must be three numbers")
        change(path, keys, None)
    found = LOAD[kind](copy)  # null is the default
    assert (found.mean, found.std) == (usual.mean, usual.std) or kind == "blip"
    if kind == "clip":
        change(path, ("preprocess_cfg",), None)
        assert LOAD[kind](copy).mean == usual.mean
        change(path, ("preprocess_cfg",), [])
        refuse(kind, copy, "preprocess_cfg must be an object")


def test_a_folder_reaches_no_network(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the files name, no name is looked up and no connection made."""
    import huggingface_hub

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a request was sent")

    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    other = "evil/repo"
    for keys, value in (
        (("model_cfg", "text_cfg", "hf_model_name"), other),
        (("model_cfg", "text_cfg", "hf_tokenizer_name"), other),
        (("model_cfg", "text_cfg", "tokenizer_mode"), "clips"),
        (("model_cfg", "text_cfg", "tokenizer_kwargs"), {"reduction_mask": "random"}),
        (("model_cfg", "text_cfg", "tokenizer_kwargs"), {"clean": "nothing"}),
        (("model_cfg", "text_cfg", "tokenizer_kwargs"), "clean"),
        (("model_cfg", "vision_cfg", "timm_model_name"), f"hf-hub:{other}"),
    ):
        copy = shutil.copytree(models["clip"], tmp_path / "clip")
        change(copy / "config.json", keys, value)
        refuse("clip", copy, r"evil/repo|clips|tokenizer_kwargs")
        shutil.rmtree(copy)
    adapter = json.dumps({"base_model_name_or_path": other, "peft_type": "LORA"})
    remote = {"AutoModel": f"{other}--model.Net", "AutoTokenizer": [f"{other}--tok.Tok", None]}
    for kind in ("dino", "blip", "bridgetower", "sd"):
        copy = shutil.copytree(models[kind], tmp_path / kind)
        for file in copy.rglob("*config.json"):
            change(file, ("_name_or_path",), other)
            change(file, ("auto_map",), remote)
        (copy / "adapter_config.json").write_text(adapter)
        try:
            assert LOAD[kind](copy).checkpoint
        except CheckpointError as error:
            assert "\n" not in str(error)
        (copy / WEIGHTS[kind]).unlink()
        refuse(kind, copy, "holds no ")
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("clean", ["canonicalize", "lower", "whitespace"])
def test_the_tokenizer_that_the_configuration_names(tmp_path: Path, clean: str) -> None:
    text = {**TINY["text_cfg"], "vocab_size": 49408, "tokenizer_kwargs": {"clean": clean}}
    folder = save_clip(tmp_path / "mine", {**TINY, "text_cfg": text}, layout="open_clip")
    own = open_clip.get_tokenizer(f"local-dir:{folder}", context_length=24)
    texts = ["a photo of a traffic_light!", "Two  Cats"]
    assert torch.equal(ClipBackbone.load(folder).text.tokens(texts), own(texts))
    (folder / "tokenizer.json").write_text(
        (save_clip(tmp_path / "zoo") / "tokenizer.json").read_text()
    )
    refuse("clip", folder, "knows no tokenizer_kwargs")
    change(folder / "open_clip_config.json", ("model_cfg", "text_cfg", "tokenizer_kwargs"), None)
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content.replace("<start>", "<s>"))
    refuse("clip", folder, "has neither <start> and <end> nor CLIP's")


# ---- diffusion models of other kinds


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"in_channels": 9}, "is an inpainting model"),
        ({"in_channels": 8}, "is an image editor"),
        ({"in_channels": 7, "num_class_embeds": 1000}, "is an upscaler"),
        ({"num_class_embeds": 10}, "is an upscaler"),
        ({"in_channels": 5}, "looks at depth"),
        ({"addition_embed_type": "text_time"}, "is SDXL or its like"),
        ({"class_embed_type": "projection"}, "is an upscaler or another"),
        ({"encoder_hid_dim_type": "text_proj"}, "told more than a text"),
        ({"cross_attention_dim": 1024}, "text encoder of another model"),
        ({"_class_name": "UNet3DConditionModel"}, "with a UNet3DConditionModel"),
        ({"out_channels": 8}, "instead of 4 channels"),
    ],
)
def test_diffusion_models_of_another_kind(
    models: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(models["sd"], tmp_path / "sd")
    for name, value in changes.items():
        change(copy / "unet" / "config.json", (name,), value)
    refuse("sd", copy, rf"{message}.*Stable Diffusion 1\.x and 2\.x")


def test_a_tokenizer_without_a_length(models: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(models["sd"], tmp_path / "sd")
    whole = DiffusionBackbone.load(copy)
    positions = whole.text_encoder.config.max_position_embeddings
    for length in (None, 10**30, 512):
        change(copy / "tokenizer" / "tokenizer_config.json", ("model_max_length",), length)
        found = DiffusionBackbone.load(copy)
        assert found.tokenizer.model_max_length == positions
        torch.testing.assert_close(found.prompt, whole.prompt)


# ---- libraries and downloads


@pytest.mark.parametrize("kind", ["dino", "blip", "sd"])
def test_a_library_that_is_not_here(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    refuse(kind, models[kind], "needs transformers.*pip install transformers")


def test_a_download_is_named_by_its_commit_and_checked(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = "0123456789abcdef" * 2 + "01234567"
    folder = shutil.copytree(models["dino"], tmp_path / commit)
    asked: list[str] = []

    def snapshot(hub: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append(revision)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    digest = loading.sha256(folder / "model.safetensors")
    name = "dino-vits8"
    wanted = f"{name}@{digest[:12]} (facebook/dino-vits8@{commit[:12]})"
    assert DinoBackbone.load(name).checkpoint == wanted and asked == ["main"]
    entry = registry.CHECKPOINTS[name]
    for known in (digest, "0" * 64):
        changed = registry.Checkpoint(
            entry.kind, entry.role, {"a/b": commit}, "MIT", 1, sha256={"model.safetensors": known}
        )
        monkeypatch.setitem(registry.CHECKPOINTS, name, changed)
        if known == digest:
            assert DinoBackbone.load(name).name == name and asked[-1] == commit
        else:
            with pytest.raises(CheckpointError, match="another file than was published"):
                DinoBackbone.load(name)


def test_the_registry() -> None:
    for name, entry in registry.CHECKPOINTS.items():
        assert entry.kind in registry.KINDS and entry.megabytes > 0
        assert entry.hubs or entry.url, name
        for revision in entry.hubs.values():
            assert revision == "main" or loading._is_commit(revision)
        for digest in entry.sha256.values():
            assert len(digest) == 64 and set(digest) <= set("0123456789abcdef")
