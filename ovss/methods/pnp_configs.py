"""PnP-OVSS's settings for each benchmark and network: they are part of its published numbers.

What differs between the authors' two scripts (one for COCO) and within them. Names of data sets
are ovss's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..backbones.itm import ItmBackbone
from ..backbones.registry import CHECKPOINTS, ZOO, zoo_folder
from .pnp_ovss import Quirks

# Where the search of section 3.4 ended: the paper's (Table 2, where layers and heads count from 1),
# and for the lab's networks `ovss search --dataset lab-21`, on all of the split `tune`.
SOLUTIONS: dict[str, dict[str, Any]] = {
    "blip-itm-large": {"layer": 7, "head": 9},
    "bridgetower-large": {"layer": 1, "head": 7},
    "blip-itm": {"layer": 0, "head": 1, "threshold": 0.05, "blur": 0.11},
    "bridgetower": {"layer": 1, "head": 2, "threshold": 0.25, "blur": 0.05},
}
# Where it ended elsewhere on another data set: things and stuff want other heads in the lab.
SOLUTIONS_ON: dict[tuple[str, str | None], dict[str, Any]] = {
    ("blip-itm", "lab-all"): {"layer": 1, "head": 2, "threshold": 0.05, "blur": 0.09},
    ("bridgetower", "lab-all"): {"layer": 1, "head": 0, "threshold": 0.05, "blur": 0.09},
}


def solution(backbone: ItmBackbone, source: object, dataset: str | None) -> dict[str, Any]:
    """Find a network's layer, head, threshold and blur by its weights, not by its folder's name.

    Args:
        backbone: the network.
        source: what it was loaded from; a name of the registry tells which weights these are.
        dataset: the search may have ended elsewhere on it.
    """
    name = searched_as(backbone.checkpoint)
    if name is None and isinstance(source, str) and source in CHECKPOINTS:
        name = source
    if name not in SOLUTIONS:
        return unsearched(backbone.layers)
    return SOLUTIONS[name] | SOLUTIONS_ON.get((name, dataset), {})


def searched_as(checkpoint: str) -> str | None:
    """The name under which weights were searched; None if none were with that SHA-256 or origin.

    Args:
        checkpoint: "name@hash", of a download "name@hash (hub@commit)".
    """
    told = re.fullmatch(r".*@([0-9a-f]{12})(?: \((.*)@.*\))?", checkpoint)
    if told is None:
        return None
    for name in SOLUTIONS:
        if name in ZOO and _card_hash(zoo_folder(name)) == told[1]:
            return name
        if name in CHECKPOINTS and told[2] in CHECKPOINTS[name].hubs:
            return name
    return None


def _card_hash(folder: Path) -> str:
    """The first 12 hex digits of the SHA-256 on a model's card; "" without a card."""
    try:
        return str(json.loads((folder / "card.json").read_text(encoding="utf-8"))["sha256"])[:12]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def unsearched(layers: int) -> dict[str, Any]:
    """For a network that no search has seen: all heads of the layer as deep as BLIP's, 8 of 12."""
    return {"layer": max(0, 2 * layers // 3 - 1), "head": None}


# `Quirks.batch` is left out: with it, results would depend on how images come together.
_VOC = {"background": "voc", "rescale": False, "quirks": Quirks(nan=True, relabel=True)}
_PSC = {**_VOC, "background": "psc"}

CONFIGS: dict[str, dict[str, Any]] = {
    "voc20": _VOC,
    "voc21": _VOC,
    "context59": _PSC,
    "context60": _PSC,
    "ade150": {**_PSC, "normalize": False, "resample": "bilinear"},
    "coco-object": {**_VOC, "rescale": True},
    "coco-stuff": {**_PSC, "rescale": True},
    "lab-21": {"background": "voc"},
    "lab-20": {"background": None},  # here and in lab-all there is none to find
    "lab-all": {"background": None},
}
