"""The reward without ground truth and the search it guides: PnP-OVSS, section 3.4."""

from __future__ import annotations

import gc
import json
import random
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from clips import save_clip
from itms import save_blip, save_bridgetower
from judges import Judge, Looker, judge, method, striped
from ovss import OvssError, Vocabulary, cli
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.itm import ItmBackbone
from ovss.datasets import Sample, open_dataset
from ovss.evaluation import metrics
from ovss.evaluation.correlation import rank_correlation, spearman
from ovss.evaluation.journal import ResumeError
from ovss.methods import pnp_search as searching
from ovss.methods.pnp_maps import gradcam, merge, threshold
from ovss.methods.pnp_ovss import PnpOvss
from ovss.methods.pnp_reward import Candidate, Example, Reward, gradcam_all_heads, masks
from ovss.methods.pnp_search import (
    SearchResult,
    draw_candidates,
    examples_of,
    reward_of_heads,
    search,
)
from ovss.taggers import Oracle
from test_evaluate import environment
from test_taggers import Names

EXAMPLES = [striped("red", "green"), striped("green", "blue"), striped("blue")]


# ---- the reward


def test_a_hand_worked_reward() -> None:
    """Left half red, right half green. A black image: 1/2 for either, by Eq. 6.

    Head 0 of layer 0 shows red for red and green for green: exp(10) / (exp(10) + 1) each, above
    1/2: reward 2. Head 1 shows them swapped: 1 / (exp(10) + 1): 0. Layer 1's maps are constant, so
    no pixel is in its masks: black, not more than black: 0. In layer 2 nothing helps the match: 0,
    but for head 1.
    """
    reward = Reward(method(), judge(), [striped("red", "green")])
    found = [[int(reward(Candidate(k, n, 0.5)).sum()) for n in range(2)] for k in range(3)]
    assert found == [[2, 0], [0, 0], [0, 2]]
    assert reward.max_reward == 2


def test_the_whole_image_is_no_mask() -> None:
    """A threshold of 0 lets everything through: both classes at 1/2, as with black."""
    reward = Reward(method(), judge(), [striped("red", "green")])
    assert reward(Candidate(0, 0, 0.0)).tolist() == [0]
    assert reward(Candidate(0, 0, 0.01)).tolist() == [2]


def test_an_image_of_one_class_earns_nothing() -> None:
    reward = Reward(method(), judge(), EXAMPLES)
    assert reward(Candidate(0, 0, 0.5)).tolist() == [2, 2, 0] and reward.max_reward == 4
    alone = Reward(method(), judge(), EXAMPLES[2:])
    assert alone(Candidate(0, 0, 0.5)).tolist() == [0] and alone.max_reward == 0


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 64])
def test_batches_do_not_matter(batch: int) -> None:
    three = [*EXAMPLES, striped("blue", "red", "green"), striped("red", "blue")]
    reward = Reward(method(), judge(), three, batch=batch)
    for candidate in (Candidate(0, 0, 0.5), Candidate(0, 1, 0.3), Candidate(2, 1, 0.2, 0.05)):
        alone = [Reward(method(), judge(), [one])(candidate)[0] for one in three]
        assert reward(candidate).tolist() == alone


def test_one_pass_serves_all_heads() -> None:
    built = method(batch=2)
    reward = Reward(built, judge(), EXAMPLES)
    for layer in range(3):
        reward(Candidate(layer, 0, 0.1))
    backbone: Any = built.backbone
    assert backbone.calls == [2, 1]


def test_masks() -> None:
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[3.0, 3.0], [3.0, 3.0]]])
    found = masks(maps, 0.25, None, 4)
    assert found.shape == (2, 4, 4) and found.dtype == torch.bool
    assert not found[1].any()  # a constant map has no highest place
    corners = found[0][[0, 0, 3, 3], [0, 3, 0, 3]].tolist()
    assert corners == [False, True, True, True]
    # A grid that is as fine as the image: the threshold of `PnpOvss`, made binary.
    fine = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(masks(fine, 0.4, None, 8), threshold(fine, 0.4) > 0)
    spot = torch.zeros(1, 32, 32)
    spot[:, 16, 16] = 1
    sizes = [int(masks(spot, 0.5, blur, 32).sum()) for blur in (None, 0.03, 0.09)]
    assert sizes[0] == 1 and sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("save", [save_blip, save_bridgetower])
def test_maps_of_all_heads_are_those_of_each(save: Any, tmp_path: Path) -> None:
    """`gradcam_all_heads` against the method's own steps, one layer and head at a time."""
    backbone = ItmBackbone.load(save(tmp_path / "itm"))
    built = PnpOvss(backbone, layer=0, head=0, size=32, crf=None, batch=2)
    names = [("cat", "pottedplant"), ("dog", "grass", "sky"), ("car",)]
    some = [Example(str(i), striped("red", "blue").image, one) for i, one in enumerate(names)]
    seen = list(gradcam_all_heads(built, some))
    assert [example for example, _ in seen] == some
    for example, maps in seen:
        assert maps.shape == (backbone.layers, backbone.heads, len(example.names), 4, 4)
        prompt = built.prompt(Vocabulary.of(example.names))
        found = backbone.match(built.pixels([example.image]), [prompt], range(backbone.layers))
        for layer in range(backbone.layers):
            for head in range(backbone.heads):
                tokens = gradcam(found.attention[layer], found.gradient[layer], head)[0]
                expected = merge(tokens, prompt.words)
                torch.testing.assert_close(maps[layer, head], expected, rtol=1e-4, atol=1e-7)


def test_a_real_clip_judges(tmp_path: Path) -> None:
    """Eq. 6-7 spelled out with a random CLIP and a random BLIP."""
    clip = ClipBackbone.load(save_clip(tmp_path / "clip"))
    backbone = ItmBackbone.load(save_blip(tmp_path / "itm"))
    built = PnpOvss(backbone, layer=0, head=0, size=32, crf=None)
    image = striped("red", "blue").image.resize((50, 40))
    example = Example("a", image, ("cat", "dog", "sky"))
    reward, side = Reward(built, clip, [example]), 32
    ((_, maps),) = gradcam_all_heads(built, [example])
    pixels = np.array(image.resize((side, side), 3)) / 255
    text = clip.text_features(Vocabulary.of(example.names)).numpy()

    def likely(picture: np.ndarray) -> np.ndarray:
        normal = (picture - np.array(clip.mean)) / np.array(clip.std)
        tensor = torch.tensor(normal.transpose(2, 0, 1)[None], dtype=torch.float32)
        cosines = clip.image_embedding(tensor)[0].numpy() @ text.T
        weights = np.exp(float(clip.model.logit_scale.exp()) * cosines)
        return weights / weights.sum()

    black = likely(np.zeros((side, side, 3)))
    for layer in range(4):
        shown = masks(maps[layer, 1], 0.35, 0.05, side).numpy()
        won = [likely(pixels * shown[i][..., None])[i] > black[i] for i in range(3)]
        assert reward(Candidate(layer, 1, 0.35, 0.05))[0] == sum(won)


def test_examples_need_classes() -> None:
    with pytest.raises(OvssError, match="without a class"):
        Example("a", EXAMPLES[0].image, ())
    with pytest.raises(OvssError, match="at least one image"):
        Reward(method(), judge(), [])


# ---- the search


def find(**options: Any) -> SearchResult:
    return search(method(), judge(), EXAMPLES, **{"progress": False, "workers": 1, **options})


def test_the_search_finds_the_right_head() -> None:
    found = find(iterations=8)
    best = found.best.candidate
    assert (best.layer, best.head) in ((0, 0), (2, 1)) and best.threshold in searching.THRESHOLDS
    assert best.blur in searching.BLURS and found.best.reward == found.max_reward == 4
    assert found.options == {
        "layer": best.layer, "head": best.head, "threshold": best.threshold, "blur": best.blur
    }  # fmt: skip
    assert PnpOvss(Looker(), size=16, **found.options).blur == best.blur  # type: ignore[arg-type]
    assert found.ids == ("red-green", "green-blue", "blue")
    table = found.table()
    assert table["reward"].is_monotonic_decreasing and table["share"].max() == 1
    assert len(table) == len(found.trials) and table["blur"].notna().sum() == 6
    bare = find(iterations=8, blurs=())
    assert bare.best.candidate.blur is None


def test_draws_are_table_2s() -> None:
    drawn = draw_candidates(12, 12, searching.THRESHOLDS, 34, 3, 0)
    assert drawn == draw_candidates(12, 12, searching.THRESHOLDS, 34, 3, 0)
    assert drawn != draw_candidates(12, 12, searching.THRESHOLDS, 34, 3, 1)
    assert len(set(drawn)) == len(drawn) and 80 < len(drawn) <= 102
    assert {one.layer for one in drawn} == set(range(12))
    assert {one.head for one in drawn} == set(range(12))
    assert {one.threshold for one in drawn} == set(searching.THRESHOLDS)
    first = draw_candidates(12, 12, searching.THRESHOLDS, 34, 3, 0)[:25]
    assert {one.layer for one in first} <= {0, 1, 2, 3}  # the first group's share
    more = draw_candidates(12, 12, searching.THRESHOLDS, 40, 3, 0)
    assert set(drawn) <= set(more)
    assert {one.layer for one in draw_candidates(2, 1, (0.1,), 9, 3, 0)} == {0, 1}


def test_global_random_numbers_stay_as_they_were() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    draw_candidates(3, 2, (0.1, 0.2), 5, 3, 7)
    assert (random.random(), np.random.rand()) == expected


def test_workers_do_not_matter() -> None:
    alone, together = find(iterations=6), find(iterations=6, workers=4)
    assert [one.candidate for one in alone.trials] == [one.candidate for one in together.trials]
    assert [one.reward for one in alone.trials] == [one.reward for one in together.trials]


class Counting(Judge):
    """Counts what it is shown."""

    shown = 0

    def image_embedding(self, pixels: torch.Tensor) -> torch.Tensor:
        type(self).shown += len(pixels)
        return super().image_embedding(pixels)


def test_what_was_tried_is_not_tried_again(tmp_path: Path) -> None:
    clip: Any = Counting()
    options: dict[str, Any] = {"progress": False, "workers": 1, "resume": tmp_path}
    first = search(method(), clip, EXAMPLES, iterations=6, **options)
    shown = Counting.shown
    again = search(method(), clip, EXAMPLES, iterations=6, **options)
    assert Counting.shown == shown  # not even the black image
    assert again.table().equals(first.table())
    more = search(method(), clip, EXAMPLES, iterations=12, **options)
    assert len(more.trials) > len(first.trials) and Counting.shown > shown + 2
    heads = reward_of_heads(method(threshold=0.25), clip, EXAMPLES, **options)
    assert heads.shape == (3, 2, 3) and heads.sum(-1).tolist() == [[4, 0], [0, 0], [0, 4]]
    with pytest.raises(ResumeError, match="images"):
        search(method(), clip, EXAMPLES[:2], **options)
    other = [*EXAMPLES[:2], replace(EXAMPLES[2], picture=EXAMPLES[0].image)]
    with pytest.raises(ResumeError, match="images"):
        search(method(), clip, other, **options)
    with pytest.raises(ResumeError, match="objective"):
        search(method(variant="paper"), clip, EXAMPLES, **options)


def test_an_interrupted_search_keeps_its_trials(tmp_path: Path) -> None:
    class Fragile(Judge):
        left = 9

        def image_embedding(self, pixels: torch.Tensor) -> torch.Tensor:
            type(self).left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().image_embedding(pixels)

    clip: Any = Fragile()
    with pytest.raises(KeyboardInterrupt):
        search(method(), clip, EXAMPLES, resume=tmp_path, progress=False, workers=1)
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1 + 8
    found = search(method(), judge(), EXAMPLES, resume=tmp_path, progress=False)
    assert found.table().equals(find().table())


KILLED = """
import sys, time
from judges import Judge, method, striped
from ovss.methods.pnp_search import search
class Slow(Judge):
    def image_embedding(self, pixels):
        time.sleep(0.02)
        return super().image_embedding(pixels)
examples = [striped("red", "green"), striped("green", "blue"), striped("blue")]
print(search(method(), Slow(), examples, resume=sys.argv[1], iterations=12).table().to_json())
"""


@pytest.mark.slow
def test_kill_nine_and_again(tmp_path: Path) -> None:
    command, journal = [sys.executable, "-c", KILLED, str(tmp_path)], tmp_path / "journal.jsonl"
    quiet: dict[str, Any] = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment(), **quiet)
    while process.poll() is None and (not journal.exists() or journal.stat().st_size < 700):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = journal.read_text()
    assert len(before.splitlines()) > 2
    with open(journal, "ab") as file:
        file.write(b'1234abcd {"layer":0,')  # what a dying machine may leave
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "search" in done.stderr  # the progress bar
    expected = find(iterations=12).table()
    assert json.loads(done.stdout) == json.loads(expected.to_json())
    after = journal.read_text()
    assert after.startswith(before.rpartition("\n")[0])
    lines = after.splitlines()
    assert len(set(lines)) == len(lines) == 1 + len(expected)


@pytest.mark.parametrize("option", ["iterations", "groups", "workers"])
def test_options_are_checked(option: str) -> None:
    with pytest.raises(OvssError, match=option):
        find(**{option: 0})


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradient_free_optimizers.ask_tell", None)
    with pytest.raises(OvssError, match="pip install gradient-free-optimizers"):
        find()


# ---- from a data set


class Blind:
    """A data set that has no masks at all."""

    name, split, protocol, has_background = "blind", "train", "mmseg", True
    ids, names = ("a", "b", "c"), ("red", "green")
    vocabulary = Vocabulary.of(names)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        class Picture:
            id, image = self.ids[index], EXAMPLES[0].image

        return Picture()


def test_masks_are_never_seen() -> None:
    blind: Any = Blind()
    some = examples_of(blind, Names())
    assert [(one.id, one.names) for one in some] == [("a", ("red",)), ("c", ("red",))]
    both = [Example(one.id, one.image, blind.names) for one in some]
    found = search(method(), judge(), both, iterations=6, progress=False)
    assert found.best.reward == 4
    with pytest.raises(AttributeError, match="target"):
        examples_of(blind, Oracle())
    assert not hasattr(both[0], "target")


def test_a_data_set_is_never_held_in_memory(voc: Path) -> None:
    """The tagger is called with a batch at a time, and what it saw is let go."""
    data, seen = open_dataset("voc21", voc), []

    class Watching(Oracle):
        def __call__(self, samples: Any, vocabulary: Vocabulary) -> list[list[int]]:
            gc.collect()
            assert (
                sum(one() is not None for one in seen) <= 4
            )  # the batch before may still be there
            seen.extend(weakref.ref(sample.image) for sample in samples)
            assert len(samples) <= 4
            return super().__call__(samples, vocabulary)

    some = examples_of(data, Watching(), batch=4)
    gc.collect()
    assert len(seen) == 23 and not any(one() for one in seen)
    for one in some:
        assert one.image.tobytes() == data[data.ids.index(one.id)].image.tobytes()


def test_examples_of_a_data_set(voc: Path) -> None:
    data = open_dataset("voc21", voc)
    some = examples_of(data, Oracle(), limit=7)
    assert 0 < len(some) <= 7
    for one in some:
        target = data[data.ids.index(one.id)].target
        present = np.unique(target[target >= 0]).tolist()
        assert [data.names.index(name) for name in one.names] == present


def test_the_command_line(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = method()
    monkeypatch.setattr("ovss.load", lambda *_, **__: type("Loaded", (), {"method": built}))
    monkeypatch.setattr("ovss.taggers.find_clip", lambda *_: judge())

    class Coloured:
        name = "coloured"

        def __call__(self, samples: list[Sample], vocabulary: Vocabulary) -> list[list[int]]:
            return [[0, 1]] * len(samples)

    monkeypatch.setattr("ovss.taggers.find_tagger", lambda *_: Coloured())
    names = ("red", "green", *(f"class {k}" for k in range(18)))
    monkeypatch.setattr("ovss.datasets.VocDataset.names", names)
    out = tmp_path / "trials.csv"
    command = ["search", "--dataset", "voc21", "--root", str(voc), "--split", "val"]
    command += ["--limit", "4", "--iterations", "5", "--out", str(out)]
    command += ["--resume", str(tmp_path / "run")]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "best: layer=" in printed.out and "of 8" in printed.out
    assert "search: 100%" in printed.err
    assert out.read_text().startswith("layer,head,threshold,blur,reward,share\n")
    assert cli.main([*command, "--iterations", "0"]) == 2
    assert cli.main([*command, "--limit", "3"]) == 2
    assert "choose another resume folder" in capsys.readouterr().err
    other = tmp_path / "photo.jpg"
    other.write_bytes(b"a photograph")
    assert cli.main([*command[:-4], "--out", str(other)]) == 2
    assert "no table of trials" in capsys.readouterr().err
    assert other.read_bytes() == b"a photograph"
    for wrong in (["--seed", "-1"], ["--limit", "0"], ["--workers", "-1"]):
        assert cli.main([*command, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


# ---- rank correlation


def test_spearman(rng: np.random.Generator) -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 25, 90]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    first, second = rng.integers(0, 9, (2, 30))
    expected = scipy.stats.spearmanr(first, second).statistic
    assert spearman(first, second) == pytest.approx(expected)
    assert np.isnan(spearman([1, 1], [1, 2]))


def areas_of(quality: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Areas [C, I, 3, 2] of one class whose IoU is about `quality` [C]."""
    target = rng.integers(80, 120, (*quality.shape[:1], 12))
    hits = (quality[:, None] * target).astype(int)
    one = np.stack([hits, target, target], axis=-1)[..., None]  # [C, I, 3, 1]
    return np.concatenate([np.zeros_like(one), one], axis=-1)


def test_rank_correlation(rng: np.random.Generator) -> None:
    quality = np.linspace(0.1, 0.9, 6)
    area = areas_of(quality, rng).reshape(2, 3, 12, 3, 2)
    rewards = rng.binomial(5, quality.reshape(2, 3, 1), (2, 3, 12))
    value, interval = rank_correlation(rewards, area, background=False, n=200)
    flat = area.reshape(6, 12, 3, 2).sum(1)
    mious = [metrics.miou_of_areas(one, background=False) for one in flat]
    expected = scipy.stats.spearmanr(rewards.sum(-1).ravel(), mious).statistic
    assert value == pytest.approx(expected) and value > 0.8
    assert interval.low <= value <= interval.high <= 1
    noise, wide = rank_correlation(rng.integers(0, 5, (2, 3, 12)), area, background=False, n=200)
    assert wide.high - wide.low > interval.high - interval.low and noise < value
    with pytest.raises(OvssError, match="other candidates"):
        rank_correlation(rewards[0], area)
