"""Profiles: the shipped ones are right, and a wrong key is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ovss.errors import ProfileError

ROOT = Path(__file__).parents[1]
PROFILES = ROOT / "notebooks" / "profiles"
sys.path.insert(0, str(ROOT / "tools"))

from check_profile import KEYS, NAMES, check_parameters, main  # noqa: E402


@pytest.mark.parametrize("name", NAMES)
def test_shipped_profiles(name: str) -> None:
    profile = check_parameters(PROFILES / f"{name}.yml")
    assert profile["profile"] == name and set(profile) == set(KEYS)
    assert (profile["limit"] is None) == (name != "smoke")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("profile: lab\nlimit: 12\n")
    assert check_parameters(path) == {"profile": "lab", "limit": 12}


@pytest.mark.parametrize(
    "text, said",
    [
        ("profile: lab\nlimits: 3\n", r"mine\.yml: unknown key 'limits'; allowed: .*limit"),
        ("limit: 3\n", "'profile' is missing"),
        ("profile: big\n", "one of lab, smoke, paper"),
        ("profile: lab\nlimit: 0\n", "limit must be"),
        ("profile: lab\nlimit: yes\n", "limit must be"),
        ("profile: lab\nlimit: '3'\n", "limit must be"),
        ("profile: lab\nseed: -1\n", "seed must be"),
        ("profile: lab\ndevice: 3\n", "device must be"),
        ("profile: lab\nbootstrap: 1.5\n", "bootstrap must be"),
        ("- profile\n", "key: value"),
        ("", "key: value"),
        ("profile: [lab\n", "cannot be read"),
        ("profile: lab\nlimit: 010\n", "limit: 010 is ambiguous"),
        ("profile: lab\nlimit: 12:30\n", "limit: 12:30 is ambiguous"),
        ("profile: lab\nseed: 0x10\n", "seed: 0x10 is ambiguous"),
        ("profile: lab\nseed: 1\nseed: 2\n", "'seed' is given twice"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=said):
        check_parameters(path)


def test_no_such_profile(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"labb\.yml cannot be read"):
        check_parameters(tmp_path / "labb.yml")


def test_as_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("profile: lab\nspeed: 3\n")
    monkeypatch.setattr("sys.argv", ["profiles", str(path)])
    assert main() == 2
    err = capsys.readouterr().err
    assert err.startswith("ovss: error:") and err.count("\n") == 1
    path.write_text("profile: lab\n")
    assert main() == 0
