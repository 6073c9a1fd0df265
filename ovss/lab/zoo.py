"""Retrain the lab's models: `make zoo`, or `make zoo MODEL=clip` for one of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from ovss import paths
from ovss.errors import OvssError
from ovss.lab.pretrain.clip import train as clip
from ovss.lab.pretrain.dino import train as dino
from ovss.lab.pretrain.itm import train as itm
from ovss.lab.pretrain.sd import train as sd

RECIPES: dict[str, Callable[[Path, str], None]] = {
    "clip": clip.train,
    "dino": dino.train,
    "sd": sd.train,
    "blip-itm": partial(itm.train, "blip-itm"),
    "bridgetower": partial(itm.train, "bridgetower"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="*", help=f"of {', '.join(RECIPES)} (default: all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    for name in options.model:
        if name not in RECIPES:
            parser.error(f"unknown model {name!r}; known: {', '.join(RECIPES)}")
    for name in options.model or RECIPES:
        try:
            RECIPES[name](paths.data("lab", "zoo", name), options.device)
        except OvssError as error:
            print(f"ovss: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\novss: interrupted; run it again to go on where it was saved", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
