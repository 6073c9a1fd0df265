"""Open-vocabulary semantic segmentation, one file per paper, and the book that explains them.

>>> import ovss
>>> segmenter = ovss.load("cliper")                          # doctest: +SKIP
>>> out = segmenter("photo.jpg", "car, grass")               # doctest: +SKIP
>>> out.save("out.png")                                      # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from .errors import OvssError, UnknownNameError
from .evaluation.evaluate import evaluate
from .evaluation.result import Result
from .segmentation import Segmentation
from .segmenter import Segmenter
from .vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = [
    "OvssError",
    "Result",
    "Segmentation",
    "Segmenter",
    "Vocabulary",
    "__version__",
    "evaluate",
    "load",
    "segment",
]


def load(method: str, profile: str = "lab", **options: Any) -> Segmenter:
    """A method with its checkpoints, ready to segment.

    Args:
        method: a name of `ovss list methods`, such as "cliper".
        profile: "lab" for the miniature checkpoints in the repository, "paper" for the real ones.
        options: options of the method (see its page), `device` and the checkpoint among them.

    Raises:
        UnknownNameError: no such method or checkpoint; the message lists the known ones.
    """
    from .methods import METHODS  # the networks' libraries are heavy to import

    if method not in METHODS:
        raise UnknownNameError.of("method", method, METHODS)
    built, decision = METHODS[method](profile, **options)
    return Segmenter(built, decision=decision)


def segment(image: Any, classes: Any, method: str = "cliper", **options: Any) -> Segmentation:
    """Segment one image in one call; `options` are those of `load`.

    Args:
        image: a path, PIL image, array [H, W, 3] or tensor [3, H, W].
        classes: "car, grass", or a list of names, or a `Vocabulary`.
        method: a name of `ovss list methods`.
        **options: what else `load` takes.
    """
    found: Segmentation = load(method, **options)(image, classes)
    return found
