"""Checks of the numbers and switches that a caller gives, before anything is computed with them."""

from __future__ import annotations

import dataclasses
import math
from numbers import Integral, Real
from typing import Any

from .errors import OvssError, one_line

SHORT_SIDE = (1, 1 << 14)  # pixels
IMAGES = (1, 1 << 20)  # in a network at once
LOGIT_SCALE = (0.01, 1e6)  # a factor of cosines; 0 would make all classes alike

Range = tuple[float, float]  # least and largest value; two whole numbers ask for a whole one


def check_number(name: str, value: object, least: float, most: float = math.inf) -> None:
    """Check that an option is a finite number from `least` to `most`.

    Raises:
        OvssError: it is none, out of range, or no whole number where `least` is one (an int).
    """
    whole = isinstance(least, int)
    kind = Integral if whole else Real
    number = isinstance(value, kind) and not isinstance(value, bool)
    if not number or not least <= value <= most or value == math.inf:  # type: ignore[operator]
        noun = "a whole number" if whole else "a number"
        bounds = f"of at least {least}" if math.isinf(most) else f"from {least} to {most}"
        raise OvssError(f"{name} must be {noun} {bounds}, got {one_line(repr(value), 60)}")


def check_fields(part: Any, **ranges: Range) -> None:
    """Check the switches of a dataclass, and its numbers named in `ranges`.

    A field whose type allows None may be None.

    Args:
        part: an instance of a dataclass.
        ranges: for a field's name the least and the largest value.

    Raises:
        OvssError: a number is none or out of range; or a switch is neither True nor False, such as
            the text "no", which Python takes for true.
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(part)}
    for name, kind in types.items():
        value = getattr(part, name)
        if kind == "bool" and not isinstance(value, bool):
            raise OvssError(f"{name} must be True or False, got {one_line(repr(value), 60)}")
    for name, (least, most) in ranges.items():
        value = getattr(part, name)
        if value is not None or "None" not in types[name]:
            check_number(name, value, least, most)
