"""CLIP, opened up: the tokens and attention of every block of an open_clip model.

Symbols as in CLIPer (arXiv 2411.13836), section 3.3: the vision transformer has N blocks; F^0 is
the embedded image after `ln_pre`, F^n the output of block n; A^n is the attention of block n.
Tensors are [B, 1+L, D] tokens (the class token first) and [B, heads, 1+L, 1+L] attention maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..errors import ImageError
from ..images import to_pixels
from ..vocabulary import Vocabulary
from .clip_blocks import (
    add_residuals,
    attention_pairs,
    merge_heads,
    project_heads,
    run_block,
    softmax_map,
)
from .clip_text import TextEncoder
from .devices import max_attention

if TYPE_CHECKING:
    from .clip_loading import Tokenize

MAX_TOKENS = 4096  # an attention map is quadratic in them: 0.8 GB for the 12 heads of a ViT-B


@dataclass(frozen=True)
class ClipFeatures:
    """What `ClipBackbone.features` was asked for, nothing more.

    Attributes:
        inputs: N tensors [B, 1+L, D]: F^0 ... F^{N-1}, what each block got, before its `ln_1`.
        attention: N-1 maps A^1 ... A^{N-1} [B, heads, 1+L, 1+L] and None for the last block,
            which does not run; all None unless they were asked for.
        attention_sum: A^1 + ... + A^{N-1} [B, heads, 1+L, 1+L], head by head, if asked for.
        grid: (h, w), the patches; L = h * w.
    """

    inputs: tuple[Tensor, ...]
    attention: tuple[Tensor | None, ...]
    attention_sum: Tensor | None
    grid: tuple[int, int]


@dataclass(eq=False)
class ClipBackbone:
    """An open_clip model with a plain vision transformer.

    Attributes:
        model: the `open_clip.CLIP`, whose own modules do all the work.
        tokenize: texts and a context length -> token ids.
        mean, std: of the pixels, per channel.
        name, checkpoint: what it is; name and first 12 hex digits of the weights' SHA-256.
        settings: hash of the configuration and tokenizer files, see `loading.settings_of`.
    """

    model: Any
    tokenize: Tokenize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str
    checkpoint: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    settings: str = ""
    text: TextEncoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.text = TextEncoder(self.model, self.tokenize, self.device)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ClipBackbone:
        """Load a lab zoo name, a name of `registry.CHECKPOINTS`, a folder or a file.

        Raises:
            CheckpointError, UnknownNameError: see `clip_loading.load_clip`.
            OvssError: there is no such device here.
        """
        from .clip_loading import load_clip  # open_clip takes seconds to import
        from .loading import load_onto

        return cls(**load_onto(load_clip, source, device, dtype))

    @property
    def blocks(self) -> Sequence[Any]:
        """The N transformer blocks of the image encoder."""
        return self.model.visual.transformer.resblocks

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.model.visual.patch_size[0])

    @property
    def heads(self) -> int:
        """Number of attention heads of a block."""
        return int(self.blocks[0].attn.num_heads)

    def text_features(self, vocabulary: Vocabulary) -> Tensor:
        """Encode each query as a unit vector [Q, E]; see `TextEncoder.features`."""
        return self.text.features(vocabulary.queries, vocabulary.templates)

    @property
    def width(self) -> int:
        """Channels D of a token."""
        return int(self.model.visual.transformer.width)

    # ---- pixels

    def input_size(self, image: Image.Image, size: int) -> tuple[int, int]:
        """Compute the size (height, width) in pixels that `image` is resized to.

        The short side becomes `size`; both sides are rounded to whole patches.

        Raises:
            ImageError: more than MAX_TOKENS patches, as for a very elongated image.
        """
        scale = size / min(image.size)
        height, width = (
            max(1, int(side * scale / self.patch + 0.5)) * self.patch
            for side in (image.height, image.width)
        )
        if (height // self.patch) * (width // self.patch) > MAX_TOKENS:
            raise ImageError(
                f"the image of {image.width} x {image.height} pixels is too elongated: with its "
                f"short side at {size} it has {height // self.patch * (width // self.patch)} "
                f"patches, and the limit is {MAX_TOKENS}; cut it into pieces"
            )
        return height, width

    def preprocess(self, image: Image.Image, size: int) -> Tensor:
        """Resize and normalise an RGB image -> pixels [3, h, w], float32 on the CPU (bicubic)."""
        height, width = self.input_size(image, size)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return to_pixels(resized, self.mean, self.std)

    def batches(
        self, images: Sequence[Image.Image], size: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Batch images of any sizes: yields their positions in the list, and pixels [B, 3, h, w].

        Images that get the same input size go together, at most `max_batch` of them.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(self.input_size(image, size), []).append(index)
        for (height, width), members in groups.items():
            step = self.max_batch((height // self.patch, width // self.patch))
            for start in range(0, len(members), step):
                part = members[start : start + step]
                pixels = torch.stack([self.preprocess(images[index], size) for index in part])
                yield part, pixels.to(self.device, self.dtype)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Compute the patch grid (h, w) of pixels [B, 3, h * patch, w * patch]."""
        return pixels.shape[2] // self.patch, pixels.shape[3] // self.patch

    def max_batch(self, grid: tuple[int, int]) -> int:
        """Compute the largest batch of a grid (h, w) whose attention fits; at least 1.

        A block's attention has B * heads * (1 + h * w)^2 values; `devices.max_attention` of the
        backbone's device limits them.
        """
        tokens = 1 + grid[0] * grid[1]
        return max(1, max_attention(self.device) // (self.heads * tokens**2))

    # ---- vision transformer

    @torch.no_grad()
    def features(self, pixels: Tensor, *, attention: bool | Literal["sum"] = True) -> ClipFeatures:
        """Run all blocks but the last on pixels [B, 3, h, w].

        Args:
            pixels: sides whole multiples of the patch; on any device, moved to the model's.
            attention: True keeps each block's map, "sum" only their sum, False none (then the
                blocks run as open_clip runs them).
        """
        tokens = self.embed(pixels)  # [B, 1+L, D]
        inputs, maps, total = [tokens], [], None
        for block in self.blocks[:-1]:
            if attention is False:
                tokens = block(tokens)
            else:
                tokens, weights = run_block(block, tokens)  # weights [B, heads, 1+L, 1+L]
                if attention == "sum":
                    total = weights if total is None else total.add_(weights)
                else:
                    maps.append(weights)
            inputs.append(tokens)
        kept = (*maps, None) if maps else (None,) * len(self.blocks)
        return ClipFeatures(tuple(inputs), kept, total, self.grid(pixels))

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """Embed pixels [B, 3, h, w] as F^0 [B, 1+L, D]: patches, class token, positions, `ln_pre`.

        The pixels may lie on any device: they are moved to the model's, and to its dtype.
        """
        visual = self.model.visual
        patches = visual.conv1(pixels.to(self.device, self.dtype))  # [B, D, h/p, w/p]
        grid = (patches.shape[2], patches.shape[3])
        patches = rearrange(patches, "b d h w -> b (h w) d")  # [B, L, D]
        first = visual.class_embedding.expand(len(pixels), 1, -1)  # [B, 1, D]
        return visual.ln_pre(torch.cat([first, patches], 1) + self.positions(grid))

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Resize the position embeddings to an (h, w) grid: [1+L, D], see `resize_positions`."""
        return resize_positions(self.model.visual, grid)

    # ---- last block, in pieces

    def last_heads(self, tokens: Tensor, parts: Sequence[str]) -> list[Tensor]:
        """Project tokens [B, T, D] to the last block's queries, keys, values named in `parts`.

        `parts` are letters of "qkv"; each gives [B, heads, T, d]. Only they are computed.
        """
        return project_heads(self.blocks[-1].attn, self.blocks[-1].ln_1(tokens), parts)

    def last_map(self, tokens: Tensor, attention: str) -> Tensor:
        """Compute a self-self attention map of the last block on tokens [B, T, D].

        Returns:
            [B, heads, T, T], the sum of the softmax of each pair of projections.
        """
        pairs = attention_pairs(attention)
        if not pairs:
            eye = torch.eye(tokens.shape[1], dtype=tokens.dtype, device=tokens.device)
            return eye.expand(len(tokens), self.heads, -1, -1)
        sides = sorted({side for pair in pairs for side in pair})
        heads = dict(zip(sides, self.last_heads(tokens, sides), strict=True))
        return torch.stack([softmax_map(heads[a], heads[b]) for a, b in pairs]).sum(0)

    def last_attention(self, tokens: Tensor, attention: str | Tensor) -> Tensor:
        """Compute the last block's attention output [B, T, D] with another map; no residual or FFN.

        Args:
            attention: a name of ATTENTIONS, whose map is never made, or a map
                [B, heads, T', T]; its rows say which tokens come out.
        """
        if isinstance(attention, Tensor):
            mixed = attention @ self.last_heads(tokens, "v")[0]  # [B, heads, T', d]
        else:
            pairs = attention_pairs(attention)
            sides = sorted({"v"}.union(*pairs))
            heads = dict(zip(sides, self.last_heads(tokens, sides), strict=True))
            attended = [
                F.scaled_dot_product_attention(heads[a], heads[b], heads["v"]) for a, b in pairs
            ]
            mixed = torch.stack(attended).sum(0) if pairs else heads["v"]  # [B, heads, T, d]
        return merge_heads(self.blocks[-1].attn, mixed)

    def last_residual(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Add the last block's residual connections and FFN around `attended` [B, T, D]."""
        return add_residuals(self.blocks[-1], tokens, attended)

    def project(self, tokens: Tensor) -> Tensor:
        """Project tokens [..., D] to the text's space [..., E]: `ln_post`, then `proj`."""
        return self.model.visual.ln_post(tokens) @ self.model.visual.proj

    @torch.no_grad()
    def image_embedding(self, pixels: Tensor) -> Tensor:
        """Embed whole images, pixels [B, 3, h, w], as CLIP does: unit vectors [B, E].

        The pixels may lie on any device; see `embed`.
        """
        tokens = self.features(pixels, attention=False).inputs[-1]  # [B, 1+L, D]
        first = tokens[:, :1]  # [B, 1, D]: only the class token is read
        query = project_heads(self.blocks[-1].attn, self.blocks[-1].ln_1(first), "q")[0]
        key, value = self.last_heads(tokens, "kv")  # [B, heads, 1+L, d]
        mixed = F.scaled_dot_product_attention(query, key, value)  # [B, heads, 1, d]
        attended = merge_heads(self.blocks[-1].attn, mixed)  # [B, 1, D]
        return F.normalize(self.project(self.last_residual(first, attended))[:, 0], dim=-1)


def resize_positions(visual: Any, grid: tuple[int, int]) -> Tensor:
    """Resize a CLIP's position embeddings to an (h, w) grid, bilinearly: [1+L, D].

    `align_corners=False`, no antialiasing: as CLIPer's code does (open_clip: bicubic).
    """
    own: Tensor = visual.positional_embedding  # [1 + g*g, D]
    square = visual.grid_size
    if tuple(square) == grid:
        return own
    table = rearrange(own[1:].float(), "(h w) d -> 1 d h w", h=square[0])  # [1, D, g, g]
    table = F.interpolate(table, grid, mode="bilinear", align_corners=False)  # [1, D, h, w]
    return torch.cat([own[:1], rearrange(table, "1 d h w -> (h w) d").to(own.dtype)])
