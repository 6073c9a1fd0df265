"""PnP-OVSS: Salience DropOut by hand, each quirk's effect, batches, odd images, loading."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ovss
from clips import noise
from itms import save_blip, save_bridgetower
from ovss import Segmenter, Vocabulary, cli, paths
from ovss.backbones.itm import ItmBackbone, Matching, Prompt
from ovss.errors import OvssError, UnknownNameError
from ovss.labels import BACKGROUND
from ovss.methods.pnp_configs import (
    CONFIGS,
    SOLUTIONS,
    SOLUTIONS_ON,
    searched_as,
    solution,
    unsearched,
)
from ovss.methods.pnp_ovss import PnpOvss, Quirks
from ovss.provenance import describe
from ovss.refine.crf import DenseCrf
from ovss.segmenter import Method

CAT = Vocabulary.of("cat")
PETS = Vocabulary.of("cat, dog")


@dataclass(eq=False)
class Renormalised:
    """A matcher whose words look at what is left of the image, as a softmax would.

    Patches are single pixels. Where word k looks is channel k of the image, divided by its sum; the
    gradient is 1 in head 0 and -1 in head 1. A name has as many pieces as words.
    """

    layers: int = 2
    heads: int = 2
    patch: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    asked: list[dict[str, Any]] = field(default_factory=list)

    def patch_grid(self, size: int) -> int:
        return size

    def prompt(self, names: Any, joined: bool = False) -> Prompt:
        pieces = [piece for name in names for piece in name.split()]
        owner = [place for place, name in enumerate(names) for _ in name.split()]
        words = [[k + 1 for k, own in enumerate(owner) if own == place] for place in set(owner)]
        self.asked.append({"joined": joined})
        ids = torch.arange(len(pieces) + 2)
        return Prompt(" ".join(names), ids, ("<s>", *pieces, "</s>"), tuple(map(tuple, words)))

    def pixels(self, images: Any, size: int, **options: Any) -> Tensor:
        self.asked.append(options)
        return torch.stack([torch.from_numpy(image) for image in images])

    def match(self, pixels: Tensor, prompts: Any, layers: Any, **options: Any) -> Matching:
        self.asked.append(options)
        longest = max(len(prompt.ids) for prompt in prompts)
        seen = pixels.flatten(2) / pixels.flatten(2).sum(-1, keepdim=True)  # [B, C, L]
        attention = torch.zeros(len(pixels), 2, longest, 1 + seen.shape[2])
        attention[:, :, 1 : 1 + seen.shape[1], 1:] = seen[:, None, : longest - 1]
        sign = torch.tensor([1.0, -1.0])[:, None, None]
        slopes = {layers[0]: sign.expand_as(attention)} if options["gradient"] else {}
        mask = torch.tensor([[k < len(one.ids) for k in range(longest)] for one in prompts])
        return Matching(torch.zeros(len(pixels), 2), mask, {layers[0]: attention}, slopes)


def by_hand(**options: Any) -> PnpOvss:
    """On 3 x 3 pixels, one patch a round."""
    values = {"layer": 0, "head": 0, "rounds": 2, "drop": 1, "size": 3, "crf": None, **options}
    return PnpOvss(Renormalised(), **values)  # type: ignore[arg-type]


def picture(*channels: list[float]) -> np.ndarray[Any, Any]:
    """One image [C, 3, 3]."""
    return np.array(channels, dtype=np.float32).reshape(-1, 3, 3)


HEAD_TAIL = picture([4, 2, 1, 1, 0, 0, 0, 0, 0])  # a head that draws all attention, then the rest


# ---- Salience DropOut by hand


def test_salience_dropout_by_hand() -> None:
    """What is left gets what the most salient patch had: 4/8, then 2/4, then 1/2."""
    method = by_hand(variant="paper")
    prompts = [method.prompt(CAT)]
    first, second, third = method.passes(torch.from_numpy(HEAD_TAIL)[None], prompts)
    assert first.tokens[0, 1].flatten().tolist() == [0.5, 0.25, 0.125, 0.125, 0, 0, 0, 0, 0]
    assert second.tokens[0, 1].flatten().tolist() == [0, 0.5, 0.25, 0.25, 0, 0, 0, 0, 0]
    assert third.tokens[0, 1].flatten().tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, 0, 0]
    assert third.dropped.flatten().nonzero().flatten().tolist() == [0, 1]
    (total,) = method.class_maps([HEAD_TAIL], [CAT])  # type: ignore[list-item]
    assert total.flatten().tolist() == [0.5, 0.75, 0.875, 0.875, 0, 0, 0, 0, 0]


def test_the_official_sum_counts_the_first_map_twice() -> None:
    (total,) = by_hand().class_maps([HEAD_TAIL], [CAT])  # type: ignore[list-item]
    assert total.flatten().tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    (total,) = by_hand(aggregate="sum").class_maps([HEAD_TAIL], [CAT])  # type: ignore[list-item]
    assert total.flatten().tolist() == [0.5, 0.75, 0.875, 0.875, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("rounds", "expected"), [(0, [4, 2, 1, 1]), (1, [4, 6, 3, 3]), (3, [4, 6, 7, 15])]
)
def test_rounds(rounds: int, expected: list[int]) -> None:
    method = by_hand(variant="paper", rounds=rounds)
    (total,) = method.class_maps([HEAD_TAIL], [CAT])  # type: ignore[list-item]
    assert (8 * total).flatten().tolist()[:4] == expected
    assert len(list(method.passes(torch.from_numpy(HEAD_TAIL)[None], [method.prompt(CAT)]))) == (
        rounds + 1
    )


def test_dropped_patches_have_no_salience_later() -> None:
    """Even if the network still looks there, because what was filled in draws its attention."""
    method = by_hand(variant="paper", fill=4.0, rounds=1)
    _, second = method.passes(torch.from_numpy(HEAD_TAIL)[None], [method.prompt(CAT)])
    assert second.tokens[0, 1, 0, 0] == 0.5 and second.kept[0, 1, 0, 0] == 0
    (total,) = method.class_maps([HEAD_TAIL], [CAT])  # type: ignore[list-item]
    assert (8 * total).flatten().tolist()[:4] == [4, 4, 2, 2]


def test_more_is_dropped_than_there_is() -> None:
    method = by_hand(drop=10, rounds=3)
    *_, last = method.passes(torch.from_numpy(HEAD_TAIL)[None] + 1, [method.prompt(CAT)])
    assert last.dropped.all()


# ---- the options of the network's maps


def test_heads_and_gradients() -> None:
    found = {}
    for head, gradient in ((0, True), (1, True), (None, True), (1, False), (None, False)):
        method = by_hand(rounds=0, head=head, gradcam=gradient, aggregate="sum")
        (total,) = method.class_maps([HEAD_TAIL], [CAT])  # type: ignore[list-item]
        found[head, gradient] = float(total[0, 0, 0])
        assert method.backbone.asked[-1]["gradient"] is gradient  # type: ignore[attr-defined]
    assert found == {
        (0, True): 0.5,
        (1, True): 0.0,
        (None, True): 0.25,
        (1, False): 0.5,
        (None, False): 0.5,
    }


def test_the_variant_chooses_and_a_given_value_wins() -> None:
    expected = {"joined_names": True, "objective": "logit", "select_by": "tokens"}
    expected |= {"aggregate": "official", "merge": "official"}
    assert {name: by_hand().chosen(name) for name in expected} == expected
    paper = {"joined_names": False, "objective": "ce", "select_by": "classes"}
    paper |= {"aggregate": "sum", "merge": "mean"}
    assert {name: by_hand(variant="paper").chosen(name) for name in paper} == paper
    assert by_hand(variant="paper", objective="logit").chosen("objective") == "logit"
    assert by_hand(joined_names=False).chosen("joined_names") is False
    method = by_hand(variant="paper", normalize=False, resample="bilinear")
    method.class_maps([HEAD_TAIL], [CAT])  # type: ignore[list-item]
    words, pixels, match, *_ = method.backbone.asked  # type: ignore[attr-defined]
    assert words == {"joined": False} and match["objective"] == "ce"
    assert pixels == {"normalize": False, "resample": Image.Resampling.BILINEAR}


def test_select_by_classes_or_tokens() -> None:
    """ "traffic light" has two pieces, so by tokens its patch goes before the cat's."""
    words = Vocabulary.of("cat, traffic light")
    image = picture(
        [3, 0, 0, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0, 0, 0], [0, 2, 0, 0, 0, 2, 0, 0, 0]
    )
    firsts = {}
    for by in ("tokens", "classes"):
        method = by_hand(rounds=1, select_by=by)
        passes = list(method.passes(torch.from_numpy(image)[None], [method.prompt(words)]))
        firsts[by] = int(passes[1].dropped.flatten().nonzero())
    assert firsts == {"tokens": 1, "classes": 0}


def test_the_batch_quirk_lets_a_short_caption_choose_by_its_end() -> None:
    """Channel 2 is where [SEP] looks; alone, or without the quirk, it has no say."""
    image = picture([4, 2, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 9], [1] * 9)
    longer = Vocabulary.of("cat, dog, sky")
    for quirk, alone, together in ((False, 0, 0), (True, 0, 8)):
        method = by_hand(rounds=1, quirks=Quirks(batch=quirk))
        pixels = torch.from_numpy(image)[None]
        short, long = method.prompt(CAT), method.prompt(longer)
        (_, own) = method.passes(pixels, [short])
        (_, shared) = method.passes(pixels.expand(2, -1, -1, -1), [short, long])
        assert int(own.dropped[0].flatten().nonzero()) == alone
        assert int(shared.dropped[0].flatten().nonzero()) == together


def test_the_merge_quirk_favours_the_last_class() -> None:
    words = Vocabulary.of("cat, traffic light")
    image = picture(
        [3, 0, 1, 0, 0, 0, 0, 0, 0], [2, 2, 0, 0, 0, 0, 0, 0, 0], [2, 2, 0, 0, 0, 0, 0, 0, 0]
    )
    labels = {}
    for merge in ("mean", "official"):
        method = by_hand(rounds=0, merge=merge)
        (maps,) = method.class_maps([image], [words])  # type: ignore[list-item]
        labels[merge] = int(maps[:, 0, 0].argmax())
    assert labels == {"mean": 0, "official": 1}


# ---- from maps to labels


@dataclass(frozen=True)
class Fixed(Method):
    """A method with the refiners of a `PnpOvss` on maps that are given."""

    maps: Tensor
    steps: Any
    name: str = "fixed"

    may_be_nan = True

    @property
    def refiners(self) -> Any:
        return self.steps

    def score(self, images: Any, vocabulary: Any) -> list[Tensor]:
        return [self.maps] * len(images)


def segmented(maps: list[list[float]], names: str, **options: Any) -> list[int]:
    """Labels of three pixels in a row."""
    method = by_hand(**{"blur": None, **options})
    fixed = Fixed(torch.tensor(maps)[:, None], method.refiners)
    return Segmenter(fixed)(noise(3, 1), names).labels.flatten().tolist()


def test_pixels_without_any_class_are_background() -> None:
    assert segmented([[0.5, 0, 0], [0, 0, 0.1]], "cat, dog") == [0, BACKGROUND, 1]
    assert segmented([[0.5, 0, 0], [0, 0, 0.1]], "cat, dog", background=None) == [0, 0, 1]
    assert segmented([[0.5, 0, 0]], "cat", background="psc") == [0, BACKGROUND, BACKGROUND]
    three = [[0.5, 0, 0], [0, 0, 0.1], [0, 0, 0]]
    assert segmented(three, "cat, dog, sky") == [0, BACKGROUND, 1]
    assert segmented(three, "cat, dog, sky", background="psc") == [0, 0, 1]


def test_rescale_makes_weak_classes_strong() -> None:
    maps = [[0.9, 0.5, 0.0], [0.0, 0.2, 0.2]]
    assert segmented(maps, "cat, dog", background=None) == [0, 0, 1]
    assert segmented(maps, "cat, dog", background=None, rescale=True) == [0, 1, 1]
    assert segmented(maps[:1], "cat", background=None, rescale=True) == [0, 0, 0]


def test_the_nan_quirk_makes_an_image_one_label() -> None:
    """No pixel is left for the background, so its map is empty."""
    maps = [[0.9, 0.5, 0.4], [0.1, 0.2, 0.8]]
    quirk = {"blur": 0.05, "quirks": Quirks(nan=True)}
    assert segmented(maps, "cat, dog", blur=0.05) == [0, 0, 1]
    assert segmented(maps, "cat, dog", **quirk) == [BACKGROUND] * 3
    assert segmented(maps, "cat, dog", crf=DenseCrf(), **quirk) == [BACKGROUND] * 3
    empty = [[0.9, 0.0, 0.4], [0.0, 0.0, 0.0]]
    assert segmented(empty, "cat, dog", **quirk) == [1] * 3  # the class that is nowhere


def test_the_relabel_quirk() -> None:
    labels = torch.tensor([BACKGROUND, 0, 1, 2])
    classes = [6, 14, 1]  # of the data set; the last one's number there is 2
    assert by_hand().relabel(labels, classes).tolist() == [BACKGROUND, 6, 14, 1]
    quirk = by_hand(quirks=Quirks(relabel=True))
    assert quirk.relabel(labels, classes).tolist() == [BACKGROUND, 6, 14, 14]
    few = by_hand(quirks=Quirks(relabel=True), background="psc")
    assert few.relabel(labels[1:], classes).tolist() == [6, 14, 1]
    assert few.relabel(labels[:3], [6, 0]).tolist() == [BACKGROUND, 6, 6]


def test_an_evaluation_relabels_as_the_method_does() -> None:
    labels, classes = torch.tensor([BACKGROUND, 0, 1, 2]), [6, 14, 1]
    found = {}
    for method in (by_hand(), by_hand(quirks=Quirks(relabel=True)), Fixed(torch.zeros(1), ())):
        quirks = describe(method).get("quirks", {})
        found[quirks.get("relabel")] = method.relabel(labels, classes).tolist()
    assert found[False] == found[None] == [BACKGROUND, 6, 14, 1]
    assert found[True] == [BACKGROUND, 6, 14, 14]


def test_an_image_without_attention_is_background() -> None:
    """Maps that are the same everywhere say nothing."""
    method = by_hand(rounds=0)
    scores = method.score([picture([1.0] * 9)], CAT)  # type: ignore[list-item]
    assert scores[0].eq(0).all()
    fixed = Fixed(scores[0], by_hand(crf=DenseCrf()).refiners)
    assert Segmenter(fixed)(noise(8, 6), CAT).labels.eq(BACKGROUND).all()


# ---- a random BLIP


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> ItmBackbone:
    """A tiny BLIP with patches of 8 pixels, 4 layers of 4 heads."""
    return ItmBackbone.load(save_blip(tmp_path_factory.mktemp("zoo") / "blip"))


@pytest.fixture
def method(blip: ItmBackbone) -> PnpOvss:
    """Four by four patches, two a round."""
    return PnpOvss(blip, layer=2, head=1, size=32, drop=2)


WORDS = [
    Vocabulary.of("cat, dog, potted plant, sky"),
    Vocabulary.of("traffic light"),
    Vocabulary.of("dog, tv monitor"),
]


def test_batches_are_single_images(method: PnpOvss) -> None:
    """Images of different sizes with different words, whatever the size of a batch."""
    images = [noise(40, 32, 1), noise(20, 90, 2), noise(33, 32, 3)]
    together = method.score_each(images, WORDS)
    assert [tuple(maps.shape) for maps in together] == [(4, 4, 4), (1, 4, 4), (2, 4, 4)]
    for maps, image, words in zip(together, images, WORDS, strict=True):
        torch.testing.assert_close(maps, method.score([image], words)[0], rtol=1e-4, atol=1e-7)
    parts = replace(method, batch=2).score_each(images, WORDS)
    for maps, part in zip(together, parts, strict=True):
        torch.testing.assert_close(maps, part, rtol=1e-4, atol=1e-7)


def test_a_segmenter_takes_words_for_each_image(method: PnpOvss) -> None:
    images = [noise(40, 32, 1), noise(20, 90, 2), noise(33, 32, 3)]
    together = Segmenter(method)(images, WORDS)
    for found, image, words in zip(together, images, WORDS, strict=True):
        assert found.names == words.names and found.labels.shape == (image.height, image.width)
        assert found.scores.shape == (len(words), image.height, image.width)
        alone = Segmenter(method)(image, words)
        assert (alone.labels == found.labels).float().mean() > 0.99


def test_every_step_against_a_transcription(method: PnpOvss, blip: ItmBackbone) -> None:
    """One image, one step after another, as section 3 tells it; names of several words."""
    image, words = noise(40, 32, 1), Vocabulary.of("cat, traffic light")
    prompt = blip.prompt(words.names)
    pixels, gone, total = blip.pixels([image], 32), [], 0.0
    for _ in range(4):
        for patch in gone:
            row, column = divmod(patch, 4)
            pixels[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
        seen = blip.match(pixels, [prompt], [2], objective="ce")
        cam = (seen.attention[2] * seen.gradient[2].relu())[0, 1, :, 1:]  # [T, 16]
        classes = torch.stack([cam[list(pieces)].mean(0) for pieces in prompt.words])
        classes[:, gone] = 0
        total = total + classes
        order = classes.sum(0).tolist()
        left = [patch for patch in range(16) if patch not in gone]
        gone += sorted(left, key=lambda patch: -order[patch])[:2]
    paper = replace(method, variant="paper")
    (found,) = paper.class_maps([image], [words])
    assert len(prompt.words[1]) == 2
    torch.testing.assert_close(found.flatten(1), total)
    low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
    (scores,) = paper.score([image], words)
    torch.testing.assert_close(scores, found * ((found - low) / (high - low) >= 0.15))


def test_ablations_of_tables_5_and_6(method: PnpOvss) -> None:
    """Every row runs and differs from the others."""
    rows = [{"gradcam": False, "rounds": 0}, *({"rounds": rounds} for rounds in range(4))]
    rows += [{"head": None}, {"layer": 0}, {"head": 3}, {"variant": "paper"}]
    maps = [replace(method, **row).class_maps([noise(40, 32)], WORDS[:1])[0] for row in rows]
    for i, one in enumerate(maps):
        assert all(not torch.equal(one, other) for other in maps[:i])
    kinds = [{"blur": None, "crf": None}, {"crf": None}, {"blur": None}, {}]
    steps = [[type(one).__name__ for one in replace(method, **k).refiners] for k in kinds]
    assert steps == [
        ["ToPixels"],
        ["ToPixels", "Blur"],
        ["ToPixels", "DenseCrf"],
        ["ToPixels", "Blur", "DenseCrf"],
    ]


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (300, 3)])
@pytest.mark.parametrize("words", ["cat", "cat, dog, sky"])
def test_images_of_any_shape(method: PnpOvss, size: tuple[int, int], words: str) -> None:
    found = Segmenter(method)(noise(*size), words)
    assert found.labels.shape == (size[1], size[0]) and found.image_scores.isfinite().all()


def test_gradients_stay_in_the_method(method: PnpOvss, blip: ItmBackbone) -> None:
    (maps,) = method.score([noise(40, 32)], PETS)
    assert not maps.requires_grad
    assert all(weight.grad is None for weight in blip.network.model.parameters())


def test_bridgetower(tmp_path: Path) -> None:
    backbone = ItmBackbone.load(save_bridgetower(tmp_path / "bt"))
    method = PnpOvss(backbone, "paper", layer=1, head=None, size=48)
    found = Segmenter(method)([noise(40, 32), noise(9, 70)], "cat, traffic light, potted plant")
    assert [tuple(one.labels.shape) for one in found] == [(32, 40), (70, 9)]


# ---- options, ovss.load, the command


def test_errors_name_what_was_given(blip: ItmBackbone) -> None:
    right = {"layer": 1, "head": 1, "size": 32}
    for wrong, message in (
        ({"layer": 7}, "layer must be a whole number from 0 to 3, got 7"),
        ({"layer": -1}, "layer must be a whole number from 0 to 3, got -1"),
        ({"head": 9}, "head must be a whole number from 0 to 3, got 9"),
        ({"size": 30}, "size=30 is no multiple of the patch"),
        ({"rounds": -1}, "rounds must be a whole number"),
        ({"drop": 0}, "drop must be a whole number"),
        ({"batch": 0}, "batch must be a whole number"),
        ({"blur": 0.0}, "deviation must be a number"),
        ({"crf": True}, "crf must be a DenseCrf or None: True"),
        ({"variant": "oficial"}, "unknown variant 'oficial'; did you mean 'official'"),
        ({"merge": "sum"}, "unknown merge 'sum'"),
        ({"background": "ade"}, "unknown background 'ade'"),
    ):
        with pytest.raises(OvssError, match=message):
            PnpOvss(blip, **{**right, **wrong})


def test_load(blip: ItmBackbone) -> None:
    segmenter = ovss.load("pnp-ovss", itm=blip, layer=1, head=2, size=32, rounds=1)
    built = segmenter.method
    assert isinstance(built, PnpOvss) and (built.layer, built.head, built.rounds) == (1, 2, 1)
    assert built.crf == DenseCrf() and built.background == "voc"
    assert segmenter(noise(40, 32), "cat, dog").labels.shape == (32, 40)
    plain = ovss.load("pnp-ovss", itm=blip, layer=1, head=2, crf=False).method
    assert isinstance(plain, PnpOvss) and plain.crf is None and plain.size == 96
    stated = ovss.load("pnp-ovss", itm=blip, layer=1, head=2, crf=True).method
    assert isinstance(stated, PnpOvss) and stated.crf == DenseCrf()


def test_load_takes_the_authors_settings(blip: ItmBackbone) -> None:
    here: dict[str, Any] = {"itm": blip, "layer": 0, "head": 0}
    for name, config in CONFIGS.items():
        method = ovss.load("pnp-ovss", dataset=name, **here).method
        assert {option: getattr(method, option) for option in config} == config
    ade = ovss.load("pnp-ovss", dataset="ade150", quirks=Quirks(relabel=True), **here).method
    assert isinstance(ade, PnpOvss) and not ade.quirks.nan and not ade.normalize
    assert (ade.resample, ade.background, ade.quirks.relabel) == ("bilinear", "psc", True)
    with pytest.raises(UnknownNameError, match=r"configuration 'ade'.*'ade150'"):
        ovss.load("pnp-ovss", dataset="ade", **here)


def test_load_finds_what_was_searched_by_the_weights(tmp_path: Path) -> None:
    """The lab's BLIP in a folder of another name; and other weights in a folder of its name."""
    shutil.copytree(paths.data("lab", "zoo", "blip-itm"), tmp_path / "1a2b3c")
    renamed = ovss.load("pnp-ovss", itm=tmp_path / "1a2b3c").method
    stranger = ovss.load("pnp-ovss", itm=save_blip(tmp_path / "blip-itm")).method
    assert isinstance(renamed, PnpOvss) and isinstance(stranger, PnpOvss)
    for option, value in SOLUTIONS["blip-itm"].items():
        assert getattr(renamed, option) == value
    layers = stranger.backbone.layers
    assert {"layer": stranger.layer, "head": stranger.head} == unsearched(layers)
    assert (stranger.layer, stranger.head) != (renamed.layer, renamed.head)


def test_published_weights_are_known_by_where_they_came_from() -> None:
    large = "0123456789ab"
    assert searched_as(f"x@{large} (Salesforce/blip-itm-large-coco@0a1b2c)") == "blip-itm-large"
    assert searched_as(f"blip-itm-large@{large} (somebody/else@0a1b2c)") is None
    assert searched_as(f"blip-itm-large@{large}") is searched_as("looker@0") is None
    network: Any = SimpleNamespace(checkpoint=f"blip-itm-large@{large}", layers=12)
    assert solution(network, "blip-itm-large", None) == SOLUTIONS["blip-itm-large"]
    assert solution(network, Path("blip-itm-large"), None) == unsearched(12)


def test_load_finds_the_head_of_a_data_set() -> None:
    """The lab's BLIP has one for things, and one for things and stuff."""
    usual, things, both = (
        ovss.load("pnp-ovss", **given).method
        for given in ({}, {"dataset": "lab-21"}, {"dataset": "lab-all"})
    )
    assert isinstance(usual, PnpOvss) and isinstance(things, PnpOvss) and isinstance(both, PnpOvss)
    assert replace(things, backbone=usual.backbone) == usual and usual.background == "voc"
    for option, value in SOLUTIONS_ON["blip-itm", "lab-all"].items():
        assert getattr(both, option) == value
    assert both.background is None


def test_image_scores_are_of_one_kind() -> None:
    """A CRF's probability is no GradCAM: only the last step counts, and NaN shows no class."""
    method = by_hand()
    coarse, refined = torch.full((2, 1, 1), 50.0), torch.tensor([[[0.2, 0.7]], [[torch.nan, 0.1]]])
    torch.testing.assert_close(method.image_scores(coarse, refined), torch.tensor([0.7, 0.0]))


def test_load_errors(blip: ItmBackbone, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="option of pnp-ovss 'treshold'"):
        ovss.load("pnp-ovss", itm=blip, treshold=1)
    with pytest.raises(UnknownNameError, match="option of pnp-ovss 'clip'"):
        ovss.load("pnp-ovss", itm=blip, clip="clip")
    with pytest.raises(OvssError, match="itm must be a name, a folder or a ItmBackbone"):
        ovss.load("pnp-ovss", itm=3)
    with pytest.raises(UnknownNameError, match="option of clip 'itm'"):
        ovss.load("clip", itm=blip)


def test_a_network_without_a_search_starts_two_thirds_up(blip: ItmBackbone) -> None:
    """BLIP's eighth of twelve layers is the paper's; which head is best nobody knows yet."""
    assert [unsearched(n)["layer"] + 1 for n in (12, 6, 4, 1)] == [8, 4, 2, 1]
    method = ovss.load("pnp-ovss", itm=blip).method
    assert isinstance(method, PnpOvss) and (method.layer, method.head) == (1, None)
    own = ovss.load("pnp-ovss", itm=blip, layer=3, head=2).method
    assert isinstance(own, PnpOvss) and (own.layer, own.head) == (3, 2)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_blip(tmp_path / "blip")
    noise(40, 32).save(tmp_path / "photo.png")
    command = ["segment", str(tmp_path / "photo.png"), "--method", "pnp-ovss", "--classes", "cat"]
    command += ["--itm", str(folder), "--no-crf", "--out", str(tmp_path / "out.png")]
    assert cli.main(command) == 0
    assert "% -> " in capsys.readouterr().out
    assert Image.open(tmp_path / "out.png").size == (40, 32)
    assert cli.main(["list", "methods"]) == 0
    assert "pnp-ovss" in capsys.readouterr().out
