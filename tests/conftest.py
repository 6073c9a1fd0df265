"""What the tests share: a toy benchmark in VOC layout, and a method without weights."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from ovss import Segmenter
from toys import make_voc, toy_segmenter

torch.set_num_threads(1)
settings.register_profile("ovss", deadline=None, derandomize=True, database=None)
settings.load_profile("ovss")
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with VOCdevkit/VOC2012 of 23 small images."""
    return make_voc(tmp_path_factory.mktemp("voc"), images=23)


@pytest.fixture
def segmenter() -> Segmenter:
    """A segmenter that compares colours; no weights."""
    return toy_segmenter()


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(7)


@pytest.fixture
def results_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results go to a folder of the test's own."""
    monkeypatch.setenv("OVSS_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"
