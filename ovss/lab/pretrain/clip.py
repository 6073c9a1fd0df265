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
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import PatchDropout
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm

from ovss import paths
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.loading import BpeTokenizer
from ovss.errors import OvssError
from ovss.lab.cards import origin, save_model
from ovss.lab.pretrain.measure import measure
from ovss.lab.pretrain.recipe import LESSONS, MODEL, READ, Batches, Recipe
from ovss.lab.pretrain.text import train_tokenizer
from ovss.lab.pretrain.views import MEAN, STD, Views, contrastive_loss, normalise, unit
from ovss.lab.scenes import render


class Trainer:
    """Model, optimiser and progress; saved and restored as one."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.model = open_clip.CLIP(**MODEL).to(device)
        self.visual: Any = torch.compile(Views(self.model.visual), dynamic=False)
        self.text: Any = torch.compile(self.model.encode_text, dynamic=False)
        decay = [p for p in self.model.parameters() if p.ndim >= 2]
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": decay, "weight_decay": recipe.weight_decay},
            {"params": plain},
        ]
        self.optimiser = torch.optim.AdamW(
            groups, recipe.rate, (0.9, 0.98), weight_decay=0.0, fused=True
        )
        self.step = self.images = 0
        self.dropped = 0.0
        self.seconds = 0.0
        self.best = -1.0
        self.best_weights: dict[str, Tensor] = {}
        self.curve: list[dict[str, float]] = []

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

    def state(self) -> dict[str, Any]:
        keep = ("step", "images", "seconds", "best", "best_weights", "curve")
        state = {key: getattr(self, key) for key in keep}
        state["recipe"] = repr(self.recipe)
        return {**state, "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            OvssError: the state belongs to another recipe.
        """
        if state.pop("recipe") != repr(self.recipe):
            raise OvssError("training.pt belongs to another recipe: delete it to start anew")
        self.model.load_state_dict(state.pop("model"))
        self.optimiser.load_state_dict(state.pop("optimiser"))
        for key, value in state.items():
            setattr(self, key, value)


def train(folder: Path, device: str = "cpu", recipe: Recipe | None = None) -> None:
    """Run the recipe and write the model to `folder`; progress is kept beside it until the end."""
    recipe = recipe or Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    with paths.atomic(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    trainer, saved = Trainer(recipe, device), folder / "training.pt"
    if saved.exists():
        trainer.restore(torch.load(saved, weights_only=True, map_location=device))
    batches = DataLoader(
        Batches(recipe, tokenizer, trainer.step), batch_size=None, num_workers=1, prefetch_factor=8
    )
    with tqdm(total=recipe.images, initial=trainer.images, unit="image", smoothing=0.01) as bar:
        for pixels, tokens in batches:
            loss = _advance(trainer, pixels.to(device), tokens.to(device))
            bar.update(len(pixels))
            if trainer.images % recipe.evaluate_every < len(pixels) or trainer.step == recipe.steps:
                _examine(trainer, folder / "tokenizer.json", loss)
                bar.set_postfix(trainer.curve[-1])
                with paths.atomic(saved) as file:
                    torch.save(trainer.state(), file)
    _finish(trainer, folder)
    saved.unlink()


def _tokenizer() -> Tokenizer:
    """Learnt from a few thousand captions."""
    captions = (render("pretrain", i, 64, world).caption for world in READ for i in range(6000))
    text = MODEL["text_cfg"]
    return train_tokenizer(
        captions, vocab_size=text["vocab_size"], context_length=text["context_length"]
    )


def _advance(trainer: Trainer, pixels: Tensor, tokens: Tensor) -> float:
    """One step of training, timed."""
    start = time.perf_counter()
    trainer.model.train()
    trainer.set_patch_dropout(trainer.recipe.stage(trainer.step).patch_dropout)
    loss = float(trainer.train_step(pixels, tokens))
    trainer.seconds += time.perf_counter() - start
    return loss


def _examine(trainer: Trainer, tokenizer: Path, loss: float) -> None:
    """Add a point to the curve; keep the weights if they are the best so far."""
    trainer.model.eval()
    point = measure(trainer.backbone(tokenizer), "tune", trainer.recipe.curve_scenes)
    trainer.curve.append(
        {"images": trainer.images, "seconds": trainer.seconds, "loss": loss, **point}
    )
    score = point["miou"] + point["lab20"]
    if score > trainer.best:
        trainer.best = score
        trainer.best_weights = {
            k: v.detach().clone() for k, v in trainer.model.state_dict().items()
        }


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
