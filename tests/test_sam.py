"""SAM: masks as the authors' code gives them, prompts, automatic masks, files and their faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from clips import noise, save_clip
from ovss.backbones.sam import (
    AutomaticMasks,
    SamBackbone,
    mask_boxes,
    point_grid,
    stability_score,
)
from ovss.errors import CheckpointError, OvssError

GOLDEN = Path(__file__).parent / "golden" / "sam"
Run = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded model, with the pixels' scale that it was recorded at."""
    folder = tmp_path_factory.mktemp("sam") / "tiny"
    shutil.copytree(GOLDEN, folder)
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


@pytest.fixture(scope="module")
def sam(folder: Path) -> SamBackbone:
    """The same, loaded."""
    return SamBackbone.load(folder)


@pytest.fixture(scope="module")
def run() -> Run:
    """What the authors' code said."""
    with np.load(GOLDEN / "run.npz") as file:
        return dict(file)


# ---- agreement


def test_the_image_is_embedded_as_by_the_authors(sam: SamBackbone, run: Run) -> None:
    found = sam.embed(Image.fromarray(run["image"]))
    np.testing.assert_allclose(found.features, run["features"], atol=1e-4)
    assert found.size == (50, 77) and found.resized == (42, 64)


@pytest.mark.parametrize("prompt", ["one", "corrected", "five"])
@pytest.mark.parametrize("outputs", ["three", "single"])
def test_prompts_give_the_authors_masks(
    sam: SamBackbone, run: Run, prompt: str, outputs: str
) -> None:
    points = torch.from_numpy(run[f"{prompt}/points"])[None]
    labels = torch.from_numpy(run[f"{prompt}/labels"])[None]
    image = Image.fromarray(run["image"])
    found = sam.predict(image, points, labels, single=outputs == "single")
    wanted = run[f"{prompt}/{outputs}/logits"]
    assert np.abs(wanted).max() > 0.5 and found.logits.shape == (1, *wanted.shape)
    np.testing.assert_allclose(found.logits[0], wanted, atol=1e-4)
    np.testing.assert_allclose(found.iou[0], run[f"{prompt}/{outputs}/iou"], atol=1e-4)


@pytest.mark.parametrize("case", ["automatic", "duplicates"])
def test_automatic_masks_are_the_authors_set(sam: SamBackbone, run: Run, case: str) -> None:
    iou, stability, nms = map(float, run[f"{case}/thresholds"])
    options = AutomaticMasks(8, 24, predicted_iou=iou, stability=stability, box_nms=nms)
    found = sam.automatic(Image.fromarray(run["image"]), options)
    wanted = run[f"{case}/masks"]
    boxes = found.boxes.numpy()
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    ours, theirs = (
        sorted((m.tobytes(), *map(float, b)) for m, b in zip(masks, rectangles, strict=True))
        for masks, rectangles in (
            (found.masks.numpy(), sides),
            (wanted, run[f"{case}/boxes"]),
        )
    )
    assert len(wanted) > 50 and len(set(theirs)) >= 10
    assert ours == theirs
    np.testing.assert_allclose(found.iou.sort().values, np.sort(run[f"{case}/iou"]), atol=1e-4)
    # A pixel at the logit 1 or -1 may fall to either side: of a mask of five pixels it is much.
    near = np.isclose(found.stability.sort().values, np.sort(run[f"{case}/stability"]), atol=1e-4)
    assert near.mean() > 0.95


# ---- properties


def test_prompts_of_a_batch_are_decoded_as_one_by_one(sam: SamBackbone, run: Run) -> None:
    embedded = sam.embed(Image.fromarray(run["image"]))
    points = torch.rand(5, 3, 2, generator=torch.Generator().manual_seed(0)) * 50
    labels = torch.tensor([[1, 1, 0]] * 5)
    together = sam.predict(embedded, points, labels)
    for i in range(5):
        alone = sam.predict(embedded, points[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.iou[0], together.iou[i], atol=1e-5, rtol=1e-5)


def test_the_best_mask_is_the_one_of_highest_predicted_iou(sam: SamBackbone, run: Run) -> None:
    found = sam.predict(Image.fromarray(run["image"]), torch.rand(4, 1, 2) * 50)
    masks, iou = found.best()
    for i in range(4):
        assert iou[i] == found.iou[i].max()
        assert torch.equal(masks[i], found.logits[i, found.iou[i].argmax()] > 0)


def test_stability_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.5, -0.5, -2.0]] * 4)
    assert float(stability_score(logits)) == pytest.approx(1 / 3)
    assert float(stability_score(logits, 0.4)) == pytest.approx(2 / 2)
    assert float(stability_score(logits, 0.6)) == pytest.approx(1 / 3)


def test_boxes_by_hand() -> None:
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 2] = True
    masks[1, 0, 0] = masks[1, 3, 5] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 2, 2], [0, 0, 5, 3], [0, 0, 0, 0]]


def test_the_grid_lies_in_the_middle_of_equal_cells() -> None:
    assert point_grid(2, (4, 8)).tolist() == [[2, 1], [6, 1], [2, 3], [6, 3]]


def test_masks_keep_to_the_bounds_of_size(sam: SamBackbone, run: Run) -> None:
    image = Image.fromarray(run["image"])
    options = {"predicted_iou": -9.0, "stability": -1.0, "box_nms": 1.0}
    every = sam.automatic(image, AutomaticMasks(4, **options))
    some = sam.automatic(image, AutomaticMasks(4, smallest=0.2, largest=0.6, **options))
    share = every.masks.float().mean((1, 2))
    assert len(some.masks) == int(((share >= 0.2) & (share <= 0.6)).sum())
    assert 0 < len(some.masks) < len(every.masks)
    assert bool((every.iou.diff() <= 0).all()), "the surest come first"


def test_an_image_without_any_mask(sam: SamBackbone, run: Run) -> None:
    found = sam.automatic(Image.fromarray(run["image"]), AutomaticMasks(4, predicted_iou=99.0))
    assert found.masks.shape == (0, 50, 77) and found.boxes.shape == (0, 4)


# ---- faults


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        (torch.zeros(1, 2), None, r"points must be \[prompts, points, 2\], got \[1, 2\]"),
        (torch.zeros(0, 1, 2), None, "points must be"),
        (torch.tensor([[[90.0, 5.0]]]), None, "in the image of 77 x 50 pixels"),
        (torch.tensor([[[float("nan"), 5.0]]]), None, "in the image of 77 x 50 pixels"),
        (torch.zeros(1, 1, 2), torch.ones(1, 2), r"labels must be \[1, 1\], got \[1, 2\]"),
        (torch.zeros(1, 1, 2), torch.full((1, 1), -1), "1 .foreground. or 0"),
    ],
)
def test_prompts_that_cannot_be_meant(
    sam: SamBackbone, run: Run, points: Any, labels: Any, message: str
) -> None:
    with pytest.raises(OvssError, match=message):
        sam.predict(Image.fromarray(run["image"]), points, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": 0}, "points_per_side must be a whole number from 1 to 1024, got 0"),
        ({"batch": 2.5}, "batch must be a whole number"),
        ({"smallest": 0.5, "largest": 0.2}, "0 <= smallest <= largest <= 1"),
        ({"smallest": float("nan")}, "smallest"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OvssError, match=message):
        AutomaticMasks(**options)


def test_folders_that_are_no_sam(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no SAM .* but: None"):
        SamBackbone.load(save_clip(tmp_path / "clip"))
    with pytest.raises(CheckpointError, match="dino-vits8 is no SAM but: DINO"):
        SamBackbone.load("dino-vits8")
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["vision_config"]["hidden_size"] = -1
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="hidden_size must be an integer from 1"):
        SamBackbone.load(broken)
    config["vision_config"]["hidden_size"] = 48
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not fit the configuration"):
        SamBackbone.load(broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        SamBackbone.load(broken)


def test_half_precision(folder: Path) -> None:
    half = SamBackbone.load(folder, dtype=torch.bfloat16)
    found = half.predict(noise(30, 20), torch.tensor([[[5.0, 5.0]]]))
    assert found.logits.shape == (1, 3, 20, 30) and found.logits.dtype == torch.float32
