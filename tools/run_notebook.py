"""Execute one notebook: Markdown source + profile -> executed .ipynb.

The output appears only when every cell has run; a failed run leaves NAME.failed.ipynb beside it.
The profile is checked before (`tools/check_profile.py`): papermill lets unknown keys pass.
"""

from __future__ import annotations

import argparse
import ast
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import yaml
from papermill.exceptions import PapermillException


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="notebook, MyST Markdown")
    parser.add_argument("output", type=Path, help="executed notebook, .ipynb")
    parser.add_argument("--profile", type=Path, required=True, help="parameters, YAML")
    arguments = parser.parse_args()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    start = time.monotonic()
    try:
        execute(arguments.source, arguments.output, arguments.profile)
    except PapermillException as error:
        print(f"{arguments.source}: failed\n{error}", file=sys.stderr)
        return 1
    print(f"{arguments.source}  {time.monotonic() - start:.0f} s", flush=True)
    return 0


def execute(source: Path, output: Path, profile: Path) -> None:
    """Run `source` with the profile's parameters and put the result at `output`, or nothing.

    A notebook gets those of the profile's parameters that its `parameters` cell declares.

    Raises:
        PapermillException: a cell failed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_job()))
    parameters = yaml.safe_load(profile.read_text(encoding="utf-8"))
    plain = output.with_suffix(".input.ipynb")
    unfinished = output.with_suffix(".failed.ipynb")
    notebook = jupytext.read(source, fmt="md:myst")
    jupytext.write(notebook, plain)
    given = {name: parameters[name] for name in declared(notebook) if name in parameters}
    try:
        run(plain, unfinished, given, cwd=source.parent)
    except PapermillException:
        output.unlink(missing_ok=True)
        raise
    finally:
        plain.unlink()
    unfinished.replace(output)


def declared(notebook: Any) -> list[str]:
    """The names assigned in the cell tagged `parameters` (papermill misses `int | None`)."""
    names = []
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                targets = getattr(node, "targets", [getattr(node, "target", None)])
                names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def run(source: Path, output: Path, parameters: dict[str, Any], cwd: Path) -> None:
    papermill.execute_notebook(
        source,
        output,
        parameters,
        kernel_name="python3",
        cwd=str(cwd),
        progress_bar=False,
        start_timeout=300,
        extra_arguments=["--IPKernelApp.log_level=50"],
    )
    nbformat.write(without_traces(nbformat.read(output, as_version=4)), output)


def without_traces(notebook: Any) -> Any:
    """The notebook without what only concerns this run: papermill's notes, times, stderr.

    The cell with the profile's values is kept but not shown: it repeats the one above it.
    """
    for part in (notebook, *notebook.cells):
        for key in ("papermill", "execution"):
            part.metadata.pop(key, None)
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("remove-cell")
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def threads_per_job() -> int:
    """Processor cores divided among the notebooks that `make -j` runs at a time."""
    jobs = re.search(r"-j(\d+)", os.environ.get("MAKEFLAGS", ""))
    return max(1, (os.cpu_count() or 1) // int(jobs[1] if jobs else 1))


if __name__ == "__main__":
    sys.exit(main())
