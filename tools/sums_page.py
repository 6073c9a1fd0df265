"""Write the book's page of sums that do not add up: `python tools/sums_page.py`."""

from __future__ import annotations

from ovss import files, paths
from ovss.reporting.published import sums_page

if __name__ == "__main__":
    with files.atomic(paths.root() / "book" / "appendix" / "sums.md") as file:
        file.write(sums_page().encode("utf-8"))
