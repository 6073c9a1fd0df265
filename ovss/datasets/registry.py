"""Benchmarks by name."""

from __future__ import annotations

import os
from pathlib import Path

from .. import files, paths
from ..errors import DatasetError, UnknownNameError
from ..labels import IGNORE
from .voc import Spec, VocDataset

VOC_BELOW = ("", "VOC2012", "VOCdevkit/VOC2012")
LAB_THINGS, LAB_STUFF, LAB_COLOURS = "lab-things", "lab-stuff", "lab-colours"
DATASETS: dict[str, Spec] = {
    "voc21": Spec("SegmentationClass", ("voc21",), below=VOC_BELOW),
    "voc20": Spec("SegmentationClass", ("voc20",), zero=IGNORE, below=VOC_BELOW),
    "lab-21": Spec("SegmentationClass", (LAB_THINGS,), background_words=LAB_STUFF, home="lab"),
    "lab-20": Spec("SegmentationClass", (LAB_THINGS,), zero=IGNORE, home="lab"),
    "lab-all": Spec("SegmentationStuff", (LAB_THINGS, LAB_STUFF), zero=IGNORE, home="lab"),
    "lab-attributes": Spec(
        "SegmentationAttribute", (LAB_COLOURS, LAB_THINGS), product=True, zero=IGNORE, home="lab"
    ),
}


def open_dataset(
    name: str, root: str | os.PathLike[str] | None = None, split: str = "val"
) -> VocDataset:
    """A benchmark by name.

    Args:
        name: a key of DATASETS.
        split: which list of images to read.
        root: the folder it lies in (or, for VOC, a folder above it); the lab's benchmarks are
            in the repository.

    Raises:
        UnknownNameError: no such benchmark; the message lists the known ones.
        DatasetError: the folder is missing (the message shows the layout expected), or the
            split's list cannot be used.
    """
    if name not in DATASETS:
        raise UnknownNameError.of("data set", name, DATASETS)
    spec = DATASETS[name]
    dataset = VocDataset(name, _find_root(spec, root), split, spec)
    for folder in ("JPEGImages", spec.masks):
        if not (dataset.root / folder).is_dir():
            advice = "" if root is not None else _where_from(spec)
            raise DatasetError(f"no folder {dataset.root / folder}; {advice}{dataset.layout()}")
    len(dataset)  # a list that cannot be used shows here
    return dataset


def _where_from(spec: Spec) -> str:
    """What to do where no folder was named."""
    if spec.home is None:
        return "give root= (--root), the folder that it lies in; "
    return f"{paths.FROM_THE_REPOSITORY}; "


def _find_root(spec: Spec, root: str | os.PathLike[str] | None) -> Path:
    if root is not None:
        base = files.expand(root)
    elif spec.home is not None:
        base = paths.data(spec.home)
    else:
        base = Path("<root>")
    options = [base / part for part in spec.below]
    return next((option for option in options if (option / "JPEGImages").is_dir()), options[-1])
