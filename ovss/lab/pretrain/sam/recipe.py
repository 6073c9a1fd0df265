"""How the lab SAM is trained: the model, the curriculum, and prompts with what they mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ovss.lab.pretrain.batches import VARIED, WorldStage, draw_scenes, stack_pixels
from ovss.lab.pretrain.trainer import LabRecipe
from ovss.lab.scenes import MOTLEY, THIN, THING_NAMES, Scene
from ovss.training.curriculum import Batch, Position

SIDE = 128  # pixels
LOW = SIDE // 2  # side of the decoder's masks
MODEL: dict[str, Any] = {
    "vision_config": {
        "image_size": SIDE,
        "patch_size": 8,
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "mlp_dim": 512,
        "output_channels": 64,
        "num_pos_feats": 32,
        "window_size": 8,
        "global_attn_indexes": [2, 5],
        "initializer_range": 0.02,
    },
    "prompt_encoder_config": {"hidden_size": 64, "image_size": SIDE, "patch_size": 8},
    "mask_decoder_config": {
        "hidden_size": 64,
        "mlp_dim": 256,
        "num_attention_heads": 4,
        "iou_head_hidden_dim": 64,
    },
}
MOST_POINTS = 5
GAUDY = replace(VARIED, disguise=MOTLEY.disguise)
LEAST = 24  # pixels of what is asked for


class Prompt(NamedTuple):
    """Points (x, y) [MOST_POINTS, 2] within what is meant, and that as a mask [LOW, LOW]."""

    points: NDArray[np.float32]
    target: NDArray[np.bool_]


@dataclass(frozen=True)
class Recipe(LabRecipe[WorldStage]):
    """Prompts, and the weights of the losses, which are the paper's.

    Attributes:
        prompts: of each image.
        meant: probabilities that a point means a part of a thing, a thing, a ground.
        one_point: ratio of batches with one point a prompt; others have two to MOST_POINTS.
        focal: weight of the focal loss beside the dice loss.
    """

    prompts: int = 6
    meant: tuple[float, float, float] = (0.2, 0.55, 0.25)
    one_point: float = 0.6
    focal: float = 20.0
    rate: float = 8e-4
    warmup: int = 300
    evaluate_every: int = 20_000
    curve_scenes: int = 60
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    stages: tuple[WorldStage, ...] = (
        WorldStage(28_000, 16, (VARIED,)),
        WorldStage(92_000, 16, (VARIED, GAUDY, replace(THIN, disguise=MOTLEY.disguise))),
    )


def make_batch(recipe: Recipe, position: Position[WorldStage]) -> Batch:
    """Fresh scenes and prompts: pixels [B, 3, S, S] uint8, points [B, P, N, 2], targets
    [B, P, s, s] booleans."""
    scenes = draw_scenes(position.images, SIDE, position.stage.world(position.step))
    rng = Random(f"points/{position.images.start}")
    count = 1 if rng.random() < recipe.one_point else rng.randint(2, MOST_POINTS)
    points, targets = [], []
    for scene, number in zip(scenes, position.images, strict=True):
        own = np.random.default_rng(number)
        found = [prompt(scene, recipe.meant, own) for _ in range(recipe.prompts)]
        points.append([one.points[:count] for one in found])
        targets.append([one.target for one in found])
    pixels = stack_pixels([scene.image for scene in scenes])
    return pixels, torch.from_numpy(np.array(points)), torch.from_numpy(np.array(targets))


def prompt(scene: Scene, meant: tuple[float, float, float], rng: np.random.Generator) -> Prompt:
    """Draw a part, a thing or a ground of a scene, and points within it."""
    maps = (scene.parts, scene.instances, _grounds(scene))
    for kind in (rng.choice(3, p=meant), 2):  # there is always a ground
        sizes = np.bincount(maps[kind].ravel())
        large = np.flatnonzero(sizes >= LEAST)
        large = large[large > 0]
        if len(large):
            break
    mask = maps[kind] == rng.choice(large)
    points = inner_points(mask, MOST_POINTS, rng)
    share = mask.reshape(LOW, len(mask) // LOW, LOW, -1).mean((1, 3))
    return Prompt(points, share >= 0.5)


def inner_points(
    mask: NDArray[np.bool_], count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw pixels (x, y) of a mask [count, 2]."""
    y, x = np.divmod(rng.choice(np.flatnonzero(mask), count), mask.shape[1])
    return np.stack([x, y], 1).astype(np.float32)


def _grounds(scene: Scene) -> NDArray[np.uint8]:
    """A number for each stuff [S, S], 0 for things."""
    stuff = scene.labels.astype(np.int64) - len(THING_NAMES) + 1
    return stuff.clip(0).astype(np.uint8)
