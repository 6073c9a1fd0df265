"""Random networks of the real sizes: what the bench runs on, without any download.

The signal keeps its scale from layer to layer (variance 1 / fan-in). Two things are set by hand,
so that equal labels mean something. In the layers that are read, keys are queries, scaled until a
row's logits have the standard deviation LOGITS: like attends to like, as in a trained network, and
a product of such maps does not blur everything into one value. The classes' embeddings are those
of random patches: many classes win somewhere.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ovss.backbones.clip import ClipBackbone
from ovss.backbones.diffusion import DiffusionBackbone, mixed
from ovss.backbones.diffusion.backbone import LAYERS
from ovss.lab.scenes import render
from ovss.methods.cliper import Cliper
from ovss.vocabulary import Vocabulary

CLASSES, LOGITS = 21, 4.0
SIDES = {one: getattr(torch, one) for one in ("float32", "bfloat16", "float16")}
MEAN, STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)


@dataclass(frozen=True)
class Sizes:
    """The networks' shapes and the image's size in pixels."""

    clips: dict[str, dict[str, Any]]  # name -> open_clip's `vision_cfg`
    unet: dict[str, Any]
    vae: dict[str, Any]
    image: tuple[int, int]  # height, width


FULL = Sizes(
    clips={
        "ViT-B/16": {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224},
        "ViT-L/14": {"layers": 24, "width": 1024, "patch_size": 14, "image_size": 224},
    },
    unet={
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
    },
    vae={"block_out_channels": (128, 256, 512, 512)},
    image=(336, 448),
)
QUICK = Sizes(
    clips={"small ViT": {"layers": 4, "width": 128, "patch_size": 16, "image_size": 64}},
    unet={
        "sample_size": 16,
        "block_out_channels": (32, 64, 64, 64),
        "attention_head_dim": (2, 4, 4, 4),
        "cross_attention_dim": 32,
    },
    vae={"block_out_channels": (32, 32, 32, 32)},
    image=(96, 128),
)


def picture(height: int, width: int) -> Image.Image:
    """A scene of the lab."""
    side = 1 << (max(height, width) - 1).bit_length()
    scene = Image.fromarray(render("tune", 0, side=side).image)
    return scene.crop((0, 0, width, height))


# ---- CLIP


def clip(vision: dict[str, Any], image: Image.Image, device: str) -> tuple[Cliper, Tensor]:
    """CLIPer* on a random CLIP, and the text features [K, E] of its classes."""
    import open_clip

    torch.manual_seed(0)
    text = {"context_length": 8, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1}
    model = open_clip.CLIP(512, vision, text, quick_gelu=True).eval().requires_grad_(False)
    place = torch.device(device)
    backbone = ClipBackbone(model.to(place), _no_words, MEAN, STD, "random", "random", place)
    method = Cliper(backbone, short_side=min(image.size))
    return method, _texts(method, image)


def _no_words(texts: Any, context_length: int) -> Tensor:
    raise NotImplementedError("the bench brings its own text features")


def _texts(method: Cliper, image: Image.Image) -> Tensor:
    """The embeddings of random patches, less the mean of all: unit vectors [K, E]."""
    pixels = method.backbone.preprocess(image, method.short_side)[None].to(method.backbone.device)
    found = method.embeddings(method.backbone.features(pixels, attention="sum"))
    patches = F.normalize(found[-1, 0, 1:], dim=-1)  # [L, E]
    chosen = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:CLASSES]
    return F.normalize(patches[chosen.to(patches.device)] - patches.mean(0), dim=-1)


def words() -> Vocabulary:
    """CLASSES classes without names of their own."""
    return Vocabulary(tuple((f"class {k}",) for k in range(CLASSES)), ())


# ---- Stable Diffusion


def diffusion(sizes: Sizes, image: Image.Image, device: str) -> DiffusionBackbone:
    """A random Stable Diffusion 2.1-base; its prompt is a random tensor."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    stages = len(sizes.vae["block_out_channels"])
    coders = {
        "down_block_types": ("DownEncoderBlock2D",) * stages,
        "up_block_types": ("UpDecoderBlock2D",) * stages,
    }
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**sizes.unet, use_linear_projection=True)
        vae: Any = AutoencoderKL(**sizes.vae, **coders, layers_per_block=2)
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )
    place = torch.device(device)
    models = [fill(model.to_empty(device=place)) for model in (unet, vae)]
    backbone = DiffusionBackbone(
        models[0], models[1], None, None, scheduler, "random", "random", place
    )
    _set_prompt(backbone, torch.randn(1, 77, sizes.unet["cross_attention_dim"]))
    _calibrate(backbone, image)
    return backbone


def fill(model: nn.Module) -> Any:
    """Weights of variance 1 / fan-in; norms and biases as they start."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        else:
            nn.init.constant_(weight, float(name.endswith("weight")))
    return model.eval().requires_grad_(False)


def _calibrate(backbone: DiffusionBackbone, image: Image.Image) -> None:
    """Keys like queries, scaled: a row's logits get the standard deviation LOGITS."""
    for layer in sorted(LAYERS):  # the one that runs first comes first: the next sees its output
        attention = backbone.self_attention(layer)
        attention.to_k.weight.copy_(attention.to_q.weight)
        (found,) = backbone.projections([image], (layer,))
        side = found.query[0, :, ::8]
        logits = found.scale * side @ side.mT  # [heads, L/8, L/8]
        attention.to_k.weight.mul_(LOGITS / logits.std(-1).mean())


def variant(backbone: DiffusionBackbone, name: str) -> DiffusionBackbone:
    """The same as one of SIDES asks, beside it; "float32" is what was given."""
    if name == "float32":
        return backbone
    models, kind = [deepcopy(one) for one in (backbone.unet, backbone.vae)], SIDES[name]
    if mixed.wanted(backbone.device, kind):
        mixed.lower(*models)
        kind = torch.float32
    else:
        for model in models:
            nn.Module.to(model, kind)  # diffusers' own `to` warns
    copy = replace(backbone, unet=models[0], vae=models[1], dtype=kind)
    _set_prompt(copy, backbone.prompt)
    return copy


def _set_prompt(backbone: DiffusionBackbone, prompt: Tensor) -> None:
    backbone.__dict__["prompt"] = prompt.to(backbone.device, backbone.dtype)
