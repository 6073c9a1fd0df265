"""ALBEF from its authors' file: timm's vision transformer and transformers' BERT.

ALBEF (Li et al., 2021) has a ViT-B/16, and a BERT whose first layers read the caption alone and
whose last layers attend to the image too. Its checkpoints are no `save_pretrained` folders, but
their names of the weights are those of timm and of BERT, so only prefixes have to be changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertLayer

from ...errors import CheckpointError, one_line
from ..tensor_files import is_plain, read_archive

HEADS = 12  # of every layer of both towers; the weights do not tell
PARTS = ("visual_encoder.", "text_encoder.", "itm_head.")
UNUSED = re.compile(r"text_encoder\.cls\.|position_ids$")  # the word prediction head; a constant


@dataclass(frozen=True)
class Albef:
    """ALBEF behind the interface of `networks.Network`."""

    model: Any = field(repr=False)

    @property
    def size(self) -> int:
        return int(self.model.visual_encoder.patch_embed.img_size[0])

    @property
    def patch(self) -> int:
        return int(self.model.visual_encoder.patch_embed.patch_size[0])

    @property
    def heads(self) -> int:
        return HEADS

    @property
    def positions(self) -> int:
        return int(self.model.text_encoder.config.max_position_embeddings)

    @property
    def cross_attention(self) -> Sequence[nn.Module]:
        layers = self.model.text_encoder.encoder.layer
        return [layer.crossattention.self for layer in layers if layer.is_decoder]

    def encode(self, pixels: Tensor) -> Tensor:
        vision = self.model.visual_encoder
        grid = [side // self.patch for side in pixels.shape[2:]]
        first = vision.cls_token.expand(len(pixels), -1, -1)
        tokens = torch.cat([first, vision.patch_embed(pixels)], 1)  # [B, 1+L, D]
        tokens = vision.blocks(tokens + positions(vision.pos_embed, grid))
        normed: Tensor = vision.norm(tokens)
        return normed

    def logits(self, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        text = self.model.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=image
        )
        logits: Tensor = self.model.itm_head(text.last_hidden_state[:, 0])  # [B, 2]
        return logits


def positions(embeddings: Tensor, grid: Sequence[int]) -> Tensor:
    """Position embeddings [1, 1+L, D] -> those of another grid, bicubically as BLIP's are.

    (timm's own resizing smooths where the grid shrinks, which the authors' code does not.)
    """
    side = round((embeddings.shape[1] - 1) ** 0.5)
    if (side, side) == tuple(grid):
        return embeddings
    first, patches = embeddings[:, :1], embeddings[:, 1:]
    square = rearrange(patches, "b (h w) d -> b d h w", h=side)
    resized = F.interpolate(square, tuple(grid), mode="bicubic", align_corners=False)
    return torch.cat([first, rearrange(resized, "b d h w -> b (h w) d")], 1)


def load_albef(path: Path) -> Albef:
    """The network in one of the authors' files, such as ALBEF.pth or mscoco.pth.

    Raises:
        CheckpointError: it is damaged, holds more than tensors, or has no matching head.
    """
    state = _weights(path)
    try:
        with torch.device("meta"):  # its shapes fit one another: the network takes its memory
            _empty(state).load_state_dict({one: value.to("meta") for one, value in state.items()})
        model = _empty(state)
        model.load_state_dict(state)
    except Exception as error:  # timm, transformers and torch raise all kinds
        told = one_line((str(error) or repr(error)).splitlines()[-1], 160)
        raise CheckpointError(f"{path} is no ALBEF with a matching head ({told})") from None
    return Albef(model.eval().requires_grad_(False))


def _weights(path: Path) -> dict[str, Tensor]:
    """The file's tensors by our names, without momentum copies, queues and training heads."""
    content = read_archive(path)
    state = content.get("model", content) if isinstance(content, Mapping) else {}
    if not isinstance(state, Mapping):
        return {}
    return {
        name.replace("text_encoder.bert.", "text_encoder."): value.float()
        for name, value in state.items()
        if isinstance(name, str) and name.startswith(PARTS) and not UNUSED.search(name)
        if is_plain(value)
    }


def _empty(state: Mapping[str, Tensor]) -> nn.Module:
    """A network of the shapes of `state`."""
    model = nn.Module()
    model.visual_encoder = _vision(state)
    model.text_encoder = _text(state)
    model.itm_head = nn.Linear(state["itm_head.weight"].shape[1], 2)
    return model


def _vision(state: Mapping[str, Tensor]) -> nn.Module:
    width, _, patch, _ = state["visual_encoder.patch_embed.proj.weight"].shape
    grid = round((state["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
    return VisionTransformer(
        img_size=grid * patch,
        patch_size=patch,
        embed_dim=width,
        depth=_count(state, r"visual_encoder\.blocks\.(\d+)\."),
        num_heads=HEADS,
        mlp_ratio=state["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0] / width,
        num_classes=0,
        embed_layer=partial(PatchEmbed, strict_img_size=False),
    )


def _text(state: Mapping[str, Tensor]) -> nn.Module:
    words, width = state["text_encoder.embeddings.word_embeddings.weight"].shape
    layers = _count(state, r"text_encoder\.encoder\.layer\.(\d+)\.")
    shapes: dict[str, Any] = {
        "vocab_size": words,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "intermediate_size": state["text_encoder.encoder.layer.0.intermediate.dense.bias"].shape[0],
        "max_position_embeddings": len(state["text_encoder.embeddings.position_embeddings.weight"]),
        "attn_implementation": "eager",  # no other returns its maps
    }
    model = BertModel(BertConfig(**shapes), add_pooling_layer=False)
    layer: Any = BertLayer
    looking = BertConfig(**shapes, is_decoder=True, add_cross_attention=True)
    for index in range(layers):
        if f"text_encoder.encoder.layer.{index}.crossattention.self.key.weight" in state:
            model.encoder.layer[index] = layer(looking, layer_idx=index)
    return model


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many layers there are: indices beyond the number of names make no layers."""
    indices = {found[1] for name in state if (found := re.match(pattern, name))}
    return 1 + max(int(one) for one in indices if len(one) < 6 and int(one) < len(state))
