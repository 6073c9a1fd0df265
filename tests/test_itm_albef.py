"""ALBEF from its authors' names of the weights, against a plain pass written from the formulas."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from itms import ALBEF, albef_state, save_albef
from ovss.backbones.itm import ItmBackbone
from ovss.errors import CheckpointError

State = dict[str, Tensor]
HEADS = 12


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: State, name: str, x: Tensor, epsilon: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """[T, D], [L, D], [L, D] -> what the heads have mixed [T, D], and their maps [heads, T, L]."""
    query, key, value = (x.unflatten(-1, (HEADS, -1)).transpose(0, 1) for x in (query, key, value))
    maps = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
    return (maps @ value).transpose(0, 1).flatten(1), maps


def see(state: State, pixels: Tensor) -> Tensor:
    """[3, H, W] -> tokens [1+L, D]: a ViT whose norms stand before attention and MLP."""
    eye, patch = "visual_encoder", ALBEF["patch"]
    weight = state[f"{eye}.patch_embed.proj.weight"]
    cells = pixels.unfold(1, patch, patch).unfold(2, patch, patch)  # [3, h, w, p, p]
    grid = cells.shape[1:3]
    tokens = cells.permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1) @ weight.flatten(1).T
    tokens = tokens + state[f"{eye}.patch_embed.proj.bias"]
    table = state[f"{eye}.pos_embed"][0]
    side = math.isqrt(len(table) - 1)
    places = table[1:].T.unflatten(1, (side, side))[None]
    places = F.interpolate(places, grid, mode="bicubic", align_corners=False)[0].flatten(1).T
    first = state[f"{eye}.cls_token"][0] + table[:1]
    x = torch.cat([first, tokens + places])
    for index in range(ALBEF["depth"]):
        block = f"{eye}.blocks.{index}"
        mixed = linear(state, f"{block}.attn.qkv", norm(state, f"{block}.norm1", x, 1e-6))
        x = x + linear(state, f"{block}.attn.proj", attend(*mixed.chunk(3, -1))[0])
        inner = linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x, 1e-6))
        x = x + linear(state, f"{block}.mlp.fc2", F.gelu(inner))
    return norm(state, f"{eye}.norm", x, 1e-6)


def read(state: State, ids: Tensor, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    """[T] and [1+L, D] -> logits [2] and the maps of the layers that look at the image."""
    text, maps = "text_encoder", []
    words = state[f"{text}.embeddings.word_embeddings.weight"][ids]
    words = words + state[f"{text}.embeddings.position_embeddings.weight"][: len(ids)]
    words = words + state[f"{text}.embeddings.token_type_embeddings.weight"][0]
    x = norm(state, f"{text}.embeddings.LayerNorm", words, 1e-12)
    for index in range(ALBEF["layers"]):
        layer = f"{text}.encoder.layer.{index}"
        for kind in ("attention", "crossattention")[: 1 + (index >= ALBEF["fusion"])]:
            source = x if kind == "attention" else image
            parts = [
                linear(state, f"{layer}.{kind}.self.{part}", x if part == "query" else source)
                for part in ("query", "key", "value")
            ]
            mixed, weights = attend(*parts)
            x = x + linear(state, f"{layer}.{kind}.output.dense", mixed)
            x = norm(state, f"{layer}.{kind}.output.LayerNorm", x, 1e-12)
            if kind == "crossattention":
                maps.append(weights)
        inner = F.gelu(linear(state, f"{layer}.intermediate.dense", x))
        x = norm(
            state,
            f"{layer}.output.LayerNorm",
            x + linear(state, f"{layer}.output.dense", inner),
            1e-12,
        )
    return linear(state, "itm_head", x[0]), maps


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("side", [32, 48, 24])
def test_it_is_the_plain_pass(tmp_path: Path, pretrained: bool, side: int) -> None:
    backbone = ItmBackbone.load(save_albef(tmp_path, pretrained=pretrained))
    words = len(backbone.tokenizer)
    state = {name: value.requires_grad_() for name, value in albef_state(words).items()}
    pixels, prompt = torch.randn(1, 3, side, side), backbone.prompt(["cat", "potted plant"])
    logits, maps = read(state, prompt.ids, see(state, pixels[0]))
    slopes = torch.autograd.grad(logits[1], maps)
    found = backbone.match(pixels, [prompt], [0, 1])
    torch.testing.assert_close(found.logits[0], logits, rtol=1e-4, atol=1e-5)
    assert (backbone.layers, backbone.heads, backbone.size) == (2, 12, 32)
    for layer in (0, 1):
        torch.testing.assert_close(found.attention[layer][0], maps[layer], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.gradient[layer][0], slopes[layer], rtol=1e-3, atol=1e-6)


class Other:
    """Something that is no tensor."""


def test_files_that_are_no_albef(tmp_path: Path) -> None:
    path = save_albef(tmp_path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "config": Other()}, path)
    with pytest.raises(CheckpointError, match=r"more than tensors.*\[\"model\"\] alone"):
        ItmBackbone.load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        ItmBackbone.load(path)
    path.write_bytes(pickle.dumps("nothing", protocol=2))
    with pytest.raises(CheckpointError, match=r"is damaged|is no ALBEF"):
        ItmBackbone.load(path)
    for wrong in ({}, [1], {"model": 3}, {"model": {"itm_head.weight": torch.zeros(2, 4)}}):
        torch.save(wrong, path)
        with pytest.raises(CheckpointError, match="is no ALBEF with a matching head"):
            ItmBackbone.load(path)
    del content["model"]["text_encoder.encoder.layer.3.crossattention.self.query.bias"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"no ALBEF .*layer\.3\.crossattention"):
        ItmBackbone.load(path)
