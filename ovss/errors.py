"""Every error a user can cause. The command line prints them in one line and exits 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST = 1000  # characters of a message; what is longer loses its middle
# Control characters, line separators, marks that turn or hide text, and halves of surrogate pairs.
UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff]"
)

# What to install for a library that only some methods import: the package's own extras.
INSTALL = {
    "accelerate": '"ovss[diffusion]"',
    "diffusers": '"ovss[diffusion]"',
    "gradient_free_optimizers": '"ovss[search]"',
    "pydensecrf": '"ovss[crf]"',
    "timm": "timm",
    "transformers": '"transformers>=4.55"',
}


def printable(text: str) -> str:
    """Escape whatever a terminal would obey instead of show: `\\x1b[31m` for a raw escape code."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shorten(text: str, limit: int = 60) -> str:
    """Give `text` for a message: printable, and cut in the middle to `limit` characters."""
    shown = printable(text)
    if len(shown) <= limit:
        return shown
    tail = limit // 3
    return f"{shown[: limit - tail - 1]}…{shown[-tail:]}"


def one_line(value: object, longest: int = 300) -> str:
    """Give `value` as one printable line of at most `longest` characters."""
    return shorten(" ".join(str(value).split()), longest)


class OvssError(Exception):
    """Base class: something the caller can put right; the message says what was given."""

    def __str__(self) -> str:
        """The message as one printable line of bounded length."""
        return one_line(self.args[0] if self.args else "", LONGEST)


class VocabularyError(OvssError, ValueError):
    """The words are empty, repeated or not words at all."""


class ImageError(OvssError, ValueError):
    """What was given is not an image that a method can take."""


class UnknownNameError(OvssError, KeyError):
    """A method, data set, checkpoint or profile of that name does not exist."""

    @classmethod
    def of(cls, kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
        """The error for `name`, with the nearest known name and the list of all known ones."""
        names = sorted(known)
        given = shorten(str(name))
        near = difflib.get_close_matches(given, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return cls(f"unknown {kind} '{given}'{hint} Known: {', '.join(names) or 'none'}")


class CheckpointError(OvssError, RuntimeError):
    """A checkpoint is missing, damaged or of another architecture."""


class ScoreError(OvssError, ArithmeticError):
    """A method's scores are NaN or infinite, so that no label can be made of them.

    Attributes:
        index: which of the images that were given.
    """

    def __init__(
        self, method: str, index: int, checkpoints: Iterable[str], image: str = ""
    ) -> None:
        self.method, self.index, self.checkpoints = method, index, tuple(checkpoints)
        place = f"the image {image}" if image else f"image {index + 1} of those given"
        super().__init__(
            f"{method} gives NaN or infinite scores for {place} "
            f"(networks: {', '.join(self.checkpoints) or 'none'}): the weights may be damaged, or "
            "the dtype too narrow (try float32)"
        )

    def of(self, image: str) -> ScoreError:
        """The same error with the image's name."""
        return ScoreError(self.method, self.index, self.checkpoints, image)


class DatasetError(OvssError, FileNotFoundError):
    """A benchmark's folder or one of its files is missing or damaged."""


class MissingLibraryError(OvssError, ImportError):
    """A library that only some methods need is not installed."""

    @classmethod
    def of(cls, error: ImportError) -> MissingLibraryError:
        """The error for an import that failed, with what to install."""
        library = (error.name or "").partition(".")[0]
        if library not in INSTALL:
            return cls(f"a library cannot be imported ({error})")
        return cls(f"{library} is not installed: pip install {INSTALL[library]}")


class ProfileError(OvssError, ValueError):
    """A profile holds a key or a value that no notebook knows."""
