"""Benchmarks, read from the folders their authors publish."""

from __future__ import annotations

from .batches import read_batches
from .voc import DATASETS, Dataset, Sample, VocDataset, open_dataset

__all__ = ["DATASETS", "Dataset", "Sample", "VocDataset", "open_dataset", "read_batches"]
