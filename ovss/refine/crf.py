"""Dense CRF (Krähenbühl and Koltun, NIPS 2011) as PnP-OVSS has it (arXiv 2311.17095, section 3.3).

Labels of near pixels should agree, and those of pixels of like colour all the more. PnP-OVSS takes
the parameters of CutLER. The work is pydensecrf's, which keeps Python's lock while it computes, so
the images of a batch are shared among processes (`CrfProcesses`).
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..decide import upsample
from ..errors import OvssError
from ..options import check_fields
from . import crf_worker
from .crf_worker import Floats, Job

INSTALL = (
    'pip install "cython<3" setuptools wheel && '
    "CYTHON_FORCE_REGEN=1 pip install --pre --no-build-isolation pydensecrf"
)


@dataclass(frozen=True)
class DenseCrf:
    """A refiner: score maps -> the CRF's probabilities at the image's size.

    The unary potential is minus the logarithm of the softmax over the maps, without temperature.

    Attributes:
        iterations: of mean-field inference.
        near, near_weight: standard deviation in pixels and weight of the smoothness kernel.
        far, colour, far_weight: standard deviations in pixels and in colour values, and weight of
            the appearance kernel.
        workers: processes for the images of a batch; 0 and 1: this one does it all; None: one for
            each processor (shared among the ranks that `torchrun` started on this machine).
    """

    iterations: int = 10
    near: float = 3
    near_weight: float = 7
    far: float = 50
    colour: float = 5
    far_weight: float = 10
    workers: int | None = None
    speed_options: ClassVar[tuple[str, ...]] = ("workers",)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("pydensecrf") is None:
            raise OvssError(
                f"the dense CRF needs pydensecrf: {INSTALL}; or leave it out: crf=None, --no-crf"
            )
        width, weight = (1e-3, 1e6), (0.0, 1e6)
        check_fields(
            self,
            iterations=(0, 10_000),
            near=width,
            near_weight=weight,
            far=width,
            colour=width,
            far_weight=weight,
            workers=(0, 1024),
        )

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor], images: Sequence[Image.Image]) -> list[Tensor]:
        """Infer probabilities [C, H, W] from maps [C, h, w] of RGB images.

        Raises:
            OvssError: a process was killed.
        """
        workers = min(processors() if self.workers is None else self.workers, len(images))
        jobs = self._jobs(scores, images)
        if workers < 2:
            found = [crf_worker.infer(*job) for job in jobs]
        else:
            found = PROCESSES.map(jobs, workers)
        return [torch.from_numpy(q).to(maps.device) for q, maps in zip(found, scores, strict=True)]

    def _jobs(self, scores: Sequence[Tensor], images: Sequence[Image.Image]) -> Iterator[Job]:
        """The arguments of `crf_worker.infer` for each image."""
        options = {name: value for name, value in asdict(self).items() if name != "workers"}
        for maps, image in zip(scores, images, strict=True):
            sized = upsample(maps.float().cpu(), (image.height, image.width))  # [C, H, W]
            energy = np.ascontiguousarray(-sized.log_softmax(0).numpy())  # [C, H, W]
            yield options, energy, np.array(image, dtype=np.uint8)  # pydensecrf writes to the image


class CrfProcesses:
    """Processes of `crf_worker`, started when they are first needed and kept for later batches.

    Each is a new Python and no fork: a fork of a process that holds a GPU or runs threads may hang.
    They end with this process, however it ends, because their input does.

    Attributes:
        idle: those that wait for a job.
    """

    def __init__(self) -> None:
        self.idle: list[subprocess.Popen[bytes]] = []
        self._owner = os.getpid()
        self._places = threading.BoundedSemaphore(processors())  # whoever asks, no more at once

    def map(self, jobs: Iterable[Job], workers: int) -> list[Floats]:
        """Run jobs in at most `workers` processes; the answers come in the jobs' order.

        Raises:
            OvssError: a process was killed.
        """
        with ThreadPoolExecutor(workers) as threads:
            return list(threads.map(self._run, jobs))

    def close(self) -> None:
        """End the processes that have nothing to do."""
        while self.idle:
            _end(self.idle.pop())

    def _run(self, job: Job) -> Floats:
        with self._places:
            process = self._take()
            try:
                pickle.dump(job, cast(IO[bytes], process.stdin), protocol=5)
                cast(IO[bytes], process.stdin).flush()
                answer = pickle.load(cast(IO[bytes], process.stdout))
            except (OSError, EOFError, pickle.UnpicklingError):
                _end(process)
                raise OvssError(
                    "a process of the CRF was killed: try DenseCrf(workers=1)"
                ) from None
            except BaseException:
                _end(process)  # the next job must not get this one's answer
                raise
            self.idle.append(process)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _take(self) -> subprocess.Popen[bytes]:
        """An idle process that lives, or a new one."""
        if self._owner != os.getpid():  # a fork inherits the list, and must not use its pipes
            self.idle, self._owner = [], os.getpid()
        with contextlib.suppress(IndexError):
            while True:
                process = self.idle.pop()
                if process.poll() is None:
                    return process
                _end(process)  # killed while it waited
        command = [sys.executable, "-P", str(Path(crf_worker.__file__))]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def processors() -> int:
    """Number of processors that this process may use, of its rank under `torchrun`."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that keeps nothing, and its pipes."""
    process.kill()
    with contextlib.suppress(OSError), process:  # closes the pipes, which may not be empty
        pass


PROCESSES = CrfProcesses()
atexit.register(PROCESSES.close)
