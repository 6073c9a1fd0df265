"""From a name, a folder or a file to a matching network, its tokenizer and its identity."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, one_line
from ..loading import (
    Loaded,
    check_published,
    check_sizes,
    digest,
    expect,
    fetch_folder,
    identity,
    load_transformer,
    local_files_only,
    needed,
    one_of,
    pixel_statistics,
    read_json,
    section,
    settings_of,
    sha256,
    shapes_of,
)
from ..registry import Checkpoint, find
from ..tensor_files import check_finite
from .networks import Blip, BridgeTower, Network

CONFIG, PIXELS = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
EPSILON = 1e-6  # of BLIP's image encoder; the hub's configurations say 1e-5
BERT = "google-bert/bert-base-uncased"  # whose vocabulary ALBEF uses
BERT_COMMIT = "86b5e0934494bd15c9632b12f734a8a67f723594"
SIZES = (
    *("hidden_size", "num_attention_heads", "intermediate_size", "image_size", "patch_size"),
    *("max_position_embeddings", "vocab_size", "encoder_hidden_size", "image_text_hidden_size"),
)
NO_HEAD = "or has no matching head (it lacks"


def load_itm(source: str | Path) -> Loaded:
    """Load a network that matches images with captions.

    Args:
        source: a lab zoo name; a folder of transformers' `BlipForImageTextRetrieval` or
            `BridgeTowerForImageAndTextRetrieval` with its tokenizer; one of those in
            `registry.CHECKPOINTS`, whose hub ids are tried one after another; or a file of ALBEF's
            authors, with BERT's vocab.txt beside it (or else taken from the hub).

    Raises:
        CheckpointError: something is missing, damaged, not to be had or of another architecture.
        UnknownNameError: no such checkpoint; the message lists the known ones.
    """
    found, name = find(source), str(source)
    if isinstance(found, Checkpoint):
        folder, origin = _fetch(name, found)
        return _from_folder(folder, name, origin, found)
    return _from_file(found) if found.is_file() else _from_folder(found, found.name)


def _from_folder(
    folder: Path, name: str, origin: str = "", entry: Checkpoint | None = None
) -> Loaded:
    path = one_of(folder, (CONFIG,))
    given = read_json(path)
    loaders: dict[str, Callable[..., Network]] = {"blip": _blip, "bridgetower": _bridgetower}
    kind = str(given.get("model_type"))
    if kind not in loaders:
        told = one_line(kind, 60)
        raise CheckpointError(f"{folder} is no BLIP or BridgeTower of transformers but: {told}")
    weights = one_of(folder, WEIGHTS)
    hashed = digest(folder, weights)
    if entry is not None:
        check_published(entry, weights, hashed)
    pixels = read_json(folder / PIXELS) if (folder / PIXELS).is_file() else {}
    names = ("image_mean", "image_std")
    mean, std = pixel_statistics(pixels, names, (MEAN, STD), folder / PIXELS)
    _check_config(given, path, len(shapes_of(weights)))
    network, tokenizer = loaders[kind](path, given, weights), _tokenizer(folder)
    first = _encode_token(folder, network, tokenizer) if kind == "blip" else None
    parts = {"network": network, "tokenizer": tokenizer, "first": first, "mean": mean, "std": std}
    parts["settings"] = settings_of(folder)
    return Loaded(parts, name, identity(name, hashed, origin))


def _from_file(path: Path) -> Loaded:
    """ALBEF's own."""
    needed("transformers")
    load_albef = needed("ovss.backbones.itm.albef").load_albef
    network, beside = load_albef(path), path.parent / "vocab.txt"
    check_finite(network.model.state_dict(), path)
    tokenizer = _tokenizer(path.parent) if beside.is_file() else _bert_tokenizer(path)
    words = network.model.text_encoder.config.vocab_size
    if len(tokenizer) > words:
        raise CheckpointError(f"{beside} holds {len(tokenizer)} words, {path} knows {words}")
    parts = {"network": network, "tokenizer": tokenizer, "first": None, "mean": MEAN, "std": STD}
    parts["settings"] = settings_of(path)
    return Loaded(parts, path.stem, identity(path.stem, sha256(path)))


def _check_config(given: Mapping[str, Any], path: Path, tensors: int) -> None:
    """The sizes of both towers and of what joins them; no more layers than tensors in the file."""
    towers = [section(given, name, path) for name in ("text_config", "vision_config")]
    for part in (given, *towers):
        check_sizes(part, SIZES, 2**24, path)
        check_sizes(part, ("num_hidden_layers",), tensors, path)


def _configuration(library: Any, given: Mapping[str, Any], path: Path) -> Any:
    try:
        return library.from_dict(dict(given))
    except Exception as error:  # the library raises all kinds
        raise CheckpointError(f"{path} is damaged ({one_line(error, 200)})") from None


def _blip(path: Path, given: Mapping[str, Any], weights: Path) -> Blip:
    library = needed("transformers")
    config = _configuration(library.BlipConfig, given, path)
    stated = config.vision_config.layer_norm_eps
    if stated != EPSILON and not (path.parent / "card.json").exists():  # the lab's: as it says
        warnings.warn(
            f"{path.parent}: its config.json says layer_norm_eps={stated} for the image encoder, "
            f"BLIP was trained with {EPSILON}, which is used",
            stacklevel=2,
        )
        config.vision_config.layer_norm_eps = EPSILON
    return Blip(_model(library.BlipForImageTextRetrieval, config, weights))


def _bridgetower(path: Path, given: Mapping[str, Any], weights: Path) -> BridgeTower:
    library = needed("transformers")
    config = _configuration(library.BridgeTowerConfig, given, path)
    return BridgeTower(_model(library.BridgeTowerForImageAndTextRetrieval, config, weights))


def _model(library: Any, config: Any, weights: Path) -> Any:
    eager = "eager"  # no other form of the attention returns its maps
    return load_transformer(
        library, config, weights, lacks=NO_HEAD, dtype="float32", attn_implementation=eager
    )


def _tokenizer(folder: Path) -> Any:
    """The folder's own; ALBEF's folder holds no more than BERT's vocab.txt."""
    library = needed("transformers")
    kind = library.AutoTokenizer if (folder / CONFIG).is_file() else library.BertTokenizer
    if not any((folder / name).is_file() for name in TOKENS):
        raise CheckpointError(f"{folder} holds no tokenizer ({', '.join(TOKENS)})")
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        with local_files_only():
            found = kind.from_pretrained(folder, **options)
    except Exception as error:  # the library raises all kinds
        raise CheckpointError(f"{folder}: its tokenizer is damaged ({one_line(error)})") from None
    if not found.is_fast:
        raise CheckpointError(f"{folder}: its tokenizer tells no offsets; save a fast one")
    return found


def _bert_tokenizer(path: Path) -> Any:
    try:
        return needed("transformers").BertTokenizer.from_pretrained(BERT, revision=BERT_COMMIT)
    except Exception as error:  # hub and network errors of several libraries
        told = one_line(str(error).partition("\n")[0] or repr(error))
        raise CheckpointError(
            f"cannot download the vocabulary of {BERT} ({told}): put its vocab.txt beside {path}"
        ) from None


def _encode_token(folder: Path, network: Network, tokenizer: Any) -> int:
    """Id of [ENC]: BLIP's authors append [DEC] and [ENC] to BERT's words, transformers does not."""
    known, words = tokenizer.get_vocab(), network.model.config.text_config.vocab_size
    found = int(known.get("[ENC]", known.get("[DEC]", len(tokenizer)) + 1))
    if found >= words:
        raise CheckpointError(
            f"{folder}: {words} words leave no place for [ENC] behind the tokenizer's "
            f"{len(tokenizer)}; was it trained for matching?"
        )
    return found


def _fetch(name: str, entry: Checkpoint) -> tuple[Path, str]:
    """The folder of a published model, and where it came from."""
    expect(name, entry, "itm")
    if entry.url:
        raise CheckpointError(
            f"no hub has {name}: download {entry.url} ({entry.megabytes} MB) yourself and give the "
            f"file's path instead of the name, with the vocab.txt of {BERT} beside it"
        )
    return fetch_folder(name, entry, "itm", (CONFIG, PIXELS, *TOKENS), WEIGHTS)
