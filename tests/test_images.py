"""Every kind of image a user may bring, and every kind of thing that is none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovss.errors import ImageError
from ovss.images import read_image

RAMP = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def pixels(source: Any) -> np.ndarray:
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_forms_of_one_image_agree(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "ramp.png")
    forms = [
        tmp_path / "ramp.png",
        str(tmp_path / "ramp.png"),
        Image.fromarray(RAMP),
        RAMP,
        RAMP / 255,
        (RAMP / 255).astype(np.float32),
        RAMP.astype(np.uint16) * 257,
        torch.tensor(RAMP).permute(2, 0, 1),
        torch.tensor(RAMP).permute(2, 0, 1) / 255,
        RAMP[::-1][::-1],  # a view with its own strides
    ]
    for form in forms:
        np.testing.assert_array_equal(pixels(form), RAMP)


def test_grey_becomes_three_equal_channels() -> None:
    grey = RAMP[:, :, 0]
    for form in (grey, grey[:, :, None], Image.fromarray(grey), torch.tensor(grey)[None]):
        np.testing.assert_array_equal(pixels(form), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes(mode: str) -> None:
    grey = Image.fromarray(RAMP[:, :, 0])
    source = grey.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", grey.size)
    assert pixels(source).shape == (6, 4, 3)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    clear = np.zeros((2, 2, 4), dtype=np.uint8)
    clear[0, 0] = (255, 0, 0, 255)
    for form in (clear, Image.fromarray(clear), torch.tensor(clear).permute(2, 0, 1)):
        found = pixels(form)
        assert found[0, 0].tolist() == [255, 0, 0] and found[1, 1].tolist() == [255] * 3
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.save(tmp_path / "p.png", transparency=0)
    assert pixels(tmp_path / "p.png")[0, 0].tolist() == [255] * 3


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    Image.fromarray(RAMP).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "turned.png"), np.rot90(RAMP, -1))


def test_sixteen_bits(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    found = pixels(tmp_path / "deep.png")[:, :, 0]
    np.testing.assert_array_equal(found, (deep / 257 + 0.5).astype(np.uint8))
    wide = Image.fromarray(deep.astype(np.int32))
    np.testing.assert_array_equal(pixels(wide)[:, :, 0], found)
    narrow = Image.fromarray(np.array([[0, 200]], dtype=np.int32))
    assert pixels(narrow)[0, :, 0].tolist() == [0, 200]
    real = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert pixels(real)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("size", [(1, 1), (10_000, 20), (20, 10_000)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    assert read_image(Image.new("RGB", size)).size == size


def damaged_files() -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    png = buffer.getvalue()
    return {
        "empty.png": b"",
        "text.jpg": b"this is a letter, not a picture",
        "truncated.png": png[: len(png) // 2],
        "header.png": png[:30],
        "flipped.png": png[:60] + bytes([png[60] ^ 255]) + png[61:],
    }


@pytest.mark.parametrize("name", sorted(damaged_files()))
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(damaged_files()[name])
    with pytest.raises(ImageError, match=name):
        read_image(path)
    if name == "truncated.png":
        with pytest.raises(ImageError, match="truncated"), Image.open(path) as image:
            read_image(image)


@pytest.mark.parametrize(
    "source, said",
    [
        (None, "NoneType"),
        (3.0, "float"),
        (b"bytes", "bytes"),
        (np.zeros((3, 4, 5)), r"\[3, 4, 5\]"),
        (np.zeros((3, 4, 2)), r"\[3, 4, 2\]"),
        (np.zeros((2, 3, 4, 3)), r"\[2, 3, 4, 3\]"),
        (np.zeros(4), r"\[4\]"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.full((2, 2, 3), np.nan), "NaN"),
        (np.full((2, 2, 3), np.inf), "NaN"),
        (np.full((2, 2, 3), 17.0), "0, 1"),
        (np.full((2, 2, 3), -0.2), "0, 1"),
        (np.zeros((2, 2, 3), np.int64), "int64"),
        (np.zeros((2, 2, 3), np.complex64), "complex64"),
        (np.zeros((2, 2, 3), dtype=object), "object"),
        (torch.zeros(2, 3, 4, 4), "batch as a list"),
        (torch.zeros(5, 4, 3), r"\[5, 4, 3\]"),
        (torch.full((3, 2, 2), float("nan")), "NaN"),
        (Image.new("RGB", (0, 5)), "empty"),
    ],
)
def test_refuses(source: Any, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        read_image(source)


def test_refuses_absent_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such image file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="folder"):
        read_image(tmp_path)
