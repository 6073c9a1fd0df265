"""Headroom: score maps averaged within true regions."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ovss.datasets import open_dataset
from ovss.errors import OvssError
from ovss.evaluation.headroom import PerfectAttention, average_within


def test_average_within_by_hand() -> None:
    scores = torch.tensor([[[1.0, 3.0, 5.0]], [[0.0, 1.0, 4.0]]])  # [2, 1, 3]
    regions = torch.tensor([[7, 7, -1]])
    assert average_within(scores, regions).tolist() == [[[2, 2, 5]], [[0.5, 0.5, 4]]]
    one = average_within(torch.tensor([[[1.0, 2.0]]]), torch.zeros(4, 4, dtype=torch.int64))
    assert one.shape == (1, 4, 4) and one.unique().tolist() == [1.5]


def test_perfect_attention_finds_the_regions_of_an_image() -> None:
    data = open_dataset("lab-all")
    refine = PerfectAttention(data)
    sample = data[3]
    truth = torch.nn.functional.one_hot(torch.tensor(sample.target), len(data.names))
    maps = truth.permute(2, 0, 1).float()  # [K, H, W]
    (found,) = refine([maps], [sample.image])
    torch.testing.assert_close(found, maps)  # within its region the truth is constant
    with pytest.raises(OvssError, match="not in lab-all"):
        refine([maps], [Image.new("RGB", (8, 8))])
