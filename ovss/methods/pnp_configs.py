"""PnP-OVSS's settings for each benchmark and network: they are part of its published numbers.

What differs between the authors' two scripts (one for COCO) and within them. Names of data sets
are ovss's.
"""

from __future__ import annotations

from typing import Any

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
