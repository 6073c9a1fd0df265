"""Every error a user can cause. The command line prints them in one line and exits 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OvssError(Exception):
    """Base class: something the caller can put right; the message says what was given."""


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
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return cls(f"unknown {kind} {str(name)!r}{hint} Known: {', '.join(names) or 'none'}")

    def __str__(self) -> str:
        """The plain message (a KeyError would print it in quotes)."""
        return str(self.args[0]) if self.args else ""


class CheckpointError(OvssError, RuntimeError):
    """A checkpoint is missing, damaged or of another architecture."""


class DatasetError(OvssError, FileNotFoundError):
    """A benchmark's folder or one of its files is missing or damaged."""


class ProfileError(OvssError, ValueError):
    """A profile holds a key or a value that no notebook knows."""


def one_line(value: object, longest: int = 300) -> str:
    """Give `value` as a line of at most `longest` letters, what cannot be printed escaped."""
    text = " ".join(str(value).split())
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text[: 2 * longest])
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
