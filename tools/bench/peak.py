"""Peak memory of a piece of work, beside what was there before it.

On a GPU what torch's allocator counts. On Linux the kernel's own high-water mark (`VmHWM`), set
back before the work, after all free memory has been returned to the kernel. Elsewhere a thread
looks at the process's size every two milliseconds, which may miss short peaks.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PAUSE = 0.002  # seconds


class Meter(Protocol):
    """Made before the work; `lap` gives the peak in bytes since the last lap."""

    def lap(self) -> int: ...

    def close(self) -> None: ...


def meter(device: torch.device) -> Meter:
    """The best one that there is here, starting now."""
    gc.collect()
    if device.type == "cuda":
        return CudaMeter()
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    return KernelMeter() if _reset() else SampledMeter()


class CudaMeter:
    """torch's count of allocated bytes."""

    def __init__(self) -> None:
        self.before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def lap(self) -> int:
        """Bytes above the start."""
        found = torch.cuda.max_memory_allocated() - self.before
        torch.cuda.reset_peak_memory_stats()
        return found

    def close(self) -> None:
        """Nothing to end."""


class KernelMeter:
    """The high-water mark of the process's resident memory."""

    def __init__(self) -> None:
        self.before = _kilobytes("VmRSS")

    def lap(self) -> int:
        """Bytes above the start."""
        found = 1024 * (_kilobytes("VmHWM") - self.before)
        _reset()
        return found

    def close(self) -> None:
        """Nothing to end."""


class SampledMeter:
    """The process's size, looked at again and again."""

    def __init__(self) -> None:
        import psutil

        self.size = psutil.Process().memory_info
        self.before = self.highest = self.size().rss
        self.ended = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self.ended.wait(PAUSE):
            self.highest = max(self.highest, self.size().rss)

    def lap(self) -> int:
        """Bytes above the start."""
        found = max(self.highest, self.size().rss) - self.before
        self.highest = 0
        return found

    def close(self) -> None:
        """The thread ends."""
        self.ended.set()


def _reset() -> bool:
    """The kernel's mark back to now; False if it has none."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _kilobytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
