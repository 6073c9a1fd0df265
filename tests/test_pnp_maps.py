"""PnP-OVSS's steps by hand: Eq. 1, merging, Salience DropOut's choice, threshold, background."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ovss.labels import BACKGROUND
from ovss.methods.pnp_maps import (
    aggregate,
    gradcam,
    merge,
    relabel,
    saliency,
    select,
    threshold,
    upsample,
    with_background,
)

NOTHING = torch.zeros(3, 3, dtype=torch.bool)


def grid(*values: float) -> Tensor:
    """A map [3, 3]."""
    return torch.tensor(values, dtype=torch.float32).view(3, 3)


# ---- Eq. 1


def test_gradcam_is_attention_times_the_positive_gradient() -> None:
    attention = torch.tensor([0.5, 0.1, 0.2, 0.1, 0.1]).expand(1, 2, 1, 5)  # [CLS], 2 x 2 patches
    gradient = torch.tensor([[9.0, 2.0, -1.0, 0.0, 4.0], [9.0, -1.0, -1.0, -1.0, 2.0]])
    gradient = gradient[None, :, None]
    found = gradcam(attention, gradient, head=0)
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.2, 0.0], [0.0, 0.4]]))
    mean = gradcam(attention, gradient)  # all heads
    torch.testing.assert_close(mean[0, 0], torch.tensor([[0.1, 0.0], [0.0, 0.3]]))
    alone = gradcam(attention, None, head=1)
    torch.testing.assert_close(alone[0, 0], torch.tensor([[0.1, 0.2], [0.1, 0.1]]))
    assert gradcam(attention.half(), None, 0).dtype == torch.float32


# ---- from tokens to classes


def test_a_name_of_several_pieces_is_their_mean() -> None:
    tokens = torch.arange(5.0)[:, None, None].expand(5, 2, 2)
    words = [(1,), (2, 4), (3, 4)]
    assert merge(tokens, words)[:, 0, 0].tolist() == [1.0, 3.0, 3.5]
    assert merge(tokens, words, "official")[:, 0, 0].tolist() == [1.0, 3.0, 7.0]  # the last: a sum
    assert merge(tokens, words[:1], "official")[:, 0, 0].tolist() == [1.0]


def test_salience_by_tokens_counts_long_names_more() -> None:
    tokens = torch.tensor([5.0, 1.0, 2.0, 4.0])[:, None, None].expand(4, 3, 3)
    words = [(1,), (2, 3)]
    assert saliency(tokens, words)[0, 0] == 7  # 1 + 2 + 4
    assert saliency(tokens, words, "classes")[0, 0] == 4  # 1 + (2 + 4) / 2


# ---- Eq. 2-5


def test_the_highest_patches_are_chosen() -> None:
    values = grid(9, 1, 8, 0, 7, 2, 3, 4, 5)
    assert select(values, NOTHING, 3).flatten().nonzero().flatten().tolist() == [0, 2, 4]
    dropped = NOTHING.clone()
    dropped[0, 0] = dropped[1, 1] = True
    assert select(values, dropped, 3).flatten().nonzero().flatten().tolist() == [2, 7, 8]
    both = select(torch.stack([values, values]), torch.stack([dropped, NOTHING]), 3)
    assert torch.equal(both[0], select(values, dropped, 3)) and both[1].sum() == 3


def test_ties_are_broken_from_the_top_left() -> None:
    chosen = select(grid(0, 0, 1, 0, 0, 0, 0, 0, 0), NOTHING, 3)
    assert chosen.flatten().nonzero().flatten().tolist() == [0, 1, 2]


def test_no_patch_is_dropped_twice() -> None:
    dropped = torch.ones(3, 3, dtype=torch.bool)
    dropped[2, 1:] = False
    assert select(grid(*range(9)), dropped, 10).flatten().nonzero().flatten().tolist() == [7, 8]
    assert not select(grid(*range(9)), torch.ones_like(dropped), 10).any()


def test_the_first_map_may_count_twice() -> None:
    passes = torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    assert aggregate(passes) == 111 and aggregate(passes, "official") == 112


# ---- section 3.3


def test_the_threshold_is_relative_and_keeps_values() -> None:
    maps = torch.stack([grid(2, 3, 4, 5, 6, 7, 8, 9, 12), grid(*[0.0] * 8, 0.001)])
    found = threshold(maps, 0.3)  # of the way from 2 to 12: 5
    assert found[0].flatten().tolist() == [0, 0, 0, 5, 6, 7, 8, 9, 12]
    assert found[1].flatten().tolist() == [0] * 8 + [pytest.approx(0.001)]


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_constant_map_loses_everything(value: float) -> None:
    assert threshold(torch.full((1, 3, 3), value), 0.15).eq(0).all()
    assert threshold(torch.full((1, 1, 1), value), 0.0).eq(0).all()


def test_enlarge_puts_corner_on_corner() -> None:
    found = upsample(torch.tensor([[[0.0, 3.0]]]), (2, 4))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 1, 2, 3], [0, 1, 2, 3]]]))
    assert upsample(torch.rand(2, 5, 5), (1, 300)).shape == (2, 1, 300)
    assert (upsample(torch.full((1, 1, 1), 0.5), (4, 7)) == 0.5).all()


def test_background_is_where_all_classes_are_exactly_zero() -> None:
    maps = torch.tensor([[[0.0, 1e-30, 0.0]], [[0.0, 0.0, 2.0]]])
    assert with_background(maps, "voc")[0].tolist() == [[1.0, 0.0, 0.0]]
    assert torch.equal(with_background(maps, "voc")[1:], maps)
    assert with_background(maps, None) is maps


@pytest.mark.parametrize(("classes", "maps"), [(1, 2), (2, 3), (3, 3), (9, 9)])
def test_psc_has_no_background_beside_three_classes(classes: int, maps: int) -> None:
    assert len(with_background(torch.rand(classes, 2, 2), "psc")) == maps


def test_labels_get_the_data_sets_numbers() -> None:
    labels = torch.tensor([[BACKGROUND, 0, 1, 2]])
    assert relabel(labels, [3, 15, 9], background=True).tolist() == [[0, 3, 15, 9]]
    assert relabel(labels, [2, 15, 1], background=True).tolist() == [[0, 2, 15, 1]]


def test_the_relabel_quirk_writes_some_pixels_twice() -> None:
    """The third class is number 2, which is what the second class was before its turn."""
    labels = torch.tensor([[BACKGROUND, 0, 1, 2]])
    assert relabel(labels, [7, 15, 2], True, quirk=True).tolist() == [[0, 7, 15, 15]]
    assert relabel(labels, [7, 15, 9], True, quirk=True).tolist() == [[0, 7, 15, 9]]
    bare = torch.tensor([[0, 1, 2]])  # without a background's map labels start at 0
    assert relabel(bare, [7, 15, 2], False, quirk=True).tolist() == [[7, 15, 2]]
    assert relabel(bare, [7, 15, 1], False, quirk=True).tolist() == [[7, 15, 15]]
