"""Profiles: the shipped ones are right, and a wrong key is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovss.errors import ProfileError
from ovss.profiles import KEYS, NAMES, Profile, check_parameters, load_profile, main


@pytest.mark.parametrize("name", NAMES)
def test_shipped_profiles(name: str) -> None:
    profile = load_profile(name)
    assert profile.profile == name
    assert (profile.limit is None) == (name != "smoke")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("profile: lab\nlimit: 12\n")
    assert load_profile(path) == Profile("lab", limit=12)
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
    ],
)
def test_wrong_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=said):
        load_profile(path)


def test_unknown_profile() -> None:
    with pytest.raises(ProfileError, match="no profile 'labb': lab, smoke, paper"):
        load_profile("labb")
    assert KEYS == ("profile", "limit", "seed", "device", "bootstrap")


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
