"""Options of Python calls: a number out of range is one clear error, never a plausible picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ovss
from clips import save_clip
from itms import save_blip
from ovss import OvssError, Segmenter, Vocabulary, files
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.itm import ItmBackbone
from ovss.datasets import open_dataset
from ovss.decide import CliperRule, Threshold
from ovss.errors import DatasetError, VocabularyError
from ovss.evaluation import fingerprint
from ovss.evaluation.counting import draw
from ovss.options import check_number
from ovss.refine.blur import Blur
from ovss.refine.crf import DenseCrf
from ovss.taggers.clip import ClipTagger
from toys import make_voc, toy_segmenter

NUMBERS = {
    "cliper": ("short_side", "logit_scale", "attention_threshold", "select_layer", "sliding_crop"),
    "maskclip": ("short_side", "logit_scale"),
    "pnp-ovss": ("size", "threshold", "rounds", "drop", "batch", "layer", "head", "fill", "blur"),
}
HOSTILE = ("336", "", b"1", [1], {}, (), math.nan, math.inf, -math.inf, True, 10**30, -(10**9), 1j)
SWITCHES = {"cliper": ("fuse_features", "mean_background"), "pnp-ovss": ("gradcam", "normalize")}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny CLIP and a tiny matcher, loaded."""
    folder = tmp_path_factory.mktemp("zoo")
    clip = ClipBackbone.load(save_clip(folder / "clip"))
    itm = ItmBackbone.load(save_blip(folder / "blip"))
    return {"cliper": {"clip": clip}, "maskclip": {"clip": clip}, "pnp-ovss": {"itm": itm}}


@pytest.mark.parametrize("method", NUMBERS)
def test_numbers_that_are_none_or_out_of_range(method: str, networks: Any) -> None:
    for option in NUMBERS[method]:
        for value in HOSTILE:
            with pytest.raises(OvssError) as told:
                ovss.load(method, **networks[method], **{option: value})
            assert len(str(told.value)) < 300
            assert option in str(told.value) or option == "blur"


@pytest.mark.parametrize("method", SWITCHES)
def test_a_switch_is_true_or_false(method: str, networks: Any) -> None:
    for option in SWITCHES[method]:
        with pytest.raises(OvssError, match=f"{option} must be True or False, got 'no'"):
            ovss.load(method, **networks[method], **{option: "no"})


def test_numbers_of_numpy_and_the_ends_of_a_range_are_taken(networks: Any) -> None:
    clip = networks["cliper"]
    method = ovss.load("cliper", **clip, short_side=np.int64(64), attention_threshold=1).method
    assert (method.short_side, method.attention_threshold) == (64, 1)  # type: ignore[attr-defined]
    assert ovss.load("pnp-ovss", **networks["pnp-ovss"], rounds=0, head=None, blur=None, crf=None)


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=5), st.none()))
def test_a_number_is_one_in_range_or_an_error(value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = number and 0.5 <= value <= 7
    try:
        check_number("x", value, 0.5, 7)
    except OvssError as error:
        assert not fits and str(error).startswith("x must be a number from 0.5 to 7, got ")
    else:
        assert fits


@pytest.mark.parametrize(
    "make",
    [
        lambda: Threshold(math.nan),
        lambda: Threshold("0.4"),  # type: ignore[arg-type]
        lambda: CliperRule(score_threshold=math.inf),
        lambda: CliperRule(rescale=0),  # type: ignore[arg-type]
        lambda: Blur(0),
        lambda: DenseCrf(iterations=-1),
        lambda: DenseCrf(colour=0),
        lambda: DenseCrf(far_weight=math.nan),
        lambda: DenseCrf(workers=-1),
    ],
)
def test_rules_and_refiners_check_theirs(make: Any) -> None:
    with pytest.raises(OvssError, match="must be"):
        make()


def test_a_tagger_checks_its_own(networks: Any) -> None:
    for options in ({"keep": math.nan}, {"keep": 1.5}, {"windows": 2.5}, {"logit_scale": 0}):
        with pytest.raises(OvssError, match="must be"):
            ClipTagger(networks["cliper"]["clip"], **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"decision": "argmax"}, "decision must be a rule"),
        ({"decision": Threshold}, "decision must be a rule"),
        ({"templates": 3}, "templates must be a name or a list of sentences"),
        ({"templates": [3]}, "must hold one {}"),
        ({"device": None}, "device"),
        ({"dtype": None}, "unknown dtype"),
        ({"profile": ["lab"]}, "unknown profile"),
        ({"dataset": ["voc21"]}, "settings"),
        ({"variant": ["paper"]}, "unknown variant"),
        ({"compensation": 3}, "compensation must be"),
    ],
)
def test_other_options(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(OvssError) as error:
        segmenter = ovss.load("cliper", **{"clip": save_clip(tmp_path / "clip"), **options})
        segmenter(np.zeros((32, 32, 3), np.uint8), ["a cat"])
    assert told in str(error.value)


def test_a_method_is_a_name() -> None:
    with pytest.raises(OvssError, match="unknown method"):
        ovss.load(["cliper"])  # type: ignore[arg-type]


def test_a_word_of_which_the_tokenizer_reads_nothing(networks: Any) -> None:
    segmenter = ovss.load("pnp-ovss", **networks["pnp-ovss"], size=32, crf=None)
    with pytest.raises(VocabularyError, match="the tokenizer reads no word in '🐈'"):
        segmenter(np.zeros((32, 32, 3), np.uint8), ["cat", "🐈"])


def test_tokenizer_and_configuration_beside_the_weights_decide_too(tmp_path: Path) -> None:
    for save, load in ((save_clip, ClipBackbone.load), (save_blip, ItmBackbone.load)):
        folder = save(tmp_path / save.__name__)
        before, again = (fingerprint.identity(load(folder)) for _ in range(2))
        assert before == again
        (folder / "card.json").write_text("{}")  # says nothing that a network computes with
        assert fingerprint.identity(load(folder)) == before
        (folder / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.4, 0.4]}')
        assert fingerprint.identity(load(folder)) != before


def test_a_missing_file_is_told_before_the_first_image_is_segmented(tmp_path: Path) -> None:
    root = make_voc(tmp_path, images=9)
    data = open_dataset("voc21", root)
    data.files(7)[0].unlink()  # type: ignore[attr-defined]
    data.files(8)[1].unlink()  # type: ignore[attr-defined]
    segmenter = toy_segmenter()
    seen: list[int] = []

    class Counting(type(segmenter.method)):  # type: ignore[misc]
        """Counts the images it is given."""

        def score(self, images: Any, vocabulary: Vocabulary) -> Any:
            """As the method."""
            seen.append(len(images))
            return super().score(images, vocabulary)

    counting = Segmenter(Counting(**vars(segmenter.method)), decision=segmenter.decision)
    with pytest.raises(DatasetError, match=r"is not there, nor are 1 more of 18 files"):
        ovss.evaluate(counting, data, batch=2, progress=False)
    assert not seen
    seed = next(one for one in range(99) if max(draw(9, 2, one)) < 7)
    assert ovss.evaluate(counting, data, batch=2, limit=2, seed=seed, progress=False).images == 2


def test_what_a_killed_run_left_of_a_folder_is_put_back_or_removed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    old, new = tmp_path / ".model.0123abcd.old", tmp_path / ".model.0123abcd.tmp"
    for one in (old, new, tmp_path / ".model.notes.tmp"):
        one.mkdir()
        (one / "weights").write_text(one.suffix)
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(folder):
        raise KeyboardInterrupt
    assert (folder / "weights").read_text() == ".old", "killed between two renames: put back"
    assert sorted(one.name for one in tmp_path.iterdir()) == [".model.notes.tmp", "model"]
    with files.atomic_folder(folder) as first:
        with files.atomic_folder(folder) as second:  # another process, at the same time
            (second / "weights").write_text("second")
        assert first.is_dir()
        (first / "weights").write_text("first")
    assert (folder / "weights").read_text() == "first"
