"""From a checkpoint's name or folder to an open_clip model, its tokenizer and its identity."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import build_model_from_openai_state_dict
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from tokenizers import Tokenizer
from torch import Tensor

from ..errors import CheckpointError, one_line
from .loading import (
    Loaded,
    check_fit,
    check_published,
    check_sizes,
    digest,
    expect,
    fetch_file,
    fetch_folder,
    identity,
    one_of,
    pixel_statistics,
    read_json,
    section,
    settings_of,
    sha256,
)
from .registry import Checkpoint, find, remedy
from .tensor_files import check_finite, read_tensors

Tokenize = Callable[[list[str], int], Tensor]  # texts, context length -> token ids, 0 = padding

CONFIGS = ("config.json", "open_clip_config.json")
WEIGHTS = ("model.safetensors", "open_clip_model.safetensors")
HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
ELSEWHERE = ("timm_model_name", "hf_model_name")  # towers of other libraries
CLEANING = ("lower", "canonicalize", "whitespace")  # what open_clip's tokenizer can do to texts
ENDS = ("<|startoftext|>", "<|endoftext|>")  # of CLIP's own tokenizer
STATISTICS = (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
# OpenAI's archives hold numbers beside the weights; these are the names of a CLIP's own
OWN = re.compile(
    r"(visual\.)?(transformer\.resblocks\.\d+\.(attn|ln_[12]|mlp)\..+"
    r"|positional_embedding|class_embedding|proj|conv1\.weight|ln_(pre|post|final)\.\w+"
    r"|token_embedding\.weight|text_projection|logit_scale)"
)


def load_clip(source: str | Path) -> Loaded:
    """Load a CLIP with a plain vision transformer.

    Args:
        source: a lab zoo name; a name of `registry.CHECKPOINTS`; a folder with `config.json` and
            `model.safetensors` (the zoo's layout) or with `open_clip_config.json` and
            `open_clip_model.safetensors` (open_clip's); or one file with OpenAI's names of the
            weights (which open_clip rounds to float16, as published). Nothing in a file is run.

    Raises:
        CheckpointError: something is missing, damaged, not to be had or of another architecture.
        UnknownNameError: no such checkpoint; the message lists the known ones.
    """
    found = find(source)
    if isinstance(found, Checkpoint):
        return _published(str(source), found)
    loaded = _from_folder(found) if found.is_dir() else _from_file(found, found.stem)
    return replace(loaded, parts={**loaded.parts, "settings": settings_of(found)})


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

    def knows(self, *tokens: str) -> bool:
        """Whether the file has all of these tokens."""
        return all(self._tokenizer.token_to_id(token) is not None for token in tokens)

    def __call__(self, texts: list[str], context_length: int) -> Tensor:
        """Token ids [len(texts), context_length], cut after `context_length`, padded with 0."""
        ids = torch.zeros(len(texts), context_length, dtype=torch.long)
        start, end = self._ends
        for row, text in zip(ids, texts, strict=True):
            words = self._tokenizer.encode(text.strip(), add_special_tokens=False).ids
            tokens = torch.tensor([start, *words, end])[:context_length]
            row[: len(tokens)] = tokens
        return ids


def _published(name: str, entry: Checkpoint) -> Loaded:
    """A published CLIP: open_clip's weights from a hub, or else OpenAI's own file."""
    expect(name, entry, "clip")
    try:
        folder, origin = fetch_folder(name, entry, "clip", (), HUB_WEIGHTS)
    except CheckpointError as unreachable:
        if not entry.url:
            raise
        try:
            return _from_file(fetch_file(name, entry), name, entry.url.partition("//")[2])
        except CheckpointError:
            raise unreachable from None
    weights = one_of(folder, HUB_WEIGHTS)
    found = sha256(weights)
    check_published(entry, weights, found)
    architecture = "".join(entry.open_clip[:1])
    config = {"model_cfg": open_clip.get_model_config(architecture)}
    return _assemble(config, weights, name, identity(name, found, origin))


def _from_folder(folder: Path) -> Loaded:
    weights = one_of(folder, WEIGHTS)
    path = one_of(folder, CONFIGS)
    found = digest(folder, weights)
    return _assemble(read_json(path), weights, folder.name, identity(folder.name, found), path)


def _from_file(path: Path, name: str, origin: str = "") -> Loaded:
    """OpenAI's own format: a state dict, or the archive their package downloads."""
    try:
        tensors = read_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name} is no CLIP in OpenAI's format: {error}") from None
    if path.suffix != ".safetensors":
        bare = {one.removeprefix("module."): value for one, value in tensors.items()}
        tensors = {one: value for one, value in bare.items() if OWN.fullmatch(one)}
    try:
        with torch.device("meta"):  # its shapes fit one another: the network takes its memory
            _openai({one: value.to("meta") for one, value in tensors.items()})
        model = _openai(tensors).float()
    except Exception as error:  # open_clip and torch raise all kinds
        raise CheckpointError(
            f"{path} is no CLIP in OpenAI's format ({type(error).__name__}: {_telling(error)}); a "
            "folder with open_clip_config.json and open_clip_model.safetensors is read, too"
        ) from None
    check_finite(tensors, path)
    return _finish(model, path, name, identity(name, sha256(path), origin), STATISTICS, {})


def _openai(tensors: Mapping[str, Tensor]) -> Any:
    return build_model_from_openai_state_dict(dict(tensors), cast_dtype=torch.float32)


def _assemble(
    config: dict[str, Any], weights: Path, name: str, checkpoint: str, path: Path | None = None
) -> Loaded:
    """Build the network that a configuration describes, and give it its weights."""
    where = path or weights
    settings, text = _check_config(config, where)
    tensors = read_tensors(weights)
    shapes = {one: tuple(value.shape) for one, value in tensors.items()}
    for part in (settings["vision_cfg"], text):
        check_sizes(part, ("layers",), len(shapes), where)
    build = partial(open_clip.CLIP, **settings)
    check_fit(build, weights, shapes)
    check_finite(tensors, weights)
    model = build()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{weights} does not fit the configuration beside it ({_telling(error)}): "
            f"{remedy(weights)}"
        ) from None
    given = section(config, "preprocess_cfg", where)
    statistics = pixel_statistics(given, ("mean", "std"), STATISTICS, where)
    return _finish(model, weights, name, checkpoint, statistics, text)


def _check_config(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of open_clip's CLIP, and those of its text tower.

    Raises:
        CheckpointError: they are no CLIP's, name other libraries' networks, or are no numbers.
    """
    settings = section(config, "model_cfg", path)
    if not settings.get("vision_cfg") or not settings.get("text_cfg"):
        raise CheckpointError(f"{path} describes no CLIP of open_clip (model_cfg): {remedy(path)}")
    vision, text = (section(settings, name, path) for name in ("vision_cfg", "text_cfg"))
    for name in ELSEWHERE:
        if found := vision.get(name) or text.get(name):
            raise CheckpointError(
                f"{path} names a network of another library ({name}: {one_line(found, 80)}), which "
                "is not fetched: only CLIPs with a plain vision transformer are read"
            )
    check_sizes(settings, ("embed_dim",), 2**20, path)
    check_sizes(vision, ("width", "head_width", "patch_size", "image_size"), 2**20, path)
    check_sizes(text, ("context_length", "vocab_size", "width", "heads"), 2**24, path)
    for part in (vision, text):
        epsilon = section(part, "norm_kwargs", path).get("eps", 1e-5)
        if part.get("output_tokens") or type(epsilon) is not float or not 0 < epsilon < 1:
            raise CheckpointError(f"{path}: output_tokens must be false, eps a number below 1")
    return {**settings, "vision_cfg": vision, "text_cfg": text}, text


def _finish(
    model: Any, weights: Path, name: str, checkpoint: str, statistics: Any, text: Mapping[str, Any]
) -> Loaded:
    _check_architecture(model, weights)
    model.eval().requires_grad_(False)
    mean, std = statistics
    parts = {"model": model, "tokenize": _tokenizer(weights.parent, text), "mean": mean, "std": std}
    return Loaded(parts, name, checkpoint)


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


def _tokenizer(folder: Path, text: Mapping[str, Any]) -> Tokenize:
    """The tokenizer that the text tower was trained with: the folder's own, or open_clip's.

    Raises:
        CheckpointError: the configuration or the folder has one that is not known here.
    """
    for name in ("hf_tokenizer_name", "tokenizer_mode"):
        if text.get(name):
            raise CheckpointError(
                f"{folder}: its text tower was trained with another tokenizer ({name}: "
                f"{one_line(text[name], 80)}), which is not read; known are open_clip's own and a "
                "tokenizer.json with <start> and <end>"
            )
    options = text.get("tokenizer_kwargs") or {}
    allowed = isinstance(options, dict) and set(options) <= {"clean"}
    if not allowed or options.get("clean", "lower") not in CLEANING:
        raise CheckpointError(
            f"{folder}: tokenizer_kwargs may hold clean ({', '.join(CLEANING)}) alone, "
            f"not {one_line(options, 100)}"
        )
    path = folder / "tokenizer.json"
    own = BpeTokenizer(path) if path.is_file() else None
    if own is not None and own.usable:
        if options:
            raise CheckpointError(
                f"{path} knows no tokenizer_kwargs, but the configuration has some"
            )
        return own
    if own is not None and not own.knows(*ENDS):
        raise CheckpointError(
            f"{path} has neither <start> and <end> nor CLIP's {' and '.join(ENDS)}"
        )
    simple: Tokenize = open_clip.SimpleTokenizer(**options)
    return simple


def _telling(error: Exception) -> str:
    """The most telling line of torch's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[min(1, len(lines) - 1)] if lines else repr(error), 200)
