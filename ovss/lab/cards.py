"""The folder of a zoo model: configuration, weights (safetensors, float16), training curve, and a
card that says how the model was made and what it can do."""

from __future__ import annotations

import csv
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ovss import paths, provenance


def save_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
    card: Mapping[str, Any],
) -> None:
    """Write a model folder; every file whole or not at all, the card last."""
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in weights.items()}
    content = save(halves, metadata={"format": "pt"})  # transformers asks for it
    _write(folder / "model.safetensors", content)
    _write(folder / "config.json", _json(config))
    write_card(folder, curve, card, "model.safetensors")


def write_card(
    folder: Path, curve: Sequence[Mapping[str, float]], card: Mapping[str, Any], weights: str
) -> None:
    """Write the training curve, and the card with the SHA-256 of the file `weights`."""
    write_curve(folder / "curve.csv", curve)
    digest = hashlib.sha256((folder / weights).read_bytes()).hexdigest()
    _write(folder / "card.json", _json({**card, "sha256": digest}))


def write_curve(path: Path, curve: Sequence[Mapping[str, float]]) -> None:
    """A training curve as CSV, one measurement a row."""
    with paths.atomic(path) as binary:
        lines = [list(curve[0]), *([f"{v:.6g}" for v in row.values()] for row in curve)]
        binary.write("".join(",".join(line) + "\n" for line in lines).encode())


def read_curve(name: str) -> list[dict[str, float]]:
    """The training curve of a zoo model."""
    with paths.data("lab", "zoo", name, "curve.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def read_card(name: str) -> dict[str, Any]:
    """The card of a zoo model."""
    card: dict[str, Any] = json.loads(paths.data("lab", "zoo", name, "card.json").read_text())
    return card


def origin() -> dict[str, Any]:
    """Where and when a model is trained, for its card."""
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "commit": provenance.commit(),
        "date": provenance.today(),
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, default=str) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with paths.atomic(path) as file:
        file.write(content)
