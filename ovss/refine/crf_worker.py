"""Run the dense CRF's mean-field inference, in this process or as a process of its own.

As a program (`python crf_worker.py`) it reads pickled arguments of `infer` from standard input and
writes pickled probabilities to standard output, until the input ends. It imports neither torch nor
the rest of the package: it starts in a fraction of a second and holds no GPU.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Job = tuple[Mapping[str, float], Floats, Pixels]


def infer(options: Mapping[str, float], energy: Floats, pixels: Pixels) -> Floats:
    """Infer probabilities [C, H, W] from unary energies [C, H, W] and an RGB image [H, W, 3].

    Args:
        options: the attributes of `crf.DenseCrf` but `workers`.
    """
    from pydensecrf.densecrf import DenseCRF2D

    classes, height, width = energy.shape
    near, far, colour = options["near"], options["far"], options["colour"]
    model: Any = DenseCRF2D(width, height, classes)
    model.setUnaryEnergy(energy.reshape(classes, -1))  # [C, H * W]
    model.addPairwiseGaussian(sxy=near, compat=options["near_weight"])
    model.addPairwiseBilateral(sxy=far, srgb=colour, rgbim=pixels, compat=options["far_weight"])
    found = model.inference(int(options["iterations"]))  # [C, H * W]
    return np.array(found, dtype=np.float32).reshape(energy.shape)


def main() -> None:
    """Answer one job after the other; an exception is an answer, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it closes the input
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    while True:
        try:
            job: Job = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: Floats | Exception = infer(*job)
        except Exception as error:
            answer = error
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    main()
