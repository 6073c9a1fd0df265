"""Labels of pixels: 0..K-1 is a class; what the other values mean, and their colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BACKGROUND = -1  # none of the classes
IGNORE = -2  # a pixel of a target that does not count


def palette(classes: int) -> NDArray[np.uint8]:
    """PASCAL VOC's colours, [classes + 1, 3] uint8; row 0 (black) is the background."""
    index = np.arange(classes + 1)
    colours = np.zeros((classes + 1, 3), dtype=np.uint8)
    for bit in range(8):  # three bits of the index at a time, one per channel, high bits first
        for channel in range(3):
            value = (index >> (3 * bit + channel)) & 1
            colours[:, channel] |= (value << (7 - bit)).astype(np.uint8)
    return colours
