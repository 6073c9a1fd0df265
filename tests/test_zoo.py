"""The command that trains the lab's networks: estimates, names it does not know."""

from __future__ import annotations

from typing import Any

import pytest

from ovss.lab import zoo
from ovss.lab.zoo import TRAINERS, estimate, main


def test_the_estimate_follows_the_committed_networks_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    images = {name: TRAINERS[name].default_recipe.images for name in TRAINERS}

    def card(name: str) -> dict[str, Any]:
        if name == "sd":
            raise FileNotFoundError
        return {"minutes": 30.0, "images_seen": images[name] / 2, "machine": "a small one"}

    monkeypatch.setattr(zoo, "read_card", card)
    lines = estimate(["clip", "sd", "mae"]).splitlines()
    assert (
        lines[0] == f"clip: {images['clip']:,} images, about 60 minutes at the pace of a small one"
    )
    assert lines[1] == f"sd: {images['sd']:,} images, no estimate, there is no card"
    assert lines[3].startswith("in all about 2.0 hours")
    assert len(estimate(["clip"]).splitlines()) == 1


def test_a_name_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["clipp"])
    assert stopped.value.code == 2
    assert "unknown model 'clipp'; known: clip, mae, dino" in capsys.readouterr().err
