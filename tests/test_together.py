"""Several segmenters in one pass: the counts of separate runs, the shared work done once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ovss
from clips import save_clip
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.remembered import RememberingClip
from ovss.together import evaluate_together
from toys import toy_segmenter


def test_counts_are_those_of_separate_runs(voc: Path) -> None:
    rows = {"low": toy_segmenter(0.1), "high": toy_segmenter(0.3)}
    options: dict[str, Any] = {"root": voc, "limit": 11, "seed": 3, "progress": False}
    found = evaluate_together(rows, "voc21", batch=4, **options)
    assert list(found) == list(rows)
    for row, segmenter in rows.items():
        alone = ovss.evaluate(segmenter, "voc21", batch=4, **options)
        np.testing.assert_array_equal(found[row].areas, alone.areas)
        np.testing.assert_array_equal(found[row].confusion, alone.confusion)
        assert found[row].ids == alone.ids and found[row].interval == alone.interval
        np.testing.assert_array_equal(found[row].image_scores, alone.image_scores)
        assert math.isnan(found[row].seconds_per_image)


@pytest.mark.parametrize("classes", ["all", "image"])
def test_shared_features_change_nothing(voc: Path, tmp_path: Path, classes: Any) -> None:
    folder = save_clip(tmp_path / "tiny")
    options: dict[str, Any] = {"root": voc, "limit": 5, "classes": classes, "progress": False}
    shared, plain = RememberingClip.load(folder), ClipBackbone.load(folder)
    names = ("clearclip", "cliper")
    found = evaluate_together({name: _load(name, shared) for name in names}, "voc21", **options)
    for name in names:
        alone = ovss.evaluate(_load(name, plain), "voc21", **options)
        np.testing.assert_array_equal(found[name].areas, alone.areas)


def test_a_batch_is_computed_once_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = RememberingClip.load(save_clip(tmp_path / "tiny"))
    passes: list[int] = []
    embed = clip.embed

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        passes.append(len(pixels))
        return embed(pixels)

    monkeypatch.setattr(clip, "embed", counted)
    batches = [torch.randn(8, 3, 32, 32) for _ in range(3)]
    first = clip.features(batches[0], attention="sum")
    assert clip.features(batches[0].clone(), attention="sum") is first
    assert passes == [8]
    clip.features(batches[0], attention=False)  # other options are another call
    clip.features(batches[1], attention=False)  # 24 images: the first call is forgotten
    assert clip.features(batches[0], attention="sum") is not first
    assert passes == [8, 8, 8, 8]


def _load(method: str, clip: ClipBackbone) -> ovss.Segmenter:
    return ovss.load(method, clip=clip, short_side=32, templates=["{}"])
