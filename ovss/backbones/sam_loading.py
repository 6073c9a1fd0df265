"""From a name or a folder to a Segment Anything Model of transformers and its identity."""

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
    section,
    shapes_of,
)

SIZES = {
    "vision_config": (
        "hidden_size",
        "output_channels",
        "num_attention_heads",
        "image_size",
        "patch_size",
        "num_pos_feats",
        "mlp_dim",
    ),
    "prompt_encoder_config": (
        "hidden_size",
        "image_size",
        "patch_size",
        "mask_input_channels",
        "num_point_embeddings",
    ),
    "mask_decoder_config": (
        "hidden_size",
        "mlp_dim",
        "num_attention_heads",
        "attention_downsample_rate",
        "num_multimask_outputs",
        "iou_head_hidden_dim",
    ),
}


def load_sam(source: str | Path) -> Loaded:
    """Load transformers' model of a SAM.

    Args:
        source: a lab zoo name; a folder that `save_pretrained` wrote; or a SAM of
            `registry.CHECKPOINTS`.

    Raises:
        CheckpointError, UnknownNameError: see `loading.load_folder`.
    """
    return load_folder(source, ("sam",), _model)


def _model(path: Path, weights: Path) -> Any:
    given = read_json(path)
    if given.get("model_type") != "sam":
        kind = one_line(given.get("model_type"), 60)
        raise CheckpointError(f"{path.parent} is no SAM of transformers but: {kind}")
    for name, sizes in SIZES.items():
        part = section(given, name, path)
        check_sizes(part, sizes, 2**20, path)
        check_sizes(part, ("num_hidden_layers",), len(shapes_of(weights)), path)
    library = needed("transformers")
    try:
        config = library.SamConfig.from_dict(given)
    except Exception as error:  # the library raises all kinds
        raise CheckpointError(f"{path} describes no SAM ({one_line(error)})") from None
    return load_transformer(library.SamModel, config, weights, dtype="float32")
