"""The card, the training curve and the diary of a zoo model, as its folder holds them.

And a card as tables and sentences, so that no page types a number of a network that may be trained
again.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ovss import paths
from ovss.backbones.registry import ZOO
from ovss.lab.captions import Habits
from ovss.lab.disguise import Disguise
from ovss.lab.scenes import World

FIRST = ("parameters", "images_seen", "minutes", "machine", "torch", "date", "sha256")
DIGITS = 12  # of a SHA-256, as results files have it


def read_card(name: str) -> dict[str, Any]:
    """The card of a zoo model: recipe, metrics, gates, SHA-256 of the weights."""
    card: dict[str, Any] = json.loads(paths.data("lab", "zoo", name, "card.json").read_text())
    return card


def read_curve(name: str) -> list[dict[str, float]]:
    """The training curve of a zoo model, one point a row."""
    with paths.data("lab", "zoo", name, "curve.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def read_tried(name: str) -> str:
    """What was tried on the way to a zoo model's recipe: a list in Markdown, without its title.

    Empty where no diary was kept.
    """
    path = paths.data("lab", "zoo", name, "tried.md")
    if not path.is_file():
        return ""
    text = path.read_text()
    return text[text.index("\n- ") + 1 :]


def kept_point(curve: Sequence[dict[str, float]], selected_by: Iterable[str]) -> int:
    """Which point of a curve has the weights that were kept: the first with the largest sum.

    Args:
        curve: of `read_curve`.
        selected_by: the metrics that are added up, see `Trainer.selected_by`; none: the last point.
    """
    metrics = tuple(selected_by)
    if not metrics:
        return len(curve) - 1
    sums = [sum(point[name] for name in metrics) for point in curve]
    return sums.index(max(sums))


def glance(*names: str) -> pd.DataFrame:
    """What cards say first, as text, a column for each model."""
    columns = {}
    for name in names:
        card = read_card(name)
        said = {key.replace("_", " "): str(card.get(key, "not stated")) for key in FIRST}
        columns[name] = {**said, "sha256": f"{said['sha256'][:DIGITS]} …"}
    return pd.DataFrame(columns)


def scores(name: str) -> pd.DataFrame:
    """What a card measured, a column for each split."""
    card = read_card(name)
    return pd.DataFrame({split: card[split] for split in ("tune", "val")})


def stages(name: str) -> pd.DataFrame:
    """The stages of a card's recipe, a row each, as text; one row if it has none.

    Options that are no single number or word, such as worlds, are left out.
    """
    recipe = read_card(name)["recipe"]
    rows = [
        {key: str(value) for key, value in stage.items() if isinstance(value, int | float | str)}
        for stage in recipe.get("stages", [recipe])
    ]
    return pd.DataFrame(rows, pd.RangeIndex(1, 1 + len(rows), name="stage"))


def world_of(options: Mapping[str, Any]) -> World:
    """The world that a recipe on a card names."""
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    for name, kind in {"habits": Habits, "disguise": Disguise}.items():
        if name in given:
            given[name] = kind(**given[name])
    return World(**given)


def standing(name: str) -> str:
    """How a model stands at the gates of its card: "passes 1 of its 2 gates and misses things"."""
    gates = read_card(name)["gates"]
    missed = [gate["name"] for gate in gates if not gate["passed"]]
    if not gates:
        return "has no gate"
    whole = {1: "its one gate", 2: "both its gates"}.get(len(gates), f"all its {len(gates)} gates")
    if len(missed) in (0, len(gates)):
        return f"{'misses' if missed else 'passes'} {whole}"
    passed = len(gates) - len(missed)
    return f"passes {passed} of its {len(gates)} gates and misses {', '.join(missed)}"


def networks(names: Iterable[str] = ZOO) -> pd.DataFrame:
    """The models at a glance, a row each: what their cards say, and their gates as text."""
    columns = ("what", "parameters", "images_seen", "minutes", "machine")
    rows = {}
    for name in names:
        card = read_card(name)
        rows[name] = {key: card[key] for key in columns} | {"gates": _told(card["gates"])}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("network")
    return frame.rename(columns={"images_seen": "scenes seen"})


def _told(gates: Iterable[dict[str, Any]]) -> str:
    """Each gate with what was measured and what was asked."""
    return "; ".join(
        f"{gate['name']} {gate['measured']:.1f} of {gate['threshold']:.1f}, "
        f"{'passed' if gate['passed'] else 'missed'}"
        for gate in gates
    )
