"""Train the lab's matching models on scenes and captions: contrast, and matching.

As ALBEF, BLIP and BridgeTower do: image and text are embedded and drawn together (ITC), and the
model with cross-attention classifies pairs as right or wrong (ITM). A quarter of the wrong pairs
have the image of another caption, a quarter another image's caption, both drawn by similarity; in
the rest words of the caption are replaced, and each word is classified as replaced or not, as in
replaced-token detection (ELECTRA). What a word reads of the image must say the word, and a pair
whose words read less is less of a match (see `reading`). What the words say is known from the
captions alone; no mask is ever seen. The image tower is the lab CLIP's and stays as it is.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from ovss.backbones.clip import ClipBackbone
from ovss.backbones.itm import ItmBackbone
from ovss.lab.pretrain.batches import MEAN, STD, draw_scenes, normalise, stack_pixels
from ovss.lab.pretrain.itm.losses import (
    contrastive_loss,
    hard_negatives,
    matching_loss,
    replaced_token_loss,
)
from ovss.lab.pretrain.itm.measure import measure
from ovss.lab.pretrain.itm.models import SIDE, Blip, BridgeTower, States
from ovss.lab.pretrain.itm.reading import fade, reading
from ovss.lab.pretrain.itm.recipe import Recipe, make_batch
from ovss.lab.pretrain.itm.words import make_bytepairs, make_wordpiece
from ovss.lab.pretrain.trainer import Split, ZooTrainer, write_weights
from ovss.training.card import Gate, write_json
from ovss.training.curriculum import Batches

CAPTIONS = 6000  # read by the tokenizer


def gates(things: float) -> tuple[Gate, Gate]:
    """What a matching model must do to be of use; maps that are the same everywhere get 6."""
    told = "mIoU of things by GradCAM at the best head, things and stuff in the prompt"
    return (
        Gate("match", "tells captions from captions with a word replaced, %", 80.0),
        Gate("things", told, things),
    )


class ItmTrainer(ZooTrainer[Recipe]):
    """One of the two models, its losses and its optimiser."""

    family: ClassVar[Any]
    make_tokenizer: ClassVar[Any]
    processor: ClassVar[str]
    cpu_attention = (SDPBackend.MATH,)  # the fused kernel's backward pass is slower on a CPU
    model: Any

    def __init__(self, recipe: Recipe | None = None, device: str | torch.device = "cpu") -> None:
        super().__init__(recipe, device)
        scenes = draw_scenes(range(CAPTIONS), SIDE, self.recipe.stages[-1].world)
        self.tokenizer = self.make_tokenizer(scene.caption for scene in scenes)
        model = self.family(self.tokenizer)
        pixels = stack_pixels([scene.image for scene in scenes[:64]])
        model.start_from(ClipBackbone.load("clip").model.visual.float(), normalise(pixels))
        model.image_tower.requires_grad_(False)
        self.optimise(model)

    def batches(self) -> Batches[Any]:
        """Pixels, captions and replaced captions of every step."""
        return Batches(self.recipe, partial(make_batch, self.tokenizer, self.recipe.tagged))

    def loss(self, pixels: Tensor, *words: Tensor) -> Tensor:
        """ITC + ITM + replaced-token detection + reading of a batch, see `make_batch`."""
        with self.precision():
            return self._loss(pixels, *words)

    def _loss(
        self,
        pixels: Tensor,
        right: Tensor,
        swapped: Tensor,
        replaced: Tensor,
        named: Tensor,
        spoken: Tensor,
    ) -> Tensor:
        model, temperature = self.model, self.recipe.temperature
        count, stage = len(pixels), self.recipe.at(self.done).stage
        image = model.image(normalise(pixels))
        text, other = model.text(right), model.text(swapped)
        embeddings = model.image_embedding(image), model.text_embedding(text)  # [B, E] each
        wrong = hard_negatives(*embeddings, named, temperature)
        # One wrong pair for each right one: a quarter with another image, a quarter with another
        # caption, half with the caption's words replaced.
        half, everything = count // 2, torch.arange(count, device=pixels.device)
        quarter, rest = everything[: half // 2], everything[half:]
        images = torch.cat([wrong.images[: half // 2], everything[half // 2 :]])  # [B]
        captions = torch.cat([quarter, wrong.captions[half // 2 : half]])  # [B / 2]
        text, other = (*text, spoken[:, 0]), (*other, spoken[:, 1])
        *texts, said = join((text, pick(text, captions), pick(other, rest)))
        left, seen = fade(said, stage.faded, *model.readers.weight.shape[:2])
        with reading(model.cross_attention, left) as reads:
            pairs = join((image, pick(image, images)))
            logits, states = model.match(pairs, tuple(texts))  # [2B, 2], ...
        detected = model.replaced_head(states)[..., 0].float()  # [2B, T]
        in_right, in_wrong = detected[half:count], detected[count + half :]
        words = right[half:] != model.pad, swapped[half:] != model.pad
        return (
            contrastive_loss(*embeddings, named, temperature)
            + matching_loss(logits[:count], logits[count:], seen[:count])
            + replaced_token_loss(in_right[words[0]], in_wrong, replaced[half:], words[1])
            + model.readers([read[:count] for read in reads], said[:count])
        )

    def metrics(self, backbone: Any, split: Split, scenes: int | None) -> dict[str, float]:
        """See `measure`."""
        return measure(backbone, split, scenes)

    def write(self, folder: Path) -> None:
        """Write the model as its library saves one."""
        model = self.model.model
        model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        pixels = {"size": {"height": SIDE, "width": SIDE}, "image_mean": MEAN, "image_std": STD}
        kind = {"image_processor_type": self.processor}
        write_json(folder / "preprocessor_config.json", {**kind, **pixels})
        write_weights(folder / "model.safetensors", model.state_dict())

    def load(self, folder: Path) -> ItmBackbone:
        """The backbone in `folder`."""
        return ItmBackbone.load(folder, device=self.device)

    @property
    def shipped(self) -> Any:
        """The library's model, without what only training needs."""
        return self.model.model


class BlipTrainer(ItmTrainer):
    """BLIP."""

    name = "blip-itm"
    what = (
        "a BLIP of transformers, trained to match scenes of the lab world with captions at 64 px, "
        "in the end at 128; its image tower is the lab CLIP's"
    )
    default_recipe = Recipe()
    gates = gates(30.0)
    family = Blip
    make_tokenizer = staticmethod(make_wordpiece)
    processor = "BlipImageProcessor"


class BridgeTowerTrainer(ItmTrainer):
    """BridgeTower."""

    name = "bridgetower"
    what = BlipTrainer.what.replace("BLIP", "BridgeTower")
    default_recipe = Recipe()
    gates = gates(20.0)
    family = BridgeTower
    make_tokenizer = staticmethod(make_bytepairs)
    processor = "BridgeTowerImageProcessor"


def pick(states: States, indices: Tensor) -> States:
    """Select rows of each state."""
    return tuple(state[indices] for state in states)


def join(parts: tuple[States, ...]) -> States:
    """Concatenate states along the batch."""
    return tuple(torch.cat(states) for states in zip(*parts, strict=True))
