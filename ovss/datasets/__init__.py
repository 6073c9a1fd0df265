"""Benchmarks, read from the folders their authors publish."""

from __future__ import annotations

from .base import Dataset, Sample
from .batches import read_batches
from .registry import DATASETS, open_dataset
from .voc import VocDataset

__all__ = ["DATASETS", "Dataset", "Sample", "VocDataset", "open_dataset", "read_batches"]
