"""The notebooks as text: anchors used once, exercises that are answered, layers from 1."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*/*.md"))
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in NOTEBOOKS}
FIRST = [path.stem for path in NOTEBOOKS if path.parent.name in ("0-lab", "1-cliper")]
EXERCISE = re.compile(r"`{3,4}\{exercise(?:-start)?\} (.+)\n:label: (\S+)")
SOLUTION = re.compile(
    r"\{solution-start\} (\S+)\n:class: dropdown\n`{3,4}\n(.*?)`{3,4}\{solution-end\}", re.DOTALL
)


def test_tables_and_figures_have_anchors_of_their_own() -> None:
    found = [name for text in TEXTS.values() for name in re.findall(r'"(tab-[\w-]+)"', text)]
    found += [name for text in TEXTS.values() for name in re.findall(r"    name: (fig-\S+)", text)]
    assert len(found) > 60
    assert [name for name, count in Counter(found).items() if count > 1] == []


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_exercise_has_its_solution(name: str) -> None:
    asked = [label for _, label in EXERCISE.findall(TEXTS[name])]
    answered = [label for label, _ in SOLUTION.findall(TEXTS[name])]
    assert asked == answered


@pytest.mark.parametrize("name", FIRST)
def test_exercises_say_how_hard_they_are_and_answers_have_a_sentence(name: str) -> None:
    for title, label in EXERCISE.findall(TEXTS[name]):
        assert re.fullmatch(r"★{1,3} .+ \((modify|predict|break)\)", title), label
        assert "^" not in title and "$" not in title, label
    for label, body in SOLUTION.findall(TEXTS[name]):
        prose = re.sub(r"```\{code-cell\}.*?```", "", body, flags=re.DOTALL).strip()
        assert re.search(r"\w{2,}.{20,}[.?!:)]", prose, re.DOTALL), label


@pytest.mark.parametrize("name", FIRST)
def test_a_page_begins_with_its_answer(name: str) -> None:
    assert name == "scoring" or name in NO_ANSWER or "\n**In two lines.** " in TEXTS[name]


NO_ANSWER = ("tables", "ablations", "point-by-point")  # their answers are computed
