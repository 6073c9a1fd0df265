"""The cards of the lab's zoo as tables and sentences."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ovss.backbones.registry import ZOO
from ovss.lab import cards
from ovss.lab.captions import Habits
from ovss.lab.scenes import MOTLEY, World
from ovss.lab.zoo import TRAINERS
from ovss.reporting.tables import table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model "tower"; its card passes one gate and misses another."""
    monkeypatch.setenv("OVSS_DATA", str(tmp_path))
    path = tmp_path / "lab" / "zoo" / "tower"
    path.mkdir(parents=True)
    write_card(path, True, False)
    return path


def write_card(folder: Path, *passed: bool, **changes: Any) -> None:
    gates = [
        {"name": f"gate {n}", "what": "it stands", "threshold": 50.0, "passed": one,
         "measured": 60.0 if one else 40.0}
        for n, one in enumerate(passed, 1)
    ]  # fmt: skip
    stages = [{"images": 8, "batch": 4, "world": {"tilt": 15.0}, "learns": "image"}]
    content = {
        "name": "tower", "what": "a tower", "parameters": 12, "images_seen": 8, "minutes": 0.5,
        "machine": "a machine", "torch": "2.0", "sha256": "0123456789abcdef", "gates": gates,
        "recipe": {"rate": 0.1, "stages": stages}, "tune": {"match": 70.0}, "val": {"match": 60.0},
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(content | changes))


def test_a_card_at_a_glance(folder: Path) -> None:
    seen = cards.glance("tower")["tower"]
    assert seen["parameters"] == "12" and seen["images seen"] == "8"
    assert seen["date"] == "not stated"
    assert seen["sha256"] == "0123456789ab …"
    assert cards.scores("tower").loc["match"].tolist() == [70.0, 60.0]


def test_stages_without_their_worlds(folder: Path) -> None:
    assert cards.stages("tower").to_dict("index") == {
        1: {"images": "8", "batch": "4", "learns": "image"}
    }
    write_card(folder, recipe={"rate": 0.1, "sizes": [0.5, 1.0]})
    assert cards.stages("tower").to_dict("index") == {1: {"rate": "0.1"}}


def test_a_world_comes_back_from_a_card(folder: Path) -> None:
    world = World(things=(1.0,), habits=Habits(name_colour=0.5), disguise=MOTLEY.disguise)
    assert cards.world_of(json.loads(json.dumps(asdict(world)))) == world
    assert cards.world_of({"tilt": 5.0}) == World(tilt=5.0)


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        ((), "has no gate"),
        ((True,), "passes its one gate"),
        ((False,), "misses its one gate"),
        ((True, True), "passes both its gates"),
        ((False, False, False), "misses all its 3 gates"),
        ((True, False, False), "passes 1 of its 3 gates and misses gate 2, gate 3"),
    ],
)
def test_the_standing_at_the_gates(folder: Path, passed: tuple[bool, ...], said: str) -> None:
    write_card(folder, *passed)
    assert cards.standing("tower") == said


def test_networks_in_one_table(folder: Path) -> None:
    found = cards.networks(["tower"])
    assert found.loc["tower"].tolist() == [
        "a tower", 12, 8, 0.5, "a machine",
        "gate 1 60.0 of 50.0, passed; gate 2 40.0 of 50.0, missed",
    ]  # fmt: skip
    assert "scenes seen" in table(found, "One.", "tab-one").markdown()


def test_a_diary_is_a_list_and_need_not_be_there(folder: Path) -> None:
    assert cards.read_tried("tower") == ""
    (folder / "tried.md").write_text("# What was tried\n\nBy hand.\n\n- One thing.\n- Another.\n")
    assert cards.read_tried("tower") == "- One thing.\n- Another.\n"


def test_the_first_of_the_best_points_is_kept() -> None:
    curve = [{"a": 1.0, "b": 5.0}, {"a": 4.0, "b": 3.0}, {"a": 3.0, "b": 4.0}, {"a": 5.0, "b": 0.0}]
    assert cards.kept_point(curve, ("a", "b")) == 1
    assert cards.kept_point(curve, ("a",)) == 3
    assert cards.kept_point(curve, ()) == 3


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_can_be_shown(name: str) -> None:
    assert list(cards.networks().index) == list(ZOO)
    assert cards.glance(name).loc["parameters", name].isdigit()
    assert len(cards.scores(name)) and len(cards.stages(name))
    assert cards.standing(name).split()[0] in ("passes", "misses")
    curve = cards.read_curve(name)
    chosen = [metric for metric in TRAINERS[name].selected_by if metric in curve[0]]
    assert 0 <= cards.kept_point(curve, chosen) < len(curve)
