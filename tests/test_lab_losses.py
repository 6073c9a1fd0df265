"""The first losses of every recipe are those of the code that trained the committed networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ovss.lab.pretrain.batches import WorldStage
from ovss.lab.pretrain.clip import recipe as clip_recipe
from ovss.lab.pretrain.clip import train as clip
from ovss.lab.pretrain.clip.tokenizer import train_tokenizer
from ovss.lab.pretrain.dino import recipe as dino_recipe
from ovss.lab.pretrain.dino import train as dino
from ovss.lab.pretrain.itm import recipe as itm_recipe
from ovss.lab.pretrain.itm import train as itm
from ovss.lab.pretrain.mae import train as mae
from ovss.lab.pretrain.sam import recipe as sam_recipe
from ovss.lab.pretrain.sam import train as sam
from ovss.lab.pretrain.sd import model as sd_model
from ovss.lab.pretrain.sd import recipe as sd_recipe
from ovss.lab.pretrain.sd import train as sd
from ovss.lab.pretrain.trainer import LabRecipe, ZooTrainer
from ovss.lab.scenes import MOTLEY, World, render
from ovss.lab.zoo import TRAINERS
from pretend_device import PRETEND

WORLD = World()
RECORDED = {  # in float32, whose last digits alone differ between processors
    "clip": [4.374846, 3.799437, 2.771883],
    "dino": [5.731403, 7.588815, 1.280141],
    "mae": [1.017712, 0.999944, 0.892994],
    "sam": [6.076864, 5.730536, 5.444585],
    "sd": [0.508187, 1.479604, 1.115611],
    "blip-itm": [7.464249, 8.219973, 7.870161],
    "bridgetower": [7.202017, 7.842937, 7.389258],
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small networks, not compiled, on one thread."""
    tower = {**clip_recipe.MODEL["vision_cfg"], "width": 32, "layers": 2, "head_width": 16}
    text = {**clip_recipe.MODEL["text_cfg"], "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": tower, "text_cfg": text}
    monkeypatch.setattr(clip, "MODEL", model)
    vit = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setattr(dino, "MODEL", {**dino_recipe.MODEL, **vit, "intermediate_size": 32})
    monkeypatch.setattr(mae, "ENCODER", {**mae.ENCODER, **vit, "intermediate_size": 32})
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "global_attn_indexes": [1], "mlp_dim": 32}
    parts = {**sam_recipe.MODEL, "vision_config": {**sam_recipe.MODEL["vision_config"], **vision}}
    monkeypatch.setattr(sam, "MODEL", parts)
    vae = {**sd_model.VAE, "block_out_channels": (8, 8, 8), "norm_num_groups": 4}
    heads = {"block_out_channels": (16, 16, 16), "attention_head_dim": (2, 2, 2)}
    monkeypatch.setattr(sd_model, "VAE", vae)
    monkeypatch.setattr(sd_model, "UNET", {**sd_model.UNET, **heads, "norm_num_groups": 8})
    for recipe in (sd, itm):
        monkeypatch.setattr(recipe, "CAPTIONS", 200)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
    torch.set_num_threads(threads)


def trainer_of(name: str, device: str = "cpu", **changes: Any) -> ZooTrainer[Any]:
    """A trainer with a curriculum of a few steps that passes through all of its losses."""
    kind, recipe = TRAINERS[name], recipe_of(name)
    trainer = kind(replace(recipe, **changes), device)
    if name == "clip":
        captions = (render("pretrain", i, 64).caption for i in range(50))
        trainer.tokenizer = train_tokenizer(  # type: ignore[attr-defined]
            captions, vocab_size=400, context_length=24
        )
    return trainer


def recipe_of(name: str) -> LabRecipe[Any]:
    """A recipe of a few steps."""
    if name == "clip":
        stage = clip_recipe.Stage
        stages = (
            stage(8, 8, WORLD, 0.5, ("class", "local")),
            stage(16, 8, WORLD, 0.0, ("class", "local", "mosaic")),
        )
        return clip_recipe.Recipe(warmup=2, stages=stages)
    if name == "dino":
        stage = dino_recipe.Stage
        stages = (
            stage(4, 4, (dino_recipe.LONE,), frames=2, side=48),
            stage(12, 4, (dino_recipe.MASKED, dino_recipe.STILL), frames=2, seen=0.5, settle=1.0),
        )
        return dino_recipe.Recipe(warmup=2, stages=stages)
    if name == "sam":
        return sam_recipe.Recipe(warmup=2, stages=(WorldStage(8, 2, (WORLD, MOTLEY)),))
    if name == "mae":
        return mae.Recipe(warmup=2, stages=(WorldStage(16, 4, (WORLD, MOTLEY)),))
    if name == "sd":
        parts = (
            sd_recipe.Stage(4, 4, "image", 64, 1e-3, 1),
            sd_recipe.Stage(4, 4, "noise", 64, 1e-3, 1),
            sd_recipe.Stage(2, 2, "noise", 128, 1e-3, 0),
        )
        return sd_recipe.Recipe(stages=parts)
    world = itm_recipe.RICH_CAPTIONS
    matching = (
        itm_recipe.Stage(16, 8, world),
        itm_recipe.Stage(8, 8, world, 0.5, 128),
    )
    return itm_recipe.Recipe(warmup=1, stages=matching)


@pytest.mark.parametrize("name", list(RECORDED))
def test_the_first_losses_are_the_recorded_ones(name: str) -> None:
    trainer = trainer_of(name, dtype="float32")
    batches = trainer.batches()
    losses = [trainer.step(batches[step]) for step in range(3)]
    assert losses == pytest.approx(RECORDED[name], abs=1e-4)
    for step in range(3, len(batches)):
        trainer.step(batches[step])


@pytest.mark.parametrize("name", list(RECORDED))
def test_a_recipe_trains_and_measures_on_another_device(name: str, tmp_path: Path) -> None:
    """Every loss of its curriculum, a point of its curve, its state, and the network as loaded."""
    trainer = trainer_of(name, str(PRETEND), dtype="float32", curve_scenes=1, card_scenes=1)
    batches = trainer.batches()
    losses = [trainer.step(batches[step]) for step in range(len(batches))]
    assert all(math.isfinite(loss) for loss in losses)
    assert {parameter.device.type for parameter in trainer.model.parameters()} == {PRETEND.type}
    trainer.add_point(losses[-1])
    (point,) = trainer.curve
    assert all(math.isfinite(value) for value in point.values())
    torch.save(trainer.state(), tmp_path / "training.pt")
    state = torch.load(tmp_path / "training.pt", weights_only=True, map_location="cpu")
    again = trainer_of(name, str(PRETEND), dtype="float32", curve_scenes=1, card_scenes=1)
    again.restore(state)
    assert again.done == len(batches) and again.curve == trainer.curve
