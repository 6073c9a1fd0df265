"""From a checkpoint's name or folder to an open_clip model, its tokenizer and its identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import build_model_from_openai_state_dict
from open_clip.openai import load_openai_model
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from ..errors import CheckpointError
from .loading import compare_with_card, read_json, sha256
from .registry import Checkpoint, find, remedy

Tokenize = Callable[[list[str], int], Tensor]  # texts, context length -> token ids, 0 = padding

CONFIGS = ("config.json", "open_clip_config.json")
WEIGHTS = ("model.safetensors", "open_clip_model.safetensors")


@dataclass(frozen=True)
class LoadedClip:
    """An open_clip model in evaluation mode with all that belongs to it."""

    model: Any
    tokenize: Tokenize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str
    checkpoint: str


def load_clip(source: str | Path) -> LoadedClip:
    """Load a CLIP with a plain vision transformer.

    Args:
        source: a lab zoo name; a name of `registry.CHECKPOINTS` (downloaded by open_clip); a
            folder with `config.json` and `model.safetensors` (the zoo's layout) or with
            `open_clip_config.json` and `open_clip_model.safetensors` (open_clip's); or one file
            with OpenAI's names of the weights (which open_clip rounds to float16, as published).

    Raises:
        CheckpointError: something is missing, damaged or of another architecture.
        UnknownNameError: no such checkpoint; the message lists the known ones.
    """
    found = find(source)
    if isinstance(found, Checkpoint):
        return _published(str(source), found)
    return _from_folder(found) if found.is_dir() else _from_file(found)


class BpeTokenizer:
    """A `tokenizers` file with <start> and <end>, called as open_clip's own tokenizer is."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is damaged ({error}): {remedy(path)}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._ends = [self._tokenizer.token_to_id(token) for token in ("<start>", "<end>")]

    @property
    def usable(self) -> bool:
        """Whether the file knows <start> and <end>; open_clip's hub folders hold other files."""
        return None not in self._ends

    def __call__(self, texts: list[str], context_length: int) -> Tensor:
        """Token ids [len(texts), context_length], cut after `context_length`, padded with 0."""
        ids = torch.zeros(len(texts), context_length, dtype=torch.long)
        start, end = self._ends
        for row, text in zip(ids, texts, strict=True):
            words = self._tokenizer.encode(text.strip(), add_special_tokens=False).ids
            tokens = torch.tensor([start, *words, end])[:context_length]
            row[: len(tokens)] = tokens
        return ids


def _published(name: str, entry: Checkpoint) -> LoadedClip:
    if not entry.open_clip:
        raise CheckpointError(f"{name} is no CLIP but: {entry.role}")
    architecture, tag = entry.open_clip
    recipe = open_clip.get_pretrained_cfg(architecture, tag)
    try:
        weights = Path(open_clip.download_pretrained(recipe))
    except Exception as error:  # hub, URL and file errors of three libraries
        raise CheckpointError(
            f"cannot download {name} ({entry.megabytes} MB from {', '.join(entry.hubs)}): {error}. "
            "With a network run it again; without one, copy a folder with open_clip_config.json "
            "and open_clip_model.safetensors here and give its path instead of the name"
        ) from None
    if weights.suffix != ".safetensors":
        return _from_file(weights, name)
    return _assemble({"model_cfg": open_clip.get_model_config(architecture)}, weights, name)


def _from_folder(folder: Path) -> LoadedClip:
    config = read_json(_one_of(folder, CONFIGS))
    weights = _one_of(folder, WEIGHTS)
    compare_with_card(folder / "card.json", weights)
    return _assemble(config, weights, folder.name)


def _from_file(path: Path, name: str | None = None) -> LoadedClip:
    """OpenAI's own format: a state dict, or the archive their package downloads."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
            model = build_model_from_openai_state_dict(state, cast_dtype=torch.float32).float()
        else:
            model = load_openai_model(str(path), precision="fp32", device="cpu")
    except (SafetensorError, KeyError, RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is no CLIP in OpenAI's format ({_first_line(error)})"
        ) from None
    return _finish(model, path, name or path.stem, {})


def _assemble(config: dict[str, Any], weights: Path, name: str) -> LoadedClip:
    try:
        model = open_clip.CLIP(**config["model_cfg"])
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise CheckpointError(
            f"the configuration beside {weights} describes no CLIP of open_clip ({error!r})"
        ) from None
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights} is damaged ({error}): {remedy(weights)}") from None
    except RuntimeError as error:
        raise CheckpointError(
            f"{weights} does not fit the configuration beside it ({_first_line(error)}): "
            f"{remedy(weights)}"
        ) from None
    return _finish(model, weights, name, config.get("preprocess_cfg", {}))


def _finish(model: Any, weights: Path, name: str, preprocess: dict[str, Any]) -> LoadedClip:
    _check_architecture(model, weights)
    model.eval().requires_grad_(False)
    mean = tuple(preprocess.get("mean", OPENAI_DATASET_MEAN))
    std = tuple(preprocess.get("std", OPENAI_DATASET_STD))
    identity = f"{name}@{sha256(weights)[:12]}"
    return LoadedClip(model, _tokenizer(weights.parent), mean, std, name, identity)


def _check_architecture(model: Any, weights: Path) -> None:
    visual = model.visual
    plain = (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.final_ln_after_pool
        and visual.patch_size[0] == visual.patch_size[1]
        and all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks)
    )
    if not plain:
        raise CheckpointError(f"{weights} is no CLIP with a plain vision transformer")


def _tokenizer(folder: Path) -> Tokenize:
    path = folder / "tokenizer.json"
    if path.exists() and (own := BpeTokenizer(path)).usable:
        return own
    simple: Tokenize = open_clip.SimpleTokenizer()
    return simple


def _one_of(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} holds no {' or '.join(names)}: {remedy(folder)}")


def _first_line(error: Exception) -> str:
    """The most telling line of torch's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)] if lines else repr(error)
