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
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import yaml
from filelock import FileLock
from papermill.exceptions import PapermillException


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="notebook, MyST Markdown")
    parser.add_argument("output", type=Path, help="executed notebook, .ipynb")
    parser.add_argument("--profile", type=Path, required=True, help="parameters, YAML")
    arguments = parser.parse_args()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    start, began = time.monotonic(), time.time()
    try:
        with FileLock(arguments.output.with_suffix(".lock")):  # two builds at once share the work
            if not made_since(began, arguments.output):
                execute(arguments.source, arguments.output, arguments.profile)
    except (PapermillException, NotebookError) as error:
        print(f"{arguments.source}: failed\n{error}", file=sys.stderr)
        return 1
    print(f"{arguments.source}  {time.monotonic() - start:.0f} s", flush=True)
    return 0


def execute(source: Path, output: Path, profile: Path) -> None:
    """Run `source` with the profile's parameters and put the result at `output`, or nothing.

    A notebook gets those of the profile's parameters that its `parameters` cell declares.

    Raises:
        PapermillException: a cell failed.
        NotebookError: the source is no notebook.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_job()))
    parameters = yaml.safe_load(profile.read_text(encoding="utf-8"))
    unfinished = output.with_suffix(".failed.ipynb")
    notebook = read_source(source)
    given = {name: parameters[name] for name in declared(notebook) if name in parameters}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / output.name
        jupytext.write(notebook, plain)
        try:
            started(partial(run, plain, unfinished, given, cwd=source.parent))
        except PapermillException:
            output.unlink(missing_ok=True)
            raise
    unfinished.replace(output)


def started(execution: Callable[[], None], attempts: int = 4) -> None:
    """Run a notebook whose kernel may find a port taken that was free a moment before.

    Jupyter looks for free ports and starts a kernel that binds them later; of two kernels that
    start at once one may lose a port to the other, and dies before its first cell.
    """
    for attempt in range(1, attempts + 1):
        try:
            return execution()
        except RuntimeError as error:
            if "Kernel died before replying" not in str(error) or attempt == attempts:
                raise
            time.sleep(attempt)


class NotebookError(Exception):
    """A source that is no notebook."""


def read_source(source: Path) -> Any:
    """The notebook in a MyST Markdown file; a byte order mark, as some editors write, is dropped.

    Raises:
        NotebookError: it is not UTF-8, or holds no code cell or no kernel.
    """
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotebookError(f"{source} must be UTF-8: {error}") from None
    notebook = jupytext.reads(text, fmt="md:myst")
    if not any(cell.cell_type == "code" for cell in notebook.cells):
        raise NotebookError(f"{source} is empty or holds no code cell")
    if "kernelspec" not in notebook.metadata:
        raise NotebookError(f"{source} begins with no `kernelspec`: copy another's front matter")
    return notebook


def made_since(moment: float, output: Path) -> bool:
    """Whether another build has made `output` while this one waited for its turn."""
    return output.exists() and output.stat().st_mtime > moment


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
