"""ProxyCLIP: Lan et al., "Proxy Attention Improves CLIP for Open-Vocabulary Segmentation"
(ECCV 2024, arXiv 2408.04883). A self-distilled model tells which patches belong together, CLIP
what they are.

With F the proxy's patch tokens and v CLIP's last values, section 3.3 and the authors' code:

    S = cos(F, F)                             similarity of patches, [L, L]
    A = gamma (S - beta mean(S))              adaptive normalisation, mean over the whole map
    A = softmax(A + M), M = -inf where A < 0  what is less alike than beta times the mean is masked
    y = proj(ln_post(out_proj(A v)))          in every head; no residual connection, no FFN

The values are resized bilinearly to the proxy's finer grid, on which the map comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..backbones.clip import ClipBackbone, ClipFeatures
from ..backbones.clip_blocks import merge_heads
from ..backbones.dino import DinoBackbone
from ..errors import OvssError
from ..options import LOGIT_SCALE, SHORT_SIDE, check_fields
from ..segmenter import Method
from ..vocabulary import Vocabulary


@dataclass(frozen=True)
class ProxyClip(Method):
    """Mix CLIP's last values by the affinities of another model's patches.

    Attributes:
        dino: the proxy (DINO ViT-B/8 in the paper's tables). It sees the image at CLIP's size.
        beta: patches below `beta` times the mean similarity are masked (section 3.3).
        gamma: factor of the similarity before the softmax (section 3.3).
        logit_scale: factor of the cosine before the softmax over the queries.
        short_side: pixels.
        templates: prompt templates; None takes the vocabulary's own.
    """

    backbone: ClipBackbone
    dino: DinoBackbone
    beta: float = 1.2
    gamma: float = 3.0
    logit_scale: float = 40.0
    short_side: int = 336
    templates: tuple[str, ...] | None = None
    name: str = field(default="proxyclip", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.dino, DinoBackbone):
            raise OvssError(f"dino must be a DinoBackbone: {self.dino!r}")
        check_fields(
            self, beta=(-1e6, 1e6), gamma=(0.0, 1e6), logit_scale=LOGIT_SCALE, short_side=SHORT_SIDE
        )

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> list[Tensor]:
        """Score RGB images of any sizes: a map [K, h, w] in [0, 1] on the proxy's grid for each."""
        words = Vocabulary.of(vocabulary, templates=self.templates)
        text = self.backbone.text_features(words)  # [Q, E]
        maps: dict[int, Tensor] = {}
        for indices, pixels in self.backbone.batches(images, self.short_side):
            height, width = pixels.shape[2:]
            seen = [self.dino.preprocess(images[index], height, width) for index in indices]
            proxy = self.dino.features(torch.stack(seen))  # [B, D, h, w]
            embeddings = self.embeddings(self.backbone.features(pixels, attention=False), proxy)
            scores = self.classify(embeddings, text)
            maps.update(zip(indices, words.reduce(scores), strict=True))
        return [maps[index] for index in range(len(images))]

    def embeddings(self, features: ClipFeatures, proxy: Tensor) -> Tensor:
        """Embed patches in the space shared with text: proxy [B, D, h, w] -> [B, E, h, w]."""
        (values,) = self.backbone.last_heads(features.inputs[-1], "v")  # [B, heads, 1+l, d]
        values = resize(values[:, :, 1:], features.grid, (proxy.shape[2], proxy.shape[3]))  # L
        mixed = [  # one image after the other, so that one map is held at a time
            proxy_map(tokens, self.beta, self.gamma).to(value) @ value  # [heads, L, d]
            for value, tokens in zip(values, proxy, strict=True)
        ]
        attended = merge_heads(self.backbone.blocks[-1].attn, torch.stack(mixed))  # [B, L, D]
        embedded = self.backbone.project(attended)  # [B, L, E]
        return rearrange(embedded, "b (h w) e -> b e h w", h=proxy.shape[2])

    def classify(self, embeddings: Tensor, text: Tensor) -> Tensor:
        """Classify patches [B, E, h, w] by text [Q, E]: softmax of scaled cosines [B, Q, h, w]."""
        unit = F.normalize(embeddings.float(), dim=1)  # [B, E, h, w]
        cosine = torch.einsum("b e h w, q e -> b q h w", unit, text.float())
        return (self.logit_scale * cosine).softmax(1)


def proxy_map(features: Tensor, beta: float = 1.2, gamma: float = 3.0) -> Tensor:
    """Compute the proxy's attention map [L, L] of its patch tokens [D, h, w] (section 3.3).

    A patch that is alike to none but itself still sees itself, its cosine being 1; where even that
    is masked (`beta` times the mean above 1: all tokens nearly equal), nothing is.
    """
    unit = F.normalize(features.flatten(1).float(), dim=0)  # [D, L]
    cosine = unit.mT @ unit  # [L, L]
    affinity = gamma * (cosine - beta * cosine.mean())
    masked = affinity < 0
    masked &= ~masked.all(-1, keepdim=True)
    return affinity.masked_fill(masked, float("-inf")).softmax(-1)


def resize(values: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Resize values [B, heads, h * w, d] on a `grid` bilinearly to another grid."""
    if grid == to:
        return values
    heads = values.shape[1]
    maps = rearrange(values, "b n (h w) d -> b (n d) h w", h=grid[0])
    maps = F.interpolate(maps, to, mode="bilinear", align_corners=False)
    return rearrange(maps, "b (n d) h w -> b n (h w) d", n=heads)
