"""What a CLIP is trained on: views of the image, and the loss that draws them to their captions."""

from __future__ import annotations

import math
from typing import Any, Literal

from einops import rearrange, reduce
from torch import Tensor, cat, nn
from torch.nn.functional import avg_pool2d

from ovss.backbones.clip import resize_positions
from ovss.training.losses import symmetric_cross_entropy

View = Literal["class", "local", "mosaic"]


class Views(nn.Module):
    """What the loss reads of the image tower, and no more.

    "class" is CLIP's own embedding, of the class token. "local" is the mean embedding of the
    patches on the last block's value path (MaskCLIP's). "mosaic" is the same for four scenes shrunk
    into one picture, each quarter by itself: a patch that spoke for others would be wrong there.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor, views: tuple[View, ...]) -> list[Tensor]:
        """Pixels [B, 3, H, W] -> a unit embedding [B, E] for each of the views."""
        tokens = self._early(pixels)
        embeddings = [self._class(tokens)]
        if "local" in views:
            embeddings.append(self._values(tokens).mean(1))
        if "mosaic" in views:
            pictures = rearrange(
                avg_pool2d(pixels, 2), "(b i j) c h w -> b c (i h) (j w)", i=2, j=2
            )
            patches = self._values(self._early(pictures))  # [B / 4, L, E]
            side = math.isqrt(patches.shape[1]) // 2
            embeddings.append(
                reduce(patches, "b (i h j w) e -> (b i j) e", "mean", i=2, j=2, h=side, w=side)
            )
        return [unit(embedding) for embedding in embeddings]

    def _early(self, pixels: Tensor) -> Tensor:
        """All but the last block: tokens [B, 1 + L, D]."""
        tokens = self._embed(pixels)
        for block in self.visual.transformer.resblocks[:-1]:
            tokens = block(tokens)
        return tokens

    def _embed(self, pixels: Tensor) -> Tensor:
        """Patches, class token and positions, which are stretched to the image's size bilinearly,
        as they are when it is segmented."""
        visual = self.visual
        patches = visual.conv1(pixels)  # [B, D, h, w]
        positions = resize_positions(visual, (patches.shape[2], patches.shape[3]))  # [1 + L, D]
        first = visual.class_embedding.to(patches.dtype).expand(len(pixels), 1, -1)
        tokens = cat([first, rearrange(patches, "b d h w -> b (h w) d")], 1)
        embedded: Tensor = visual.ln_pre(visual.patch_dropout(tokens + positions.to(tokens.dtype)))
        return embedded

    def _class(self, tokens: Tensor) -> Tensor:
        """The last block for the class token alone: [B, E]."""
        last = self.visual.transformer.resblocks[-1]
        normed = last.ln_1(tokens)
        first = tokens[:, :1] + last.attn(normed[:, :1], normed, normed, need_weights=False)[0]
        return self._project(first + last.mlp(last.ln_2(first)))[:, 0]

    def _values(self, tokens: Tensor) -> Tensor:
        """The value path of the last block for the patches: unit embeddings [B, L, E]."""
        last = self.visual.transformer.resblocks[-1]
        weight, bias = last.attn.in_proj_weight.chunk(3)[2], last.attn.in_proj_bias.chunk(3)[2]
        values = nn.functional.linear(last.ln_1(tokens[:, 1:]), weight, bias)
        return unit(self._project(last.attn.out_proj(values)))

    def _project(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.visual.ln_post(tokens) @ self.visual.proj
        return projected


def unit(vectors: Tensor) -> Tensor:
    """Normalise to unit length along the last dimension, in float32."""
    return nn.functional.normalize(vectors.float(), dim=-1)


def contrastive_loss(image: Tensor, text: Tensor, tokens: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over unit embeddings [B, E]; equal captions share the probability."""
    same = (tokens[:, None] == tokens[None, :]).all(-1)  # [B, B]
    return symmetric_cross_entropy(scale * image @ text.T, same)
