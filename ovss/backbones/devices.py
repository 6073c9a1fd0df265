"""Devices by name."""

from __future__ import annotations

import torch

from ..errors import OvssError


def find_device(name: str | torch.device) -> torch.device:
    """The device, once it has been tried: before anything large is loaded for it.

    Raises:
        OvssError: there is no such device here.
    """
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise OvssError(f"cannot use device {str(name)!r}: {error}") from None
    return place
