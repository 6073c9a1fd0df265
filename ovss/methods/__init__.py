"""The methods, one file a paper, and how `ovss.load` builds them by name."""

from __future__ import annotations

from .builders import METHODS, PROFILES

__all__ = ["METHODS", "PROFILES"]
