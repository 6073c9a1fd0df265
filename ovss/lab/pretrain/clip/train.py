"""Train the lab CLIP from scratch on scenes and their captions, nothing else.

Every step sees fresh scenes. Once things are known, half of the patches are dropped (as in FLIP),
which doubles the speed. Two images with the same caption are both right answers (as in UniCL). The
weights kept are the best on `tune`.
"""

from __future__ import annotations

import math
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import PatchDropout
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from ovss import files
from ovss.backbones.clip import ClipBackbone
from ovss.lab.pretrain.batches import MEAN, STD, normalise
from ovss.lab.pretrain.clip.measure import measure
from ovss.lab.pretrain.clip.recipe import MODEL, READ, SIDE, Recipe, make_batch
from ovss.lab.pretrain.clip.tokenizer import train_tokenizer
from ovss.lab.pretrain.clip.views import Views, contrastive_loss, unit
from ovss.lab.pretrain.trainer import Split, ZooTrainer, write_weights
from ovss.lab.scenes import render
from ovss.training.card import Gate, write_json
from ovss.training.curriculum import Batch, Batches

CAPTIONS = 6000  # of each world, read by the tokenizer


class ClipTrainer(ZooTrainer[Recipe]):
    """CLIP and its views, compiled."""

    name = "clip"
    what = "a CLIP of open_clip, trained from scratch on captions of the lab world at 64 and 128 px"
    default_recipe = Recipe()
    selected_by = ("miou", "lab20")
    cpu_attention = (SDPBackend.MATH,)  # the fused kernel's backward pass is slower on a CPU
    gates = (
        Gate("naming", "names the only thing of a scene among the 20 things, %", 80.0),
        Gate("things", "mIoU of things, the image's classes given, CLIPer's fused attention", 30.0),
        Gate("stuff", "mIoU of stuff, the image's classes given, CLIPer's fused attention", 50.0),
        Gate("lab20", "mIoU on lab-20, all things asked for, CLIPer's fused attention", 25.0),
    )
    model: Any

    def __init__(self, recipe: Recipe | None = None, device: str | torch.device = "cpu") -> None:
        super().__init__(recipe, device)
        self.optimise(open_clip.CLIP(**MODEL))
        self.visual: Any = torch.compile(Views(self.model.visual), dynamic=False)
        self.text: Any = torch.compile(self.model.encode_text, dynamic=False)
        self.dropped = 0.0

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Byte pairs learnt from a few thousand captions."""
        numbers, text = range(CAPTIONS), MODEL["text_cfg"]
        return train_tokenizer(
            (render("pretrain", i, SIDE, world).caption for world in READ for i in numbers),
            vocab_size=text["vocab_size"],
            context_length=text["context_length"],
        )

    def batches(self) -> Batches[Any]:
        """Pixels and tokens of every step."""
        return Batches(self.recipe, partial(make_batch, self.tokenizer))

    def before_step(self, batch: Batch) -> None:
        """Put another patch dropout in only where its ratio changes: each one is compiled anew."""
        ratio = self.recipe.at(self.done).stage.patch_dropout
        if ratio != self.dropped:
            self.model.visual.patch_dropout = PatchDropout(ratio) if ratio else nn.Identity()
            self.dropped = ratio

    def loss(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """The contrastive loss of each view of the stage, averaged."""
        with self.precision():
            views = self.visual(normalise(pixels), self.recipe.at(self.done).stage.views)  # [B, E]
            text = unit(self.text(tokens))  # [B, E]
        scale = self.model.logit_scale.exp()
        return torch.stack([contrastive_loss(v, text, tokens, scale) for v in views]).mean()

    def after_step(self) -> None:
        """Keep the scale of the logits below 100, as CLIP does."""
        self.model.logit_scale.data.clamp_(0, math.log(100))

    def metrics(self, backbone: Any, split: Split, scenes: int | None) -> dict[str, float]:
        """See `measure`."""
        return measure(backbone, split, scenes)

    def write(self, folder: Path) -> None:
        """Write configuration, tokenizer and weights."""
        preprocess = {"size": SIDE, "mean": MEAN, "std": STD}
        write_json(folder / "config.json", {"model_cfg": MODEL, "preprocess_cfg": preprocess})
        with files.atomic(folder / "tokenizer.json") as file:
            file.write(self.tokenizer.to_str(pretty=True).encode())
        write_weights(folder / "model.safetensors", self.model.state_dict())

    def load(self, folder: Path) -> ClipBackbone:
        """The backbone in `folder`."""
        return ClipBackbone.load(folder, device=self.device)
