"""The card of a trained network: how it was made, what it can do, and whether that is enough."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .. import files, provenance
from .loop import Trainer

UNTRAINED: Literal["untrained"] = "untrained"


@dataclass(frozen=True)
class Gate:
    """What a network must have learnt before a claim about a method can be judged on it.

    Attributes:
        name: the metric of the card's `val` that is compared.
        what: in words.
        threshold: the least value that passes; "untrained": the upper end of the 95 % interval of
            the same network before training.
    """

    name: str
    what: str
    threshold: float | Literal["untrained"]

    def judge(
        self, measured: Mapping[str, float], untrained: Mapping[str, Mapping[str, float]]
    ) -> dict[str, Any]:
        """The gate for the card: name, what, threshold, measured and whether it is passed."""
        value = measured[self.name]
        least = untrained[self.name]["high"] if self.threshold == UNTRAINED else self.threshold
        return {
            "name": self.name,
            "what": self.what,
            "threshold": least,
            "measured": value,
            "passed": value > least if self.threshold == UNTRAINED else value >= least,
        }


def card(
    trainer: Trainer[Any],
    name: str,
    what: str,
    parameters: int,
    measured: Mapping[str, Mapping[str, float]],
    untrained: Mapping[str, Mapping[str, float]],
    gates: Sequence[Gate],
) -> dict[str, Any]:
    """A card: recipe, images, minutes, machine, metrics by split, and gates judged on "val".

    Args:
        measured: the metrics of each split.
        untrained: for gates, the same network before training: value, low and high by metric.
    """
    return {
        "name": name,
        "what": what,
        "parameters": parameters,
        "recipe": asdict(trainer.recipe),
        "images_seen": trainer.images,
        "minutes": round(trainer.seconds / 60, 1),
        "machine": provenance.device_name([str(trainer.device)]),
        "torch": torch.__version__,
        "commit": provenance.commit(),
        "date": provenance.today(),
        **measured,
        "untrained": dict(untrained),
        "gates": [gate.judge(measured["val"], untrained) for gate in gates],
    }


def write_card(folder: Path, content: Mapping[str, Any], weights: str) -> None:
    """Write `card.json` with the SHA-256 of the file `weights`, and of further safetensors."""
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted({folder / weights, *folder.rglob("*.safetensors")})
    }
    digest = files.pop(weights)
    others = {"files": files} if files else {}
    write_json(folder / "card.json", {**content, "sha256": digest, **others})


def write_curve(path: Path, curve: Sequence[Mapping[str, float]]) -> None:
    """Write a training curve as CSV, one point a row; "nan" where a point lacks a number."""
    names = list(dict.fromkeys(name for point in curve for name in point))
    rows = [[f"{point.get(name, math.nan):.6g}" for name in names] for point in curve]
    with files.atomic(path) as binary:
        lines = [names, *rows]
        binary.write("".join(",".join(line) + "\n" for line in lines).encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with files.atomic(path) as file:
        file.write((json.dumps(content, indent=2, default=str) + "\n").encode())
