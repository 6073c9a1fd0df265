"""CLIPer: Sun et al., "Hierarchically Improving Spatial Representation of CLIP" (arXiv 2411.13836).

This file is section 3.3, early-layer fusion: the attention maps of all early blocks are fused into
one that replaces the last block's, and the embeddings of all early blocks go through that block.
Its other half, fine-grained compensation, is `refine/compensation.py`.

Three variants, because text and authors' code disagree (and the code was rewritten):
    "paper"          Eq. 8 as printed: the average of the maps, the average of the cosines.
    "official-2024"  the code of December 2024, behind the published numbers. The default.
    "official"       the code of September 2025.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..backbones.clip import ClipBackbone, ClipFeatures
from ..backbones.clip_blocks import attention_pairs
from ..errors import OvssError, UnknownNameError
from ..options import LOGIT_SCALE, SHORT_SIDE, check_fields
from ..refine.compensation import THRESHOLD, Compensation
from ..segmenter import Method, Refiner
from ..vocabulary import Vocabulary
from .cliper_sliding import Windows, check_window, propagate

VARIANTS = ("paper", "official-2024", "official")


@dataclass(frozen=True)
class CoarseMap:
    """Scores [B, K, h, w] and the head-averaged attention between patches [B, L, L]."""

    scores: Tensor
    attention: Tensor


@dataclass(frozen=True)
class Cliper(Method):
    """CLIPer's coarse segmentation map (section 3.3, "early-layer fusion").

    Attributes:
        variant: see above.
        attention: of the last block: "fused" (ours: all early maps), or for Table 6 "qq", "kk",
            "vv", "identity", "vanilla", each computed from every layer's own embeddings.
        fuse_features: early embeddings too (lower half of Table 6), or the last ones alone.
        select_layer: "official" only: the layer whose map is propagated, -1 or -2 (per dataset).
        attention_threshold: of that map, relative to each class's maximum; 0.2 in 2024. "official"
            thresholds the diffusion model's attention there too (2024: 0.1; "paper": never).
        logit_scale: factor of the cosine before the softmax (per dataset; unused by "paper").
        mean_background: let the mean of the classes' text features compete as one more background
            query, as both official codes do.
        short_side: pixels (section 4.1).
        templates: prompt templates; None takes the vocabulary's own.
        compensation: what sharpens the coarse map (section 3.3), or None for CLIPer*.
        sliding_crop: "official" only: side in pixels of a window that slides over the image and
            counts as much as the whole image does (per dataset); 0 for none.
        sliding_stride: pixels from one window to the next; a constant in that code.
    """

    backbone: ClipBackbone
    variant: Literal["paper", "official-2024", "official"] = "official-2024"
    attention: str = "fused"
    fuse_features: bool = True
    select_layer: int = -1
    attention_threshold: float = 0.2
    logit_scale: float = 100.0
    mean_background: bool = True
    short_side: int = 336
    templates: tuple[str, ...] | None = None
    compensation: Compensation | None = None
    sliding_crop: int = 0
    sliding_stride: int = 112
    name: str = field(default="cliper", kw_only=True)

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise UnknownNameError.of("variant", self.variant, VARIANTS)
        if self.attention != "fused":
            attention_pairs(self.attention)
        if not isinstance(self.compensation, Compensation | None):
            raise OvssError(f"compensation must be a Compensation or None: {self.compensation!r}")
        check_fields(
            self,
            select_layer=(-len(self.backbone.blocks), -1),
            attention_threshold=(0.0, 1.0),
            logit_scale=LOGIT_SCALE,
            short_side=SHORT_SIDE,
            sliding_crop=(0, SHORT_SIDE[1]),
            sliding_stride=(0, SHORT_SIDE[1]),
        )
        if self.variant != "official" and self.select_layer != -1:
            raise OvssError(f'select_layer belongs to variant="official", not {self.variant!r}')
        if self.sliding_crop and self.variant != "official":
            raise OvssError(f'sliding_crop belongs to variant="official", not {self.variant!r}')
        if self.sliding_crop:
            check_window(self.sliding_crop, self.sliding_stride, self.backbone.patch)

    @property
    def refiners(self) -> tuple[Refiner, ...]:
        """The compensation with this variant's threshold; `Segmenter` applies it to `score`."""
        if self.compensation is None:
            return ()
        thresholds = {"paper": None, "official": self.attention_threshold}
        return (partial(self.compensation, threshold=thresholds.get(self.variant, THRESHOLD)),)

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> list[Tensor]:
        """Score RGB images of any sizes: a coarse map [K, h, w] on the patch grid for each.

        "paper": cosines in [-1, 1]; else a mean probability plus a propagated one, in [0, 2].
        """
        words = Vocabulary.of(vocabulary, templates=self.templates)
        text = self.backbone.text_features(words)  # [Q, E]
        maps: dict[int, Tensor] = {}
        for indices, pixels in self.backbone.batches(images, self.short_side):
            coarse = self.coarse_map(pixels, text, words)
            maps.update(zip(indices, coarse.scores, strict=True))
        return [maps[index] for index in range(len(images))]

    @torch.no_grad()
    def coarse_map(self, pixels: Tensor, text: Tensor, vocabulary: Vocabulary) -> CoarseMap:
        """Compute the coarse map [B, K, h, w] of pixels [B, 3, H, W] and text features [Q, E]."""
        if self.variant != "paper" and self.mean_background:
            text = torch.cat([text, _class_mean(text, vocabulary)])  # [Q+1, E]
        logits, attention = self.compare(pixels, text)  # N x [B, Q', L], [B, L, L]
        maps = logits if self.variant == "paper" else [layer.softmax(1) for layer in logits]
        if self.sliding_crop:
            windows = self.slide(pixels, text, logits, attention)  # N x [B, Q', L]
            maps = [(whole + part) / 2 for whole, part in zip(maps, windows, strict=True)]
        maps = [_of_classes(values, vocabulary) for values in maps]  # N x [B, K, L]
        scores = self.combine(maps, attention, text, vocabulary)  # [B, K, L]
        height = self.backbone.grid(pixels)[0]
        return CoarseMap(rearrange(scores, "b k (h w) -> b k h w", h=height), attention)

    def compare(self, pixels: Tensor, queries: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compare every layer's patches with queries [Q', E]: N logits [B, Q', L].

        The second result is the attention between patches, averaged over heads: [B, L, L].
        """
        fused: Any = "sum" if self.attention == "fused" else False
        embeddings, attention = self.embed(self.backbone.features(pixels, attention=fused))
        return [self.logits(embedding, queries) for embedding in embeddings], attention

    def embed(self, features: ClipFeatures) -> tuple[Iterable[Tensor], Tensor]:
        """Send every layer's tokens through the last block, without FFN and residual connection.

        Gives the output embeddings [B, 1+L, E] of each layer that is not zero, and the last
        block's attention between patches [B, L, L], whatever the words are.
        """
        inputs, weights = self.inputs(features), self.weights(features)
        last = weights[-1]
        if isinstance(last, str):
            # The 2025 code leaves zeros here for select_layer=-2 without early embeddings.
            tokens = torch.zeros_like(features.inputs[-1]) if inputs[-1] is None else inputs[-1]
            last = self.backbone.last_map(tokens, last)  # [B, heads, 1+L, 1+L]
        pairs = [(tokens, k) for k, tokens in enumerate(inputs) if tokens is not None]
        embeddings = (
            self.backbone.project(
                self.backbone.last_attention(tokens, last if k == len(inputs) - 1 else weights[k])
            )
            for tokens, k in pairs
        )
        return embeddings, last.float().mean(1)[:, 1:, 1:]  # its rows sum to less than 1

    def embeddings(self, features: ClipFeatures) -> Tensor:
        """Stack the output embeddings of all layers [N, B, 1+L, E], class token first."""
        return torch.stack(list(self.embed(features)[0]))

    def inputs(self, features: ClipFeatures) -> list[Tensor | None]:
        """Choose what goes through the last block, [B, 1+L, D] each; None stands for zeros.

        Paper: F^1 ... F^{N-1}. Code: F^0 ... F^{N-2}, each through its own block's `ln_1` (the
        last block's follows), and F^{N-1}; without early embeddings, zeros in their place.
        """
        tokens = features.inputs
        if self.variant == "paper":
            return list(tokens[1:] if self.fuse_features else tokens[-1:])
        blocks = self.backbone.blocks
        chosen = {len(tokens) + self.select_layer}
        if self.fuse_features:
            chosen = set(range(len(tokens)))
        early = [blocks[k].ln_1(tokens[k]) if k in chosen else None for k in range(len(tokens) - 1)]
        return [*early, tokens[-1] if len(tokens) - 1 in chosen else None]

    def weights(self, features: ClipFeatures) -> Sequence[Tensor | str]:
        """Choose the last block's attention for each input: [B, heads, 1+L, 1+L], or its name."""
        layers = len(features.inputs)
        if self.attention != "fused":
            return [self.attention] * layers
        total = features.attention_sum
        assert total is not None
        if self.variant == "paper":
            return [total / layers] * layers  # Eq. 8: N - 1 maps, divided by N
        return FusedMaps(total, layers)

    def logits(self, embedding: Tensor, queries: Tensor) -> Tensor:
        """Compare patches [B, 1+L, E] with queries [Q', E]: cosines [B, Q', L], scaled in code."""
        cosine = F.normalize(embedding[:, 1:].float(), dim=-1) @ queries.float().T  # [B, L, Q']
        return cosine.mT if self.variant == "paper" else (self.logit_scale * cosine).mT

    def slide(
        self, pixels: Tensor, queries: Tensor, logits: list[Tensor], attention: Tensor
    ) -> list[Tensor]:
        """Compare in sliding windows: N probabilities [B, Q', L]; one window is the image."""
        patch = self.backbone.patch
        crop, stride = self.sliding_crop // patch, self.sliding_stride // patch
        windows = Windows.over(self.backbone.grid(pixels), crop, stride)
        if len(windows.corners) > 1:
            compare = partial(self.compare, queries=queries)
            batch = self.backbone.max_batch(windows.size)
            logits, attention = windows.compare(compare, pixels, batch)
        return propagate(logits, attention)

    def combine(
        self, maps: list[Tensor], attention: Tensor, queries: Tensor, vocabulary: Vocabulary
    ) -> Tensor:
        """Combine the layers' maps N x [B, K, L] into one [B, K, L].

        Text: their average. Codes: the average of the early ones plus the last one, thresholded
        and propagated along the attention [B, L, L].
        """
        if self.variant == "paper":
            return torch.stack(maps).mean(0)
        if self.variant == "official-2024":
            early = maps[:-1] or [self._map_of_zeros(queries, vocabulary)]
            propagated = threshold(maps[-1], self.attention_threshold) @ attention.mT
            return torch.stack(early).mean(0) + propagated
        selected = self.select_layer if self.fuse_features else 0
        maps[selected] = threshold(maps[selected], self.attention_threshold)  # in the mean, too
        propagated = maps[selected] @ attention  # the transposed direction of 2024's
        return torch.stack(maps).mean(0) + propagated if self.fuse_features else propagated

    def _map_of_zeros(self, queries: Tensor, vocabulary: Vocabulary) -> Tensor:
        """The map of an all-zero layer [1, K, 1]: 2024's code averages those without fusion.

        All its tokens are equal and every map's rows sum to 1, so one token tells all.
        """
        zeros = queries.new_zeros(1, 2, self.backbone.width)
        embedding = self.backbone.project(self.backbone.last_attention(zeros, "identity"))
        return _of_classes(self.logits(embedding, queries).softmax(1), vocabulary)


class FusedMaps(Sequence[Tensor]):
    """The official codes' fused attention: map k is the affinity after k + 1 Sinkhorn iterations.

    (Their normalisation works in place on the summed map each time a layer uses it.) An iteration
    only scales rows and columns of the sum, so two vectors each are kept, and a map [B, heads,
    1+L, 1+L] is made when it is read.
    """

    def __init__(self, total: Tensor, layers: int) -> None:
        self.total = total
        self.scales = list(sinkhorn(total.float(), layers))

    def __len__(self) -> int:
        return len(self.scales)

    def __getitem__(self, index: Any) -> Any:
        """Map `index`."""
        return affinity(self.total.float(), *self.scales[index]).to(self.total.dtype)


def sinkhorn(total: Tensor, iterations: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Scale columns, then rows, of [..., T, T] to sum 1; yield both scales [..., T] each time."""
    rows = total.new_ones(total.shape[:-1])
    for _ in range(iterations):
        columns = 1 / (rows[..., None, :] @ total)[..., 0, :]
        rows = 1 / (total @ columns[..., None])[..., 0]
        yield rows, columns


def affinity(total: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Scale and symmetrise [..., T, T], keep what exceeds a column's mean, rows to sum 1."""
    scaled = (total * rows[..., :, None]).mul_(columns[..., None, :])
    symmetric = scaled + scaled.mT  # twice the mean of both; the last line cancels it
    above = symmetric.sub_(symmetric.mean(-2, keepdim=True)).clamp_(0)
    return above.div_(above.sum(-1, keepdim=True).clamp_min_(torch.finfo(above.dtype).tiny))


def threshold(maps: Tensor, ratio: float) -> Tensor:
    """Zero a class's map [..., L] where it lies below `ratio` times its maximum."""
    return maps.masked_fill(maps < ratio * maps.amax(-1, keepdim=True), 0)


def _of_classes(values: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Values of all queries [B, Q', L] -> the best synonym's of each class [B, K, L]."""
    return vocabulary.reduce(values[:, : len(vocabulary.queries), :, None])[..., 0]


def _class_mean(text: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The mean text feature of the classes' queries [1, E], normalised."""
    classes = len(vocabulary.queries) - len(vocabulary.background)
    return F.normalize(text[:classes].mean(0, keepdim=True), dim=-1)
