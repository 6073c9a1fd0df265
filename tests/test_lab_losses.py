"""The first losses of every recipe are those of the code that trained the committed networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ovss.lab.pretrain.clip import recipe as clip_recipe
from ovss.lab.pretrain.clip import train as clip
from ovss.lab.pretrain.clip.tokenizer import train_tokenizer
from ovss.lab.pretrain.dino import train as dino
from ovss.lab.pretrain.itm import recipe as itm_recipe
from ovss.lab.pretrain.itm import train as itm
from ovss.lab.pretrain.sd import model as sd_model
from ovss.lab.pretrain.sd import recipe as sd_recipe
from ovss.lab.pretrain.sd import train as sd
from ovss.lab.pretrain.trainer import ZooTrainer
from ovss.lab.scenes import World, render

WORLD = World()
RECORDED = {  # on a CPU with one thread
    "clip": [4.372607707977295, 3.8022518157958984, 2.796218156814575],
    "dino": [2.3404009342193604, 3.06707763671875, 2.937856674194336],
    "sd": [0.5082159042358398, 1.50277578830719, 1.1478986740112305],
    "blip-itm": [3.759510040283203, 5.422154426574707, 4.578810691833496],
    "bridgetower": [3.6037096977233887, 4.052475929260254, 4.119613170623779],
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small networks, not compiled, on one thread."""
    vision = {**clip_recipe.MODEL["vision_cfg"], "width": 32, "layers": 2, "head_width": 16}
    text = {**clip_recipe.MODEL["text_cfg"], "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setattr(clip, "MODEL", model)
    vit = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setattr(dino, "MODEL", {**dino.MODEL, **vit, "intermediate_size": 32})
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


def trainer_of(name: str) -> ZooTrainer[Any]:
    """A trainer with a curriculum of a few steps that passes through all of its losses."""
    if name == "clip":
        stage = clip_recipe.Stage
        stages = (
            stage(8, 8, WORLD, 0.5, ("class", "local")),
            stage(16, 8, WORLD, 0.0, ("class", "local", "mosaic")),
        )
        trainer = clip.ClipTrainer(clip_recipe.Recipe(warmup=2, stages=stages))
        captions = (render("pretrain", i, 64).caption for i in range(50))
        trainer.tokenizer = train_tokenizer(captions, vocab_size=400, context_length=24)
        return trainer
    if name == "dino":
        recipe = dino.Recipe(stages=(dino.Stage(16, 4),), warmup=0, prototypes=16)
        return dino.DinoTrainer(recipe)
    if name == "sd":
        parts = (
            sd_recipe.Stage(4, 4, "image", 64, 1e-3, 1),
            sd_recipe.Stage(4, 4, "noise", 64, 1e-3, 1),
            sd_recipe.Stage(2, 2, "noise", 128, 1e-3, 0),
        )
        return sd.SdTrainer(sd_recipe.Recipe(stages=parts))
    world = itm_recipe.RICH_CAPTIONS
    matching = (
        itm_recipe.Stage(16, 8, world),
        itm_recipe.Stage(8, 8, world, itm_recipe.KEEP_RATIOS),
    )
    kind = {"blip-itm": itm.BlipTrainer, "bridgetower": itm.BridgeTowerTrainer}[name]
    return kind(itm_recipe.Recipe(warmup=1, stages=matching))


@pytest.mark.parametrize("name", list(RECORDED))
def test_the_first_losses_are_the_recorded_ones(name: str) -> None:
    trainer = trainer_of(name)
    batches = trainer.batches()
    losses = [trainer.step(batches[step]) for step in range(3)]
    assert losses == pytest.approx(RECORDED[name], abs=1e-6)
    for step in range(3, len(batches)):
        trainer.step(batches[step])
