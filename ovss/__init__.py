"""Open-vocabulary semantic segmentation, one file per paper, and the book that explains them.

>>> import ovss
>>> segmenter = ovss.load("cliper")                          # doctest: +SKIP
>>> out = segmenter("photo.jpg", "car, grass")               # doctest: +SKIP
>>> out.save("out.png")                                      # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import OvssError
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

# Where the names above lie; torch is imported when the first of them is used.
_HOMES = {
    "OvssError": "errors",
    "Result": "evaluation.result",
    "Segmentation": "segmentation",
    "Segmenter": "segmenter",
    "Vocabulary": "vocabulary",
    "evaluate": "evaluation.evaluate",
}


def load(method: str, profile: str = "lab", **options: Any) -> Segmenter:
    """A method with its checkpoints, ready to segment.

    Args:
        method: a name of `ovss list methods`, such as "cliper".
        profile: "lab" for the miniature checkpoints in the repository, "paper" for the real ones.
        options: options of the method (see its page), `device` and the checkpoint among them.

    Raises:
        UnknownNameError: no such method or checkpoint; the message lists the known ones.
        MissingLibraryError: the method needs a library that is not installed; the message says
            how to install it.
    """
    from .errors import MissingLibraryError, UnknownNameError
    from .methods import METHODS  # the networks' libraries are heavy to import
    from .segmenter import Segmenter

    if not isinstance(method, str) or method not in METHODS:
        raise UnknownNameError.of("method", method, METHODS)
    try:
        built, decision = METHODS[method](profile, **options)
    except ModuleNotFoundError as error:
        raise MissingLibraryError.of(error) from None
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ovss' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
