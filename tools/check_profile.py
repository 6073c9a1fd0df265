"""Check a profile, the few parameters that every notebook takes: `check_profile.py FILE ...`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from ovss.errors import OvssError, ProfileError

NAMES = ("lab", "smoke", "paper")
KEYS = {
    "profile": "lab (miniature world), smoke (a handful of images of it) or paper (real ones)",
    "limit": "images per evaluation; null for all",
    "seed": "of every draw",
    "device": "cpu, cuda, ...",
    "bootstrap": "resamples of every interval",
}


def check_parameters(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The parameters in a profile's file (papermill would let an unknown key pass).

    Raises:
        ProfileError: naming the key that is unknown, and the allowed ones.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        values, node = yaml.safe_load(text), yaml.compose(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ProfileError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ProfileError(f"{path} must hold `key: value` lines, allowed: {', '.join(KEYS)}")
    _check_spelling(path, node)
    for key, value in values.items():
        if key not in KEYS:
            raise ProfileError(f"{path}: unknown key {key!r}; allowed: {', '.join(KEYS)}")
        _check(path, key, value)
    if "profile" not in values:
        raise ProfileError(f"{path}: the key 'profile' is missing ({', '.join(NAMES)})")
    return values


def main() -> int:
    """`tools/check_profile.py FILE ...`: exit 2 with one line if a profile is wrong."""
    try:
        for path in sys.argv[1:]:
            check_parameters(path)
    except OvssError as error:
        print(f"ovss: error: {error}", file=sys.stderr)
        return 2
    return 0


def _check_spelling(path: str | os.PathLike[str], node: Any) -> None:
    """No key twice, and numbers as they look: YAML reads 010 as 8 and 12:30 as 750."""
    keys = [key.value for key, _ in node.value]
    for key, value in node.value:
        if keys.count(key.value) > 1:
            raise ProfileError(f"{path}: the key {key.value!r} is given twice")
        if value.tag.endswith(":int") and value.value != str(yaml.safe_load(value.value)):
            raise ProfileError(
                f"{path}: {key.value}: {value.value} is ambiguous: write 1, 2, 3 ..."
            )


def _check(path: str | os.PathLike[str], key: str, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    rules = {
        "profile": (value in NAMES, f"one of {', '.join(NAMES)}"),
        "limit": (value is None or (whole and value > 0), "a number of images, or null"),
        "seed": (whole and value >= 0, "a whole number"),
        "device": (isinstance(value, str) and bool(value), "a device such as cpu or cuda"),
        "bootstrap": (whole and value > 0, "a number of resamples"),
    }
    fits, wanted = rules[key]
    if not fits:
        raise ProfileError(f"{path}: {key} must be {wanted}, got {value!r}")


if __name__ == "__main__":
    raise SystemExit(main())
