"""The lab's two matching models: transformers' own BLIP and BridgeTower, small.

Each is wrapped as training needs it: an image is encoded once and then matched with several texts,
and the two encoders are also compared by themselves. The papers' BLIP begins with an image tower
that has learnt on ImageNet, their BridgeTower with CLIP's; both of ours take the lab CLIP's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BridgeTowerConfig,
    BridgeTowerForImageAndTextRetrieval,
)

from ovss.lab.pretrain.itm.reading import Readers
from ovss.lab.pretrain.itm.words import CONTENT, CONTEXT

SIDE, PATCH, WIDTH = 64, 8, 192  # of the image tower: the lab CLIP's
DEPTH = 5  # without the last block, which CLIP trains for the class token alone
QUERY_KEY_SCALE = 5.0  # factor of the cross-attention's queries and keys at the start
TEXT = {"hidden_size": 128, "num_attention_heads": 4}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LAYERS = 4  # with cross-attention, of 4 heads
EMBEDDING = 128  # of the contrastive loss

States = tuple[Tensor, ...]


class Blip(nn.Module):
    """BLIP: the image's tokens are read by a text encoder with cross-attention in every layer."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.model: Any = BlipForImageTextRetrieval(_blip_config(len(tokenizer)))
        self.pad, self.encode = tokenizer.pad_token_id, len(tokenizer) + 1
        self.replaced_head = nn.Linear(TEXT["hidden_size"], 1)
        self.readers = make_readers()
        scale_queries_and_keys(self.cross_attention)

    @property
    def image_tower(self) -> nn.Module:
        tower: nn.Module = self.model.vision_model
        return tower

    @property
    def cross_attention(self) -> list[Any]:
        """The modules by which words read the image."""
        return [layer.crossattention.self for layer in self.model.text_encoder.encoder.layer]

    def image(self, pixels: Tensor) -> States:
        """[B, 3, S, S] -> tokens [B, 1 + L, D]."""
        vision = self.model.vision_model
        hidden = vision.embeddings(pixels, interpolate_pos_encoding=True)
        return (vision.post_layernorm(vision.encoder(hidden).last_hidden_state),)

    def text(self, ids: Tensor) -> States:
        """The ids themselves [B, T]; what is encoded without an image serves the contrast alone."""
        return (ids,)

    def image_embedding(self, image: States) -> Tensor:
        return normalize(self.model.vision_proj(image[0][:, 0]).float(), dim=-1)

    def text_embedding(self, text: States) -> Tensor:
        """[B, E] of the captions alone."""
        (ids,) = text
        hidden = self.model.text_encoder(ids, attention_mask=ids != self.pad).last_hidden_state
        return normalize(self.model.text_proj(hidden[:, 0]).float(), dim=-1)

    def match(self, image: States, text: States) -> tuple[Tensor, Tensor]:
        """Pairs -> logits [B, 2]: no match, match; and the tokens' last states [B, T, D]."""
        (ids,) = text
        mask = ids != self.pad
        encoded = torch.cat([torch.full_like(ids[:, :1], self.encode), ids[:, 1:]], 1)
        hidden = self.model.text_encoder(
            encoded, attention_mask=mask, encoder_hidden_states=image[0]
        ).last_hidden_state
        return self.model.itm_head(hidden[:, 0]).float(), hidden

    @torch.no_grad()
    def start_from(self, clip: Any, pixels: Tensor) -> None:
        """Take the lab CLIP's image tower.

        CLIP normalises its tokens before the first block, BLIP does not. That is linear but for the
        standard deviation of each token; the mean over those of `pixels` stands for all.
        """
        vision = self.model.vision_model
        _copy(vision.post_layernorm, clip.ln_post)
        for target, source in zip(
            vision.encoder.layers, clip.transformer.resblocks[:DEPTH], strict=True
        ):
            _copy(target.layer_norm1, source.ln_1)
            _copy(target.layer_norm2, source.ln_2)
            target.self_attn.qkv.weight.copy_(source.attn.in_proj_weight)
            target.self_attn.qkv.bias.copy_(source.attn.in_proj_bias)
            _copy(target.self_attn.projection, source.attn.out_proj)
            _copy(target.mlp.fc1, source.mlp.c_fc)
            _copy(target.mlp.fc2, source.mlp.c_proj)
        parts = vision.embeddings
        parts.class_embedding.copy_(clip.class_embedding[None, None])
        parts.position_embedding.copy_(clip.positional_embedding[None])
        parts.patch_embedding.weight.copy_(clip.conv1.weight)
        parts.patch_embedding.bias.zero_()
        factor = clip.ln_pre.weight / parts(pixels).std(-1).mean()  # [D]
        for part in (parts.class_embedding, parts.position_embedding):
            part.copy_((part - part.mean(-1, keepdim=True)) * factor)
        kernel = parts.patch_embedding.weight  # [D, 3, P, P]
        kernel.copy_((kernel - kernel.mean(0)) * factor[:, None, None, None])
        parts.position_embedding.add_(clip.ln_pre.bias)


class BridgeTower(nn.Module):
    """BridgeTower: two encoders whose upper layers feed a tower of cross-attention layer by layer.

    The encoders do not know of one another, so they run once for each image and text, and pairs
    are made of their states. (`test_lab_itm` holds this against the library's own pass.)
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.model: Any = BridgeTowerForImageAndTextRetrieval(_bridgetower_config(tokenizer))
        width = self.model.config.hidden_size
        self.image_head, self.text_head = nn.Linear(WIDTH, EMBEDDING), nn.Linear(width, EMBEDDING)
        self.pad = tokenizer.pad_token_id
        self.replaced_head = nn.Linear(width, 1)
        self.readers = make_readers()
        others = [layer.crossattention.self for layer in self.tower.cross_modal_image_layers]
        scale_queries_and_keys([*self.cross_attention, *others])

    @property
    def image_tower(self) -> nn.Module:
        tower: nn.Module = self.tower.vision_model
        return tower

    @property
    def tower(self) -> Any:
        return self.model.bridgetower

    @property
    def cross_attention(self) -> list[Any]:
        """The modules by which words read the image."""
        return [layer.crossattention.self for layer in self.tower.cross_modal_text_layers]

    def image(self, pixels: Tensor) -> States:
        """[B, 3, S, S] -> what the cross-modal layers read [B, 1 + L, D], and the last state."""
        visual = self.tower.vision_model.visual
        hidden = visual.embeddings(pixels, interpolate_pos_encoding=True)
        hidden = visual.ln_pre(hidden).transpose(0, 1)
        states = []
        for number, block in enumerate(visual.transformer.resblocks, 1):
            hidden = block(hidden)
            if number > DEPTH - LAYERS:
                states.append(visual.forward_post(hidden))
        kind = self.tower.token_type_embeddings.weight[1]
        read = [self.tower.cross_modal_image_transform(state) + kind for state in states]
        return (*read, states[-1])

    def text(self, ids: Tensor) -> States:
        """[B, T] -> what the cross-modal layers read, the last state, and the mask of the ids."""
        mask = ids != self.pad
        bias = torch.where(mask[:, None, None], 0.0, -torch.inf)
        hidden, states = self.tower.text_model.embeddings(input_ids=ids), []
        for number, layer in enumerate(self.tower.text_model.encoder.layer, 1):
            hidden = layer(hidden, bias)
            if number > DEPTH - LAYERS:
                states.append(hidden)
        kind = self.tower.token_type_embeddings.weight[0]
        read = [self.tower.cross_modal_text_transform(state) + kind for state in states]
        return (*read, states[-1], bias)

    def image_embedding(self, image: States) -> Tensor:
        return normalize(self.image_head(image[-1][:, 0]).float(), dim=-1)

    def text_embedding(self, text: States) -> Tensor:
        return normalize(self.text_head(text[-2][:, 0]).float(), dim=-1)

    def match(self, image: States, text: States) -> tuple[Tensor, Tensor]:
        """Pairs -> logits [B, 2]: no match, match; and the tokens' last states [B, T, D]."""
        tower, bias = self.tower, text[-1]
        seen, read = (
            tower.cross_modal_image_layernorm(image[0]),
            tower.cross_modal_text_layernorm(text[0]),
        )
        for number in range(LAYERS):
            if number:
                read = tower.cross_modal_text_link_tower[number - 1](text[number], read, bias)
                seen = tower.cross_modal_image_link_tower[number - 1](image[number], seen, None)
            words, look = (
                tower.cross_modal_text_layers[number],
                tower.cross_modal_image_layers[number],
            )
            new_read = words(read, seen, attention_mask=bias)[0]
            seen = look(seen, read, encoder_attention_mask=bias)[0]
            read = new_read
        return self.model.itm_score(tower.get_cls_features(read, seen)).float(), read

    @torch.no_grad()
    def start_from(self, clip: Any, pixels: Tensor) -> None:
        """Take the first blocks of the lab CLIP's image tower; the library fixes the width of a
        head at 64, twice what they had."""
        visual = self.tower.vision_model.visual
        visual.embeddings.class_embedding.copy_(clip.class_embedding)
        visual.embeddings.position_embedding.weight.copy_(clip.positional_embedding)
        visual.embeddings.patch_embedding.weight.copy_(clip.conv1.weight)
        _copy(visual.ln_pre, clip.ln_pre)
        _copy(visual.ln_post, clip.ln_post)
        for target, source in zip(
            visual.transformer.resblocks, clip.transformer.resblocks[:DEPTH], strict=True
        ):
            target.load_state_dict(source.state_dict())


def make_readers() -> Readers:
    """The classifiers of what words read."""
    return Readers(LAYERS, TEXT["num_attention_heads"], TEXT["hidden_size"], len(CONTENT))


@torch.no_grad()
def scale_queries_and_keys(attentions: Iterable[Any]) -> None:
    """Scale the initial queries and keys of cross-attention.

    The library's are so small that each token sees the mean of the image, and a small model can do
    with that for long: it would find what is there and not where."""
    for attention in attentions:
        attention.query.weight.mul_(QUERY_KEY_SCALE)
        attention.key.weight.mul_(QUERY_KEY_SCALE)


def _copy(target: nn.Module, source: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def _blip_config(words: int) -> Any:
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": WIDTH // 32,
        "image_size": SIDE,
        "patch_size": PATCH,
        "layer_norm_eps": 1e-6,
    }
    text = {
        **TEXT,
        **NO_DROPOUT,
        "intermediate_size": 512,
        "num_hidden_layers": LAYERS,
        "encoder_hidden_size": WIDTH,
        "vocab_size": words + 2,  # [DEC] and [ENC] follow the tokenizer's own
        "bos_token_id": words,
        "pad_token_id": 0,
        "max_position_embeddings": CONTEXT,
    }
    kind: Any = BlipConfig
    return kind(
        vision_config=vision,
        text_config=text,
        image_text_hidden_size=EMBEDDING,
        attn_implementation="eager",
    )


def _bridgetower_config(tokenizer: Any) -> Any:
    vision = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    text = {
        **TEXT,
        **NO_DROPOUT,
        "intermediate_size": 256,
        "num_hidden_layers": DEPTH,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT + 2,  # RoBERTa's positions begin behind the padding's
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    kind: Any = BridgeTowerConfig
    return kind(
        vision_config=vision,
        text_config=text,
        hidden_size=TEXT["hidden_size"],
        num_attention_heads=TEXT["num_attention_heads"],
        num_hidden_layers=LAYERS,
        attn_implementation="eager",
    )
