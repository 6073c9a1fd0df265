"""A mask's labels, as they were drawn, on the upright pixels of its image."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..errors import DatasetError
from ..images import Photo, open_image, read_orientation, upright

LOSSLESS = ("PNG", "BMP", "TIFF")  # formats that keep every label
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # compressions of TIFF that do not
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def read_mask(path: Path, photo: Photo) -> NDArray[np.uint8]:
    """Read labels [H, W] that lie on the pixels of `photo.image`.

    Images are turned upright by their EXIF orientation. A mask with a tag of its own is turned by
    that; one without lies, by rule, on the pixels as they are stored and is turned with its image,
    unless its size shows that it was drawn on the upright ones. Where no size decides (half turns,
    mirrored and square images) a line on stderr says that the rule was used.

    Raises:
        DatasetError: no such file, damaged, of a lossy format, no palette or 8-bit grey image, or
            of another size than the image; the message names the file.
    """
    with open_image(path, "mask", DatasetError) as image:
        _check_format(image, path)
        image.load()
        if image.mode not in ("P", "L"):
            raise DatasetError(f"the mask {path} is {image.mode}, not a palette or grey image")
        turned = upright(image, read_orientation(image) or _turn(image, photo, path))
        values = np.asarray(turned)  # [H, W]
    if turned.size != photo.image.size:
        width, height = photo.image.size
        tag = f" (EXIF orientation {photo.orientation})" if photo.orientation > 1 else ""
        raise DatasetError(
            f"{path} is {image.width} x {image.height}, its image {width} x {height}{tag}"
        )
    return values


def _check_format(image: Image.Image, path: Path) -> None:
    """Refuse what changes labels: lossy compression, and grey values of fewer than 8 bits."""
    compression = image.info.get("compression") if image.format == "TIFF" else None
    if image.format not in LOSSLESS or compression in LOSSY_TIFF:
        stored = f"{image.format} ({compression})" if compression else image.format
        raise DatasetError(
            f"the mask {path} is stored as {stored}, which does not keep labels as they were "
            "drawn: save it as PNG from the original"
        )
    tile = getattr(image, "tile", ())
    layout = str(tile[0][3]) if tile else ""  # "L;4": 4 bits, which Pillow scales
    if image.mode == "L" and ";" in layout:
        raise DatasetError(
            f"the mask {path} is grey of fewer than 8 bits ({layout}), whose values are scaled "
            "when they are read: save it with 8 bits or a palette"
        )


def _turn(image: Image.Image, photo: Photo, path: Path) -> int:
    """The orientation to turn a mask by that has no tag of its own."""
    if photo.orientation <= 1:
        return 1
    width, height = photo.image.size
    if photo.orientation in QUARTER_TURNS and width != height:
        return photo.orientation if image.size == (height, width) else 1
    told = (
        f"{photo.name} has EXIF orientation {photo.orientation} and its mask {path} has none: the "
        "labels are taken to lie on the stored pixels (give the mask a tag of its own to say "
        "otherwise)"
    )
    tqdm.write(told, file=sys.stderr)  # a line of its own, whatever bar is shown
    return photo.orientation
