"""The notebooks' parameter `device` reaches every network that they load."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import jupytext
import pytest

from conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*/*.md"))
LOADERS = ("load", "find_clip", "find_tagger")  # what puts a network on a device
ON_DEVICE = ("clip", "itm", "dino", "backbone")  # options that may hold a network that has one


def code_cells(path: Path) -> list[Any]:
    """A notebook's cells of code."""
    return [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]


def loads_without_device(tree: ast.AST) -> list[str]:
    """Calls that load a network and say neither a device nor a network that has one."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        given = [ast.unparse(argument) for argument in call.args]
        named = {word.arg: ast.unparse(word.value) for word in call.keywords}
        hands_on = "device" in given or "device" in named or None in named  # None: **options
        has_one = any(named.get(option, "'").isidentifier() for option in ON_DEVICE)
        if (
            name in LOADERS
            and not hands_on
            and not has_one
            and ast.unparse(call.func) != "json.load"
        ):
            found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_hands_its_device_on(path: Path) -> None:
    """The parameter reaches every network that the notebook loads."""
    sources = [cell.source for cell in code_cells(path)]
    loads = [call for source in sources for call in loads_without_device(ast.parse(source))]
    assert loads == []


def test_a_load_without_a_device_is_found() -> None:
    missed = "clip = ClipBackbone.load(name)\nsegmenter = ovss.load('clip', profile, clip='clip')"
    assert len(loads_without_device(ast.parse(missed))) == 2
    handed = (
        "ovss.load('clip', clip=clip)\nClipBackbone.load(a, device=device)\nfind_clip(a, device)"
    )
    assert loads_without_device(ast.parse(handed)) == []
