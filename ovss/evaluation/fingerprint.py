"""What must be equal for the counts of two runs to be added: program, data, weights, options.

Where something runs and how fast (device, workers, images at once) is no part of it, unless a
method's results depend on the batch. Scores differ between devices in their last digits, so that
a run which goes on elsewhere may differ from an undisturbed one in a few pixels of a million.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datasets import Dataset
from ..datasets.base import FromFiles
from ..errors import DatasetError
from ..provenance import attributes, describe

# Of the package: what works after the counting, or makes weights, which have hashes of their own.
NOT_COUNTING = ("reporting", "lab", "training", "cli.py", "__main__.py", "fetch.py")
LIBRARIES = (
    "torch", "numpy", "pillow", "open_clip_torch", "transformers", "diffusers", "pydensecrf",
)  # fmt: skip
SPEED = ("device", "capacity", "map_capacity")  # where a network runs, and what its cache holds
INSTALLED = ("site-packages", "dist-packages")


@functools.cache
def source() -> str:
    """Hash the package's source that can change counts, once in a process."""
    home = Path(__file__).resolve().parent.parent
    total = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        name = path.relative_to(home)
        if name.parts[0] not in NOT_COUNTING:
            total.update(f"{name.as_posix()}\n".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


@functools.cache
def libraries() -> str:
    """The releases of the libraries that decode images and run networks."""
    found = []
    for name in LIBRARIES:
        try:
            release = importlib.metadata.version(name).partition("+")[0]  # +cpu, +cu126: no matter
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(f"{name} {release}")
    return ", ".join(found)


def digest(content: bytes) -> str:
    """The first 16 hex digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def identity(part: Any) -> Any:
    """Describe what decides the counts of a method, rule, tagger or vocabulary, as JSON values.

    As `describe`, without devices and without what an object names as its `speed_options`. What is
    neither this package's nor a library's, but a notebook's for instance, is told by a hash of its
    code and by its public attributes too.
    """
    return describe(part, _deciding)


def content(data: Dataset, indices: Sequence[int]) -> str:
    """Hash what is read of a data set's images: it changes with any image or mask, not by a copy.

    The bytes of the files where the data set names them (about a second for 1000 photographs that
    the machine has cached), else pixels and labels as they are read.

    Raises:
        DatasetError: a file is missing.
    """
    total = hashlib.sha256()
    for index in indices:
        total.update(f"\n{data.ids[index]}\n".encode())
        if isinstance(data, FromFiles):
            for path in data.files(index):
                total.update(_of_file(path))
        else:
            sample = data[index]
            total.update(f"{sample.image.mode} {sample.image.size}\n".encode())
            total.update(hashlib.sha256(sample.image.tobytes()).digest())
            total.update(hashlib.sha256(sample.target.tobytes()).digest())
    return total.hexdigest()[:16]


def _of_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from None


def _deciding(part: Any) -> Mapping[str, Any]:
    """The attributes of an object that decide counts, and the hash of its code if it is foreign."""
    values = attributes(part)
    if code := _foreign_code(part):
        shown = {} if inspect.isroutine(part) or isinstance(part, type) else _public(part)
        values = {"code": code, **shown, **values}
    left_out = (*SPEED, *getattr(part, "speed_options", ()))
    return {name: value for name, value in values.items() if name not in left_out}


def _public(part: Any) -> dict[str, Any]:
    """An object's own attributes, without the private ones."""
    if dataclasses.is_dataclass(part):
        return {}  # its fields tell
    return {name: value for name, value in vars(part).items() if not name.startswith("_")}


def _foreign_code(part: Any) -> str:
    """Hash the functions that are neither this package's nor a library's; "" if there are none."""
    if inspect.isroutine(part):
        members = [] if _is_installed(part) else [part]
    else:
        kinds = (part if isinstance(part, type) else type(part)).__mro__
        own = [kind for kind in kinds if not _is_installed(kind)]
        members = [member for kind in own for member in vars(kind).values()]
    pieces = [piece for member in members for piece in _pieces(member)]
    return digest(repr(pieces).encode()) if pieces else ""


def _is_installed(kind: Any) -> bool:
    """Whether a class or function is this package's, Python's or a library's."""
    module = str(getattr(kind, "__module__", None) or "builtins")
    root = module.partition(".")[0]
    if root == "__main__":  # a notebook's cell, whatever program runs it
        return False
    if root == "ovss" or root in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and any(part in INSTALLED for part in Path(file).parts)


def _pieces(member: Any) -> Iterator[Any]:
    """What a function or property does: its code, its defaults and the values it closes over."""
    if isinstance(member, property):
        member = member.fget
    member = getattr(member, "func", getattr(member, "__func__", member))  # cached, static, class
    member = inspect.unwrap(member) if callable(member) else member
    if isinstance(member, types.FunctionType):
        held = [cell.cell_contents for cell in member.__closure__ or () if _is_plain(cell)]
        yield from _code(member.__code__)
        yield describe([member.__defaults__, member.__kwdefaults__, held])


def _code(code: types.CodeType) -> Iterator[Any]:
    """Byte code, names and constants, those of inner functions too; no file names, no lines."""
    yield code.co_code.hex(), code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant)
        else:
            yield describe(constant)


def _is_plain(cell: Any) -> bool:
    """Whether a closure's cell holds a value, no class and no function."""
    try:
        return isinstance(cell.cell_contents, bool | int | float | str | tuple | list | dict)
    except ValueError:  # still empty
        return False
