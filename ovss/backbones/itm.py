"""Image-text matching, opened up: which words look where, and what the match owes to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One caption, tokenised.

    Attributes:
        text: the caption.
        ids: [T]; the first is [ENC] for BLIP, [CLS] or <s> else, the last [SEP] or </s>.
        pieces: the T tokens as the tokenizer spells them ("pot", "##ted", "Ġcat").
        words: for each class name the positions in `ids` of its pieces.
    """

    text: str
    ids: Tensor
    pieces: tuple[str, ...]
    words: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Matching:
    """What one pass over B pairs of image and prompt gives.

    Attributes:
        logits: [B, 2]: no match, match.
        mask: [B, T], False at padding.
        attention: layer (from 0) -> cross-attention [B, heads, T, 1+L]; key 0 is the image's
            class token, the others its patches row by row.
        gradient: of the objective with respect to `attention`, same shapes; empty if not asked for.
    """

    logits: Tensor
    mask: Tensor
    attention: dict[int, Tensor]
    gradient: dict[int, Tensor]


@dataclass(eq=False)
class ItmBackbone:
    """A network that tells whether a caption fits an image."""

    model: Any = field(repr=False)
    name: str
    checkpoint: str
    patch: int
    size: int
    layers: int
    heads: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ItmBackbone:
        """Load a lab zoo name, a name of `registry.CHECKPOINTS` or a folder."""
        raise NotImplementedError

    def patch_grid(self, size: int) -> int:
        """Patches along a side of `size` pixels."""
        return size // self.patch

    def prompt(
        self, names: Sequence[str], *, joined: bool = False, prefix: str = "A picture of "
    ) -> Prompt:
        """Class names -> the caption "A picture of cat dog" and where each name stands in it."""
        raise NotImplementedError

    def pixels(
        self,
        images: Sequence[Image.Image],
        size: int,
        *,
        normalize: bool = True,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Tensor:
        """RGB images -> [B, 3, size, size], squashed to a square."""
        raise NotImplementedError

    def match(
        self,
        pixels: Tensor,
        prompts: Sequence[Prompt],
        layers: Sequence[int] = (),
        *,
        gradient: bool = True,
        objective: Literal["logit", "ce"] = "logit",
    ) -> Matching:
        """Match B images with B prompts."""
        raise NotImplementedError
