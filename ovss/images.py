"""Whatever a user calls an image -> a PIL image in RGB, or one clear error; and images as text."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .errors import DatasetError, ImageError, OvssError
from .files import check_file

ACCEPTED = "a path, a PIL image, an array [H, W, 3] or [H, W], or a tensor [3, H, W]"
LARGEST_FILE = 1 << 30  # bytes
MOST_PIXELS = 178_956_970  # where Pillow, too, takes an image for a decompression bomb
RUNS_PROGRAMS = ("EPS", "WMF")  # formats that Pillow hands to Ghostscript or to the system
ORIENTATION = 0x0112  # the EXIF tag
# EXIF orientation -> what turns the stored pixels upright (1: they are).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Photo:
    """An image file, read.

    Attributes:
        name: of the file, as it was given.
        image: RGB, upright.
        orientation: the EXIF orientation that the stored pixels had, 1 to 8; 0 without a tag.
    """

    name: str
    image: Image.Image
    orientation: int


def data_url(image: Image.Image, *, optimize: bool = False) -> str:
    """Encode an image as a URL that holds it whole, a PNG in base64; `optimize` saves bytes."""
    file = BytesIO()
    image.save(file, "PNG", optimize=optimize)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def to_pixels(
    image: Image.Image, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> torch.Tensor:
    """Normalise an RGB image by the mean and deviation of its channels: [3, H, W], float32."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # [3, H, W]
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (pixels - shift) / scale


def read_image(source: Any) -> Image.Image:
    """Give `source` as an RGB image, upright.

    EXIF orientation is applied, grey becomes RGB, transparency is laid over white, 16 bits become
    8. Other EXIF tags, damaged ones too, do not count.

    Args:
        source: a path; a PIL image; an array [H, W] or [H, W, 1|3|4], uint8, uint16, or float in
            [0, 1]; a tensor [1|3|4, H, W] of the same types.

    Raises:
        ImageError: anything else: no such file, a pipe or device, not an image, truncated, empty,
            NaN, a wrong shape or type, more than `MOST_PIXELS` pixels.
    """
    if isinstance(source, str | os.PathLike):
        return read_photo(source).image
    if isinstance(source, Image.Image):
        with one_line_errors("the PIL image", ImageError):
            return _from_pil(source, "the PIL image").image
    if isinstance(source, torch.Tensor):
        with one_line_errors("the tensor", ImageError):
            return _from_tensor(source)
    if isinstance(source, np.ndarray):
        with one_line_errors("the array", ImageError):
            return _from_array(source, "the array")
    raise ImageError(f"expected {ACCEPTED}, got {type(source).__name__}")


def read_photo(path: str | os.PathLike[str]) -> Photo:
    """Read an image file, as `read_image` does, and its EXIF orientation.

    Raises:
        ImageError: the file is no image that can be read; the message names it.
    """
    with open_image(path, "image file", ImageError) as image:
        return _from_pil(image, str(path))


@contextmanager
def open_image(
    path: str | os.PathLike[str], kind: str, error: type[ImageError] | type[DatasetError]
) -> Iterator[Image.Image]:
    """Open an image file: the one gate of photographs and masks.

    Within the block the pixels are loaded; whatever Pillow raises, there or in the block, becomes
    one line that names the file.

    Args:
        path: of the file, `~` expanded.
        kind: what it should be ("image file", "mask"), for the message.
        error: raised when there is no such regular file, when it is no image, damaged, or larger
            than `LARGEST_FILE` bytes or `MOST_PIXELS` pixels.
    """
    file = check_file(path, kind, error, LARGEST_FILE)
    with one_line_errors(f"the {kind} {file}", error):
        try:
            opened = Image.open(file)
        except UnidentifiedImageError:
            raise error(
                f"the {kind} {file} is damaged, or not an image that Pillow can read"
            ) from None
        with opened as image:
            if image.format in RUNS_PROGRAMS:
                raise error(f"{file} is {image.format}, which no image reader of ours opens")
            _check_size(image.width, image.height, str(file), error)
            yield image


@contextmanager
def one_line_errors(name: str, error: type[OvssError]) -> Iterator[None]:
    """Turn whatever a library raises about foreign bytes into one `error` that names them.

    Pillow's decoders raise ValueError, SyntaxError, struct.error, KeyError and more.
    """
    try:
        yield
    except OvssError:
        raise
    except MemoryError:
        raise error(f"{name} does not fit into memory") from None
    except Exception as reason:
        told = str(reason) or type(reason).__name__
        raise error(f"{name} is damaged or truncated: {told}") from None


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn or mirror the stored pixels as an EXIF orientation (0 to 8) says."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def read_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; 0 where there is none, or none that can be read."""
    try:
        value = image.getexif().get(ORIENTATION, 0)
        first = value[0] if isinstance(value, tuple | list | bytes) else value
        return int(first) if first in range(1, 9) else 0
    except Exception:  # a damaged block says nothing about the pixels
        return 0


def _from_pil(image: Image.Image, name: str) -> Photo:
    _check_size(image.width, image.height, name, ImageError)
    image.load()  # before the EXIF block, for whose sake some readers load, too
    orientation = read_orientation(image)
    found = _to_rgb(upright(image, orientation), name)
    found.info = {}  # without the tag, by which the next reader would turn it once more
    return Photo(name, found, orientation)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # more than 8 bits a channel
        return _from_array(_narrow(np.asarray(image)), name)
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image.convert("RGB")


def _check_size(width: int, height: int, name: str, error: type[OvssError]) -> None:
    if min(width, height) < 1:
        raise error(f"{name} is empty: {width} x {height} pixels")
    if width * height > MOST_PIXELS:
        raise error(f"{name} is {width} x {height}, more than {MOST_PIXELS} pixels")


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    """Arrays of Pillow's wide modes; integers of 32 bits hold 8-bit or 16-bit grey values."""
    if values.dtype.kind == "f":
        return values
    deep = values.dtype.itemsize == 2 or values.max() > 255
    return values.clip(0, 65535).astype(np.uint16) if deep else values.clip(0).astype(np.uint8)


def _over_white(image: Image.Image) -> Image.Image:
    page = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(page, image).convert("RGB")


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        shape = list(tensor.shape)
        raise ImageError(f"expected a tensor [3, H, W], got {shape}; give a batch as a list")
    channels = tensor.detach().cpu()
    if channels.dtype == torch.bfloat16:
        channels = channels.float()
    return _from_array(channels.permute(1, 2, 0).numpy(), "the tensor")  # [H, W, 1|3|4]


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(f"expected an array [H, W, 3] or [H, W], got {list(array.shape)}")
    _check_size(array.shape[1], array.shape[0], name, ImageError)
    image = Image.fromarray(np.ascontiguousarray(_to_bytes(array, name)))
    return _over_white(image) if image.mode == "RGBA" else image.convert("RGB")


def _to_bytes(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return (array / 257 + 0.5).astype(np.uint8)
    if array.dtype.kind != "f":
        raise ImageError(f"expected uint8, uint16 or float pixels, got {array.dtype}")
    if not np.isfinite(array).all():
        raise ImageError(f"{name} holds NaN or infinite values")
    low, high = float(array.min()), float(array.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ImageError(f"float pixels of {name} must lie in [0, 1], got {low:.4g} to {high:.4g}")
    return (array.clip(0, 1) * 255 + 0.5).astype(np.uint8)
