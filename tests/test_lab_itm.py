"""The recipe of the lab's matching models: captions, losses, wrappers; killed and resumed."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovss import paths
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.itm import ItmBackbone
from ovss.lab.pretrain.batches import normalise
from ovss.lab.pretrain.itm import train as itm
from ovss.lab.pretrain.itm.losses import (
    contrastive_loss,
    fits,
    hard_negatives,
    matching_loss,
    replaced_token_loss,
)
from ovss.lab.pretrain.itm.models import DEPTH, Blip, BridgeTower
from ovss.lab.pretrain.itm.reading import Readers, fade, reading
from ovss.lab.pretrain.itm.recipe import RICH_CAPTIONS, Recipe, Stage, make_batch
from ovss.lab.pretrain.itm.words import (
    CONTENT,
    changed,
    content,
    make_bytepairs,
    make_wordpiece,
    places,
    swap,
    tags,
)
from ovss.lab.scenes import THING_NAMES, render
from ovss.lab.zoo import TRAINERS

TINY = Recipe(
    evaluate_every=16,
    curve_scenes=2,
    card_scenes=2,
    warmup=1,
    stages=(Stage(32, 8, RICH_CAPTIONS, faded=0.5),),
)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return [render("pretrain", i, 64, RICH_CAPTIONS).caption for i in range(300)]


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    images = np.stack([render("pretrain", i, 64).image for i in range(4)])
    return normalise(torch.from_numpy(images).permute(0, 3, 1, 2))


@pytest.fixture(params=[(Blip, make_wordpiece), (BridgeTower, make_bytepairs)], ids=["blip", "bt"])
def matcher(request: pytest.FixtureRequest, captions: list[str]) -> tuple[Any, Any, Any]:
    """A model of random weights, its tokenizer, and four captions in tokens."""
    kind, make = request.param
    torch.manual_seed(0)
    tokenizer = make(captions)
    found = tokenizer(captions[:4], padding=True, return_tensors="pt")
    return kind(tokenizer).eval(), tokenizer, found


def test_a_swapped_caption_says_something_else(captions: list[str]) -> None:
    for number, caption in enumerate(captions):
        wrong = swap(caption, Random(number))
        places = changed(caption, wrong)
        assert len(places) in (1, 2)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", wrong)
        if len(places) == 1:
            assert len(content(wrong) - content(caption)) == 1
        else:
            assert content(wrong) == content(caption)


def test_words_change_places_where_they_say_what_belongs_to_what() -> None:
    told = "an orange chair and a blue house"
    found = {swap(told, Random(i)) for i in range(200)}
    assert "a blue chair and an orange house" in found
    assert "an orange house and a blue chair" not in found  # colours or things, not both ways
    beside = {swap("a fish above a red cup", Random(i)) for i in range(200)}
    assert "a cup above a red fish" in beside


def test_places_of_content_words() -> None:
    caption = "two butterflies by a red car"
    found = [(list(CONTENT)[k], caption[start:end]) for k, start, end in places(caption)]
    assert found == [("butterfly", "butterflies"), ("red", "red"), ("car", "car")]


def test_tags_are_what_the_caption_names() -> None:
    assert tags("two red fish and a car on sand") == "a picture of red fish car sand"
    assert content("two butterflies by the road") == {"butterfly", "road"}


@pytest.mark.parametrize("make", [make_wordpiece, make_bytepairs])
def test_tokenizers_split_some_names_and_know_all_letters(make: Any, captions: list[str]) -> None:
    tokenizer = make(captions)
    pieces = [len(tokenizer.tokenize(f" {name}")) for name in THING_NAMES]
    assert 1 in pieces and max(pieces) > 1
    assert tokenizer.unk_token_id not in tokenizer("zebra quickly vexing jumps").input_ids


@pytest.mark.parametrize("name", ["blip-itm", "bridgetower"])
def test_the_zoo_holds_the_tokenizer_that_the_recipe_learns(name: str) -> None:
    """A trained model is worth nothing with another numbering of the pieces."""
    folder = paths.data("lab", "zoo", name)
    learnt = TRAINERS[name]().tokenizer.get_vocab()
    assert ItmBackbone.load(folder).tokenizer.get_vocab() == learnt


def test_a_caption_fits_images_whose_own_says_as_much() -> None:
    named = torch.zeros(3, len(CONTENT), dtype=torch.bool)
    for row, words in enumerate((["car"], ["car", "red"], ["fish"])):
        named[row, [CONTENT[word] for word in words]] = True
    expected = [[True, False, False], [True, True, False], [False, False, True]]
    assert fits(named).tolist() == expected  # [image, caption]


def test_hard_negatives_are_wrong_and_mostly_similar() -> None:
    torch.manual_seed(0)
    named = torch.eye(4, len(CONTENT), dtype=torch.bool)
    named[3] = named[2]  # these two say the same
    image = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    text = image.clone()
    text[1] = text[0]  # caption 1 is as like image 0 as its own
    drawn = [hard_negatives(image, text, named, 0.05) for _ in range(100)]
    assert {int(d.captions[0]) for d in drawn} == {1}
    for d in drawn:
        assert int(d.captions[2]) in (0, 1) and int(d.images[3]) in (0, 1)


def test_losses_by_hand() -> None:
    sure = torch.tensor([[-20.0, 20.0]])
    assert matching_loss(sure, -sure) < 1e-6 < 10 < matching_loss(-sure, sure)
    named = torch.eye(2, len(CONTENT), dtype=torch.bool)
    same = torch.eye(2)
    assert contrastive_loss(same, same, named, 0.05) < 1e-6
    assert contrastive_loss(same, same.flip(0), named, 0.05) > 1
    named[1] = named[0]  # equal captions share the probability: log 2 is the least
    equal = torch.ones(2, 1)
    loss = contrastive_loss(equal, equal, named, 1.0)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
    false = torch.tensor([[False, True, False]])
    words = torch.tensor([[True, True, False]])  # the last one is padding
    wrong = torch.tensor([[-20.0, 20.0, 20.0]])
    assert replaced_token_loss(torch.tensor([-20.0]), wrong, false, words) < 1e-6


def test_only_the_swapped_words_count_as_replaced(captions: list[str]) -> None:
    tokenizer = make_wordpiece(captions)
    _, right, swapped, false, named, spoken = make_batch(tokenizer, TINY.tagged, TINY.at(0))
    for row in range(len(right)):
        for tokens, said in zip((right[row], swapped[row]), spoken[row], strict=True):
            by_word = {k: tokenizer.decode(tokens[said == k]) for k in said[said >= 0].unique()}
            for k, pieces in by_word.items():  # of a word said twice, too
                assert content(pieces) == {list(CONTENT)[int(k)]}
            assert content(tokenizer.decode(tokens)) == {
                list(CONTENT)[k] for k in map(int, by_word)
            }
        words = tokenizer.decode(swapped[row][false[row]])
        told = set(tokenizer.decode(right[row], skip_special_tokens=True).split())
        assert words and false[row].sum() <= 12
        assert named[row].sum() == len(content(" ".join(told)))
        assert content(words) <= set(CONTENT) and not set(words.split()) & {"a", "with", "in"}


def test_a_match_seen_in_part_is_part_of_a_match() -> None:
    """The least loss is where the logits say how much was seen."""
    seen = torch.tensor([1.0, 0.25, 0.0])
    sure = torch.tensor([[-20.0, 20.0], [0.75, 0.25], [20.0, -20.0]])
    sure[1].log_()
    wrong = torch.tensor([[20.0, -20.0]])
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / 3
    assert float(matching_loss(sure, wrong, seen)) == pytest.approx(entropy / 2, abs=1e-6)
    assert matching_loss(sure.flip(1), wrong, seen) > entropy / 2 + 1
    torch.testing.assert_close(
        matching_loss(sure, wrong, torch.ones(3)), matching_loss(sure, wrong)
    )


def test_readers_tell_words_by_what_is_read() -> None:
    """Reads that are the words' own directions are told; padding and other words are not asked."""
    readers = Readers(layers=2, heads=1, width=4, words=4)
    spoken = torch.tensor([[0, -1, 3], [2, 1, -1]])
    reads = [100 * torch.eye(4)[spoken.clamp(min=0)][:, :, None] for _ in range(2)]
    reads[1][0, 1] = 1e6  # what no content word reads does not count
    before = readers(reads, spoken)
    by_hand = torch.stack([
        -(F.layer_norm(reads[k][b, t, 0], (4,)) @ readers.weight[k, 0]).log_softmax(0)[spoken[b, t]]
        for k in range(2) for b, t in ((0, 0), (0, 2), (1, 0), (1, 1))
    ])  # fmt: skip
    torch.testing.assert_close(before, by_hand.mean())
    readers.weight.data = 10 * torch.eye(4).expand(2, 1, 4, 4).clone()
    assert readers(reads, spoken) < 1e-3 < before


def test_a_share_of_the_words_fades_and_the_last_layer_does_not() -> None:
    torch.manual_seed(0)
    spoken = torch.randint(-1, 3, (2000, 6))
    left, seen = fade(spoken, 0.5, layers=3, heads=4)
    assert left.shape == (3, 2000, 6, 4) and seen.shape == (2000,)
    assert (left[-1] == 1).all() and (left[:, spoken < 0] == 1).all()
    faded = left < 1
    assert torch.equal(left[faded], seen[None, :, None, None].expand(left.shape)[faded])
    whole = ~faded.any(3).any(2).any(0)
    assert (seen[whole] == 1).all() and 0.5 < float(whole.float().mean()) < 0.6
    words = faded[:2, ~whole][:, spoken[~whole] >= 0]
    assert float(words.float().mean()) == pytest.approx(0.5 * 0.35, abs=0.02)
    assert float(seen[~whole].mean()) == pytest.approx(0.5, abs=0.03)
    assert (fade(spoken, 0.0, 3, 4)[0] == 1).all()


def test_a_word_that_reads_nothing_sees_no_image(
    matcher: tuple[Any, Any, Any], pixels: torch.Tensor
) -> None:
    model, _, found = matcher
    ids = found.input_ids

    def match(left: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), reading(model.cross_attention, left) as reads:
            _, states = model.match(model.image(seen), model.text(ids))
        assert [read.shape for read in reads] == 4 * [torch.Size((*ids.shape, 4, 32))]
        return states  # type: ignore[no-any-return]

    full = torch.ones(4, *ids.shape, 4)
    with torch.no_grad():
        _, plain = model.match(model.image(pixels), model.text(ids))
    torch.testing.assert_close(match(full, pixels), plain)
    assert not torch.allclose(match(full, pixels.flip(0)), plain)
    if isinstance(model, Blip):  # of BridgeTower the words reach the image's side, and come back
        torch.testing.assert_close(match(0 * full, pixels), match(0 * full, pixels.flip(0)))
    dim = full.clone()
    dim[0, :, 2] = 0.5
    assert not torch.allclose(match(dim, pixels), plain)
    assert not any(module._forward_hooks for module in model.cross_attention)


def test_wrappers_give_what_the_library_gives(
    matcher: tuple[Any, Any, Any], pixels: torch.Tensor
) -> None:
    """Encoders run once and are paired; the library runs them for each pair."""
    model, tokenizer, found = matcher
    ids = found.input_ids
    with torch.no_grad():
        ours, _ = model.match(model.image(pixels), model.text(ids))
        if isinstance(model, Blip):
            first = torch.full_like(ids[:, :1], len(tokenizer) + 1)
            given = {"input_ids": torch.cat([first, ids[:, 1:]], 1)}
            theirs = model.model(**given, attention_mask=found.attention_mask, pixel_values=pixels)
            torch.testing.assert_close(ours, theirs.itm_score)
        else:
            theirs = model.model(**found, pixel_values=pixels)
            torch.testing.assert_close(ours, theirs.logits)


def test_blip_begins_with_what_clip_sees(captions: list[str], pixels: torch.Tensor) -> None:
    """Folding the first normalisation is not exact, but near."""
    clip = ClipBackbone.load("clip").model.visual.float()
    model = Blip(make_wordpiece(captions))
    model.start_from(clip, pixels)
    with torch.no_grad():
        (ours,) = model.image(pixels)
        tokens = clip._embeds(pixels)
        for block in clip.transformer.resblocks[:DEPTH]:
            tokens = block(tokens)
        theirs = clip.ln_post(tokens)
    assert torch.cosine_similarity(ours, theirs, dim=-1).mean() > 0.85


@pytest.mark.parametrize("name", ["blip-itm", "bridgetower"])
def test_a_killed_run_goes_on_to_the_same_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(itm, "CAPTIONS", 200)
    kind = TRAINERS[name]
    kind(TINY).train(tmp_path / "whole")
    step = kind.step

    def killed(trainer: Any, batch: Any) -> float:
        if trainer.done == 3:
            raise KeyboardInterrupt
        return step(trainer, batch)

    monkeypatch.setattr(kind, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        kind(TINY).train(tmp_path / "killed")
    monkeypatch.setattr(kind, "step", step)
    kind(TINY).train(tmp_path / "killed")
    whole, resumed = (
        (tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "killed")
    )
    assert whole == resumed
    card = json.loads((tmp_path / "killed" / "card.json").read_text())
    assert card["images_seen"] == 32 and not (tmp_path / "killed" / "training.pt").exists()
    backbone = ItmBackbone.load(tmp_path / "killed")
    assert (backbone.layers, backbone.heads, backbone.patch) == (4, 4, 8)
    (tmp_path / "killed" / "tried.md").write_text("a diary")
    kind(replace(TINY, seed=1)).train(tmp_path / "killed")  # over a finished one
    assert (tmp_path / "killed" / "tried.md").read_text() == "a diary"
    other = ItmBackbone.load(tmp_path / "killed")
    assert other.checkpoint != backbone.checkpoint
    assert backbone.mean == (0.5, 0.5, 0.5)
