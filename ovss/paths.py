"""Where the data, the results and the repository lie."""

from __future__ import annotations

import os
from pathlib import Path

from .files import expand

# What to do where the data folder lacks the lab: an installed wheel has none.
FROM_THE_REPOSITORY = (
    "the lab's images and models come with the repository, not with the installed package: clone "
    "it and set OVSS_DATA to its data/ folder"
)


def root() -> Path:
    """The folder that holds `data/` and `notebooks/`: the repository this package lies in."""
    return Path(__file__).resolve().parent.parent


def data(*parts: str) -> Path:
    """A path under `data/`; the environment variable OVSS_DATA names another data folder.

    An installed wheel has a `data/` of its own, with class names and published numbers alone.
    """
    base = os.environ.get("OVSS_DATA")
    inside = Path(__file__).resolve().parent / "data"
    folder = expand(base) if base else inside if inside.is_dir() else root() / "data"
    return folder.joinpath(*parts)


def results(profile: str) -> Path:
    """The folder of what was measured under a profile; OVSS_RESULTS names another base."""
    base = os.environ.get("OVSS_RESULTS")
    return (expand(base) if base else data("results")) / profile
