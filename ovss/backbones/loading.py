"""What the loaders of all networks share: gates for configurations and weights, and downloads.

A folder's files come from anywhere. Its configuration is JSON of bounded size whose numbers are
checked; the network that it describes is built without memory first and compared with the shapes in
the weights' header; the weights' hashes are compared with the card's, their numbers must be finite;
and no library may send a request while a folder is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError, one_line
from ..fetch import fetch
from .devices import find_device
from .registry import KINDS, Checkpoint, Kind, find, remedy
from .tensor_files import Shapes, check_finite, read_shapes, read_tensors

LONGEST, DEEPEST = 4 * 2**20, 64  # of a configuration: bytes, and brackets within brackets
SPARE = 2**20  # parameters that a network may have beside those of its file
CONFIG, WEIGHTS, PIXELS = "config.json", "model.safetensors", "preprocessor_config.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, where nothing else is said
CACHE = "~/.cache/ovss/checkpoints"  # of files that lie on no hub
_ONE_AT_A_TIME = threading.RLock()

Pixels = tuple[float, float, float]  # of red, green and blue


@dataclass(frozen=True)
class Loaded:
    """What a loader found.

    Attributes:
        parts: networks in evaluation mode and what belongs to them, by the names of the backbone's
            fields.
        name: the registry's, the folder's or the file's.
        checkpoint: the name, the first 12 hex digits of the weights' SHA-256, and of a download the
            hub's repository and commit.
    """

    parts: Mapping[str, Any]
    name: str
    checkpoint: str


def load_onto(
    load: Callable[[str | Path], Loaded],
    source: str | Path,
    device: str | torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Load one network and move it: the fields of its backbone.

    Args:
        load: of the backbone's kind; its part "model" is moved, or that of its part "network".

    Raises:
        OvssError: there is no such device here; or what `load` raises.
    """
    place = find_device(device)
    found = load(source)
    model = found.parts["model"] if "model" in found.parts else found.parts["network"].model
    model.to(device=place, dtype=dtype)
    names = {"name": found.name, "checkpoint": found.checkpoint}
    return {**found.parts, **names, "device": place, "dtype": dtype}


# ---- downloads


def fetch_folder(
    name: str, entry: Checkpoint, kind: Kind, patterns: Sequence[str], weights: Sequence[str] = ()
) -> tuple[Path, str]:
    """Fetch a published model's folder: each hub in turn, from the cache or the network.

    Args:
        patterns: of the files that are needed.
        weights: other names of the weights' file; of these the first that there is comes along.

    Returns:
        The folder, and where it came from (`hub@commit`, empty where that is not known).

    Raises:
        CheckpointError: `entry` is of another kind, or no hub could be reached.
    """
    expect(name, entry, kind)
    from huggingface_hub import snapshot_download

    problems = []
    for hub, revision in entry.hubs.items():
        try:
            for choice in weights or ("",):
                allowed = [*patterns, *([choice] if choice else [])]
                folder = Path(snapshot_download(hub, revision=revision, allow_patterns=allowed))
                if not choice or (folder / choice).is_file():
                    break
            return folder, f"{hub}@{folder.name[:12]}" if _is_commit(folder.name) else ""
        except Exception as error:  # hub and network errors of several libraries
            problems.append(f"{hub}: {one_line(str(error).partition(chr(10))[0] or repr(error))}")
    raise CheckpointError(
        f"cannot download {name} ({entry.megabytes} MB; {'; '.join(problems)}). With a network run "
        "it again; without one, copy the folder here and give its path instead of the name"
    )


def fetch_file(name: str, entry: Checkpoint) -> Path:
    """Fetch the file at a published model's `url`.

    Raises:
        CheckpointError: it cannot be reached, or is another file than the registry knows.
    """
    file = entry.url.rpartition("/")[2]
    target = Path(CACHE).expanduser() / name.replace("/", "--") / file
    try:
        return fetch(
            entry.url, target, largest=2**20 * 2 * entry.megabytes, sha256=entry.sha256[file]
        )
    except OSError as error:  # FetchError, or no place on the disk
        raise CheckpointError(f"cannot download {name} ({entry.megabytes} MB): {error}") from None


def expect(name: str, entry: Checkpoint, kind: Kind) -> None:
    """Refuse a published model of another kind."""
    if entry.kind != kind:
        raise CheckpointError(f"{name} is no {KINDS[kind]} but: {entry.role}")


def _is_commit(name: str) -> bool:
    return len(name) == 40 and set(name) <= set("0123456789abcdef")


def load_folder(
    source: str | Path,
    kinds: Sequence[Kind],
    build: Callable[[Path, Path], Any],
) -> Loaded:
    """Load a vision network from a folder as transformers writes one, or from its hubs.

    Args:
        source: a lab zoo name, a folder, or a checkpoint of one of `kinds`.
        build: makes the network from its configuration's path and its weights'.

    Returns:
        "model", "mean", "std" and "settings".

    Raises:
        CheckpointError: something is missing, damaged, not to be had or of another architecture.
        UnknownNameError: no such checkpoint; the message lists the known ones.
    """
    found, origin, name = find(source), "", str(source)
    if isinstance(found, Checkpoint):
        kind = found.kind if found.kind in kinds else kinds[0]
        folder, origin = fetch_folder(name, found, kind, (CONFIG, WEIGHTS, PIXELS))
    else:
        folder, name = found, found.name
    config, weights = one_of(folder, (CONFIG,)), one_of(folder, (WEIGHTS,))
    hashed = digest(folder, weights)
    if isinstance(found, Checkpoint):
        check_published(found, weights, hashed)
    path = folder / PIXELS
    said = read_json(path) if path.is_file() else {}
    mean, std = pixel_statistics(said, ("image_mean", "image_std"), (MEAN, STD), path)
    model, settings = build(config, weights), settings_of(folder)
    parts = {"model": model, "mean": mean, "std": std, "settings": settings}
    return Loaded(parts, name, identity(name, hashed, origin))


# ---- configurations


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most `LONGEST` bytes, no deeper than `DEEPEST`, all numbers finite.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}: {remedy(path)}")
    try:
        if path.stat().st_size > LONGEST:
            raise ValueError(f"it has more than {LONGEST // 2**20} MiB")
        content = json.loads(path.read_bytes(), parse_constant=_no_number)
        if _depth(content) > DEEPEST:
            raise ValueError(f"it is deeper than {DEEPEST} brackets")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({one_line(error)}): {remedy(path)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object: {remedy(path)}")
    return content


def section(config: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """An object within a configuration; empty where it is null or missing.

    Raises:
        CheckpointError: it is something else.
    """
    found = config.get(name)
    if not isinstance(found, dict | None):
        raise CheckpointError(f"{path}: {name} must be an object, not {one_line(repr(found), 60)}")
    return found or {}


def check_sizes(config: Mapping[str, Any], names: Sequence[str], largest: int, path: Path) -> None:
    """Refuse numbers of layers, channels, pixels ... that are no positive integers up to `largest`.

    What is null or missing takes the library's default; lists are checked number by number.

    Raises:
        CheckpointError: names the first that is wrong.
    """
    for name in names:
        found = config.get(name)
        for one in found if isinstance(found, list) else [found]:
            if one is not None and not (type(one) is int and 0 < one <= largest):
                raise CheckpointError(
                    f"{path}: {name} must be an integer from 1 to {largest}, "
                    f"not {one_line(repr(one), 60)}"
                )


def pixel_statistics(
    values: Mapping[str, Any], names: tuple[str, str], default: tuple[Pixels, Pixels], path: Path
) -> tuple[Pixels, Pixels]:
    """The mean and the standard deviation of the pixels, which lie in [0, 1].

    Args:
        names: of the two within `values`; what is null or missing takes its default.

    Raises:
        CheckpointError: one of them is not three numbers, a mean lies outside [0, 1], or a
            deviation outside [0.001, 10].
    """
    found = []
    for name, usual, low, high in zip(names, default, (0, 0.001), (1, 10), strict=True):
        given = usual if values.get(name) is None else values[name]
        numbers = isinstance(given, list | tuple) and len(given) == 3
        if not numbers or not all(type(v) in (int, float) and low <= v <= high for v in given):
            raise CheckpointError(
                f"{path}: {name} must be three numbers from {low} to {high}, "
                f"not {one_line(repr(given), 80)}"
            )
        found.append((float(given[0]), float(given[1]), float(given[2])))
    return found[0], found[1]


def _no_number(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _depth(content: Any) -> int:
    """Brackets within brackets; infinite numbers (1e999) are refused on the way."""
    level, depth = [content], 0
    while level:
        depth += 1
        if any(isinstance(one, float) and not math.isfinite(one) for one in level):
            raise ValueError("it holds an infinite number")
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [
            child
            for one in inner
            if not isinstance(one, str) and hasattr(one, "__iter__")
            for child in one
        ]
    return depth


# ---- weights


def digest(folder: Path, *files: Path) -> str:
    """The SHA-256 of a model's weights, compared with what its card says.

    A card's "sha256" is that of the first file, its "files" those of files by their names within
    the folder. Of several files the digest is that of their digests.

    Raises:
        CheckpointError: a file is another one than the card says: a flipped byte is seen too.
    """
    card = folder / "card.json"
    said = read_json(card) if card.exists() else {}
    known = {files[0]: said.get("sha256")}
    known |= {folder / name: value for name, value in section(said, "files", card).items()}
    found = []
    for file in files:
        found.append(sha256(file))
        if isinstance(known.get(file), str) and known[file] != found[-1]:
            raise CheckpointError(
                f"{file} is damaged (its SHA-256 is not that of card.json): {remedy(file)}"
            )
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def check_published(entry: Checkpoint, file: Path, found: str) -> None:
    """Compare a downloaded file's SHA-256 with the registry's, where that is known."""
    expected = entry.sha256.get(file.name)
    if expected is not None and expected != found:
        raise CheckpointError(
            f"{file} is another file than was published (SHA-256 {found[:12]}, not "
            f"{expected[:12]}): {remedy(file)}"
        )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_of(weights: Path) -> str:
    """Hash what decides with the weights: the configurations and tokenizers in their folder.

    Files that end in .json or .txt, those of subfolders too, without the lab's card; beside a
    single file of weights, which may lie anywhere, only a vocabulary.
    """
    folder = weights if weights.is_dir() else weights.parent
    found = [*folder.glob("*.json"), *folder.glob("*.txt")]
    found += [*folder.glob("*/*.json"), *folder.glob("*/*.txt")] if weights.is_dir() else []
    total = hashlib.sha256()
    for path in sorted(found):
        if path.name != "card.json" and (weights.is_dir() or path.name == "vocab.txt"):
            total.update(f"{path.relative_to(folder).as_posix()} {sha256(path)}\n".encode())
    return total.hexdigest()[:12]


def identity(name: str, found: str, origin: str = "") -> str:
    """What a results row says of a checkpoint: name, hash, and of a download where it came from."""
    return f"{name}@{found[:12]}" + (f" ({origin})" if origin else "")


def one_of(folder: Path, names: Sequence[str]) -> Path:
    """The first of the files `names` that the folder holds.

    Raises:
        CheckpointError: it holds none of them.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} holds no {' or '.join(names)}: {remedy(folder)}")


def shapes_of(path: Path) -> Shapes:
    """The shapes of a file's tensors by name."""
    if path.suffix == ".safetensors":
        return read_shapes(path)
    return {name: tuple(value.shape) for name, value in read_tensors(path).items()}


def check_fit(build: Callable[[], nn.Module], path: Path, shapes: Shapes) -> None:
    """Refuse a configuration that does not fit its file of weights, before memory is taken.

    The network is built on torch's "meta" device, where tensors have shapes and no values.

    Args:
        build: makes the network from its configuration.
        shapes: of the file's tensors.

    Raises:
        CheckpointError: no network can be built, a tensor has another shape in the file, or the
            network is much larger than the file.
    """
    try:
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    except Exception as error:  # the libraries raise all kinds
        raise CheckpointError(
            f"the configuration beside {path} describes no such network "
            f"({type(error).__name__}: {one_line(error, 160)}): {remedy(path)}"
        ) from None
    told = next(
        (
            f"{name}: {list(shapes[name])} in the file, {list(shape)} by the configuration"
            for name, shape in wanted.items()
            if shapes.get(name, shape) != shape
        ),
        "",
    )
    asked, held = (sum(map(math.prod, one.values())) for one in (wanted, shapes))
    if not told and asked > 2 * held + SPARE:
        told = f"it asks for {asked} parameters, the file holds {held}"
    if told:
        raise CheckpointError(
            f"{path} is damaged, or does not fit the configuration beside it ({told}): "
            f"{remedy(path)}"
        )


def load_transformer(
    library: Any, config: Any, path: Path, *, lacks: str = "it lacks", **options: Any
) -> Any:
    """Build a network of transformers and give it the weights in `path`.

    No library reads the folder: the configuration and the tensors are passed on, so that adapters,
    other forms of the weights and names of other models have no effect.

    Args:
        library: the network's class.
        options: of its `from_pretrained`; and of the class itself `add_pooling_layer`.

    Raises:
        CheckpointError: file and configuration do not fit, or a number is NaN or infinite.
    """
    made = {name: options[name] for name in ("add_pooling_layer",) if name in options}
    tensors = read_tensors(path)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    check_fit(lambda: library(config, **made), path, shapes)
    check_finite(tensors, path)
    try:
        with local_files_only():
            model, report = library.from_pretrained(
                None, config=config, state_dict=tensors, output_loading_info=True, **options
            )
    except Exception as error:  # the library and torch raise all kinds
        raise CheckpointError(f"{path} is damaged ({one_line(error)}): {remedy(path)}") from None
    if report["missing_keys"]:
        first = sorted(report["missing_keys"])[0]
        raise CheckpointError(f"{path} is damaged ({lacks} {first}): {remedy(path)}")
    return model.eval().requires_grad_(False)


# ---- libraries


@contextmanager
def local_files_only() -> Iterator[None]:
    """Within it no library of Hugging Face sends a request or shows a progress bar."""
    import huggingface_hub
    import huggingface_hub.utils

    hub: Any = huggingface_hub.constants  # the libraries leave these untyped
    bars: Any = needed("transformers.utils.logging")
    quiet: Any = huggingface_hub.utils
    with _ONE_AT_A_TIME:
        before = hub.HF_HUB_OFFLINE
        shown = bars.is_progress_bar_enabled() and not quiet.are_progress_bars_disabled()
        hub.HF_HUB_OFFLINE = True
        bars.disable_progress_bar()
        try:
            yield
        finally:
            hub.HF_HUB_OFFLINE = before
            if shown:
                bars.enable_progress_bar()


def needed(module: str) -> Any:
    """Import a module of a library that not every installation has.

    Raises:
        CheckpointError: it is not here; the message says how to get it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise CheckpointError(
            f"this network needs {library} ({one_line(error, 120)}): pip install {library}"
        ) from None
