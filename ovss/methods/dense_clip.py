"""From CLIP's own patch tokens to ClearCLIP: what the last block's attention is replaced by.

CLIP (Radford et al. 2021) as it is; MaskCLIP (Zhou et al. 2022, section 3.2): values only; SCLIP
(Wang et al. 2024, Eq. 3): query-query plus key-key attention; ClearCLIP (Lan et al. 2024, section
3.3): query-query attention without residual connection and FFN; and the self-self attentions of
CLIPer's Table 6 (Sun et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..backbones.clip import ClipBackbone, ClipFeatures
from ..backbones.clip_blocks import attention_pairs
from ..errors import UnknownNameError
from ..options import LOGIT_SCALE, SHORT_SIDE, check_fields
from ..segmenter import Method
from ..vocabulary import Vocabulary


@dataclass(frozen=True)
class DenseClip(Method):
    """Compare CLIP's patch tokens with text, the last block's attention replaced.

    Attributes:
        attention: of the last block: "vanilla" (CLIP's own), "qq", "kk", "vv", "identity", or
            "qq+kk" (SCLIP).
        block: "whole" keeps the last block's residual connections and FFN (CLIP, SCLIP),
            "attention" keeps the attention's output alone (MaskCLIP, ClearCLIP section 3.3).
        logit_scale: factor of the cosine before the softmax over the queries.
        short_side: pixels.
        templates: prompt templates; None takes the vocabulary's own.
    """

    backbone: ClipBackbone
    attention: str = "vanilla"
    block: Literal["whole", "attention"] = "attention"
    logit_scale: float = 50.0
    short_side: int = 336
    templates: tuple[str, ...] | None = None
    name: str = field(default="dense", kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self, short_side=SHORT_SIDE, logit_scale=LOGIT_SCALE)
        attention_pairs(self.attention)
        if self.block not in ("whole", "attention"):
            raise UnknownNameError.of("block", self.block, ("whole", "attention"))

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> list[Tensor]:
        """Score RGB images of any sizes: a map [K, h, w] in [0, 1] on the patch grid for each."""
        words = Vocabulary.of(vocabulary, templates=self.templates)
        text = self.backbone.text_features(words)  # [Q, E]
        maps: dict[int, Tensor] = {}
        for indices, pixels in self.backbone.batches(images, self.short_side):
            features = self.backbone.features(pixels, attention=False)
            scores = self.classify(self.embeddings(features), text, features.grid)  # [B, Q, h, w]
            maps.update(zip(indices, words.reduce(scores), strict=True))
        return [maps[index] for index in range(len(images))]

    def embeddings(self, features: ClipFeatures) -> Tensor:
        """Embed patches in the space shared with text: [B, L, E]."""
        tokens = features.inputs[-1]  # [B, 1+L, D]
        attended = self.backbone.last_attention(tokens, self.attention)  # [B, 1+L, D]
        if self.block == "whole":
            attended = self.backbone.last_residual(tokens, attended)
        return self.backbone.project(attended[:, 1:])  # without the class token

    def classify(self, embeddings: Tensor, text: Tensor, grid: tuple[int, int]) -> Tensor:
        """Classify patches [B, L, E] by text [Q, E]: softmax of scaled cosines [B, Q, h, w]."""
        cosine = F.normalize(embeddings.float(), dim=-1) @ text.float().T  # [B, L, Q]
        scores = (self.logit_scale * cosine).softmax(-1)  # [B, L, Q]
        return rearrange(scores, "b (h w) q -> b q h w", h=grid[0])


# Scale and short side are those of each paper's code; "self-self" rows: CLIPer, Table 6.
PRESETS: dict[str, dict[str, Any]] = {
    "clip": {"attention": "vanilla", "block": "whole", "logit_scale": 40.0},
    "maskclip": {"attention": "identity", "logit_scale": 40.0},
    "sclip": {"attention": "qq+kk", "block": "whole", "logit_scale": 40.0},
    "clearclip": {"attention": "qq", "logit_scale": 50.0, "short_side": 448},
    "vanilla": {"attention": "vanilla"},
    "qq": {"attention": "qq"},
    "kk": {"attention": "kk"},
    "vv": {"attention": "vv"},
    "identity": {"attention": "identity"},
}
_ALONE = "The last block's attention alone ({}), a row of CLIPer's Table 6."
SUMMARIES = {
    "clip": "CLIP's own patch tokens, the last block as trained.",
    "maskclip": "MaskCLIP: the value path of the last block, no mixing of patches.",
    "sclip": "SCLIP: query-query plus key-key attention in the last block.",
    "clearclip": "ClearCLIP: query-query attention, no residual connection, no FFN.",
    "vanilla": _ALONE.format("query-key"),
    "qq": _ALONE.format("query-query"),
    "kk": _ALONE.format("key-key"),
    "vv": _ALONE.format("value-value"),
    "identity": _ALONE.format("each patch itself"),
}
