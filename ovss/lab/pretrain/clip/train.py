"""Train the lab CLIP from scratch on scenes and their captions, nothing else.

Every step sees fresh scenes. The curriculum goes from one large thing on plain ground, named
without its colour, to the world of the benchmark: a small CLIP learns stuff and colours first and
things hardly, unless nothing else is said of the picture. Once things are known, half of the
patches are dropped (as in FLIP), which doubles the speed. Two images with the same caption are
both right answers (as in UniCL). The weights kept are the best on `tune`; a killed run goes on
where it was saved.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import PatchDropout
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ovss import paths
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.clip_loading import BpeTokenizer
from ovss.lab.cards import origin, save_model
from ovss.lab.pretrain.clip.measure import measure
from ovss.lab.pretrain.clip.recipe import LESSONS, MODEL, READ, Batches, Recipe
from ovss.lab.pretrain.clip.tokenizer import train_tokenizer
from ovss.lab.pretrain.clip.views import MEAN, STD, Views, contrastive_loss, normalise, unit
from ovss.lab.scenes import render
from ovss.training.loop import Batch, Progress, adamw, run


class Trainer(Progress):
    """CLIP and its views, compiled."""

    model: Any

    def __init__(self, recipe: Recipe, device: str) -> None:
        super().__init__(recipe, device)
        self.model = open_clip.CLIP(**MODEL).to(device)
        self.visual: Any = torch.compile(Views(self.model.visual), dynamic=False)
        self.text: Any = torch.compile(self.model.encode_text, dynamic=False)
        self.optimiser = adamw(self.model, recipe.rate, recipe.weight_decay, 0.98)
        self.dropped = 0.0

    def advance(self, batch: Batch) -> float:
        """One step on (pixels, tokens)."""
        self.model.train()
        self.set_patch_dropout(self.recipe.stage(self.step).patch_dropout)
        return float(self.train_step(*batch))

    def train_step(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step)
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)  # a resumed run drops the same
        # Plain attention: on a CPU the fused kernel's backward pass is slower.
        with torch.autocast(self.device, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            views = self.visual(normalise(pixels), self.recipe.stage(self.step).views)
            text = unit(self.text(tokens))
        scale = self.model.logit_scale.exp()
        losses = [contrastive_loss(view, text, tokens, scale) for view in views]
        loss = torch.stack(losses).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.model.logit_scale.data.clamp_(0, math.log(100))
        self.step, self.images = self.step + 1, self.images + len(pixels)
        return loss.detach()

    def set_patch_dropout(self, share: float) -> None:
        """Another module only where the share changes: each one is compiled anew."""
        if share != self.dropped:
            self.model.visual.patch_dropout = PatchDropout(share) if share else nn.Identity()
            self.dropped = share

    def backbone(self, tokenizer: Path) -> ClipBackbone:
        """The model as it is now, for measuring."""
        tokenize = BpeTokenizer(tokenizer)
        device = torch.device(self.device)
        return ClipBackbone(self.model, tokenize, MEAN, STD, "clip", "in training", device)


def train(folder: Path, device: str = "cpu", recipe: Recipe | None = None) -> None:
    """Run the recipe and write the model to `folder`; progress is kept beside it until the end."""
    recipe = recipe or Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    with paths.atomic(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    trainer = Trainer(recipe, device)
    run(
        trainer,
        folder,
        partial(Batches, recipe, tokenizer),
        lambda loss: _examine(trainer, folder / "tokenizer.json", loss),
        lambda: _finish(trainer, folder),
    )


def _tokenizer() -> Tokenizer:
    """Learnt from a few thousand captions."""
    captions = (render("pretrain", i, 64, world).caption for world in READ for i in range(6000))
    text = MODEL["text_cfg"]
    return train_tokenizer(
        captions, vocab_size=text["vocab_size"], context_length=text["context_length"]
    )


def _examine(trainer: Trainer, tokenizer: Path, loss: float) -> None:
    """Add a point to the curve; keep the weights if they are the best so far."""
    trainer.model.eval()
    point = measure(trainer.backbone(tokenizer), "tune", trainer.recipe.curve_scenes)
    trainer.add_point({"loss": loss, **point}, point["miou"] + point["lab20"], trainer.model)


def _finish(trainer: Trainer, folder: Path) -> None:
    """Write the best weights and their card."""
    trainer.model.load_state_dict({k: v.half() for k, v in trainer.best_weights.items()})
    trainer.model.eval()
    backbone = trainer.backbone(folder / "tokenizer.json")
    card = {
        "name": "clip",
        "what": "a CLIP of open_clip, trained from scratch on captions of the lab world at 64 px",
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "recipe": asdict(trainer.recipe),
        "images_seen": trainer.images,
        "minutes": round(trainer.seconds / 60, 1),
        **origin(),
        "tune": measure(backbone, "tune", trainer.recipe.card_scenes),
        "val": measure(backbone, "val", trainer.recipe.card_scenes),
        "tried": list(LESSONS),
    }
    preprocess = {"size": 64, "mean": MEAN, "std": STD}
    config = {"model_cfg": MODEL, "preprocess_cfg": preprocess}
    save_model(folder, trainer.best_weights, config, trainer.curve, card)
