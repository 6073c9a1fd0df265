"""Put pages and executed notebooks into build/PROFILE/book, ready for jupyter-book."""

from __future__ import annotations

import filecmp
import shutil
import sys
from pathlib import Path

import yaml

NOTES = {
    "smoke": "Built from a handful of images to test the book: the numbers mean nothing.",
    "paper": "Built with the papers' own checkpoints and benchmarks.",
}


def main(profile: str) -> None:
    target = Path("build", profile, "book")
    executed = executed_pages(Path("notebooks"), Path("build", profile, "notebooks"))
    copy(pages(Path("book")) | executed, target)
    shutil.copyfile("_toc.yml", target / "_toc.yml")
    (target / "_config.yml").write_text(config(profile), encoding="utf-8")


def pages(folder: Path) -> dict[str, Path]:
    """Every file below `folder`, by its name in the staged book."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def executed_pages(sources: Path, folder: Path) -> dict[str, Path]:
    """The executed notebook of every source, and nothing else that lies in the build's folder.

    Of a source that was removed, and of a run that failed or was killed, files are left there.
    """
    names = (path.relative_to(sources).with_suffix(".ipynb") for path in sources.glob("*/*.md"))
    return {name.as_posix(): folder / name for name in sorted(names)}


def copy(wanted: dict[str, Path], target: Path) -> None:
    """Make `target` hold the wanted files and no others; files that are equal stay untouched."""
    for name in pages(target).keys() - wanted.keys():
        (target / name).unlink()
    for name, source in wanted.items():
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not destination.exists() or not filecmp.cmp(source, destination, shallow=False):
            shutil.copyfile(source, destination)


def config(profile: str) -> str:
    """`_config.yml`, with a banner on every page when the profile is not the book's own."""
    settings = yaml.safe_load(Path("_config.yml").read_text(encoding="utf-8"))
    if profile in NOTES:
        settings["html"]["announcement"] = NOTES[profile]
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    main(sys.argv[1])
