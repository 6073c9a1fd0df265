"""The published sizes with random weights: do they run, and is there a gradient?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clips import noise
from itms import MEAN, STD, byte_pairs, save_albef, wordpiece
from ovss.backbones.itm import ItmBackbone
from ovss.backbones.itm.networks import Blip, BridgeTower, Network


def blip_large(folder: Path) -> ItmBackbone:
    """The shapes of Salesforce/blip-itm-large-flickr; a vocabulary of the tests' few words."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision |= {"num_attention_heads": 16, "image_size": 384, "patch_size": 16}
    text = {"vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024}
    text |= {"intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    config = BlipConfig(vision_config=vision, text_config=text)
    return _around(Blip(_random(BlipForImageTextRetrieval(config))), wordpiece(folder), 30523)


def bridgetower_large(folder: Path) -> ItmBackbone:
    """The shapes of BridgeTower/bridgetower-large-itm-mlm-itc."""
    from transformers import BridgeTowerConfig, BridgeTowerForImageAndTextRetrieval

    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "image_size": 294, "patch_size": 14}
    text = {"vocab_size": 50265, "hidden_size": 1024, "intermediate_size": 4096}
    text |= {"num_attention_heads": 16, "num_hidden_layers": 24}
    cross = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 6}
    config = BridgeTowerConfig(vision_config=vision, text_config=text, **cross)
    config._attn_implementation = "eager"
    network = BridgeTower(_random(BridgeTowerForImageAndTextRetrieval(config)))
    return _around(network, byte_pairs(folder), None)


def albef_base(folder: Path) -> ItmBackbone:
    """The shapes of ALBEF's mscoco.pth."""
    eye = {"width": 768, "patch": 16, "grid": 24, "depth": 12, "mlp": 4}
    text = {"layers": 12, "fusion": 6, "positions": 512}
    return ItmBackbone.load(save_albef(folder, **eye, **text))


def _around(network: Network, tokenizer: Any, first: int | None) -> ItmBackbone:
    return ItmBackbone(network, tokenizer, first, MEAN, STD, "large", "random")


def _random(model: torch.nn.Module) -> torch.nn.Module:
    return model.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "layers", "heads", "layer"),
    [(blip_large, 12, 12, 7), (bridgetower_large, 6, 16, 2), (albef_base, 6, 12, 1)],
)
def test_published_sizes(build: Any, layers: int, heads: int, layer: int, tmp_path: Path) -> None:
    backbone: ItmBackbone = build(tmp_path)
    assert (backbone.layers, backbone.heads) == (layers, heads)
    prompt = backbone.prompt(["cat", "potted plant", "person"])
    found = backbone.match(backbone.pixels([noise(375, 500)], 336), [prompt], [layer])
    shape = (1, heads, len(prompt.ids), 1 + backbone.patch_grid(336) ** 2)
    assert found.attention[layer].shape == found.gradient[layer].shape == shape
    total: Tensor = found.attention[layer].sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert found.gradient[layer].abs().max() > 0 and found.logits.isfinite().all()
