"""A random BLIP of the published size, and an image for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from weights import fill

from ovss.backbones.itm import ItmBackbone
from ovss.backbones.itm.loading import MEAN, STD
from ovss.backbones.itm.networks import Blip

NAMES = ("dog", "person", "sofa")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Sizes:
    """The network's shapes, the square and the image in pixels, and the head that is read."""

    name: str
    vision: dict[str, Any]
    text: dict[str, Any]
    side: int
    image: tuple[int, int]  # height, width
    layer: int
    head: int


FULL = Sizes(
    "BLIP-large",
    vision={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 16,
    },
    text={
        "vocab_size": 30524,
        "hidden_size": 768,
        "encoder_hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    side=336,
    image=(375, 500),
    layer=7,
    head=6,  # with these weights one where every class wins somewhere
)
QUICK = Sizes(
    "small BLIP",
    vision={
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    },
    text={
        "vocab_size": 64,
        "hidden_size": 64,
        "encoder_hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    side=96,
    image=(90, 120),
    layer=2,
    head=1,
)


def blip(sizes: Sizes, device: str) -> ItmBackbone:
    """BLIP with weights of variance 1 / fan-in and a vocabulary of a few words."""
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval
    from transformers.initialization import no_init_weights

    torch.manual_seed(0)
    with no_init_weights():
        model: Any = BlipForImageTextRetrieval(
            BlipConfig(vision_config=sizes.vision, text_config=sizes.text)
        )
    vocabulary = [*SPECIAL, "a", "picture", "of", *NAMES]
    tokenizer: Any = BertTokenizer
    words = tokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    place = torch.device(device)
    first = sizes.text["vocab_size"] - 1
    network = Blip(fill(model).to(place))
    return ItmBackbone(network, words, first, MEAN, STD, "random", "random", place)
