"""Dense CRF (Krähenbühl and Koltun, NIPS 2011) as PnP-OVSS has it (arXiv 2311.17095, section 3.3).

Labels of near pixels should agree, and those of pixels of like colour all the more. PnP-OVSS takes
the parameters of CutLER. The work is pydensecrf's, which keeps Python's lock while it computes, so
the images of a batch are shared among processes.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..decide import upsample
from ..errors import OvssError

INSTALL = (
    'pip install "cython<3" setuptools wheel && '
    "CYTHON_FORCE_REGEN=1 pip install --pre --no-build-isolation pydensecrf"
)
Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class DenseCrf:
    """A refiner: score maps -> the CRF's probabilities at the image's size.

    The unary potential is minus the logarithm of the softmax over the maps, without temperature.

    Attributes:
        iterations: of mean-field inference.
        near, near_weight: standard deviation in pixels and weight of the smoothness kernel.
        far, colour, far_weight: standard deviations in pixels and in colour values, and weight of
            the appearance kernel.
        workers: processes for the images of a batch; None: one for each processor.
    """

    iterations: int = 10
    near: float = 3
    near_weight: float = 7
    far: float = 50
    colour: float = 5
    far_weight: float = 10
    workers: int | None = None

    def __post_init__(self) -> None:
        if importlib.util.find_spec("pydensecrf") is None:
            raise OvssError(
                f"the dense CRF needs pydensecrf: {INSTALL}; or leave it out: crf=None, --no-crf"
            )

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor], images: Sequence[Image.Image]) -> list[Tensor]:
        """Maps [C, h, w] of RGB images -> probabilities [C, H, W]."""
        energies = (_energy(maps, image) for maps, image in zip(scores, images, strict=True))
        pixels = (np.array(image, dtype=np.uint8) for image in images)  # it must be writable
        found = self._infer(min(self._workers, len(images)), energies, pixels)
        return [torch.from_numpy(q).to(maps.device) for q, maps in zip(found, scores, strict=True)]

    @property
    def _workers(self) -> int:
        """Processes at most; forking is safe only on Linux, elsewhere one does it all."""
        if self.workers is not None:
            return self.workers
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1

    def _infer(
        self, workers: int, energies: Iterator[Floats], pixels: Iterator[Pixels]
    ) -> list[Floats]:
        if workers < 2:
            return list(map(infer, repeat(self), energies, pixels))
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        try:
            with ProcessPoolExecutor(workers, context) as pool:
                return list(pool.map(infer, repeat(self), energies, pixels))
        except BrokenProcessPool:
            raise OvssError("a process of the CRF was killed: try DenseCrf(workers=1)") from None


def infer(crf: DenseCrf, energy: Floats, pixels: Pixels) -> Floats:
    """Unary energies [C, H, W] and an RGB image [H, W, 3] -> probabilities [C, H, W]."""
    from pydensecrf.densecrf import DenseCRF2D

    classes, height, width = energy.shape
    model: Any = DenseCRF2D(width, height, classes)
    model.setUnaryEnergy(energy.reshape(classes, -1))
    model.addPairwiseGaussian(sxy=crf.near, compat=crf.near_weight)
    model.addPairwiseBilateral(sxy=crf.far, srgb=crf.colour, rgbim=pixels, compat=crf.far_weight)
    return np.array(model.inference(crf.iterations), dtype=np.float32).reshape(energy.shape)


def _energy(maps: Tensor, image: Image.Image) -> Floats:
    """Scores [C, h, w] -> unary energies [C, H, W] at the image's size."""
    sized = upsample(maps.float().cpu(), (image.height, image.width))
    return np.ascontiguousarray(-sized.log_softmax(0).numpy())
