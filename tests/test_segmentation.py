"""The door (Segmenter) and what comes out of it (Segmentation): labels, files, pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ovss
from ovss import Segmentation, Segmenter, Vocabulary
from ovss.decide import Argmax, CliperRule, Threshold
from ovss.errors import ImageError, OvssError, UnknownNameError, VocabularyError
from ovss.labels import palette
from ovss.segmentation import NAMES_KEY
from toys import ColourMethod, colour_of

WORDS = "car, grass, boat"


def picture(height: int = 32, width: int = 48) -> np.ndarray:
    """Left half the colour of "car", right half that of "boat"."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = colour_of("car"), colour_of("boat")
    return pixels


def found(classes: int = 3) -> Segmentation:
    labels = torch.tensor([[0, 0, -1], [2, 2, 2]])
    names = tuple(f"name {index}" for index in range(classes))
    scores, image = torch.rand(classes, 1, 2), Image.new("RGB", (3, 2))
    return Segmentation(labels, scores, names, image, scores.amax((1, 2)))


def test_the_three_lines(tmp_path: Path) -> None:
    segmenter = Segmenter(ColourMethod())
    out = segmenter(picture(), WORDS)
    out.save(tmp_path / "out.png")
    assert out.names == ("car", "grass", "boat")
    assert out.labels.shape == (32, 48) and out.labels.dtype == torch.int64
    assert out.scores.shape == (3, 4, 6)
    assert (out.labels[:, :20] == 0).all() and (out.labels[:, -20:] == 2).all()
    assert out.image.size == (48, 32)


def test_a_list_equals_its_images_one_by_one(tmp_path: Path) -> None:
    Image.fromarray(picture(40, 25)).save(tmp_path / "a.png")
    images = [picture(), tmp_path / "a.png", Image.fromarray(picture(17, 90)), picture()[:1, :1]]
    segmenter = Segmenter(ColourMethod(), decision=Threshold(0.3))
    together = segmenter(images, WORDS)
    assert isinstance(together, list) and segmenter([], WORDS) == []
    for one, image in zip(together, images, strict=True):
        assert torch.equal(one.labels, segmenter(image, WORDS).labels)


def test_hostile_input() -> None:
    segmenter = Segmenter(ColourMethod())
    with pytest.raises(VocabularyError):
        segmenter(picture(), "")
    with pytest.raises(ImageError):
        segmenter(None, WORDS)
    with pytest.raises(ImageError):
        segmenter([picture(), "no/such/file.jpg"], WORDS)


def test_refiners_and_image_scores() -> None:
    """The decision sees half the refined plus half the coarse maximum (CLIPer, Table 2)."""
    seen: list[torch.Tensor] = []

    def double(scores: Sequence[torch.Tensor], images: Sequence[Image.Image]) -> list[torch.Tensor]:
        assert len(scores) == len(images)
        return [torch.nn.functional.interpolate(2 * one[None], scale_factor=2)[0] for one in scores]

    def rule(scores: torch.Tensor, image_scores: torch.Tensor | None = None) -> torch.Tensor:
        assert image_scores is not None
        seen.append(image_scores)
        return scores.argmax(0)

    coarse = ColourMethod().score([Image.fromarray(picture())], Vocabulary.of(WORDS))[0]
    out = Segmenter(ColourMethod(), (double, double), rule)(picture(), WORDS)
    assert out.scores.shape == (3, 16, 24)
    torch.testing.assert_close(seen[0], 2.5 * coarse.amax((1, 2)))
    assert torch.equal(out.image_scores, seen[0])
    Segmenter(ColourMethod(), (), rule)(picture(), WORDS)
    assert torch.equal(seen[1], coarse.amax((1, 2)))


def test_a_method_may_take_gradients_and_leaves_none() -> None:
    class Gradient(ColourMethod):
        def score(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> list[Any]:
            assert not torch.is_grad_enabled()
            with torch.enable_grad():
                x = torch.ones(len(vocabulary), 2, 2, requires_grad=True)
                (slope,) = torch.autograd.grad((x**2).sum(), x)
            return [slope for _ in images]

    assert not Segmenter(Gradient())(picture(), WORDS).scores.requires_grad


def test_load_and_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    import ovss.methods as methods

    def build(profile: str, **options: Any) -> tuple[ColourMethod, Any]:
        assert profile == "lab"
        return ColourMethod(**options), CliperRule(0.1, 0.1)

    monkeypatch.setitem(methods.METHODS, "colours", build)
    segmenter = ovss.load("colours", patch=4)
    assert segmenter.method == ColourMethod(patch=4)
    assert segmenter.decision == CliperRule(0.1, 0.1)
    out = ovss.segment(picture(), ["boat", "car"], method="colours", patch=4)
    assert out.scores.shape == (2, 8, 12)
    with pytest.raises(UnknownNameError, match=r"did you mean 'colours'.*Known: .*colours"):
        ovss.load("colors")


def test_png_is_a_palette_image_with_names(tmp_path: Path) -> None:
    path = found().save(tmp_path / "new" / "out.PNG")
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), [[1, 1, 0], [3, 3, 3]])
        assert json.loads(image.info[NAMES_KEY]) == ["background", "name 0", "name 1", "name 2"]
        assert image.convert("RGB").getpixel((0, 0)) == (128, 0, 0)
        assert image.convert("RGB").getpixel((2, 0)) == (0, 0, 0)


def test_palette_is_vocs() -> None:
    known = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette(20)[:5].tolist() == known
    assert palette(20)[15].tolist() == [192, 128, 128]  # person
    assert palette(255)[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette(255), axis=0)) == 256


def decode(segment: dict[str, Any], size: list[int]) -> np.ndarray:
    values = np.arange(len(segment["counts"])) % 2
    return np.repeat(values, segment["counts"]).reshape(size, order="F").astype(bool)


def test_rle_decodes_to_the_labels(tmp_path: Path) -> None:
    labels = torch.randint(-1, 3, (7, 9), generator=torch.manual_seed(0))
    image = Image.new("RGB", (9, 7))
    one = Segmentation(labels, torch.rand(3, 1, 1), ("a", "b", "c"), image, torch.rand(3))
    stored = json.loads(one.save(tmp_path / "out.json").read_text())
    assert (
        stored == one.to_rle() and stored["size"] == [7, 9] and stored["names"] == ["a", "b", "c"]
    )
    again = np.full((7, 9), -1)
    for segment in stored["segments"]:
        assert segment["name"] == "abc"[segment["label"]]
        again[decode(segment, stored["size"])] = segment["label"]
    np.testing.assert_array_equal(again, labels.numpy())


def test_save_refuses_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = found().save(tmp_path / "out.png")
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError):
        found().save(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["out.png"]
    with pytest.raises(OvssError, match="end it in"):
        found().save(tmp_path / "out.jpg")
    with pytest.raises(OvssError, match="255 classes"):
        found(classes=256).save(tmp_path / "many.png")
    found(classes=256).save(tmp_path / "many.json")


def test_shares_legend_overlay() -> None:
    one = found()
    assert one.shares == {"name 2": 0.5, "name 0": pytest.approx(1 / 3), "background": 1 / 6}
    assert one.legend() == {"name 0": "#800000", "name 2": "#808000"}
    mixed = np.asarray(one.overlay(strength=0.5))
    assert mixed[0, 0].tolist() == [64, 0, 0] and mixed[0, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("second", ["boat", "background (no class)"])
def test_a_class_called_background_is_told_from_no_class(second: str, tmp_path: Path) -> None:
    labels, image = torch.tensor([[0, 0, -1, 1]]), Image.new("RGB", (4, 1))
    names = ("background", second)
    one = Segmentation(labels, torch.rand(2, 1, 1), names, image, torch.rand(2))
    assert one.shares["background"] == 0.5 and one.shares[second] == 0.25
    assert sum(one.shares.values()) == 1 and len(one.shares) == 3
    with Image.open(one.save(tmp_path / "o.png")) as saved:
        assert json.loads(saved.info[NAMES_KEY]) == ["background", *names]


def test_show_changes_no_global_setting() -> None:
    import matplotlib as mpl

    before = mpl.rcParams.copy()
    figure = found().show()
    assert len(figure.axes) == 2 and mpl.rcParams == before


def test_segmenter_default_is_argmax() -> None:
    assert Segmenter(ColourMethod()).decision == Argmax()
