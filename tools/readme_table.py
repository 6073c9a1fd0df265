"""The results table of README.md, made from data/results/lab.

usage: readme_table.py           print it
       readme_table.py --write   put it between the markers of README.md
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from ovss import paths
from ovss.reporting.tables import overview

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
SHOWN = {  # experiment -> heading
    "cliper-table1": "CLIPer and its lineage, as in its Table 1",
    "cliper-table6": "CLIPer's choices, as in its Table 6",
    "pnp-table3": "PnP-OVSS, as in its Table 3",
    "pnp-table5": "PnP-OVSS step by step, as in its Table 5",
}
NONE = "Nothing has been measured yet; `make book` fills this table."
UNITS = "mIoU in percent with its 95 % interval over images, and the number of images."


def table(folder: Path) -> str:
    """The mIoU of the experiments SHOWN as Markdown, one table each."""
    found = [(title, overview(folder / f"{name}.csv")) for name, title in SHOWN.items()]
    parts = [markdown(title, cells) for title, cells in found if not cells.empty]
    return "\n\n".join([UNITS, *parts] if parts else [NONE])


def markdown(title: str, cells: pd.DataFrame) -> str:
    """A Markdown table whose first column is the row's name."""
    lines = [[title, *cells.columns], ["---"] * (len(cells.columns) + 1)]
    lines += [
        [str(name).replace("|", "\\|"), *row]
        for name, row in zip(cells.index, cells.to_numpy(), strict=True)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spliced(text: str, content: str) -> str:
    """`text` with `content` between the markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def main(arguments: list[str]) -> None:
    content = table(paths.data("results", "lab"))
    if arguments != ["--write"]:
        print(content)
        return
    old = README.read_text(encoding="utf-8")
    new = spliced(old, content)
    if new != old:
        README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
