"""Where a number comes from: what ran, with which weights, on what machine, from which commit."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import paths
from .backbones.devices import precision


def describe(part: Any) -> Any:
    """What a method, rule or backbone is, as JSON values: class names, options, checkpoints.

    Of a dataclass the fields that its repr shows; of other objects `checkpoint`, `device` and
    `dtype` if they have them.
    """
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, list | tuple):
        return [describe(one) for one in part]
    if isinstance(part, Mapping):
        return {str(key): describe(value) for key, value in part.items()}
    if isinstance(part, torch.dtype | torch.device | os.PathLike):
        return str(part)
    names = [name for name in ("checkpoint", "device", "dtype") if hasattr(part, name)]
    if dataclasses.is_dataclass(part):
        names += [field.name for field in dataclasses.fields(part) if field.repr]
    values = {name: describe(getattr(part, name)) for name in names}
    return {"class": getattr(part, "__qualname__", type(part).__qualname__), **values}


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
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "ovss", "notebooks")
        return head + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def today() -> str:
    """The day in UTC, such as "2026-01-31"."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(paths.root()), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
