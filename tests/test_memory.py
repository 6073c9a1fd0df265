"""Full memory halves the batch, and the counts are those of any other batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ovss
from ovss import OvssError, Segmenter, Vocabulary
from ovss.decide import Threshold
from ovss.evaluation.memory import FittingBatches
from toys import ColourMethod, toy_segmenter

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")


@dataclass
class Memory:
    """Takes `room` items at once, and remembers how many it was given each time."""

    room: int
    given: list[int] = field(default_factory=list)

    def double(self, items: Sequence[int]) -> list[int]:
        """Two times each item."""
        self.given.append(len(items))
        if len(items) > self.room:
            raise FULL
        return [2 * item for item in items]


def test_a_batch_is_halved_until_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    memory, batches = Memory(3), FittingBatches()
    assert batches.map(memory.double, list(range(10))) == [2 * item for item in range(10)]
    assert memory.given == [10, 5, 2, 2, 2, 2, 2]
    assert batches.map(memory.double, [7, 8, 9]) == [14, 16, 18]
    assert memory.given[7:] == [2, 1]  # it goes on with what fitted
    assert capsys.readouterr().err.splitlines() == [
        "ovss: memory was full with 10 images at once: going on with 5",
        "ovss: memory was full with 5 images at once: going on with 2",
    ]


def test_nothing_fits() -> None:
    with pytest.raises(OvssError, match=r"memory is full \(2.00 GiB more was asked for\): try"):
        FittingBatches().map(Memory(0).double, [1, 2])


def test_a_batch_that_must_stay_whole() -> None:
    memory = Memory(3)
    with pytest.raises(OvssError, match="memory is full"):
        FittingBatches(divisible=False).map(memory.double, [1, 2, 3, 4])
    assert memory.given == [4]


def test_other_errors_are_raised_as_they_are() -> None:
    def broken(items: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        FittingBatches().map(broken, [1, 2])


# ---- evaluations


@dataclass(frozen=True)
class Hungry(ColourMethod):
    """Runs out of memory with more than `room` images."""

    room: int = 2
    together: bool = False
    batches: list[int] = field(default_factory=list, repr=False)

    @property
    def depends_on_batch(self) -> bool:
        """Whether it says that a batch must stay whole."""
        return self.together

    def score(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> list[Tensor]:
        """The toy's scores, if there is room."""
        self.batches.append(len(images))
        if len(images) > self.room:
            raise FULL
        return super().score(images, vocabulary)


@pytest.mark.parametrize("classes", ["all", "image"])
def test_an_evaluation_goes_on(
    classes: str, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each image counts once, in the journal as well."""
    options = {"root": voc, "classes": classes, "progress": False, "bootstrap": 10}
    expected = ovss.evaluate(toy_segmenter(), "voc21", **options)
    method = Hungry()
    segmenter = Segmenter(method, decision=Threshold(0.2))
    found = ovss.evaluate(segmenter, "voc21", batch=8, resume=tmp_path / "counts", **options)
    assert found.images == expected.images == 23 and np.array_equal(found.areas, expected.areas)
    assert np.array_equal(found.confusion, expected.confusion)
    if classes == "all":
        assert method.batches[:3] == [8, 4, 2] and max(method.batches[3:]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 2
    again = ovss.evaluate(segmenter, "voc21", batch=8, resume=tmp_path / "counts", **options)
    assert np.array_equal(again.areas, expected.areas)


def test_an_evaluation_that_must_keep_its_batches_says_what_to_try(voc: Path) -> None:
    segmenter = Segmenter(Hungry(together=True), decision=Threshold(0.2))
    with pytest.raises(OvssError, match=r"memory is full .*--batch 1"):
        ovss.evaluate(segmenter, "voc21", root=voc, batch=8, progress=False)
