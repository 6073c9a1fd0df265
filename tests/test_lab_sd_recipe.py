"""The recipe of the lab's diffusion model: captions of crops, stages, the average; resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention

from ovss.backbones.diffusion import DiffusionBackbone
from ovss.errors import OvssError
from ovss.lab.pretrain.sd import attention as attention_file
from ovss.lab.pretrain.sd import measure as measure_file
from ovss.lab.pretrain.sd import model as sd_model
from ovss.lab.pretrain.sd import train as recipe_file
from ovss.lab.pretrain.sd.attention import attending, context, supervised
from ovss.lab.pretrain.sd.recipe import Recipe, Stage, describe, tokenize
from ovss.lab.pretrain.sd.train import Latent, SdTrainer, unit
from ovss.lab.scenes import STUFF_NAMES, render
from ovss.reporting import results

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import attend

TINY = Recipe(
    evaluate_every=8,
    curve_scenes=2,
    card_scenes=2,
    stages=(
        Stage(8, 4, "image", 64, 1e-3, 1),
        Stage(8, 4, "noise", 64, 1e-3, 1),
        Stage(2, 2, "noise", 128, 1e-3, 0),
    ),
)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller models of the same kind."""
    vae = {**sd_model.VAE, "block_out_channels": (8, 8, 8), "norm_num_groups": 4}
    heads = {"block_out_channels": (16, 16, 16), "attention_head_dim": (2, 2, 2)}
    monkeypatch.setattr(recipe_file, "CAPTIONS", 200)
    monkeypatch.setattr(sd_model, "VAE", vae)
    monkeypatch.setattr(sd_model, "UNET", {**sd_model.UNET, **heads, "norm_num_groups": 8})


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return sd_model.make_tokenizer(render("pretrain", i, 64).caption for i in range(200))


def test_the_tokenizer_spells_what_it_has_not_seen(tokenizer: object, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    words = ["a red car by the sea", "zebra & crossing", ""]
    ids = tokenize(tokenizer, words)
    assert ids.shape == (3, sd_model.CONTEXT)
    again = sd_model.CLIPTokenizer.from_pretrained(tmp_path)
    assert torch.equal(tokenize(again, words), ids)
    decoded = again.decode(ids[1], skip_special_tokens=True)
    assert decoded.replace(" ", "") == "zebra&crossing"


def test_only_what_a_crop_shows_is_named() -> None:
    """A crop of one pixel's width shows no thing; the whole scene shows all that are not hidden."""
    for index in range(20):
        scene = render("pretrain", index, 128)
        corner = describe(scene, 0, 0, 2, Random(0))
        assert any(name in corner for name in STUFF_NAMES)
        assert not any(thing.category in corner.split() for thing in scene.things)


def test_stages_follow_one_another() -> None:
    batches = SdTrainer(TINY).batches()
    whole = [batches[step] for step in range(len(batches))]
    assert [len(pixels) for pixels, _ in whole] == [4, 4, 4, 4, 2]
    assert [pixels.shape[-1] for pixels, _ in whole] == [64, 64, 64, 64, 128]
    torch.testing.assert_close(whole[3], batches[3])
    assert TINY.images == 18 and TINY.steps == 5
    assert TINY.learning_rate(0) == TINY.learning_rate(2) == 1e-3, "each stage starts anew"


def test_the_noise_is_told_from_the_latent(tokenizer: object) -> None:
    """A U-Net that says nothing has an error of one; the autoencoder and the average stay."""
    torch.manual_seed(0)
    model = Latent(tokenizer)
    pixels, tokens = unit(torch.randint(0, 256, (4, 3, 64, 64))), tokenize(tokenizer, ["a"] * 4)
    for parameter in model.denoiser["unet"].conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    modules = supervised(model.denoiser["unet"])
    before = [module.processor for module in modules]
    loss = model.noise_loss(pixels, tokens, 1.0)
    assert 0.9 < float(loss.detach()) < 2.5, "the noise, and at most the latents' variance"
    loss.backward()
    assert [module.processor for module in modules] == before
    assert all(p.grad is None for p in model.vae.parameters()), "the autoencoder is finished"
    assert all(p.grad is None for p in model.average.parameters())
    assert all(module.to_q.weight.grad.abs().sum() > 0 for module in modules)
    torch.manual_seed(0)
    alone = float(model.noise_loss(pixels, tokens, 0.0).detach())
    assert alone < float(loss.detach()), "the auxiliary loss can be left out"


def test_attention_that_keeps_to_its_half_tells_the_latent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two flat halves: told without error where attention keeps to the half, else by chance."""
    monkeypatch.setattr(attention_file, "ASKED", 16 * 16)
    latents = torch.ones(1, 1, 16, 16)
    latents[..., 8:, :] = -1
    attention = Attention(2, heads=1, dim_head=2, bias=False, out_bias=False)
    half = latents.flatten()[None, :, None].repeat(1, 1, 2)  # [1, L, 2]
    found = []
    for sharpness in (0.0, 30.0):
        attention.to_q.weight.data = sharpness * torch.eye(2)
        attention.to_k.weight.data = torch.eye(2)
        alone = attention(half)
        with attending([attention], latents, torch.ones(1)) as errors:
            torch.testing.assert_close(attention(half), alone)
        target = context(latents)
        raw = (target[..., 0] - target[..., 0].mean()).square().mean()
        found.append(float(errors[0].detach()) / float(raw))
    assert found[0] > 1, "the mean of the others leans to the other half"
    assert found[1] < 0.25, "what is left are the means across the border"


def test_a_few_positions_speak_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of those drawn is that of all positions, on average."""
    torch.manual_seed(0)
    latents, seen = torch.randn(2, 3, 16, 16), torch.randn(2, 256, 4)
    attention = Attention(4, heads=2, dim_head=2, bias=False, out_bias=False)

    def error() -> float:
        with attending([attention], latents, torch.tensor([1.0, 0.5])) as errors:
            attention(seen)
        return float(errors[0].detach())

    few = [error() for _ in range(100)]
    monkeypatch.setattr(attention_file, "ASKED", 256)
    assert error() == pytest.approx(error()) == pytest.approx(sum(few) / len(few), rel=0.01)
    assert max(few) > 1.01 * min(few), "drawn anew each time"


def test_the_latents_have_variance_one_and_the_average_moves(tokenizer: object) -> None:
    trainer = SdTrainer(TINY)
    batches = trainer.batches()
    for step in range(3):
        trainer.step(batches[step])
    latents = trainer.model.latents(unit(batches[2][0]))
    assert float(latents.std()) == pytest.approx(1.0, abs=0.02)
    pairs = zip(
        trainer.model.average.parameters(), trainer.model.denoiser.parameters(), strict=True
    )
    first = Latent(tokenizer)
    assert any(not torch.equal(a, c) for a, c in pairs)
    assert not any(p.requires_grad for p in first.average.parameters())


def test_a_killed_run_goes_on_and_gives_the_same_model(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    SdTrainer(TINY).train(whole)
    (parts / "vae").mkdir(parents=True)
    (parts / "vae" / "config.json").write_text("of an older model")
    with pytest.raises(RuntimeError, match="killed"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SdTrainer, "step", _killed_at(4, SdTrainer.step))
        SdTrainer(TINY).train(parts)
    assert sorted(p.name for p in parts.iterdir()) == ["training.pt", "vae"]
    assert (parts / "vae" / "config.json").read_text() == "of an older model"
    SdTrainer(TINY).train(parts)
    first, second = (DiffusionBackbone.load(folder) for folder in (whole, parts))
    for one, two in zip(first.unet.parameters(), second.unet.parameters(), strict=True):
        assert torch.equal(one, two)
    card = json.loads((parts / "card.json").read_text())
    assert card["images_seen"] == 18
    assert first.vae.config.scaling_factor != pytest.approx(0.18215)
    assert not (parts / "training.pt").exists()


def test_another_recipe_does_not_go_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SdTrainer, "step", _killed_at(4, SdTrainer.step))
        SdTrainer(TINY).train(tmp_path)
    with pytest.raises(OvssError, match="another recipe"):
        SdTrainer(Recipe(seed=1, stages=TINY.stages)).train(tmp_path)


def test_both_kinds_begin_alike_and_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make attend`: one recipe with and without the loss, stopped early; numbers with intervals.

    The kind that has it is the recipe's own run, so a training under way can lend its state.
    """
    monkeypatch.setenv("OVSS_RESULTS", str(tmp_path))
    monkeypatch.setattr(attend, "Recipe", lambda: TINY)
    monkeypatch.setattr(attend, "read_scores", lambda backbone, split: scores(backbone, split, 3))
    scores = measure_file.read_scores
    monkeypatch.setattr(sys, "argv", ["attend", "--images", "17", "--folder", str(tmp_path)])
    attend.main()
    one, two = (torch.load(tmp_path / kind / "training.pt") for kind in ("with", "without"))
    assert one["images"] == two["images"] == 16, "whole batches"
    own = SdTrainer(TINY)
    batches = own.batches()
    for step in range(4):
        own.step(batches[step])
    for name, weight in own.model.state_dict().items():
        torch.testing.assert_close(one["model"][name], weight)
        if name.startswith("vae"):
            torch.testing.assert_close(two["model"][name], weight)
    changed = "denoiser.unet.conv_out.weight"
    assert not torch.equal(one["model"][changed], two["model"][changed])
    rows = results.read(tmp_path / "lab" / "sd-attend.csv").set_index(["metric", "row"])
    assert len(rows) == 6 and set(rows["protocol"]) == {"16 scenes"}
    for metric in ("attention_in_mask", "noise"):
        told = rows.loc[metric]
        difference = told["value"]["with"] - told["value"]["without"]
        assert told["value"]["with - without"] == pytest.approx(difference, abs=2e-4)
        assert (told["low"] < told["value"]).all() and (told["value"] < told["high"]).all()
        assert told["checkpoint"]["with"] != told["checkpoint"]["without"]


def test_things_count_alike_in_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric of the curve is the mean over things, whatever image they are in."""
    inside = np.array([[0.5, 1.0], [2.4, 3.0]])
    scores = measure_file.Scores(np.array([20.0, 30.0]), np.array([0.1, 0.3]), inside)
    monkeypatch.setattr(measure_file, "read_scores", lambda *_: scores)
    found = measure_file.measure(None, "val")  # type: ignore[arg-type]
    assert found == pytest.approx({"psnr": 25.0, "noise": 0.2, "attention_in_mask": 72.5})


def _killed_at(number: int, step: object) -> object:
    def limited(self: SdTrainer, batch: tuple[torch.Tensor, ...]) -> float:
        if self.done == number:
            raise RuntimeError("killed")
        return step(self, batch)  # type: ignore[operator,no-any-return]

    return limited
