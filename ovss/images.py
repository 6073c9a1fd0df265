"""Whatever a user calls an image -> a PIL image in RGB, or one clear error; and images as text."""

from __future__ import annotations

import base64
import os
import struct
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError

ACCEPTED = "a path, a PIL image, an array [H, W, 3] or [H, W], or a tensor [3, H, W]"
# What Pillow raises for damaged files, besides OSError.
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, ZeroDivisionError)
WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # modes of more than 8 bits a channel


def data_url(image: Image.Image, *, optimize: bool = False) -> str:
    """An image as a URL that holds it whole, a PNG in base64; `optimize` takes time for size."""
    file = BytesIO()
    image.save(file, "PNG", optimize=optimize)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def read_image(source: Any) -> Image.Image:
    """Give `source` as an RGB image, upright.

    EXIF rotation is applied, grey becomes RGB, transparency is laid over white, 16 bits become 8.

    Args:
        source: a path; a PIL image; an array [H, W] or [H, W, 1|3|4], uint8, uint16, or float in
            [0, 1]; a tensor [1|3|4, H, W] of the same types.

    Raises:
        ImageError: anything else: no such file, not an image, truncated, empty, NaN, a wrong
            shape or type.
    """
    if isinstance(source, str | os.PathLike):
        return _from_path(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image")
    if isinstance(source, torch.Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise ImageError(f"expected {ACCEPTED}, got {type(source).__name__}")


def _from_path(path: str | os.PathLike[str]) -> Image.Image:
    name = os.fspath(path)
    if not os.path.exists(name):
        raise ImageError(f"no such image file: {name}")
    if os.path.isdir(name):
        raise ImageError(f"{name} is a folder, not an image")
    try:
        with Image.open(name) as image:
            return _from_pil(image, name)
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}") from None
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error}") from None


def _from_pil(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"{name} is empty: {image.width} x {image.height} pixels")
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except DAMAGED as error:
        raise ImageError(f"{name} is truncated or damaged: {error}") from None
    if upright.mode in WIDE:
        return _from_array(_narrow(np.asarray(upright)))
    if upright.has_transparency_data:
        return _over_white(upright.convert("RGBA"))
    return upright.convert("RGB")


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
    return _from_array(channels.permute(1, 2, 0).numpy())


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ImageError(f"expected an array [H, W, 3] or [H, W], got {list(array.shape)}")
    if array.size == 0:
        raise ImageError(f"the image is empty: {list(array.shape)}")
    image = Image.fromarray(np.ascontiguousarray(_to_bytes(array)))
    return _over_white(image) if image.mode == "RGBA" else image.convert("RGB")


def _to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array / 257 + 0.5).astype(np.uint8)
    if array.dtype.kind != "f":
        raise ImageError(f"expected uint8, uint16 or float pixels, got {array.dtype}")
    if not np.isfinite(array).all():
        raise ImageError("the image holds NaN or infinite values")
    low, high = float(array.min()), float(array.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ImageError(f"float pixels must lie in [0, 1], got {low:.4g} to {high:.4g}")
    return (array.clip(0, 1) * 255 + 0.5).astype(np.uint8)
