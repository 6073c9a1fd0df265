"""The tensors of a file of weights, read without running anything that the file holds.

Three formats: safetensors; torch.save's archive, unpickled by torch with `weights_only`; and
TorchScript's archive, which holds programs beside its tensors and is read here without them.
OpenAI's CLIPs are published as such archives. `torch.jit.load` would run their programs.

Layout of a TorchScript archive (a zip file, nothing in it compressed): `NAME/data.pkl` is a pickle
of the module tree. Its modules are objects of classes `__torch__...` whose state is a dict; its
tensors are `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)`; the bytes of the
storage k lie in `NAME/data/k`.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError, one_line
from .registry import remedy

Shapes = dict[str, tuple[int, ...]]
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a torch.save file that is a state dict.

    Raises:
        CheckpointError: the file is damaged, no such file, or holds something else.
    """
    if path.suffix != ".safetensors":
        return state_dict(read_archive(path), path)
    try:
        _check_file(path)
        return load_file(path)
    except Exception as error:  # the library raises its own, torch's and the system's
        raise _damaged(path, error) from None


def read_shapes(path: Path) -> Shapes:
    """The names and shapes of a safetensors file's tensors, from its header alone.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise _damaged(path, error) from None


def read_archive(path: Path) -> Any:
    """Read what torch.save or TorchScript wrote: tensors in dicts, lists and plain values.

    Raises:
        CheckpointError: the file is damaged, or holds more than tensors.
    """
    try:
        _check_file(path)
        if zipfile.is_zipfile(path) and (name := _script(path)):
            return dict(_Script(path, name).tensors())
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        told = _kind(path) or "or holds more than tensors, which could run a program"
        raise CheckpointError(
            f"{path} is damaged, {told}: fetch it again, or where you trust it save "
            'torch.load(...)["state_dict"] or ["model"] alone'
        ) from None
    except Exception as error:  # torch, pickle and zipfile raise all kinds
        raise _damaged(path, error) from None


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name of what an archive holds; also those of a training run's "state_dict".

    Raises:
        CheckpointError: it is no dict of tensors by name.
    """
    for inner in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(inner), Mapping):
            content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no weights by name but: {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not is_plain(value):
            what = f"{one_line(repr(name), 60)}: {type(value).__name__}"
            raise CheckpointError(f"{path} holds no weights by name but: {what}")
    return dict(content)


def is_plain(value: Any) -> bool:
    """Whether this is a dense tensor that is no longer than its bytes."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        CheckpointError: names the first tensor that holds such a number.
    """
    for name, value in tensors.items():
        wrong = ""
        try:
            numbers = value.float() if value.element_size() == 1 else value  # float8 has no sum
            suspect = value.is_floating_point() and not numbers.sum(dtype=torch.float32).isfinite()
            if suspect and not numbers.isfinite().all():  # a sum may overflow, its parts not
                wrong = "NaN or infinite numbers"
        except RuntimeError:
            wrong = f"numbers of a kind that is not read: {value.dtype}"
        if wrong:
            raise CheckpointError(
                f"{path} is damaged ({one_line(name, 80)} holds {wrong}): {remedy(path)}"
            )


def _script(path: Path) -> str | None:
    """The folder within a TorchScript archive, None for another one."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    folders = {name.partition("/")[0] for name in names if name.endswith("/data.pkl")}
    found = [one for one in folders if f"{one}/constants.pkl" in names]
    return found[0] if found else None


class _Module:
    """An object of a TorchScript archive: its state, and nothing that it could do."""

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Script(pickle.Unpickler):
    """Unpickles a TorchScript archive's module tree; knows no class but `_Module`."""

    def __init__(self, path: Path, folder: str) -> None:
        self.archive, self.folder = zipfile.ZipFile(path), folder
        parts = [one for one in self.archive.infolist() if "/code/" not in one.filename]
        if sum(one.file_size for one in parts) > path.stat().st_size:  # compressed, or overlapping
            raise UnpicklingError("its parts are longer than itself")
        super().__init__(self.archive.open(f"{folder}/data.pkl"))
        self.storages: dict[str, Tensor] = {}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of all modules by their paths, as `state_dict` names them."""
        with self.archive:
            todo = [("", self.load())]
            seen = 0
            while todo:
                prefix, one = todo.pop()
                seen += 1
                if seen > 10**6:  # a module that holds itself
                    raise UnpicklingError("its modules have no end")
                for name, value in getattr(one, "state", {}).items():
                    if isinstance(value, Tensor):
                        yield f"{prefix}{name}", value
                    elif isinstance(value, _Module):
                        todo.append((f"{prefix}{name}.", value))

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in DTYPES:
            return name
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        }
        if module == "torch.jit._pickle":  # lists of ints, tensors ...: the list itself
            return _same
        if (module, name) not in known:
            raise UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, *_ = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}/data/{key}"))
            dtype = DTYPES[kind]
            self.storages[key] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        return self.storages[key]


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Tensor) or math.prod(size) > len(storage):
        raise UnpicklingError("a tensor is larger than its bytes")
    return storage.as_strided(size, stride, offset)


def _same(value: Any, *_: Any) -> Any:
    return value


def _check_file(path: Path) -> None:
    """Pipes and devices would be read for ever."""
    if not path.is_file():
        raise OSError("it is no file")


def _kind(path: Path) -> str:
    """What a file is that should hold weights, told from its first bytes; empty if not known."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the weights: `git lfs pull` fetches them"
    if start.lstrip()[:1] == b"<":
        return "it is a web page"
    return ""


def _damaged(path: Path, error: Exception) -> CheckpointError:
    told = (_kind(path) if path.is_file() else "") or one_line(error, 160) or type(error).__name__
    return CheckpointError(f"{path} is damaged ({told}): {remedy(path)}")
