"""Which of a vocabulary's classes are in an image, asked of the truth or of another model."""

from __future__ import annotations

from .base import Oracle, Tagger
from .clip import ClipTagger
from .gpt4o import Gpt4oTagger
from .named import find_clip, find_tagger
from .published import PublishedAnswers, Report

__all__ = [
    "ClipTagger",
    "Gpt4oTagger",
    "Oracle",
    "PublishedAnswers",
    "Report",
    "Tagger",
    "find_clip",
    "find_tagger",
]
