"""From a name or a folder to a vision transformer of transformers and its identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError, one_line
from .loading import (
    Loaded,
    check_sizes,
    load_folder,
    load_transformer,
    needed,
    read_json,
    shapes_of,
)
from .registry import Kind

SIZES = (
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "mlp_ratio",
    "image_size",
    "patch_size",
    "num_register_tokens",
)
KINDS: tuple[Kind, ...] = ("dino", "dinov2")
LIBRARY: dict[
    str, tuple[str, str, dict[str, Any]]
] = {  # configuration and model of transformers by the configuration's model_type
    "vit": ("ViTConfig", "ViTModel", {"add_pooling_layer": False}),
    "dinov2": ("Dinov2Config", "Dinov2Model", {}),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {}),
}


def load_dino(source: str | Path) -> Loaded:
    """Load transformers' model of a DINO, a DINOv2 or a DINOv2 with registers.

    Args:
        source: a lab zoo name; a folder that `save_pretrained` wrote; or a DINO or DINOv2 of
            `registry.CHECKPOINTS`, whose hub ids are tried one after another.

    Raises:
        CheckpointError: something is missing, damaged, not to be had or of another architecture.
        UnknownNameError: no such checkpoint; the message lists the known ones.
    """
    return load_folder(source, KINDS, _model)


def _model(path: Path, weights: Path) -> Any:
    given = read_json(path)
    names = LIBRARY.get(str(given.get("model_type")))
    if names is None:
        kind = one_line(given.get("model_type"), 60)
        raise CheckpointError(
            f"{path.parent} is no DINO (a ViT or DINOv2 of transformers) but: {kind}"
        )
    check_sizes(given, SIZES, 2**20, path)
    check_sizes(given, ("num_hidden_layers",), len(shapes_of(weights)), path)
    library, (config_name, model_name, options) = needed("transformers"), names
    try:
        config = getattr(library, config_name).from_dict(given)
    except Exception as error:  # the library raises all kinds
        raise CheckpointError(f"{path} describes no ViT ({one_line(error)})") from None
    return load_transformer(
        getattr(library, model_name), config, weights, dtype="float32", **options
    )
