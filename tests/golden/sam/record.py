"""Record what the authors' `segment_anything` says on a small random model.

    git clone https://github.com/facebookresearch/segment-anything /tmp/sam
    PYTHONPATH=/tmp/sam python tests/golden/sam/record.py

Writes `config.json`, `model.safetensors` and `run.npz` beside this file. The weights are drawn for
transformers' `SamModel` and renamed for the authors' `Sam`.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from transformers import SamConfig, SamModel

FOLDER = Path(__file__).parent
SIDE, PATCH, WIDTH, CHANNELS, HEADS = 64, 8, 24, 16, 2
CONFIG: dict[str, Any] = {
    "vision_config": {
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "mlp_dim": 2 * WIDTH,
        "output_channels": CHANNELS,
        "num_pos_feats": CHANNELS // 2,
        "window_size": 3,
        "global_attn_indexes": [1],
    },
    "prompt_encoder_config": {"hidden_size": CHANNELS, "image_size": SIDE, "patch_size": PATCH},
    "mask_decoder_config": {
        "hidden_size": CHANNELS,
        "mlp_dim": 24,
        "num_attention_heads": HEADS,
        "iou_head_hidden_dim": 12,
    },
}
NAMES = (  # transformers' -> the authors'
    (r"^vision_encoder\.", "image_encoder."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"(image_encoder)\.layers\.", r"\1.blocks."),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
    (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"\.proj_in\.", ".layers.0."),
    (r"(_mlps\.\d+|_head)\.layers\.0\.(?=weight|bias)", r"\1.layers.1."),
    (r"\.proj_out\.", ".layers.2."),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"layer_norm(\d)", r"norm\1"),
)


def renamed(name: str) -> str:
    """The authors' name of one of transformers' tensors."""
    first = ".layers.0." if ".proj_in." in name else ""
    for pattern, replacement in NAMES:
        if first and pattern.startswith(r"(_mlps"):
            continue
        name = re.sub(pattern, replacement, name)
    return name


def draw() -> tuple[SamConfig, dict[str, torch.Tensor]]:
    """A configuration and random weights, none zero, as float16 holds them."""
    torch.manual_seed(11)
    config = SamConfig(**CONFIG)
    config.vision_config.scale = 1.0
    weights = SamModel(config).state_dict()
    drawn = {k: (v + 0.5 * torch.randn_like(v)).half() for k, v in weights.items()}
    drawn["mask_decoder.iou_prediction_head.proj_out.bias"] += (
        8  # only thresholds > 0 are looked at
    )
    place = "positional_embedding"
    drawn[f"prompt_encoder.shared_embedding.{place}"] = drawn[f"shared_image_embedding.{place}"]
    return config, drawn


def authors(weights: dict[str, torch.Tensor]) -> Sam:
    """The authors' model with these weights."""
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    vision = ImageEncoderViT(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=HEADS, mlp_ratio=2,
        out_chans=CHANNELS, qkv_bias=True, norm_layer=norm, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1,),
    )  # fmt: skip
    grid = (SIDE // PATCH, SIDE // PATCH)
    prompts = PromptEncoder(
        embed_dim=CHANNELS, image_embedding_size=grid, input_image_size=(SIDE, SIDE),
        mask_in_chans=16,
    )  # fmt: skip
    transformer = TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=24, num_heads=HEADS)
    decoder = MaskDecoder(
        num_multimask_outputs=3, transformer=transformer, transformer_dim=CHANNELS,
        iou_head_depth=3, iou_head_hidden_dim=12,
    )  # fmt: skip
    model = Sam(vision, prompts, decoder)
    model.pixel_mean[:], model.pixel_std[:] = 127.5, 63.75
    given = {renamed(k): v.float() for k, v in weights.items() if not k.startswith("shared_")}
    missing = model.load_state_dict(given, strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys, missing
    return model.eval()


def main() -> None:
    """Write the three files."""
    config, weights = draw()
    model = authors(weights)
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (5, 7, 3)), np.ones((10, 11, 1))).astype(np.uint8)
    prompts = {
        "one": ([[20.0, 12.0]], [1]),
        "corrected": ([[20.0, 12.0], [60.5, 33.0]], [1, 0]),
        "five": (rng.uniform(0, 50, (5, 2)).tolist(), [1] * 5),
    }
    predictor = SamPredictor(model)
    predictor.set_image(image)
    run: dict[str, Any] = {"image": image, "features": predictor.features.numpy()}
    for name, (points, labels) in prompts.items():
        for several in (True, False):
            logits, iou, low = predictor.predict(
                np.array(points), np.array(labels), multimask_output=several, return_logits=True
            )
            key = f"{name}/{'three' if several else 'single'}"
            run |= {f"{key}/logits": logits, f"{key}/iou": iou, f"{key}/low": low}
        run |= {f"{name}/points": np.array(points), f"{name}/labels": np.array(labels)}
    run |= automatic(model, image)
    np.savez_compressed(FOLDER / "run.npz", **run)
    config.save_pretrained(FOLDER)
    save_file({k: v.clone() for k, v in weights.items()}, FOLDER / "model.safetensors")


def automatic(model: Sam, image: np.ndarray[Any, Any]) -> dict[str, Any]:
    """All masks of the image, with and without suppression of near duplicates.

    The thresholds of predicted IoU and stability are such that some of the random model's masks
    pass.
    """
    run = {}
    for name, nms in (("automatic", 0.95), ("duplicates", 2.0)):
        found = SamAutomaticMaskGenerator(
            model, 8, points_per_batch=24, pred_iou_thresh=12.5, stability_score_thresh=0.12,
            box_nms_thresh=nms,
        ).generate(image)  # fmt: skip
        print(len(found), "masks")
        run |= {
            f"{name}/thresholds": np.array([12.5, 0.12, nms]),
            f"{name}/masks": np.stack([one["segmentation"] for one in found]),
            f"{name}/iou": np.array([one["predicted_iou"] for one in found]),
            f"{name}/stability": np.array([one["stability_score"] for one in found]),
            f"{name}/boxes": np.array([one["bbox"] for one in found]),
            f"{name}/points": np.array([one["point_coords"][0] for one in found]),
        }
    return run


if __name__ == "__main__":
    main()
