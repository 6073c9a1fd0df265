"""From a name or a folder to a vision transformer of transformers and its identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .loading import compare_with_card, read_json, sha256, without_bars
from .registry import Checkpoint, find, remedy

CONFIG, WEIGHTS, PIXELS = "config.json", "model.safetensors", "preprocessor_config.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, where nothing else is said


@dataclass(frozen=True)
class LoadedDino:
    """A vision transformer in evaluation mode with all that belongs to it."""

    model: Any
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str
    checkpoint: str


def load_dino(source: str | Path) -> LoadedDino:
    """Load transformers' `ViTModel` without its pooling layer.

    Args:
        source: a lab zoo name; a folder that `save_pretrained` wrote; or a DINO of
            `registry.CHECKPOINTS`, whose hub ids are tried one after another.

    Raises:
        CheckpointError: something is missing, damaged, not to be had or of another architecture.
        UnknownNameError: no such checkpoint; the message lists the known ones.
    """
    found = find(source)
    folder = _fetch(str(source), found) if isinstance(found, Checkpoint) else found
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} holds no {name}: {remedy(folder)}")
    compare_with_card(folder / "card.json", folder / WEIGHTS)
    pixels = read_json(folder / PIXELS) if (folder / PIXELS).is_file() else {}
    mean, std = tuple(pixels.get("image_mean", MEAN)), tuple(pixels.get("image_std", STD))
    name = str(source) if isinstance(found, Checkpoint) else folder.name
    identity = f"{name}@{sha256(folder / WEIGHTS)[:12]}"
    return LoadedDino(_model(folder), mean, std, name, identity)


def _model(folder: Path) -> Any:
    from transformers import ViTModel

    library: Any = ViTModel  # its types do not know of `output_loading_info`
    kind = read_json(folder / CONFIG).get("model_type")
    if kind != "vit":
        raise CheckpointError(f"{folder} is no DINO (a ViT of transformers) but: {kind}")
    try:
        with without_bars():
            model, report = library.from_pretrained(
                folder, add_pooling_layer=False, dtype="float32", output_loading_info=True
            )
    except Exception as error:  # the library and safetensors raise all kinds
        raise CheckpointError(f"{folder} is damaged ({error}): {remedy(folder)}") from None
    if report["missing_keys"]:
        first = sorted(report["missing_keys"])[0]
        raise CheckpointError(f"{folder} is damaged (it lacks {first}): {remedy(folder)}")
    return model.eval().requires_grad_(False)


def _fetch(name: str, entry: Checkpoint) -> Path:
    """The folder of a published model: each hub id in turn, from the cache or the network."""
    if not entry.role.startswith("DINO "):
        raise CheckpointError(f"{name} is no DINO but: {entry.role}")
    from huggingface_hub import snapshot_download

    problems = []
    for hub in entry.hubs:
        try:
            names = [CONFIG, WEIGHTS, PIXELS]
            return Path(snapshot_download(hub, revision=entry.revision, allow_patterns=names))
        except Exception as error:  # hub and network errors of several libraries
            problems.append(f"{hub}: {str(error).splitlines()[0] if str(error) else repr(error)}")
    raise CheckpointError(
        f"cannot download {name} ({entry.megabytes} MB; {'; '.join(problems)}). With a network run "
        "it again; without one, copy the folder here and give its path instead of the name"
    )
