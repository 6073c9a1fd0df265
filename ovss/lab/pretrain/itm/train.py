"""Train the lab's matching models on scenes and captions: contrast, and matching.

As ALBEF, BLIP and BridgeTower do: image and text are embedded and drawn together (ITC), and the
model with cross-attention tells right pairs from wrong ones (ITM). A quarter of the wrong pairs
have the image of another caption, a quarter another image's caption, both drawn by similarity; in
the rest words of the caption are swapped, and of each word is asked whether it is one of those.
What the words say is known from the captions alone; no mask is ever seen. The image tower is the
lab CLIP's and stays as it is.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ovss import paths
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.itm import ItmBackbone
from ovss.lab.cards import origin, write_card
from ovss.lab.pretrain.clip.views import MEAN, STD, normalise
from ovss.lab.pretrain.itm.losses import contrast, doubting, hard_negatives, matching
from ovss.lab.pretrain.itm.measure import measure
from ovss.lab.pretrain.itm.models import SIDE, Blip, BridgeTower, States
from ovss.lab.pretrain.itm.recipe import LESSONS, RECIPES, Batches, Recipe
from ovss.lab.pretrain.itm.words import make_bytepairs, make_wordpiece
from ovss.lab.scenes import render
from ovss.training.loop import Batch, Progress, adamw, run

READ = 6000  # captions, by the tokenizer
FAMILIES: dict[str, Any] = {
    "blip-itm": (Blip, make_wordpiece),
    "bridgetower": (BridgeTower, make_bytepairs),
}
PROCESSORS = {"blip-itm": "BlipImageProcessor", "bridgetower": "BridgeTowerImageProcessor"}


class Trainer(Progress):
    """One of the two models, its losses and its optimiser."""

    model: Any

    def __init__(self, name: str, recipe: Recipe, device: str) -> None:
        super().__init__(recipe, device)
        kind, make_tokenizer = FAMILIES[name]
        scenes = [render("pretrain", i, SIDE, recipe.stages[-1].world) for i in range(READ)]
        self.name = name
        self.tokenizer = make_tokenizer(scene.caption for scene in scenes)
        self.model = kind(self.tokenizer)
        pixels = torch.from_numpy(np.stack([scene.image for scene in scenes[:64]]))
        clip = ClipBackbone.load("clip").model.visual.float()
        self.model.start_from(clip, normalise(pixels.permute(0, 3, 1, 2)))
        self.model.to(device).image_tower.requires_grad_(False)
        self.optimiser = adamw(self.model, recipe.rate, recipe.weight_decay, 0.98)

    def advance(self, batch: Batch) -> float:
        """One step on what `Batches` gives."""
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step)
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)  # a resumed run draws the same
        with torch.autocast(self.device, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = self.loss(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step, self.images = self.step + 1, self.images + len(batch[0])
        return float(loss.detach())

    def backbone(self) -> ItmBackbone:
        """The model as it would be saved now, for measuring."""
        with tempfile.TemporaryDirectory() as folder:  # the model's own may hold an older card
            self.write(Path(folder))
            return ItmBackbone.load(Path(folder))

    def _share(self) -> float:
        """Of the patches that are seen."""
        keeps = self.recipe.stage(self.step).keeps
        return float(keeps[int(torch.randint(len(keeps), ()))]) if len(keeps) > 1 else keeps[0]

    def write(self, folder: Path) -> None:
        """The model as it is now, as the library saves one: weights in float16."""
        model = self.model.model
        model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        pixels = {"size": {"height": SIDE, "width": SIDE}, "image_mean": MEAN, "image_std": STD}
        kind = {"image_processor_type": PROCESSORS[self.name]}
        halves = {name: value.half().contiguous() for name, value in model.state_dict().items()}
        for name, content in (
            ("preprocessor_config.json", json.dumps({**kind, **pixels}, indent=2).encode()),
            ("model.safetensors", save(halves, metadata={"format": "pt"})),
        ):
            with paths.atomic(folder / name) as file:
                file.write(content)

    def loss(
        self, pixels: Tensor, right: Tensor, swapped: Tensor, false: Tensor, named: Tensor
    ) -> Tensor:
        """ITC + ITM + doubt of a batch."""
        model, temperature = self.model, self.recipe.temperature
        image = model.image(normalise(pixels), self._share())
        text, other = model.text(right), model.text(swapped)
        embeddings = model.image_embedding(image), model.text_embedding(text)
        wrong = hard_negatives(*embeddings, named, temperature)
        size, half = len(pixels), len(pixels) // 2
        quarter, rest = half // 2, torch.arange(half, size)
        # One wrong pair for each right one: a quarter with another image, a quarter with another
        # caption, half with the caption spoilt.
        its = torch.cat([wrong.images[:quarter], torch.arange(quarter, size)])
        whole = torch.cat([torch.arange(quarter), wrong.captions[quarter:half]])
        texts = join((text, pick(text, whole), pick(other, rest)))
        logits, states = model.match(join((image, pick(image, its))), texts)
        doubt = model.doubt(states)[..., 0].float()
        words = right[half:] != model.pad, swapped[half:] != model.pad
        return (
            contrast(*embeddings, named, temperature)
            + matching(logits[:size], logits[size:])
            + doubting(doubt[half:size][words[0]], doubt[size + half :], false[half:], words[1])
        )


def train(name: str, folder: Path, device: str = "cpu", recipe: Recipe | None = None) -> None:
    """Run the recipe and write the model to `folder`; progress is kept beside it until the end."""
    recipe = recipe or RECIPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(name, recipe, device)
    run(
        trainer,
        folder,
        partial(Batches, recipe, trainer.tokenizer),
        lambda loss: _examine(trainer, loss),
        lambda: _finish(trainer, folder),
    )


def _examine(trainer: Trainer, loss: float) -> None:
    """Add a point to the curve; the last weights are the ones to keep."""
    trainer.model.eval()
    point = measure(trainer.backbone(), "tune", trainer.recipe.curve_scenes)
    curve = {"images": trainer.images, "seconds": trainer.seconds, "loss": loss, **point}
    trainer.curve.append(curve)


def _finish(trainer: Trainer, folder: Path) -> None:
    """Write the folder and its card."""
    recipe, backbone = trainer.recipe, trainer.backbone()
    card = {
        "name": trainer.name,
        "what": f"a {type(trainer.model).__name__} of transformers, trained to match scenes of the "
        "lab world with captions at 64 px; its image tower is the lab CLIP's",
        "parameters": sum(p.numel() for p in trainer.model.model.parameters()),
        "recipe": asdict(recipe),
        "images_seen": trainer.images,
        "minutes": round(trainer.seconds / 60, 1),
        **origin(),
        "tune": measure(backbone, "tune", recipe.card_scenes),
        "val": measure(backbone, "val", recipe.card_scenes),
        "tried": list(LESSONS),
    }
    trainer.write(folder)
    write_card(folder, trainer.curve, card, "model.safetensors")


def pick(states: States, indices: Tensor) -> States:
    return tuple(state[indices] for state in states)


def join(parts: tuple[States, ...]) -> States:
    return tuple(torch.cat(states) for states in zip(*parts, strict=True))
