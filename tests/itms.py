"""Small random image-text matchers, saved as transformers saves them, with their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    BridgeTowerConfig,
    BridgeTowerForImageAndTextRetrieval,
    RobertaTokenizer,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "picture", "of", "cat", "dog", "person", "car", "grass", "sky", "tree", "potted")
WORDS += ("tv", "traffic", "light")
WORDS += ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "chair", "cow", "diningtable")
WORDS += ("horse", "motorbike", "sheep", "sofa", "train")  # with those above all of VOC's
PIECES = ("plant", "monitor", "light", "s")  # "pottedplant": two pieces; "traffic light": two words
BLIP: dict[str, Any] = {
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "initializer_range": 0.2,
    },
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
        "layer_norm_eps": 1e-6,
    },
    "image_text_hidden_size": 16,
    "projection_dim": 16,
}
BRIDGETOWER: dict[str, Any] = {
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
    },
    "vision_config": {
        "hidden_size": 64,  # the library's heads are 64 channels wide
        "num_hidden_layers": 5,
        "image_size": 32,
        "patch_size": 8,
    },
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
}


def save_blip(folder: Path, seed: int = 0, **changes: dict[str, Any]) -> Path:
    """Write a random BLIP: `vision_config={...}` and `text_config={...}` change its shapes."""
    tokenizer = wordpiece(folder)
    config = _changed(BLIP, changes)
    ids = {"bos_token_id": len(tokenizer), "vocab_size": len(tokenizer) + 2}  # [DEC], [ENC]
    config["text_config"] = {"sep_token_id": 3, "eos_token_id": 3, **ids, **config["text_config"]}
    torch.manual_seed(seed)
    _spread(BlipForImageTextRetrieval(BlipConfig(**config))).save_pretrained(folder)
    _save_pixels(folder, config["vision_config"]["image_size"])
    return folder


def save_bridgetower(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a random BridgeTower."""
    tokenizer = byte_pairs(folder)
    config = _changed(BRIDGETOWER, changes)
    config["text_config"] = {"vocab_size": len(tokenizer), **config["text_config"]}
    torch.manual_seed(seed)
    model = BridgeTowerForImageAndTextRetrieval(BridgeTowerConfig(**config))
    _spread(model).save_pretrained(folder)
    _save_pixels(folder, config["vision_config"]["image_size"])
    return folder


def wordpiece(folder: Path) -> BertTokenizer:
    """BERT's lower-casing tokenizer over `WORDS` and `PIECES`, saved as vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [*SPECIAL, *WORDS, *(f"##{piece}" for piece in PIECES)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    kind = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return BertTokenizer.from_pretrained(folder)


def byte_pairs(folder: Path) -> RobertaTokenizer:
    """RoBERTa's byte-level tokenizer whose merges spell `WORDS` (after a blank) and `PIECES`."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in [*(f"Ġ{word}" for word in WORDS), *PIECES]:
        for end in range(1, len(word)):
            merges.append((word[:end], word[end]))
            tokens.append(word[: end + 1])
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<mask>"]))}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)))
    tokenizer.save_pretrained(folder)
    return tokenizer


def _changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`config` with `changes` in it, those of its two towers key by key."""
    towers = {
        name: {**config[name], **changes.get(name, {})} for name in ("text_config", "vision_config")
    }
    return {**config, **changes, **towers}


def _spread(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that attention is uneven and no gradient is lost in rounding."""
    for name, value in model.named_parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=0.2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.05)
    return model.eval()


def _save_pixels(folder: Path, side: int) -> None:
    size = {"height": side, "width": side}
    values = {"image_mean": MEAN, "image_std": STD, "size": size, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


ALBEF = {"width": 24, "patch": 8, "grid": 4, "depth": 2, "mlp": 2}
ALBEF |= {"layers": 4, "fusion": 2, "positions": 40}


def albef_state(words: int, seed: int = 0, **changes: int) -> dict[str, torch.Tensor]:
    """Random weights of an ALBEF by its authors' names; 12 heads, whatever the width."""
    size = {**ALBEF, **changes}
    width, patch, wide = size["width"], size["patch"], size["mlp"] * size["width"]
    draw = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def put(name: str, *shape: int) -> None:
        state[name] = 0.2 * torch.randn(*shape, generator=draw)

    def linear(name: str, rows: int, columns: int = width) -> None:
        put(f"{name}.weight", rows, columns)
        put(f"{name}.bias", rows)

    def norm(name: str) -> None:
        put(f"{name}.weight", width)
        state[f"{name}.weight"] += 1
        put(f"{name}.bias", width)

    eye = "visual_encoder"
    put(f"{eye}.cls_token", 1, 1, width)
    put(f"{eye}.pos_embed", 1, 1 + size["grid"] ** 2, width)
    put(f"{eye}.patch_embed.proj.weight", width, 3, patch, patch)
    put(f"{eye}.patch_embed.proj.bias", width)
    norm(f"{eye}.norm")
    for index in range(size["depth"]):
        block = f"{eye}.blocks.{index}"
        norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", 3 * width)
        linear(f"{block}.attn.proj", width)
        norm(f"{block}.norm2")
        linear(f"{block}.mlp.fc1", wide)
        linear(f"{block}.mlp.fc2", width, wide)
    put("text_encoder.embeddings.word_embeddings.weight", words, width)
    put("text_encoder.embeddings.position_embeddings.weight", size["positions"], width)
    put("text_encoder.embeddings.token_type_embeddings.weight", 2, width)
    norm("text_encoder.embeddings.LayerNorm")
    for index in range(size["layers"]):
        layer = f"text_encoder.encoder.layer.{index}"
        for kind in ("attention", "crossattention")[: 1 + (index >= size["fusion"])]:
            for part in ("query", "key", "value"):
                linear(f"{layer}.{kind}.self.{part}", width)
            linear(f"{layer}.{kind}.output.dense", width)
            norm(f"{layer}.{kind}.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", wide)
        linear(f"{layer}.output.dense", width, wide)
        norm(f"{layer}.output.LayerNorm")
    linear("itm_head", 2)
    return state


def save_albef(folder: Path, seed: int = 0, *, pretrained: bool = False, **changes: int) -> Path:
    """Write albef.pth and BERT's kind of vocab.txt beside it; the path of the first.

    Args:
        pretrained: with "bert." in the names and a word prediction head, as before fine-tuning.
    """
    state = albef_state(len(wordpiece(folder)), seed, **changes)
    (folder / "tokenizer_config.json").unlink()
    state["text_encoder.embeddings.position_ids"] = torch.arange(ALBEF["positions"])[None]
    if pretrained:
        state = {
            name.replace("text_encoder.", "text_encoder.bert."): v for name, v in state.items()
        }
        state["text_encoder.cls.predictions.bias"] = torch.zeros(3)
    copies = {name.replace("encoder.", "encoder_m.", 1): value for name, value in state.items()}
    rest = {"temp": torch.tensor(0.07), "image_queue": torch.zeros(4, 8)}
    torch.save({"model": {**copies, **state, **rest}, "epoch": 3}, folder / "albef.pth")
    return folder / "albef.pth"
