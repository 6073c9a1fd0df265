"""Several segmenters in one pass: the counts of separate runs, the shared work done once."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ovss
from clips import noise, save_clip
from diffusions import save_diffusion
from itms import save_blip
from ovss import OvssError
from ovss.backbones.caching import CachedClip, CachedDiffusion, CachedItm
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.diffusion import DiffusionBackbone
from ovss.backbones.itm import ItmBackbone
from ovss.decide import Threshold
from ovss.errors import VocabularyError
from ovss.evaluation.journal import ResumeError
from ovss.evaluation.many import evaluate_many, evaluate_settings
from ovss.methods.cliper import Cliper
from ovss.methods.cliper_cached import CachedCliper
from ovss.methods.pnp_ovss import PnpOvss
from ovss.refine.compensation import Compensation
from ovss.reporting import results
from ovss.reporting.tuning import choose_on_tune
from ovss.vocabulary import Vocabulary
from toys import ColourMethod, toy_segmenter


def test_counts_are_those_of_separate_runs(voc: Path) -> None:
    rows = {"low": toy_segmenter(0.1), "high": toy_segmenter(0.3)}
    options: dict[str, Any] = {"root": voc, "limit": 11, "seed": 3, "progress": False}
    found = evaluate_many(rows, "voc21", batch=4, **options)
    assert list(found) == list(rows)
    for row, segmenter in rows.items():
        alone = ovss.evaluate(segmenter, "voc21", batch=4, **options)
        np.testing.assert_array_equal(found[row].areas, alone.areas)
        np.testing.assert_array_equal(found[row].confusion, alone.confusion)
        assert found[row].ids == alone.ids and found[row].interval == alone.interval
        np.testing.assert_array_equal(found[row].image_scores, alone.image_scores)
        assert math.isnan(found[row].seconds_per_image)


def test_places_in_turn_are_places_apart(voc: Path) -> None:
    tables: dict[Any, Any] = {
        ("voc21", "all"): {"low": toy_segmenter(0.1), "high": toy_segmenter(0.3)},
        ("voc20", "image"): {"low": toy_segmenter(0.1)},
    }
    options: dict[str, Any] = {"root": voc, "limit": 7, "progress": False, "batch": 3}
    found = evaluate_settings(tables, **options)
    assert list(found) == list(tables)
    for (dataset, classes), rows in tables.items():
        apart = evaluate_many(rows, dataset, classes=classes, **options)
        assert list(found[dataset, classes]) == list(rows)
        for row, result in found[dataset, classes].items():
            np.testing.assert_array_equal(result.areas, apart[row].areas)
            assert result.protocol == apart[row].protocol and result.ids == apart[row].ids


def test_a_tagger_is_asked_once_for_all_rows(voc: Path) -> None:
    asked: list[str] = []

    class First:
        name = "first"

        def __call__(self, samples: Any, vocabulary: ovss.Vocabulary) -> list[list[int]]:
            asked.extend(sample.id for sample in samples)
            return [[0, 2] for _ in samples]

    rows = {"low": toy_segmenter(0.1), "high": toy_segmenter(0.3)}
    options: dict[str, Any] = {"root": voc, "limit": 5, "classes": First(), "progress": False}
    found = evaluate_many(rows, "voc21", **options)
    assert asked == list(found["low"].ids) and found["low"].protocol == "mmseg-first-classes"
    for row, segmenter in rows.items():
        alone = ovss.evaluate(segmenter, "voc21", **options)
        np.testing.assert_array_equal(found[row].areas, alone.areas)


@pytest.mark.parametrize("classes", ["all", "image"])
def test_shared_features_change_nothing(voc: Path, tmp_path: Path, classes: Any) -> None:
    folder = save_clip(tmp_path / "tiny")
    options: dict[str, Any] = {"root": voc, "limit": 5, "classes": classes, "progress": False}
    shared, plain = CachedClip.load(folder), ClipBackbone.load(folder)
    names = ("clearclip", "cliper")
    found = evaluate_many({name: _load(name, shared) for name in names}, "voc21", **options)
    for name in names:
        alone = ovss.evaluate(_load(name, plain), "voc21", **options)
        np.testing.assert_array_equal(found[name].areas, alone.areas)


def test_a_batch_is_computed_once_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = CachedClip.load(save_clip(tmp_path / "tiny"))
    passes: list[int] = []
    embed = clip.embed

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        passes.append(len(pixels))
        return embed(pixels)

    monkeypatch.setattr(clip, "embed", counted)
    batches = [torch.randn(8, 3, 32, 32) for _ in range(3)]
    first = clip.features(batches[0], attention="sum")
    assert clip.features(batches[0].clone(), attention="sum") is first
    assert passes == [8]
    clip.capacity = 2 * clip.cache.size  # bytes
    clip.features(batches[0], attention=False)  # other options are another call
    clip.features(batches[1], attention=False)  # there is no room for the first one any more
    assert clip.features(batches[0], attention="sum") is not first
    assert passes == [8, 8, 8, 8]


def test_embeddings_are_made_once_for_equal_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    embed = Cliper.embed

    def counted(self: Cliper, features: Any) -> Any:
        made.append(self.variant)
        return embed(self, features)

    monkeypatch.setattr(Cliper, "embed", counted)
    folder = save_clip(tmp_path / "tiny")
    shared, plain = CachedClip.load(folder), ClipBackbone.load(folder)
    readings: tuple[dict[str, Any], ...] = (
        {},
        {"logit_scale": 20.0},
        {"variant": "official"},
        {"variant": "paper"},
        {"attention": "qq"},
    )
    for options in readings:
        ours = CachedCliper(shared, short_side=32, **options)
        theirs = Cliper(plain, short_side=32, **options)
        for image in pictures(2):
            for one, other in zip(
                ours.score([image], Vocabulary.of("cat, dog")),
                theirs.score([image], Vocabulary.of("cat, dog")),
                strict=True,
            ):
                torch.testing.assert_close(one, other)
    assert len(made) == 2 * len(readings) + 2 * 3  # the first three share theirs


def test_the_choice_is_made_on_tune(results_folder: Path, voc: Path, tmp_path: Path) -> None:
    shutil.copytree(voc, tmp_path / "voc")
    lists = tmp_path / "voc" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    names = (lists / "val.txt").read_text().split()
    (lists / "tune.txt").write_text("\n".join(names[:6]))
    (lists / "val.txt").unlink()  # whoever reads it fails
    rows = {str(tau): toy_segmenter(tau) for tau in (0.9, 0.2, 0.01)}
    places: Any = [("voc21", "all"), ("voc21", "image")]
    root, options = tmp_path / "voc", {"bootstrap": 10, "progress": False}
    best, table = choose_on_tune(rows, places, "choice", "smoke", root=root, **options)
    assert list(table.columns) == ["voc21 (mmseg)", "voc21 (mmseg-image-classes)", "mean"]
    assert best == table["mean"].idxmax() and table["mean"].idxmin() == "0.9"
    for (dataset, classes), column in zip(places, table.columns, strict=False):
        alone = ovss.evaluate(
            rows["0.9"], dataset, root=root, split="tune", classes=classes, **options
        )
        assert table.loc["0.9", column] == pytest.approx(alone.miou)
    kept = results.read(results.file_of("choice", "smoke"))
    assert kept["images"].tolist() == [6] * 12


class Fragile(ColourMethod):
    """Fails at the n-th call."""

    left = 10**9

    def score(self, images: Any, vocabulary: Vocabulary) -> list[torch.Tensor]:
        type(self).left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().score(images, vocabulary)


def test_an_interrupted_table_goes_on(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rows in two settings, killed in the middle of a batch: nothing is counted twice."""

    def rows(tau: float = 0.3) -> dict[str, ovss.Segmenter]:
        return {"a/b": fragile(0.1), "a b": fragile(tau)}

    def fragile(tau: float) -> ovss.Segmenter:
        return ovss.Segmenter(Fragile(), decision=Threshold(tau))

    def tables(**changed: Any) -> Any:
        return {("voc21", "all"): rows(**changed), ("voc20", "all"): rows(**changed)}

    options: dict[str, Any] = {"root": voc, "limit": 8, "progress": False, "batch": 3}
    Fragile.left = 100
    whole = evaluate_settings(tables(), **options)  # 3 batches, 2 settings, 2 rows
    assert Fragile.left == 100 - 12
    Fragile.left = 5
    with pytest.raises(KeyboardInterrupt):
        evaluate_settings(tables(), resume=tmp_path, **options)
    assert capsys.readouterr().err.count("again to go on") == 1
    Fragile.left = 7
    found = evaluate_settings(tables(), resume=tmp_path, **{**options, "workers": 2})
    assert Fragile.left == 0
    for setting, results_there in whole.items():
        for row, result in results_there.items():
            np.testing.assert_array_equal(found[setting][row].areas, result.areas)
            np.testing.assert_array_equal(found[setting][row].confusion, result.confusion)
            np.testing.assert_array_equal(found[setting][row].image_scores, result.image_scores)
    with pytest.raises(ResumeError, match=r"decision\.tau: 0\.3 there, 0\.4 now"):
        evaluate_settings(tables(tau=0.4), resume=tmp_path, **options)
    Fragile.left = 6  # of the row that changed, in both settings
    again = evaluate_settings(tables(tau=0.4), resume=tmp_path, restart=True, **options)
    assert Fragile.left == 0
    setting = ("voc21", "all")
    np.testing.assert_array_equal(again[setting]["a/b"].areas, whole[setting]["a/b"].areas)
    assert (again[setting]["a b"].areas != whole[setting]["a b"].areas).any()
    Fragile.left = 100
    one = evaluate_many(rows(), "voc21", resume=tmp_path / "one", **options)
    np.testing.assert_array_equal(one["a b"].areas, whole[setting]["a b"].areas)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_diffusion(tmp_path_factory.mktemp("zoo") / "sd")


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(count)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(count)]


def test_remembered_maps_are_the_plain_ones(folder: Path) -> None:
    plain, shared = DiffusionBackbone.load(folder), CachedDiffusion.load(folder)
    images, noise = pictures(3), torch.randn(3, 4, 8, 8)
    for given in (7, noise, noise[:1]):
        wanted = plain.attention(images, noise=given)
        shared.attention(images[1:2], noise=given if isinstance(given, int) else given[-1:])
        for _ in range(2):
            for one, other in zip(shared.attention(images, noise=given), wanted, strict=True):
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    turned = shared.attention(images[::-1], noise=noise.flip(0))  # the noise goes with its image
    torch.testing.assert_close(turned[0].flip(0), plain.attention(images, noise=noise)[0])


def test_an_image_goes_through_the_unet_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = CachedDiffusion.load(folder)
    passes: list[int] = []
    forward = shared.latent_projections

    def counted(latents: torch.Tensor, *rest: Any) -> Any:
        passes.append(len(latents))
        return forward(latents, *rest)

    monkeypatch.setattr(shared, "latent_projections", counted)
    images = pictures(4)
    shared.projections(images[:3])
    shared.projections([image.copy() for image in images])  # one is new
    shared.projections(images, layers=(-6,))
    assert passes == [3, 1]
    shared.projections(images[:1], noise=1)
    shared.projections(images[:1], step=20)
    shared.projections(images[:1], noise=torch.Generator().manual_seed(0))
    assert passes == [3, 1, 1, 1, 1]


def test_a_map_is_made_once_and_forgotten(folder: Path) -> None:
    shared = CachedDiffusion.load(folder)
    images = pictures(3)

    def maps(image: int) -> list[Any]:
        return [layer.heads(0)[0] for layer in shared.projections(images[image : image + 1])]

    first = maps(0)
    rows = first[0][2:5]
    assert maps(0)[0] is first[0] and rows.data_ptr() == first[0][2:5].data_ptr()
    torch.testing.assert_close(rows, first[0][:][2:5])
    shared.map_capacity = 0
    maps(1)
    assert maps(0)[0] is not first[0]


def test_shared_compensation_changes_nothing(voc: Path, folder: Path, tmp_path: Path) -> None:
    clip = CachedClip.load(save_clip(tmp_path / "tiny"))
    options: dict[str, Any] = {"root": voc, "limit": 5, "progress": False}

    def rows(diffusion: DiffusionBackbone) -> dict[str, ovss.Segmenter]:
        modes: tuple[Any, ...] = ("multiplication", "single", "mean")
        made = {mode: Compensation(diffusion, mode=mode) for mode in modes}
        return {
            mode: ovss.load("cliper", clip=clip, short_side=32, templates=["{}"], compensation=one)
            for mode, one in made.items()
        }

    found = evaluate_many(rows(CachedDiffusion.load(folder)), "voc21", **options)
    for name, segmenter in rows(DiffusionBackbone.load(folder)).items():
        alone = ovss.evaluate(segmenter, "voc21", **options)
        assert found[name].image_scores == pytest.approx(alone.image_scores, rel=1e-4)
        assert np.abs(found[name].areas - alone.areas).sum() <= 1e-3 * alone.areas.sum()


def test_one_match_serves_all_layers_heads_and_rounds(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_blip(tmp_path / "itm")
    options: dict[str, Any] = {
        "root": voc, "limit": 5, "classes": "image", "batch": 3, "progress": False
    }  # fmt: skip

    def rows(itm: ItmBackbone) -> dict[str, ovss.Segmenter]:
        heads = {f"{n}, {k}": {"layer": n, "head": k} for n in range(4) for k in range(4)}
        chosen = {"layer": 2, "head": 1}
        made = heads | {
            "attention": chosen | {"gradcam": False},
            "one": chosen | {"rounds": 1},
            "two": chosen | {"rounds": 2},
            "loss": chosen | {"objective": "ce"},
        }
        usual: dict[str, Any] = {"rounds": 0, "drop": 2, "size": 32, "crf": None}
        return {
            name: ovss.Segmenter(PnpOvss(itm, **usual | changed)) for name, changed in made.items()
        }

    shared = CachedItm.load(source)
    passes: list[int] = []
    match = ItmBackbone.match

    def counted(self: ItmBackbone, *given: Any, **named: Any) -> Any:
        passes.append(len(given[0]))
        return match(self, *given, **named)

    monkeypatch.setattr(ItmBackbone, "match", counted)
    found = evaluate_many(rows(shared), "voc21", **options)
    assert len(passes) == 2 * (1 + 2 + 1)  # two batches: a look, two rounds, the loss's gradient
    assert evaluate_many(rows(shared), "voc21", **options).keys() == found.keys()
    assert len(passes) == 2 * (1 + 2 + 1)
    monkeypatch.undo()
    for name, segmenter in rows(ItmBackbone.load(source)).items():
        alone = ovss.evaluate(segmenter, "voc21", **options)
        assert np.abs(found[name].areas - alone.areas).sum() <= 1e-3 * alone.areas.sum()


def test_an_image_is_encoded_once_whatever_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other captions, other batches, the same image twice: the image encoder runs once for it."""
    source = save_blip(tmp_path / "itm")
    itm, plain = CachedItm.load(source), ItmBackbone.load(source)
    encoded: list[int] = []
    encode = ItmBackbone.encode

    def counted(self: ItmBackbone, pixels: Any) -> Any:
        encoded.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(ItmBackbone, "encode", counted)
    images = [noise(40, 32, seed) for seed in range(3)]
    pixels = itm.pixels(images, 32)
    assert itm.pixels(images, 32) is pixels and itm.pixels(images, 64) is not pixels
    assert itm.prompt(["cat"]) is itm.prompt(["cat"]) is not itm.prompt(["cat"], joined=True)
    itm.match(pixels[:2], [itm.prompt(["cat"]), itm.prompt(["dog", "sky"])], (1,))
    prompts = [itm.prompt(names) for names in (["sky"], ["cat", "dog"], ["cat"])]
    twice = pixels[[1, 2, 2]]
    found = itm.match(twice, prompts, (1,))
    assert encoded == [2, 1]
    monkeypatch.undo()
    alone = plain.match(twice, prompts, (1,))
    torch.testing.assert_close(found.logits, alone.logits)
    torch.testing.assert_close(found.gradient[1], alone.gradient[1], rtol=1e-4, atol=1e-7)
    with pytest.raises(VocabularyError, match="list of class names"):
        itm.prompt("cat")


def test_a_remembering_matcher_forgets_and_checks(tmp_path: Path) -> None:
    itm = CachedItm.load(save_blip(tmp_path / "itm"))
    pixels, prompts = torch.rand(2, 3, 32, 32), [itm.prompt(["cat"]), itm.prompt(["dog", "sky"])]
    first = itm.match(pixels, prompts, (1,))
    assert list(first.attention) == list(first.gradient) == [1]
    assert itm.match(pixels, prompts, (1, 3)).attention[1] is first.attention[1]
    assert not itm.match(pixels, prompts, (1,), gradient=False).gradient
    assert itm.match(pixels, prompts[::-1], (1,)).attention[1] is not first.attention[1]
    with pytest.raises(OvssError, match="layer 4 is none"):
        itm.match(pixels, prompts, (4,))
    itm.capacity = 0
    itm.match(pixels, prompts[:1] * 2, (1,))
    assert itm.match(pixels, prompts, (1,)).attention[1] is not first.attention[1]


def _load(method: str, clip: ClipBackbone) -> ovss.Segmenter:
    return ovss.load(method, clip=clip, short_side=32, templates=["{}"])
