"""What `pip install` brings: declared libraries, and the data that a wheel holds."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from conftest import REPOSITORY
from ovss.errors import INSTALL, MissingLibraryError

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
MODULES = {"open_clip_torch": "open_clip", "pillow": "PIL", "pyyaml": "yaml"}


def libraries(requirements: list[str]) -> set[str]:
    """The modules of some requirements: "pillow>=11" -> PIL."""
    names = [re.split(r"[<>=!~ \[]", one)[0] for one in requirements]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imported() -> set[str]:
    """Every library that a file of the package imports, wherever in it."""
    found = set()
    for path in (REPOSITORY / "ovss").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"ovss"}


def test_every_library_is_declared() -> None:
    declared = libraries(PROJECT["dependencies"])
    optional = {one for extra in EXTRAS.values() for one in libraries(extra)}
    assert imported() <= declared | optional


def test_the_message_of_a_missing_library_names_an_extra_that_brings_it() -> None:
    optional = {one for extra in EXTRAS.values() for one in libraries(extra)}
    assert optional <= set(INSTALL)
    for library, target in INSTALL.items():
        extra = re.search(r"ovss\[(\w+)\]", target)
        wanted = EXTRAS[extra[1]] if extra else PROJECT["dependencies"]
        assert library in libraries(wanted)
    error = ModuleNotFoundError("No module named 'diffusers'", name="diffusers.models")
    assert str(MissingLibraryError.of(error)) == (
        'diffusers is not installed: pip install "ovss[diffusion]"'
    )


@pytest.mark.slow
def test_a_wheel_holds_class_names_and_published_numbers(tmp_path: Path) -> None:
    """It works from a folder of its own, with no repository around it."""
    source = tmp_path / "source"
    for name in ("ovss", "data/vocabularies", "data/published"):
        shutil.copytree(
            REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = [sys.executable, "-m", "pip", "-q", "wheel", str(source), "--no-deps"]
    subprocess.run([*build, "--no-build-isolation", "-w", str(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("ovss-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "from ovss.datasets.base import read_words; from ovss import paths\n"
        "print(len(read_words('voc20')), paths.data('published', 'cliper.csv').is_file())\n"
        "from ovss.backbones.registry import find\n"
        "try: find('clip')\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "20 True", done.stderr
    assert "come with the repository" in lines[1] and "OVSS_DATA" in lines[1]
