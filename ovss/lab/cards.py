"""The card, the training curve and the diary of a zoo model, as its folder holds them."""

from __future__ import annotations

import csv
import json
from typing import Any

from ovss import paths


def read_card(name: str) -> dict[str, Any]:
    """The card of a zoo model: recipe, metrics, gates, SHA-256 of the weights."""
    card: dict[str, Any] = json.loads(paths.data("lab", "zoo", name, "card.json").read_text())
    return card


def read_curve(name: str) -> list[dict[str, float]]:
    """The training curve of a zoo model, one point a row."""
    with paths.data("lab", "zoo", name, "curve.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def read_tried(name: str) -> str:
    """What was tried on the way to a zoo model's recipe: a list in Markdown, without its title."""
    text = paths.data("lab", "zoo", name, "tried.md").read_text()
    return text[text.index("\n- ") + 1 :]
