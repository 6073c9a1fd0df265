"""The text side of a golden case: what `check.py` compares of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file

from ovss.backbones.clip_text import TextEncoder

Array = np.ndarray[Any, Any]


def text_outputs(folder: Path, config: dict[str, Any], tokens: Array) -> dict[str, torch.Tensor]:
    """Name -> what ovss finds for the case's class names and templates."""
    encoder = TextEncoder(text_model(folder), open_clip.SimpleTokenizer(), torch.device("cpu"))
    names = config["classnames"]
    templates = tuple(config.get("templates") or spelled_templates(tokens, names))
    prompts = [template.replace("{}", name) for name in names for template in templates]
    return {
        "tokens": encoder.tokens(prompts),
        "encode_text_template0": encoder.encode(prompts[:: len(templates)]),
        "class_features": encoder.features(names, templates),
    }


def spelled_templates(tokens: Array, names: list[str]) -> list[str]:
    """The templates behind recorded tokens [n * T, 77], class-major: those of the first class."""
    spell = open_clip.SimpleTokenizer().decode
    first = [row[row > 0][1:-1] for row in tokens[: len(tokens) // len(names)]]
    return [spell(row.tolist()).replace(names[0], "{}") for row in first]


def text_model(folder: Path) -> Any:
    """The CLIP of a text case: its vocabulary is stored row by row."""
    state = load_file(folder / "weights.safetensors")
    ids = state.pop("token_embedding.ids").long()
    rows = state.pop("token_embedding.rows")
    table = rows.new_zeros(49408, rows.shape[1])
    state["token_embedding.weight"] = table.index_copy(0, ids, rows)
    build = open_clip.model.build_model_from_openai_state_dict
    return build(state, cast_dtype=torch.float32).float()
