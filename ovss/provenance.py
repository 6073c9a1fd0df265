"""Where a number comes from: what ran, with which weights, on what machine, from which commit."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import hashlib
import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

from . import paths
from .backbones.devices import precision


def describe(part: Any, tell: Callable[[Any], Mapping[str, Any]] | None = None) -> Any:
    """Describe a method, rule or backbone as JSON values: class names, options, checkpoints.

    Tensors and arrays are told by shape and SHA-256, numbers that JSON does not know by name.

    Args:
        tell: the attributes that describe an object; by default `attributes`.
    """
    inner = functools.partial(describe, tell=tell)
    if isinstance(part, np.generic):
        part = part.item()
    if isinstance(part, float) and not math.isfinite(part):
        return str(part)  # NaN equals nothing, not even itself
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, torch.Tensor | np.ndarray):
        return _of_array(part)
    if isinstance(part, bytes):
        return hashlib.sha256(part).hexdigest()[:16]
    if isinstance(part, list | tuple):
        return [inner(one) for one in part]
    if isinstance(part, Set):
        return sorted(map(inner, part), key=repr)
    if isinstance(part, Mapping):
        return {str(key): inner(value) for key, value in part.items()}
    if isinstance(part, torch.dtype | torch.device | os.PathLike | enum.Enum | complex | range):
        return str(part)
    values = {name: inner(value) for name, value in (tell or attributes)(part).items()}
    return {"class": getattr(part, "__qualname__", type(part).__qualname__), **values}


def attributes(part: Any) -> dict[str, Any]:
    """What tells an object: `checkpoint`, `device`, `dtype`, and the fields that its repr shows."""
    names = [name for name in ("checkpoint", "device", "dtype") if hasattr(part, name)]
    if dataclasses.is_dataclass(part):
        names += [field.name for field in dataclasses.fields(part) if field.repr]
    elif isinstance(part, functools.partial):
        names += ["func", "args", "keywords"]
    return {name: getattr(part, name) for name in names}


def find(description: Any, key: str) -> list[str]:
    """All different values under `key` anywhere in a `describe` result, in order."""
    found: list[str] = []
    if isinstance(description, dict):
        found += [str(description[key])] if key in description else []
        description = list(description.values())
    if isinstance(description, list):
        found += [value for part in description for value in find(part, key)]
    return list(dict.fromkeys(found))


def device_name(devices: Sequence[str]) -> str:
    """Name the hardware behind torch's device names, and on a GPU the arithmetic of float32.

    Such as "cpu (x86_64, 2 threads)", or "cuda:1 (NVIDIA L4, float32)"; "TF32" where products of
    float32 are rounded to it (`devices.find_device`). The CPU beside a GPU is not named.
    """
    others = [device for device in devices if not device.startswith("cpu")]
    if not others:
        return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
    return " + ".join(
        f"{device} ({torch.cuda.get_device_name(device)}, {precision()})"
        if device.startswith("cuda")
        else device
        for device in others
    )


def version() -> str:
    """The version of this package."""
    from . import __version__  # the package imports this module

    return __version__


@functools.cache
def commit() -> str:
    """The commit of the repository, with "+" if the code differs from it; "unknown" without git."""
    try:
        if not os.path.samefile(_git("rev-parse", "--show-toplevel"), paths.root()):
            return "unknown"  # the package is installed somewhere below another repository
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "ovss", "notebooks")
        return head + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def today() -> str:
    """The day in UTC, such as "2026-01-31"."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _of_array(values: torch.Tensor | np.ndarray[Any, Any]) -> dict[str, Any]:
    """The shape and hash of a tensor's or array's values."""
    tensor = values.detach().cpu() if isinstance(values, torch.Tensor) else torch.tensor(values)
    raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    digest = hashlib.sha256(str(tensor.dtype).encode() + raw).hexdigest()
    return {"class": "Tensor", "shape": list(tensor.shape), "sha256": digest[:16]}


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(paths.root()), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
