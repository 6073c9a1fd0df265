"""Image-text matching: the cross-attention of each word, and the match's gradient by it.

BLIP, BridgeTower and ALBEF behind one interface; the networks themselves are in `networks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...errors import ImageError, OvssError, UnknownNameError
from .capture import captured_attention
from .networks import Network
from .prompt import Prompt, tokenise

__all__ = ["ItmBackbone", "Matching", "Prompt"]
OBJECTIVES = ("logit", "ce")
HALF_SCALE = 1024.0  # of the objective in float16, whose smallest number is 6e-8


@dataclass(frozen=True)
class Matching:
    """Hold what one pass over B pairs of image and prompt gives, in float32.

    Attributes:
        logits: [B, 2]: no match, match.
        mask: [B, T], False at padding.
        attention: layer (from 0) -> cross-attention [B, heads, T, 1+L]; key 0 is the image's
            class token, the others its patches row by row. Rows of padding mean nothing.
        gradient: of the objective with respect to `attention`, same shapes; empty if not asked for.
    """

    logits: Tensor
    mask: Tensor
    attention: dict[int, Tensor]
    gradient: dict[int, Tensor]


@dataclass(eq=False)
class ItmBackbone:
    """A network that tells whether a caption fits an image.

    Attributes:
        network: BLIP, BridgeTower or ALBEF.
        tokenizer: a fast tokenizer of transformers.
        first: id of a caption's first token, if it is not the tokenizer's: BLIP's [ENC].
        mean, std: of the pixels, per channel.
        name, checkpoint: what it is; name and first 12 hex digits of the weights' SHA-256.
        settings: hash of the configuration and tokenizer files, see `loading.settings_of`.
        device, dtype: of weights and activations. In float16 the gradient of one logit would
            partly vanish, so the objective is multiplied by `HALF_SCALE` before and the gradient
            divided by it after; maps, gradients and logits are float32 in any case.
    """

    network: Network = field(repr=False)
    tokenizer: Any = field(repr=False)
    first: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str
    checkpoint: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    settings: str = ""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ItmBackbone:
        """Load a lab zoo name, a name of `registry.CHECKPOINTS`, a folder or ALBEF's file.

        Raises:
            CheckpointError, UnknownNameError: see `loading.load_itm`.
            OvssError: there is no such device here.
        """
        from ..loading import load_onto
        from .loading import load_itm  # transformers takes seconds to import

        return cls(**load_onto(load_itm, source, device, dtype))

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.network.patch

    @property
    def size(self) -> int:
        """Side in pixels of the images it was trained on."""
        return self.network.size

    @property
    def layers(self) -> int:
        """How many layers have cross-attention."""
        return len(self.network.cross_attention)

    @property
    def heads(self) -> int:
        """Heads of each of them."""
        return self.network.heads

    def patch_grid(self, size: int) -> int:
        """Patches along a side of `size` pixels.

        Raises:
            OvssError: they are no whole number; the message names the next size that fits.
        """
        if size < self.patch or size % self.patch:
            fitting = max(1, -(-size // self.patch)) * self.patch
            raise OvssError(
                f"size={size} is no multiple of the patch ({self.patch} pixels): take {fitting}"
            )
        return size // self.patch

    def prompt(
        self, names: Sequence[str], *, joined: bool = False, prefix: str = "A picture of "
    ) -> Prompt:
        """Class names -> the caption "A picture of cat dog" and where each name stands in it.

        Args:
            names: one a class; a name may have several words.
            joined: spell names without blanks and hyphens ("trafficlight"), as the authors' code.
            prefix: what stands before them.

        Raises:
            VocabularyError: no names, an empty one, or more tokens than the model has positions.
        """
        return tokenise(
            self.tokenizer,
            names,
            joined=joined,
            prefix=prefix,
            longest=self.network.positions,
            first=self.first,
        )

    def pixels(
        self,
        images: Sequence[Image.Image],
        size: int,
        *,
        normalize: bool = True,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Tensor:
        """RGB images -> [B, 3, size, size] on the CPU, each squashed to a square.

        Args:
            size: a multiple of the patch.
            normalize: subtract the mean and divide by the deviation; else values in [0, 1].
            resample: filter of Pillow's resize.
        """
        self.patch_grid(size)
        if not images:
            raise ImageError("give at least one image")
        squares = [np.array(image.resize((size, size), resample)) for image in images]
        pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
        if not normalize:
            return pixels
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    def match(
        self,
        pixels: Tensor,
        prompts: Sequence[Prompt],
        layers: Sequence[int] = (),
        *,
        gradient: bool = True,
        objective: Literal["logit", "ce"] = "logit",
    ) -> Matching:
        """Match B images with B prompts, keeping the cross-attention maps of `layers`.

        One pass: the image's encoder and what lies below the lowest of `layers` build no graph,
        and the gradient is taken with respect to the maps of `layers` alone.

        Args:
            pixels: [B, 3, H, W], sides multiples of the patch; position embeddings are resized to
                them bicubically.
            prompts: B, padded to the longest.
            layers: counted from 0.
            gradient: False leaves the backward pass out.
            objective: what is differentiated: "logit", the raw match logit (the authors' code), or
                "ce", minus the cross-entropy of "match" (the paper's loss; the sign is such that
                what helps the match is positive).
        """
        self._check(pixels, prompts, layers, objective)
        ids, mask = self._padded(prompts)
        modules = {layer: self.network.cross_attention[layer] for layer in layers}
        wanted = gradient and bool(modules)
        image = self.encode(pixels)  # [B, 1+L, D] but for BridgeTower
        with torch.set_grad_enabled(wanted), captured_attention(modules, wanted) as maps:
            logits = self.network.logits(image, ids, mask.long())  # [B, 2]
            slopes = self._gradients(logits.float(), maps, objective) if wanted else {}
        attention = {layer: maps[layer].detach().float() for layer in modules}
        return Matching(logits.detach().float(), mask, attention, slopes)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] as far as no word is needed; see `Network.encode`."""
        return self.network.encode(pixels.to(self.device, self.dtype))

    def _padded(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Ids [B, T], padded to the longest, and the mask of what is no padding."""
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
        padding = float(self.tokenizer.pad_token_id)
        ids = pad_sequence([prompt.ids for prompt in prompts], True, padding)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return ids.to(self.device), mask.to(self.device)

    def _gradients(
        self, logits: Tensor, maps: dict[int, Tensor], objective: str
    ) -> dict[int, Tensor]:
        """Of the objective with respect to each map; a pair's depends on that pair alone."""
        scale = HALF_SCALE if self.dtype == torch.float16 else 1.0
        value = (logits if objective == "logit" else F.log_softmax(logits, 1))[:, 1].sum()
        found = torch.autograd.grad(scale * value, list(maps.values()))
        return {layer: slope.float() / scale for layer, slope in zip(maps, found, strict=True)}

    def _check(
        self, pixels: Tensor, prompts: Sequence[Prompt], layers: Sequence[int], objective: str
    ) -> None:
        if not len(pixels) or len(pixels) != len(prompts):
            raise OvssError(f"{len(pixels)} images and {len(prompts)} prompts: give pairs")
        for side in pixels.shape[2:]:
            self.patch_grid(side)
        for layer in layers:
            if not 0 <= layer < self.layers:
                raise OvssError(
                    f"layer {layer} is none of {self.name}'s: they count from 0 to "
                    f"{self.layers - 1}"
                )
        if objective not in OBJECTIVES:
            raise UnknownNameError.of("objective", objective, OBJECTIVES)
