"""From a name, a folder or a file to a matching network, its tokenizer and its identity."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..loading import compare_with_card, read_json, sha256, without_bars
from ..registry import Checkpoint, find, remedy
from .networks import Blip, BridgeTower, Network

CONFIG, PIXELS = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
EPSILON = 1e-6  # of BLIP's image encoder; the hub's configurations say 1e-5
BERT = "google-bert/bert-base-uncased"  # whose vocabulary ALBEF uses


@dataclass(frozen=True)
class LoadedItm:
    """A matching network in evaluation mode with all that belongs to it."""

    network: Network
    tokenizer: Any
    first: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str
    checkpoint: str


def load_itm(source: str | Path) -> LoadedItm:
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
    found = find(source)
    if isinstance(found, Checkpoint):
        return _from_folder(_fetch(str(source), found), str(source))
    if found.is_file():
        return _from_file(found)
    return _from_folder(found, found.name)


def _from_folder(folder: Path, name: str) -> LoadedItm:
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}: {remedy(folder)}")
    loaders: dict[str, Callable[[Path], Network]] = {"blip": _blip, "bridgetower": _bridgetower}
    kind = str(read_json(folder / CONFIG).get("model_type"))
    if kind not in loaders:
        raise CheckpointError(f"{folder} is no BLIP or BridgeTower of transformers but: {kind}")
    weights = _weights(folder)
    compare_with_card(folder / "card.json", weights)
    pixels = read_json(folder / PIXELS) if (folder / PIXELS).is_file() else {}
    mean, std = tuple(pixels.get("image_mean", MEAN)), tuple(pixels.get("image_std", STD))
    network, tokenizer = loaders[kind](folder), _tokenizer(folder)
    first = _encode_token(folder, network, tokenizer) if kind == "blip" else None
    identity = f"{name}@{sha256(weights)[:12]}"
    return LoadedItm(network, tokenizer, first, mean, std, name, identity)


def _from_file(path: Path) -> LoadedItm:
    from .albef import load_albef

    network, beside = load_albef(path), path.parent / "vocab.txt"
    tokenizer = _tokenizer(path.parent) if beside.is_file() else _bert_tokenizer(path)
    words = network.model.text_encoder.config.vocab_size
    if len(tokenizer) > words:
        raise CheckpointError(f"{beside} holds {len(tokenizer)} words, {path} knows {words}")
    identity = f"{path.stem}@{sha256(path)[:12]}"
    return LoadedItm(network, tokenizer, None, MEAN, STD, path.stem, identity)


def _blip(folder: Path) -> Blip:
    from transformers import BlipConfig, BlipForImageTextRetrieval

    config: Any = BlipConfig.from_pretrained(folder)
    stated = config.vision_config.layer_norm_eps
    if stated != EPSILON and not (folder / "card.json").exists():  # the lab's were trained as said
        warnings.warn(
            f"{folder}: its config.json says layer_norm_eps={stated} for the image encoder, BLIP "
            f"was trained with {EPSILON}, which is used",
            stacklevel=2,
        )
        config.vision_config.layer_norm_eps = EPSILON
    return Blip(_model(BlipForImageTextRetrieval, folder, config=config))


def _bridgetower(folder: Path) -> BridgeTower:
    from transformers import BridgeTowerForImageAndTextRetrieval

    return BridgeTower(_model(BridgeTowerForImageAndTextRetrieval, folder))


def _model(library: Any, folder: Path, **options: Any) -> Any:
    try:
        with without_bars():
            model, report = library.from_pretrained(
                folder,
                dtype="float32",
                attn_implementation="eager",  # no other returns its maps
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # the library, torch and safetensors raise all kinds
        raise CheckpointError(f"{folder} is damaged ({error}): {remedy(folder)}") from None
    if report["missing_keys"]:
        first = sorted(report["missing_keys"])[0]
        raise CheckpointError(
            f"{folder} is damaged, or has no matching head (it lacks {first}): {remedy(folder)}"
        )
    return model.eval().requires_grad_(False)


def _tokenizer(folder: Path) -> Any:
    """The folder's own; ALBEF's folder holds no more than BERT's vocab.txt."""
    from transformers import AutoTokenizer, BertTokenizer

    library = AutoTokenizer if (folder / CONFIG).is_file() else BertTokenizer
    if not any((folder / name).is_file() for name in TOKENS):
        raise CheckpointError(f"{folder} holds no tokenizer ({', '.join(TOKENS)})")
    try:
        found = library.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises all kinds
        raise CheckpointError(f"{folder}: its tokenizer is damaged ({error})") from None
    if not found.is_fast:
        raise CheckpointError(f"{folder}: its tokenizer tells no offsets; save a fast one")
    return found


def _bert_tokenizer(path: Path) -> Any:
    from transformers import BertTokenizer

    try:
        return BertTokenizer.from_pretrained(BERT)
    except Exception as error:  # hub and network errors of several libraries
        told = str(error).splitlines()[0] if str(error) else repr(error)
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


def _weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} holds no {' or '.join(WEIGHTS)}: {remedy(folder)}")


def _fetch(name: str, entry: Checkpoint) -> Path:
    """The folder of a published model: each hub id in turn, from the cache or the network."""
    if "image-text matching" not in entry.role:
        raise CheckpointError(f"{name} is no image-text matching model but: {entry.role}")
    if entry.url:
        raise CheckpointError(
            f"no hub has {name}: download {entry.url} ({entry.megabytes} MB) yourself and give the "
            f"file's path instead of the name, with the vocab.txt of {BERT} beside it"
        )
    problems = []
    for hub in entry.hubs:
        try:
            return _download(hub, entry.revision)
        except Exception as error:  # hub and network errors of several libraries
            problems.append(f"{hub}: {str(error).splitlines()[0] if str(error) else repr(error)}")
    raise CheckpointError(
        f"cannot download {name} ({entry.megabytes} MB; {'; '.join(problems)}). With a network run "
        "it again; without one, copy the folder here and give its path instead of the name"
    )


def _download(hub: str, revision: str) -> Path:
    """One hub's folder; of its forms of the weights only the first that there is."""
    from huggingface_hub import snapshot_download

    files = [CONFIG, PIXELS, *TOKENS]
    for weights in WEIGHTS:
        patterns = [*files, weights]
        folder = Path(snapshot_download(hub, revision=revision, allow_patterns=patterns))
        if (folder / weights).is_file():
            break
    return folder
