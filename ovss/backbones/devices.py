"""Devices by name, what "float32" means on them, and what their memory allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from ..errors import OvssError

MAX_ATTENTION = 2**26  # attention values of a block held at once: 256 MB of float32
_precision = {"tf32": False}  # the last explicit choice of this process


def find_device(name: str | torch.device, *, tf32: bool | None = None) -> torch.device:
    """Check a device by computing on it, before anything large is loaded for it.

    On an NVIDIA GPU float32 is made to mean float32: cuDNN's convolutions would otherwise round
    their inputs to the 10 bits of TF32, and agree with the CPU to three digits only.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps" ...
        tf32: True lets convolutions and matrix products of float32 run in TF32, which is faster
            and belongs in a results row (`provenance.device_name` writes it there); None leaves an
            earlier choice of this process as it is, at first False.

    Raises:
        OvssError: there is no such device here; the message lists those that there are.
    """
    try:
        if not isinstance(name, str | torch.device):
            raise TypeError("it must be a name")
        device = torch.device(name)
        if device.type != "cpu" and (device.index or 0) >= max(1, torch.accelerator.device_count()):
            raise IndexError("there are fewer")
        torch.ones(1, device=device).sum().item()
    except Exception as error:  # of many types: plug-ins and drivers raise what they like
        raise OvssError(_explain(name, error)) from None
    if device.type == "cpu":
        return torch.device("cpu")  # "cpu:0" and "cpu:3" are the same processor
    _set_precision(tf32)
    return device


def available_devices() -> list[str]:
    """List the names of the devices here, such as "cpu", "cuda:0" and "cuda:1"."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    count = torch.accelerator.device_count()
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(count))]


def precision() -> str:
    """Name the arithmetic of float32 products on an NVIDIA GPU: "float32" or "TF32"."""
    fast = torch.backends.cudnn.allow_tf32 or torch.get_float32_matmul_precision() != "highest"
    return "TF32" if fast else "float32"


def max_attention(device: torch.device) -> int:
    """Number of attention values that one block may hold at once on a device.

    A sixteenth of a GPU's memory in float32, so that the batches depend on the card and not on
    what else lies in it; MAX_ATTENTION elsewhere, and at least.
    """
    if device.type != "cuda":
        return MAX_ATTENTION
    memory = torch.cuda.get_device_properties(device).total_memory  # bytes
    return max(MAX_ATTENTION, memory // (16 * 4))


@contextmanager
def forked_rng(devices: Iterable[str | torch.device]) -> Iterator[None]:
    """Restore the random states of the CPU and of these devices, and no others, at the end.

    `torch.random.fork_rng` without devices opens a context on every GPU of the machine.
    """
    kinds: dict[str, list[torch.device]] = {"cuda": []}
    for device in map(torch.device, devices):
        if device.type not in ("cpu", "mps"):  # torch cannot keep the state of the latter
            kinds.setdefault(device.type, []).append(device)
    with ExitStack() as stack:
        for kind, members in kinds.items():
            stack.enter_context(torch.random.fork_rng(members, device_type=kind))
        yield


def has_float64(device: torch.device) -> bool:
    """Tell whether a device has double precision; Apple's MPS does not."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except TypeError:
        return False
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory is full, the GPU's or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "not enough memory", "_ALLOC_FAILED")  # MPS; CPU; cuBLAS, cuDNN
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def explain_out_of_memory(error: BaseException) -> str:
    """Say in one line that memory is full, how much was asked for, and what to try."""
    first = str(error).splitlines()[0] if str(error) else "no more can be had"
    wanted = first.partition("Tried to allocate ")[2].partition(". ")[0].rstrip(".")
    asked = f" ({wanted} more was asked for)" if wanted else ""
    return (
        f"memory is full{asked}: try fewer images at once (--batch 1), a smaller image, "
        "--dtype float16, another --device, or close other programs that use this one"
    )


def _explain(name: object, error: Exception) -> str:
    """One line: what was given, why it cannot be used, and what there is."""
    shown = str(name) if isinstance(name, str | torch.device) else name
    hint = ""
    if str(shown).startswith("cuda") and str(error):  # torch's first sentence says what is missing
        hint = f" ({str(error).splitlines()[0].partition('. ')[0].rstrip('.')})"
    elif str(shown).lower() in ("gpu", "nvidia") or str(shown).isdigit():
        hint = ' (an NVIDIA GPU is called "cuda", the second one "cuda:1")'
    return f"cannot use device {shown!r}{hint}: there is {', '.join(available_devices())} here"


def _set_precision(tf32: bool | None) -> None:
    """Choose float32 or TF32 for products of float32 on NVIDIA GPUs."""
    if tf32 is not None:
        _precision["tf32"] = tf32
    torch.backends.cudnn.allow_tf32 = _precision["tf32"]
    torch.set_float32_matmul_precision("high" if _precision["tf32"] else "highest")
