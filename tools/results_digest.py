"""Write a digest of the measured numbers, leaving the file untouched when none has changed.

usage: results_digest.py RESULTS_FOLDER FILE
"""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path

TIMES = ("time (ms)", "time ratio")  # differ from run to run, as seconds do
NUMBERS = ("experiment", "row", "dataset", "protocol", "metric", "value", "low", "high", "images")


def digest(folder: Path) -> str:
    """SHA-256 over the numbers of every results file of a folder; dates and seconds left out."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["metric"] not in TIMES:
                    total.update(repr([row[name] for name in NUMBERS]).encode())
    return total.hexdigest() + "\n"


def main(folder: Path, file: Path) -> None:
    text = digest(folder)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
