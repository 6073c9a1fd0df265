"""What a check says of one array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Outcome:
    """One array compared: its largest error, or for label maps the share of equal pixels."""

    name: str
    kind: Literal["error", "equal"]
    value: float
    good: bool


@dataclass(frozen=True)
class Skipped:
    """One array that is not compared, and why."""

    name: str
    reason: str
