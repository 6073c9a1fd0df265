"""What users hand in, at its gates: images, masks, lists, words, destinations, with made-up input.

Each gate either gives what it promises or raises one `OvssError` whose message is one printable
line of bounded length.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ovss import Segmenter, Vocabulary
from ovss.datasets import open_dataset
from ovss.datasets.base import check_inside, read_ids, read_names
from ovss.errors import (
    LONGEST,
    UNPRINTABLE,
    DatasetError,
    ImageError,
    OvssError,
    UnknownNameError,
    printable,
    shorten,
)
from ovss.files import atomic, check_destination, read_lines, read_text
from ovss.images import read_image, read_orientation
from ovss.paths import data
from ovss.segmentation import check_output
from test_evaluate import environment
from toys import ColourMethod

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, of EXIF blocks
UPRIGHT = np.zeros((40, 60, 3), np.uint8)
UPRIGHT[:20, :30] = (200, 30, 30)
TEXT = st.text(st.characters(codec=None), max_size=40)


@contextmanager
def in_seconds(limit: int = 20) -> Iterator[None]:
    """A block that must end: one that waits for a pipe is an error, not a test that hangs."""

    def late(*_: Any) -> None:
        raise TimeoutError("still waiting")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def one_line(*kinds: type[OvssError]) -> Iterator[None]:
    """A block that may raise one of `kinds`, whose message anyone can read."""
    try:
        yield
    except kinds as error:
        message = str(error)
        assert message and len(message) <= LONGEST and not UNPRINTABLE.search(message)


def stored(format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(UPRIGHT).save(file, format, **options)
    return file.getvalue()


FILES = {
    format: stored(format)
    for format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "JPEG2000")
}


# --- Images ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@settings(max_examples=80)
@given(
    format=st.sampled_from(sorted(FILES)),
    cut=st.floats(0, 1),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6)), max_size=3
    ),
)
def test_damaged_bytes_are_an_image_or_one_line(
    folder: Path, format: str, cut: float, changes: list[tuple[float, bytes]]
) -> None:
    content = bytearray(FILES[format])
    for place, piece in changes:
        start = int(place * len(content))
        content[start : start + len(piece)] = piece
    path = folder / "damaged.png"
    path.write_bytes(content[: round(len(content) * (1 - cut**4))])
    try:
        image = read_image(path)
        assert image.mode == "RGB"
    except ImageError as error:
        assert "damaged.png" in str(error) and "\n" not in str(error)


def with_exif(block: bytes) -> bytes:
    jpeg = FILES["JPEG"]
    segment = b"Exif\0\0" + block
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


ENTRY = st.tuples(
    st.integers(0, 0xFFFF).filter(lambda tag: tag != 0x0112),
    st.integers(0, 14),
    st.integers(0, 300),
    st.binary(min_size=4, max_size=4),
)


@settings(max_examples=80)
@given(
    orientation=st.integers(1, 8), entries=st.lists(ENTRY, max_size=4), tail=st.binary(max_size=40)
)
def test_no_exif_tag_but_the_orientation_counts(
    folder: Path,
    orientation: int,
    entries: list[tuple[int, int, int, bytes]],
    tail: bytes,
) -> None:
    """Whatever else the block holds: the photo is read, and turned as its orientation says."""
    turned = (0x0112, 3, 1, struct.pack("<HH", orientation, 0))
    block = b"II*\0" + struct.pack("<IH", 8, 1 + len(entries))
    for tag, kind, count, value in [turned, *entries]:
        block += struct.pack("<HHI", tag, kind, count) + value
    path = folder / "photo.jpg"
    path.write_bytes(with_exif(block + struct.pack("<I", 0) + tail))
    assert read_image(path).size == ((40, 60) if orientation > 4 else (60, 40))


@settings(max_examples=60)
@given(block=st.binary(max_size=80))
@example(block=b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff")
def test_a_broken_exif_block_damages_no_photo(folder: Path, block: bytes) -> None:
    (folder / "photo.jpg").write_bytes(with_exif(block))
    assert sorted(read_image(folder / "photo.jpg").size) == [40, 60]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation: int, folder: Path) -> None:
    expected = {
        1: UPRIGHT,
        2: UPRIGHT[:, ::-1],
        3: UPRIGHT[::-1, ::-1],
        4: UPRIGHT[::-1],
        5: UPRIGHT.transpose(1, 0, 2),
        6: np.rot90(UPRIGHT, -1),
        7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(UPRIGHT),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "jpg", "tif", "webp"):
        path = folder / f"turned.{suffix}"
        Image.fromarray(UPRIGHT).save(path, exif=exif)
        once = read_image(path)
        assert once.size == expected.shape[1::-1]
        assert suffix != "png" or np.array_equal(np.asarray(once), expected)
        np.testing.assert_array_equal(np.asarray(read_image(once)), np.asarray(once))
    with Image.open(path) as opened:  # a PIL image of the user's keeps its tag
        assert read_image(opened).size == once.size
        assert read_orientation(opened) == orientation


@settings(max_examples=60)
@given(
    array=hnp.arrays(
        st.one_of(
            hnp.integer_dtypes(endianness="?"),
            hnp.unsigned_integer_dtypes(endianness="?"),
            hnp.floating_dtypes(endianness="?"),
            hnp.boolean_dtypes(),
            hnp.complex_number_dtypes(),
            hnp.byte_string_dtypes(),
            hnp.datetime64_dtypes(),
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)
def test_any_array_is_an_image_or_one_line(array: np.ndarray) -> None:
    with one_line(ImageError):
        image = read_image(array)
        assert (image.height, image.width) == array.shape[:2] and image.mode == "RGB"
        assert array.dtype.kind != "f" or np.isfinite(array).all()
    if array.ndim == 3:
        try:
            tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
        except (TypeError, ValueError):
            return
        with one_line(ImageError):
            assert read_image(tensor).size == array.shape[1::-1]


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "RGBa", "RGBX", "LA", "La", "PA", "CMYK", "YCbCr", "LAB",
             "HSV", "I", "F", "I;16", "I;16B", "I;16L"],
)  # fmt: skip
def test_every_mode_of_pillow(mode: str) -> None:
    assert read_image(Image.new(mode, (3, 2))).size == (3, 2)


def test_wide_pixels_of_the_other_byte_order() -> None:
    deep = np.linspace(0, 65535, 12).astype(">u2").reshape(3, 4)
    found = np.asarray(read_image(deep))[:, :, 0]
    np.testing.assert_array_equal(found, (deep / 257 + 0.5).astype(np.uint8))


def chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png(width: int, height: int, bits: int, kind: int, pixels: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 20_000_000, 9))
    bitmap = b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 60000, -60000, 1, 24, *[0] * 6
    )
    return {
        "pixels": png(20000, 20000, 1, 0, b""),
        "text": png(8, 8, 8, 2, (b"\0" + b"\x40" * 24) * 8, text),
        "width": png(2**31 - 1, 1, 8, 0, b""),
        "negative height": bitmap,
    }


@pytest.mark.parametrize("name", sorted(bombs()))
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_bombs_are_one_line(tmp_path: Path, name: str, kind: str) -> None:
    root = one_scene(tmp_path)
    path = root / ("JPEGImages/a.jpg" if kind == "image" else "SegmentationClass/a.png")
    path.write_bytes(bombs()[name])
    with pytest.raises(DatasetError, match=path.name) as caught, in_seconds():
        _ = open_dataset("voc21", root)[0]
    assert "\n" not in str(caught.value)


def test_an_array_that_only_seems_small() -> None:
    with pytest.raises(ImageError, match="pixels"):
        read_image(np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (10**6, 10**6, 3)))


def test_a_format_that_starts_programs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    with pytest.raises(ImageError, match="EPS"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("gate", ["image", "mask", "list", "text"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device", "absent", "long", "nul"])
def test_only_regular_files_are_opened(tmp_path: Path, gate: str, kind: str) -> None:
    root = one_scene(tmp_path)
    places = {
        "image": root / "JPEGImages/a.jpg",
        "mask": root / "SegmentationClass/a.png",
        "list": root / "ImageSets/Segmentation/val.txt",
        "text": root / "text.txt",
    }
    path = places[gate]
    path.unlink(missing_ok=True)
    make_odd(path, kind)
    other = {"long": "x" * 300, "nul": "a\0b"}.get(kind)
    with pytest.raises(OvssError) as caught, in_seconds(), socket.socket(socket.AF_UNIX):
        if gate in ("text", "list") and other:
            read_text(tmp_path / other, "list")
        elif gate == "text":
            read_text(path, "list")
        elif other:
            read_image(tmp_path / other)
        else:
            _ = open_dataset("voc21", root)[0]
    told = {"pipe": "a pipe", "folder": "a folder", "socket": "a socket", "device": "a device",
            "absent": path.name, "long": "too long", "nul": "no such"}[kind]  # fmt: skip
    assert told in str(caught.value) and "\n" not in str(caught.value)


def make_odd(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path may have 107 bytes
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)
    elif kind == "device":
        path.symlink_to("/dev/zero")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png")
    assert read_image("~/a.png").size == (60, 40)
    with pytest.raises(ImageError, match="no such image file"):
        read_image("~nobody-of-that-name/a.png")


# --- Masks ----------------------------------------------------------------------------------------


LABELS = np.zeros((40, 60), np.uint8)
LABELS[:20, :30], LABELS[30:, 50:] = 1, 20


def one_scene(base: Path, orientation: int = 0, mask: np.ndarray = LABELS, tag: int = 0) -> Path:
    """A data set of one image "a", which may have an orientation tag, as its mask may."""
    root = base / "root"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
    exif, own = Image.Exif(), Image.Exif()
    exif[0x0112], own[0x0112] = orientation, tag
    Image.fromarray(UPRIGHT).save(
        root / "JPEGImages/a.jpg", **({"exif": exif} if orientation else {})
    )
    picture = Image.fromarray(mask)
    picture.save(root / "SegmentationClass/a.png", **({"exif": own} if tag else {}))
    return root


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_with_their_images(
    tmp_path: Path, orientation: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """By rule a mask without a tag lies on the stored pixels; a line says so if no size does."""
    root = one_scene(tmp_path, orientation)
    sample = open_dataset("voc21", root)[0]
    red = np.asarray(sample.image)[..., 0] > 100
    np.testing.assert_array_equal(sample.target == 0, red)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == (1 if orientation in (2, 3, 4) else 0)
    assert all("a.jpg" in one and f"orientation {orientation}" in one for one in told)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_evaluation_sees_image_and_mask_alike(tmp_path: Path, orientation: int) -> None:
    """The segmenter takes the sample's image as it is, and does not turn it again."""
    root = one_scene(tmp_path, orientation)
    sample = open_dataset("voc21", root)[0]
    found = Segmenter(ColourMethod(patch=4))(sample.image, "car, grass")
    assert tuple(found.labels.shape) == sample.target.shape
    np.testing.assert_array_equal(np.asarray(found.image), np.asarray(sample.image))


@pytest.mark.parametrize("orientation", [2, 3, 5, 6, 8])
def test_a_mask_on_the_upright_pixels(
    tmp_path: Path, orientation: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its size shows it for a quarter turn; a tag of its own (1) says it for the others."""
    root = one_scene(tmp_path, orientation)
    upright = np.asarray(read_image(root / "JPEGImages/a.jpg"))
    labels = (upright[..., 0] > 100).astype(np.uint8)
    root = one_scene(tmp_path, orientation, labels, tag=0 if orientation > 4 else 1)
    np.testing.assert_array_equal(open_dataset("voc21", root)[0].target == 0, labels == 1)
    assert capsys.readouterr().err == ""


def test_a_mask_with_the_tag_of_its_image(tmp_path: Path) -> None:
    sample = open_dataset("voc21", one_scene(tmp_path, 3, tag=3))[0]
    np.testing.assert_array_equal(sample.target == 0, np.asarray(sample.image)[..., 0] > 100)


def test_another_size_names_the_orientation(tmp_path: Path) -> None:
    root = one_scene(tmp_path, 6, np.zeros((7, 9), np.uint8))
    with pytest.raises(DatasetError, match=r"a\.png is 9 x 7, its image 40 x 60 .*orientation 6"):
        _ = open_dataset("voc21", root)[0]


LOSSY = {
    "JPEG": {}, "WEBP": {"quality": 80}, "JPEG2000": {}, "AVIF": {},
    "TIFF": {"compression": "jpeg"}, "GIF": {},
}  # fmt: skip


@pytest.mark.parametrize("format", sorted(LOSSY))
def test_lossy_masks_are_refused_under_any_name(tmp_path: Path, format: str) -> None:
    root = one_scene(tmp_path)
    try:
        Image.fromarray(LABELS).save(root / "SegmentationClass/a.png", format, **LOSSY[format])
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {format}")
    with pytest.raises(DatasetError, match=rf"a\.png is stored as {format}"):
        _ = open_dataset("voc21", root)[0]


@pytest.mark.parametrize("format, options", [("PNG", {"optimize": True}), ("BMP", {}),
                                             ("TIFF", {"compression": "tiff_lzw"})])  # fmt: skip
def test_lossless_masks_keep_their_labels(tmp_path: Path, format: str, options: Any) -> None:
    root = one_scene(tmp_path)
    Image.fromarray(LABELS).save(root / "SegmentationClass/a.png", format, **options)
    target = open_dataset("voc21", root)[0].target
    np.testing.assert_array_equal(target + 1, LABELS)


def test_grey_masks_of_few_bits_are_refused(tmp_path: Path) -> None:
    """Pillow scales the 4-bit label 1 to 17, which is a class of VOC, too."""
    root = one_scene(tmp_path)
    (root / "SegmentationClass/a.png").write_bytes(png(60, 40, 4, 0, (b"\0" + b"\x11" * 30) * 40))
    with pytest.raises(DatasetError, match=r"a\.png is grey of fewer than 8 bits"):
        _ = open_dataset("voc21", root)[0]


@settings(max_examples=60)
@given(labels=hnp.arrays(np.uint8, (5, 7)), palette=st.booleans())
def test_any_labels_are_read_as_drawn(folder: Path, labels: np.ndarray, palette: bool) -> None:
    root = one_scene(folder)
    Image.new("RGB", (7, 5)).save(root / "JPEGImages/a.jpg")
    mask = Image.fromarray(labels)
    if palette:
        mask.putpalette([*range(256)] * 3)
    mask.save(root / "SegmentationClass/a.png")
    known = np.isin(labels, [*range(21), 255])
    try:
        target = open_dataset("voc21", root)[0].target
        np.testing.assert_array_equal(target, np.where(labels == 255, -2, labels.astype(int) - 1))
        assert known.all()
    except DatasetError as error:
        assert not known.all() and "label" in str(error)


# --- Lists and other text -------------------------------------------------------------------------


@settings(max_examples=80)
@given(content=st.binary(max_size=60))
@example(content=b"caf\xe9\n")
@example(content="a\nb".encode("utf-16-le"))
def test_any_bytes_are_lines_or_one_line(folder: Path, content: bytes) -> None:
    path = folder / "list.txt"
    path.write_bytes(content)
    with one_line(DatasetError):
        for line in read_lines(path, "list", DatasetError):
            assert line and line == line.strip() and not UNPRINTABLE.search(line)
    with one_line(DatasetError):
        assert len(set(read_ids(path))) == len(read_ids(path)) > 0


PLAIN = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
NAMES = st.lists(st.lists(PLAIN, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=5)


@settings(max_examples=100)
@given(
    names=NAMES,
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    end=st.sampled_from(["\n", "\r\n", "\r", " \n", "\n\n"]),
)
def test_every_encoding_gives_the_same_lines(
    folder: Path, names: list[str], encoding: str, end: str
) -> None:
    path = folder / "names.txt"
    path.write_bytes(end.join([*names, ""]).encode(encoding))
    assert read_lines(path, "list") == tuple(names)


def test_a_list_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DatasetError, match=r"val\.txt is no UTF-8 text .*save it as UTF-8"):
        read_ids(tmp_path / "val.txt")
    (tmp_path / "val.txt").write_bytes(b"\xff\xfea")
    with pytest.raises(DatasetError, match=r"val\.txt is no UTF-16 text"):
        read_ids(tmp_path / "val.txt")


def test_repeated_ids_are_named(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("a\nstreet 01\nb\nstreet 01\n")
    with pytest.raises(DatasetError, match=r"val\.txt names 'street 01' more than once"):
        read_ids(tmp_path / "val.txt")


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    for name in ("val.txt", "a.png"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(DatasetError, match="too large"), in_seconds():
        read_ids(tmp_path / "val.txt")
    with pytest.raises(ImageError, match="too large"), in_seconds():
        read_image(tmp_path / "a.png")


@settings(max_examples=120)
@given(name=st.one_of(TEXT, st.lists(st.sampled_from(["..", ".", "/", "\\", "a", "C:", "~", " "]),
                                     max_size=6).map("".join)))  # fmt: skip
def test_no_id_leaves_the_folder(name: str) -> None:
    with one_line(DatasetError):
        check_inside(name, f"the id '{shorten(name)}'")
        base = "/data/JPEGImages"
        found = os.path.normpath(f"{base}/{name.replace(chr(92), '/')}.jpg")
        assert found.startswith(base + "/") and not name.startswith("/") and name


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "C:x", "..\\x", "a\0b", ".."])
def test_ids_and_splits_outside_are_refused(tmp_path: Path, name: str) -> None:
    root = one_scene(tmp_path)
    with pytest.raises(DatasetError, match="split"):
        open_dataset("voc21", root, split=name)
    (root / "ImageSets/Segmentation/val.txt").write_text(f"a\n{name}\n")
    with pytest.raises(DatasetError, match=r"val\.txt"):
        open_dataset("voc21", root)


def test_folders_below_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("city/street 01\ncity/street..02\n")
    assert read_ids(tmp_path / "val.txt") == ("city/street 01", "city/street..02")


def test_vocabulary_files(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes("\ufeffcar\r\n\r\nfire engine \r\n".encode())
    assert read_names(tmp_path / "v.txt") == ("car", "fire engine")
    (tmp_path / "v.txt").write_text("car\nCar\n")
    with pytest.raises(DatasetError, match=r"v\.txt: the name 'Car' appears twice"):
        read_names(tmp_path / "v.txt")
    for path in data("vocabularies").glob("*.txt"):
        assert len(read_names(path)) > 1


# --- Words ----------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(
    words=st.one_of(
        TEXT, st.lists(TEXT, max_size=4), st.lists(st.lists(TEXT, max_size=2), max_size=3)
    )
)
@example(words="car\udcff, grass")
@example(words="car\x1b[31mRED\x1b]0;t\x07")
@example(words="x" * 10240)
@example(words=["\ufeff"])
@example(words=[f"name {index}" for index in range(10_000)] + [""])
def test_any_words_are_a_vocabulary_or_one_line(words: Any) -> None:
    try:
        vocabulary = Vocabulary.of(words)
    except OvssError as error:
        assert len(str(error)) <= 300 and not UNPRINTABLE.search(str(error))
        return
    for word in vocabulary.queries:
        assert word.strip() == word != "" and len(word) <= 500 and not UNPRINTABLE.search(word)
    assert Vocabulary.of([list(synonyms) for synonyms in vocabulary.classes]) == vocabulary
    [*map(str.encode, vocabulary.queries)]  # no half of a surrogate pair


@pytest.mark.parametrize(
    "words", ["\ufeffcar, grass", "car，grass", "car、grass", " car ,\n grass\r\n", "car، grass",
              "car\u3000,\u200bgrass\ufeff"],
)  # fmt: skip
def test_separators_and_marks(words: str) -> None:
    assert Vocabulary.of(words).names == ("car", "grass")


def test_names_that_look_alike_appear_twice() -> None:
    for first, second in [("vélo", "ve\u0301lo"), ("fire  engine", "Fire engine"), ("ß", "SS")]:
        with pytest.raises(OvssError, match="appears twice"):
            Vocabulary.of([first, second])


@given(text=TEXT, limit=st.integers(10, 80))
def test_messages_are_printable_and_bounded(text: str, limit: int) -> None:
    assert len(shorten(text, limit)) <= limit and not UNPRINTABLE.search(printable(text))
    for error in (OvssError(text * 100), UnknownNameError.of("method", text * 100, ["a", "b"])):
        assert len(str(error)) <= LONGEST and not UNPRINTABLE.search(str(error))
    assert printable("vélo 汽车 👩‍🚒") == "vélo 汽车 👩‍🚒"


# --- Destinations ---------------------------------------------------------------------------------


@settings(max_examples=60)
@given(letter=st.sampled_from("aé車"), size=st.integers(1, 260))
def test_names_of_up_to_255_bytes_are_written(folder: Path, letter: str, size: int) -> None:
    name = letter * (size // len(letter.encode())) + ".png"
    try:
        target = check_destination(folder / name)
    except OvssError as error:
        assert len(name.encode()) > 255 and "too long" in str(error)
        return
    with atomic(target) as file:
        file.write(b"x")
    assert target.read_bytes() == b"x" and len(name.encode()) <= 255
    target.unlink()


def test_the_photo_is_never_replaced(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(UPRIGHT).save(photo)
    (tmp_path / "link.png").symlink_to(photo)
    os.link(photo, tmp_path / "hard.png")
    (tmp_path / "below").mkdir()
    for out in ("photo.png", "link.png", "hard.png", "below/../photo.png"):
        for source in (photo, tmp_path / "link.png"):
            with pytest.raises(OvssError, match="would replace"):
                check_output(tmp_path / out, 1, source)
    check_output(tmp_path / "other.png", 1, photo)


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
def test_destinations_that_are_no_files(tmp_path: Path, kind: str) -> None:
    make_odd(tmp_path / "o.png", kind)
    with pytest.raises(OvssError, match=rf"o\.png: it is a {kind}"):
        check_output(tmp_path / "o.png", 1)


def test_destinations_are_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, said in [("o.jpg", "end it in"), ("o", "end it in"), ("file/o.png", "cannot write"),
                       ("a\0.png", "cannot write"), ("/proc/o.png", "cannot write")]:  # fmt: skip
        with pytest.raises(OvssError, match=said):
            check_output(tmp_path / path, 1)
    with pytest.raises(OvssError, match="255 classes"):
        check_output(tmp_path / "o.png", 256)
    assert check_output(tmp_path / "new" / "below" / "o.json", 256)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]  # the check leaves nothing


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_destinations_without_permission(tmp_path: Path) -> None:
    (tmp_path / "o.png").write_text("")
    (tmp_path / "o.png").chmod(0o400)
    with pytest.raises(OvssError, match="write-protected"):
        check_output(tmp_path / "o.png", 1)
    (tmp_path / "locked").mkdir(0o500)
    with pytest.raises(OvssError, match="Permission denied"):
        check_output(tmp_path / "locked" / "o.png", 1)


def test_links_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "real.csv").chmod(0o640)
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    with atomic(tmp_path / "link.csv") as file:
        file.write(b"new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "new"
    assert (tmp_path / "real.csv").stat().st_mode & 0o777 == 0o640


WRITER = """
import sys, time
from ovss.files import atomic
with atomic(sys.argv[1]) as file:
    file.write(b"half"); file.flush(); print("writing", flush=True); time.sleep(60)
"""


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    """A writer that lives is left alone; one that was killed leaves nothing for ever."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "r.csv")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        assert len(list(tmp_path.glob(".ovss-*.tmp"))) == 1
        write = f"from ovss.files import atomic\nwith atomic({str(tmp_path / 'other')!r}): pass"
        subprocess.run([sys.executable, "-c", write], env=environment(), check=True)
        assert len(list(tmp_path.glob(".ovss-*.tmp"))) == 1
        writer.kill()
    subprocess.run([sys.executable, "-c", write], env=environment(), check=True)
    assert [one.name for one in tmp_path.iterdir()] == ["other"]
