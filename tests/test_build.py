"""The build: what `make` executes again, the lock, the contents, the table in the README."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import readme_table  # noqa: E402
import results_digest  # noqa: E402
import run_notebook as run_notebook_tool  # noqa: E402
import stage  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*/*.md"))

# Stands for the environment's Python: "executes" a notebook by copying it.
PYTHON = """#!/bin/bash
case $1 in
tools/run_notebook.py)
    echo "$2" >>executed
    ! grep -q FAIL "$2" || { echo half >"${3%.ipynb}.failed.ipynb"; exit 1; }
    cp "$2" "$3" ;;
tools/results_digest.py)
    cmp -s data/numbers "$3" || cp data/numbers "$3" ;;
tools/check_profile.py)
    grep -q "^profile: " "$2" ;;
*) exit 3 ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with the real Makefile, three notebooks and a made environment."""
    files = {
        "notebooks/0-lab/one.md": "one",
        "notebooks/0-lab/two.md": "two",
        "notebooks/5-together/board.md": "reads the numbers",
        "notebooks/profiles/lab.yml": "profile: lab",
        "ovss/__init__.py": "",
        "data/numbers": "1",
        "tools/run_notebook.py": "",
        "tools/results_digest.py": "",
        "tools/make_env.sh": "echo environment >>executed; mkdir -p .venv/bin",
        "requirements.lock": "",
        "pyproject.toml": "",
        ".venv/bin/python": PYTHON,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    (tmp_path / ".venv/bin/python").chmod(0o755)
    for stamp in (".venv/.complete", ".venv/.ovss"):
        (tmp_path / stamp).touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def make(clone: Path, *arguments: str) -> tuple[int, list[str]]:
    """Run make; its exit status, and the notebooks it executed."""
    log = clone / "executed"
    log.write_text("")
    hidden = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PROFILE", "CONDA_DEFAULT_ENV", "CONDA_PREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        ["make", *arguments], cwd=clone, env=environment, capture_output=True, timeout=60
    )
    return done.returncode, [line.rpartition("/")[2] for line in log.read_text().split()]


def test_all_notebooks_run_once_and_then_none(clone: Path) -> None:
    status, executed = make(clone, "notebooks")
    assert status == 0
    assert executed == ["one.md", "two.md", "board.md"]
    assert make(clone, "notebooks") == (0, [])


def test_an_edited_notebook_runs_alone(clone: Path) -> None:
    make(clone, "notebooks")
    (clone / "notebooks/0-lab/one.md").write_text("one, edited")
    assert make(clone, "notebooks") == (0, ["one.md"])
    assert make(clone, "notebooks") == (0, [])


def test_a_page_that_reads_results_runs_when_a_number_changed(clone: Path) -> None:
    make(clone, "notebooks")
    (clone / "notebooks/0-lab/one.md").write_text("one, edited")
    (clone / "data/numbers").write_text("2")
    assert make(clone, "notebooks") == (0, ["one.md", "board.md"])
    assert make(clone, "notebooks") == (0, [])


def test_the_appendix_reads_results(clone: Path) -> None:
    (clone / "notebooks/appendix").mkdir()
    (clone / "notebooks/appendix/points.md").write_text("reads the numbers")
    assert make(clone, "notebooks")[1][:2] == ["one.md", "two.md"]
    (clone / "data/numbers").write_text("2")
    (clone / "notebooks/0-lab/one.md").write_text("one, edited")
    assert sorted(make(clone, "notebooks")[1]) == ["board.md", "one.md", "points.md"]


def test_the_digest_sees_numbers_and_no_times(tmp_path: Path) -> None:
    from ovss.reporting import results

    def digest(miou: float, ms: float) -> str:
        common = {"experiment": "e", "row": "a", "dataset": "d", "protocol": "p"}
        values = {"mIoU": miou, "time (ms)": ms, "time ratio": ms / 10}
        rows = [{**common, "metric": name, "value": value} for name, value in values.items()]
        results.write(tmp_path / "e.csv", rows, one_run=True)
        return results_digest.digest(tmp_path)

    first = digest(40, 10)
    (tmp_path / "e.csv").unlink()
    assert digest(40, 20) == first != digest(41, 20)


@pytest.mark.parametrize("changed", ["ovss/__init__.py", "notebooks/profiles/lab.yml"])
def test_package_and_profile_run_all_again(clone: Path, changed: str) -> None:
    make(clone, "notebooks")
    (clone / changed).write_text("profile: lab # changed")
    assert make(clone, "notebooks")[1] == ["one.md", "two.md", "board.md"]


def test_a_wrong_profile_stops_the_build(clone: Path) -> None:
    (clone / "notebooks/profiles/lab.yml").write_text("profil: lab")
    for _ in range(2):
        status, executed = make(clone, "notebooks")
        assert status != 0
        assert executed == []


def test_profiles_are_built_apart(clone: Path) -> None:
    make(clone, "notebooks")
    (clone / "notebooks/profiles/smoke.yml").write_text("profile: smoke")
    assert make(clone, "notebooks", "PROFILE=smoke")[1] == ["one.md", "two.md", "board.md"]
    assert make(clone, "notebooks") == (0, [])


def test_two_at_a_time_keep_the_order(clone: Path) -> None:
    status, executed = make(clone, "-j2", "notebooks")
    assert status == 0
    assert sorted(executed[:2]) == ["one.md", "two.md"]
    assert executed[2:] == ["board.md"]


def test_a_failed_notebook_stops_the_build_and_is_never_fresh(clone: Path) -> None:
    make(clone, "notebooks")
    (clone / "notebooks/0-lab/two.md").write_text("FAIL")
    for _ in range(2):
        status, executed = make(clone, "notebooks")
        assert status != 0
        assert executed == ["two.md"]
    (clone / "notebooks/0-lab/two.md").write_text("mended")
    assert make(clone, "notebooks") == (0, ["two.md"])


def test_a_half_made_environment_is_made_again(clone: Path) -> None:
    (clone / ".venv/.complete").unlink()
    (clone / "tools/make_env.sh").write_text("echo environment >>executed; exit 1")
    for _ in range(2):
        status, executed = make(clone, "notebooks")
        assert status != 0
        assert executed == ["environment"]
    assert not (clone / ".venv/.complete").exists()


FRONT = """---
jupytext:
  text_representation:
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---
"""


def run_notebook(source: Path, output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "tools/run_notebook.py", str(source), str(output)]
    profile = ["--profile", "notebooks/profiles/smoke.yml"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *profile], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_a_notebook_whose_cell_fails_leaves_no_output(tmp_path: Path) -> None:
    source, output = tmp_path / "bad.md", tmp_path / "bad.ipynb"
    source.write_text(FRONT + "\n```{code-cell} python\n1 / 0\n```\n")
    process = run_notebook(source, output)
    assert "ZeroDivisionError" in process.communicate()[1]
    assert process.returncode == 1
    assert not output.exists()
    assert (tmp_path / "bad.failed.ipynb").exists()


@pytest.mark.parametrize(
    "text, said",
    [
        (b"", "is empty or holds no code cell"),
        (FRONT.encode() + b"\nonly prose\n", "is empty or holds no code cell"),
        (b"```{code-cell} python\n1\n```\n", "begins with no `kernelspec`"),
        (FRONT.encode() + b"\xff\n", "must be UTF-8"),
    ],
)
def test_a_source_that_is_no_notebook(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "odd.md").write_bytes(text)
    with pytest.raises(run_notebook_tool.NotebookError, match=said):
        run_notebook_tool.read_source(tmp_path / "odd.md")


def test_a_byte_order_mark_does_not_hide_the_header(tmp_path: Path) -> None:
    text = FRONT + "\n```{code-cell} python\n1\n```\n"
    (tmp_path / "marked.md").write_text("\ufeff" + text, encoding="utf-8")
    assert run_notebook_tool.read_source(tmp_path / "marked.md").metadata.kernelspec.name


@pytest.mark.slow
def test_a_kernel_that_lost_its_port_to_another_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_notebook_tool.time, "sleep", lambda seconds: None)
    said = ["Kernel died before replying to kernel_info"] * 3

    def start() -> None:
        if said:
            raise RuntimeError(said.pop())

    run_notebook_tool.started(start)
    said += ["Kernel died before replying to kernel_info"] * 4
    with pytest.raises(RuntimeError, match="Kernel died"):
        run_notebook_tool.started(start)
    said[:] = ["out of memory", "not reached"]
    with pytest.raises(RuntimeError, match="not reached"):
        run_notebook_tool.started(start)
    assert said == ["out of memory"]


def test_two_builds_at_once_share_a_notebook(tmp_path: Path) -> None:
    """The second waits and takes what the first has made."""
    source, output, runs = tmp_path / "page.md", tmp_path / "page.ipynb", tmp_path / "runs"
    cell = f"import time; time.sleep(2); open({str(runs)!r}, 'a').write('x')"
    source.write_text(FRONT + f"\n```{{code-cell}} python\n{cell}\n```\n")
    both = [run_notebook(source, output), run_notebook(source, output)]
    assert [process.communicate() and process.returncode for process in both] == [0, 0]
    assert output.exists() and runs.read_text() == "x"


@pytest.mark.parametrize("folder", ["my drive", "a#b", "a$b", "Übung 1", "it's (here) & there"])
def test_a_checkout_may_lie_anywhere(clone: Path, folder: str) -> None:
    home = clone.parent / folder / "ovss"
    home.parent.mkdir()
    shutil.copytree(clone, home, copy_function=shutil.copy2)
    assert make(home, "notebooks") == (0, ["one.md", "two.md", "board.md"])
    assert make(home, "notebooks") == (0, [])


def test_only_pages_with_a_source_are_staged(tmp_path: Path) -> None:
    """Not those of a removed source, a failed run or a killed one."""
    sources, built = tmp_path / "notebooks", tmp_path / "built"
    for name in ("0-lab/one.md", "profiles/lab.yml"):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).touch()
    staged = stage.executed_pages(sources, built)
    assert staged == {"0-lab/one.ipynb": built / "0-lab" / "one.ipynb"}


def test_the_longest_notebooks_start_first_and_exist() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    names = re.search(r"^LONGEST := (.*)$", text, re.MULTILINE)
    assert names
    assert all((ROOT / "notebooks" / f"{name}.md").is_file() for name in names[1].split())


def test_the_lock_pins_everything_by_hash_and_names_no_host() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[a-z0-9])", text.partition("make lock\n")[2])
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
    assert "://" not in text
    assert "--index" not in text


def test_the_lock_has_what_was_asked_for() -> None:
    wanted = (ROOT / "requirements.in").read_text(encoding="utf-8")
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for line in wanted.splitlines():
        if name := re.match(r"[A-Za-z][\w.-]*", line):
            normal = re.sub(r"[-_.]+", "-", name[0]).lower()
            assert re.search(rf"^{normal}==", locked, re.MULTILINE), normal


def test_the_contents_and_the_pages_agree() -> None:
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    listed = re.findall(r"(?:file|root): (\S+)", contents)
    written = [
        path.relative_to(base).with_suffix("").as_posix()
        for base in (ROOT / "book", ROOT / "notebooks")
        for path in base.rglob("*.md")
    ]
    assert sorted(listed) == sorted(written)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_can_be_opened_run_and_parametrised(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["jupytext"]["text_representation"]["format_name"] == "myst"
    assert front["kernelspec"]["name"] == "python3"
    assert re.search(r"^:?tags: ?\[.*parameters|^:?tags:\n- parameters", text, re.MULTILINE)
    assert not path.with_suffix(".ipynb").exists(), "two sources of one page"


def test_the_readme_shows_the_current_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    current = readme_table.table(ROOT / "data" / "results" / "lab")
    message = "make it again: python tools/readme_table.py --write"
    assert readme_table.spliced(text, current) == text, message


def test_the_readme_says_so_when_nothing_was_measured(tmp_path: Path) -> None:
    assert readme_table.table(tmp_path) == readme_table.NONE


def test_the_readme_table_has_a_row_per_method_and_a_column_per_data_set(tmp_path: Path) -> None:
    from ovss.reporting import results

    common = {"experiment": "cliper-table1", "protocol": "mmseg", "images": 9, "profile": "lab"}
    cells = [("clip", "lab-20", 10.04), ("cliper", "lab-20", 30.0), ("cliper", "lab-all", 40.0)]
    results.write(
        tmp_path / "cliper-table1.csv",
        [
            {**common, "row": row, "dataset": data, "metric": "mIoU", "value": value}
            for row, data, value in cells
        ],
    )
    lines = readme_table.table(tmp_path).splitlines()[2:]
    title = readme_table.SHOWN["cliper-table1"]
    assert lines[0] == f"| {title} | lab-20 (mmseg) | lab-all (mmseg) |"
    assert lines[2] == "| clip | 10.0 (9) |  |"
    assert lines[3] == "| cliper | 30.0 (9) | 40.0 (9) |"


def test_staging_mirrors_and_leaves_equal_files_untouched(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "part").mkdir(parents=True)
    (source / "part" / "page.md").write_text("page")
    stage.copy(stage.pages(source), target)
    os.utime(target / "part" / "page.md", (1, 1))
    (target / "gone.md").write_text("of an earlier build")
    stage.copy(stage.pages(source), target)
    assert sorted(stage.pages(target)) == ["part/page.md"]
    assert (target / "part" / "page.md").stat().st_mtime == 1
