"""What the loaders of all networks share: configuration files, cards and hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .registry import remedy


@contextmanager
def without_bars() -> Iterator[None]:
    """Within it transformers shows no progress bar: a file of this machine takes no time."""
    import huggingface_hub.utils
    import transformers.utils.logging

    hub: Any = huggingface_hub.utils  # both libraries leave these functions untyped
    bars: Any = transformers.utils.logging
    shown = bars.is_progress_bar_enabled() and not hub.are_progress_bars_disabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare_with_card(card: Path, weights: Path) -> None:
    """The zoo's cards hold the SHA-256 of the weights: a flipped byte is seen too."""
    expected = read_json(card).get("sha256") if card.exists() else None
    if isinstance(expected, str) and expected != sha256(weights):
        raise CheckpointError(
            f"{weights} is damaged (its SHA-256 is not that of card.json): {remedy(weights)}"
        )


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): {remedy(path)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object: {remedy(path)}")
    return content
