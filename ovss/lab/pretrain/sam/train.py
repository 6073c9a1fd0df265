"""Train the lab SAM from scratch: Segment Anything (Kirillov et al. 2023) in miniature.

An image is encoded once; each of its prompts, one to five points, means a part of a thing, a thing
or a ground. Of three masks the best one learns what was meant. Then a point where that mask was
wrong is added to the prompt, which now gets one mask. No word is ever seen.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from transformers import SamConfig, SamModel

from ovss.backbones.sam import SamBackbone
from ovss.lab.pretrain.batches import MEAN, STD, normalise
from ovss.lab.pretrain.sam.losses import correction, judge
from ovss.lab.pretrain.sam.measure import measure
from ovss.lab.pretrain.sam.recipe import LOW, MODEL, SIDE, Recipe, make_batch
from ovss.lab.pretrain.trainer import Split, ZooTrainer, write_weights
from ovss.training.card import Gate, write_json
from ovss.training.curriculum import Batches

QUERY_KEY_SCALE = 1.5  # of their equal weights at the start


def make_model() -> Any:
    """A SAM with the authors' initial weights.

    transformers draws embeddings and matrices of the decoder fifty times smaller and the places'
    frequencies many times larger: that suffices to be overwritten by a checkpoint, not to learn.
    Beyond the authors', cross-attention starts with equal queries and keys: a prompt looks at its
    place.
    """
    config: Any = SamConfig(**MODEL)
    config.vision_config.scale = 1.0
    model: Any = SamModel(config)
    for module in (*model.prompt_encoder.modules(), *model.mask_decoder.modules()):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # torch's defaults
    for name, module in model.mask_decoder.named_modules():
        if "cross_attn" in name and hasattr(module, "q_proj"):
            nn.init.orthogonal_(module.q_proj.weight, QUERY_KEY_SCALE)
            module.k_proj.weight.data.copy_(module.q_proj.weight)
    model.shared_image_embedding.requires_grad_(False)  # the frequencies are never learnt
    return model


class SamTrainer(ZooTrainer[Recipe]):
    """Encoder, prompt encoder and mask decoder together."""

    name = "sam"
    what = "a SAM of transformers, trained from scratch on points and masks of the lab world"
    default_recipe = Recipe()
    selected_by = ("click", "click_motley")
    cpu_attention = (SDPBackend.MATH,)  # the fused kernel's backward pass is slower on a CPU
    gates = (
        Gate("click", "mean IoU of a thing with the surest mask of a click at its centre, %", 75.0),
        Gate("click_motley", "the same in the motley world, %", 60.0),
    )
    model: Any

    def __init__(self, recipe: Recipe | None = None, device: str | torch.device = "cpu") -> None:
        super().__init__(recipe, device)
        self.optimise(make_model())
        self.encode: Any = torch.compile(self.model.vision_encoder, dynamic=False)
        self.decode: Any = torch.compile(self.model.mask_decoder)

    def batches(self) -> Batches[Any]:
        """Scenes and prompts of every step."""
        return Batches(self.recipe, partial(make_batch, self.recipe))

    def loss(self, pixels: Tensor, points: Tensor, targets: Tensor) -> Tensor:
        """Add up the losses of points alone and of points with a correction; see `make_batch`."""
        labels = torch.ones_like(points[..., 0], dtype=torch.long)  # [B, P, N]
        with self.precision():
            features = self.encode(normalise(pixels)).last_hidden_state  # [B, C, h, w]
            three = self._decode(features, points, labels, True)
            first = judge(*three, targets, self.recipe.focal)
            best = first.best[..., None, None, None].expand(-1, -1, 1, LOW, LOW)
            point, label = correction(three[0].detach().gather(2, best)[:, :, 0], targets)
            points = torch.cat([points, point * SIDE / LOW - 0.5], 2)
            one = self._decode(features, points, torch.cat([labels, label], 2), False)
            second = judge(*one, targets, self.recipe.focal)
        return first.mask + first.iou + second.mask + second.iou

    def _decode(
        self, features: Tensor, points: Tensor, labels: Tensor, three: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, P, M, s, s] and predicted IoUs [B, P, M], as `SamModel.forward` has them."""
        sparse, dense = self.model.prompt_encoder(points, labels, None, None)
        places = self.model.get_image_wide_positional_embeddings().expand(len(features), -1, -1, -1)
        logits, iou = self.decode(features, places, sparse, dense, multimask_output=three)
        return logits.float(), iou.float()

    def metrics(self, backbone: Any, split: Split, scenes: int | None) -> dict[str, float]:
        """See `measure`."""
        return measure(backbone, split, scenes)

    def write(self, folder: Path) -> None:
        """Write the model as its library saves one."""
        pixels = {"image_mean": MEAN, "image_std": STD, "size": {"longest_edge": SIDE}}
        write_json(folder / "preprocessor_config.json", pixels)
        self.model.config.save_pretrained(folder)
        write_weights(folder / "model.safetensors", self.model.state_dict())

    def load(self, folder: Path) -> SamBackbone:
        """The backbone in `folder`."""
        return SamBackbone.load(folder, device=self.device)
