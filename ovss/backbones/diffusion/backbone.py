"""Stable Diffusion, opened up: the self-attention maps of its U-Net on one noisy image.

As in CLIPer (arXiv 2411.13836), section 3.3: the image's latent gets the noise of one time step,
goes through the U-Net once with an empty prompt, and A is the attention between its L positions.
Only queries and keys are kept, `Projection`; a map [L, L] is made when it is read. All work is done
by diffusers' and transformers' own modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ...errors import OvssError
from ..devices import find_device
from . import mixed, vae_tiling

LAYERS = (-4, -6)  # up_blocks[3].attentions[1] and [0] of Stable Diffusion: 64 x 64 positions
STEP, STEPS = 45, 50  # "time-step 45": an index into PNDM's list, t = 101


@dataclass(eq=False)
class DiffusionBackbone:
    """A latent diffusion model of diffusers with a text-conditioned U-Net.

    Attributes:
        unet, vae, text_encoder, tokenizer, scheduler: diffusers' and transformers' own.
        name, checkpoint: what it is; name and first 12 hex digits of the SHA-256 of all weights.
        settings: hash of the configuration and tokenizer files, see `loading.settings_of`.
    """

    unet: Any = field(repr=False)
    vae: Any = field(repr=False)
    text_encoder: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    scheduler: Any = field(repr=False)
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
        dtype: torch.dtype | None = None,
    ) -> DiffusionBackbone:
        """Load a `save_pretrained` folder or a Stable Diffusion of `registry.CHECKPOINTS`.

        Args:
            dtype: float16 by default on a GPU, float32 elsewhere. On the CPU bfloat16 means mixed
                precision (`mixed.lower`): inputs and outputs stay float32.

        Raises:
            CheckpointError, UnknownNameError: see `loading.load_diffusion`.
            OvssError: there is no such device here.
        """
        from .loading import load_diffusion  # diffusers takes seconds to import

        place = find_device(device)
        kind = dtype or (torch.float16 if place.type == "cuda" else torch.float32)
        lowered = mixed.wanted(place, kind)
        kind = torch.float32 if lowered else kind
        found = load_diffusion(source, kind)
        parts = dict(found.parts)
        if lowered:
            mixed.lower(parts["unet"], parts["vae"])
        parts |= {one: parts[one].to(place) for one in ("unet", "vae", "text_encoder")}
        return cls(**parts, name=found.name, checkpoint=found.checkpoint, device=place, dtype=kind)

    @property
    def size(self) -> int:
        """Give the side in pixels of the square for every image (Stable Diffusion: 512)."""
        return int(self.unet.config.sample_size) * self.reduction

    @property
    def reduction(self) -> int:
        """Give the pixels per position of the latent, along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @cached_property
    def attentions(self) -> list[Any]:
        """List all attention modules as they run: self (even index), cross (odd), self ..."""
        stages = (*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks)
        blocks = (
            block
            for stage in stages
            for transformer in getattr(stage, "attentions", ())
            for block in transformer.transformer_blocks
        )
        return [attention for block in blocks for attention in (block.attn1, block.attn2)]

    @cached_property
    def prompt(self) -> Tensor:
        """Encode the empty prompt, once: [1, T, C]."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            "", padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            return self.text_encoder(tokens.input_ids.to(self.device))[0]

    # ---- from pixels to the U-Net's input

    def preprocess(self, image: Image.Image) -> Tensor:
        """Resize an RGB image to [3, size, size] in [-1, 1], nearest; the aspect is not kept."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # [3, H, W]
        return 2 * F.interpolate(pixels[None], (self.size, self.size))[0] - 1

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, size, size]: the VAE's mean, scaled [B, 4, size/8, size/8]."""
        pixels = pixels.to(self.device, self.dtype)
        if self.device.type == "cpu" and vae_tiling.supported(self.vae):
            encoded = vae_tiling.encode(self.vae, pixels).to(self.dtype)
        else:
            encoded = self.vae.encode(pixels).latent_dist.mean
        return encoded * self.vae.config.scaling_factor

    def timestep(self, step: int = STEP) -> Tensor:
        """Look up the time t of an index into the scheduler's 50 steps (PNDM's has 51 entries)."""
        self.scheduler.set_timesteps(STEPS)
        times = self.scheduler.timesteps
        if not -len(times) <= step < len(times):
            raise OvssError(f"step must be 0 to {len(times) - 1}, got {step}")
        return times[step]

    def noise(self, seed: int | torch.Generator = 0) -> Tensor:
        """Draw noise [1, 4, h, w] on the CPU: equal on all devices, equal for all images."""
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        side = int(self.unet.config.sample_size)
        shape = (1, int(self.unet.config.in_channels), side, side)
        return torch.randn(shape, generator=generator, device=generator.device)

    # ---- attention

    @torch.no_grad()
    def projections(
        self,
        images: Sequence[Image.Image],
        layers: Sequence[int] = LAYERS,
        step: int = STEP,
        noise: int | torch.Generator | Tensor = 0,
    ) -> list[Projection]:
        """Compute queries and keys of B RGB images in some self-attention layers, in their order.

        Args:
            layers: indices into `attentions`, even (self-attention).
            step: index into the list of time steps, see `timestep`.
            noise: a seed, a generator, or the noise itself [1 or B, 4, h, w].
        """
        latents = self.latents(torch.stack([self.preprocess(image) for image in images]))
        given = noise if isinstance(noise, Tensor) else self.noise(noise)
        return self.latent_projections(latents, given, layers, step)

    @torch.no_grad()
    def attention(
        self,
        images: Image.Image | Sequence[Image.Image],
        layers: Sequence[int] = LAYERS,
        step: int = STEP,
        noise: int | torch.Generator | Tensor = 0,
    ) -> list[Tensor]:
        """Compute the self-attention maps of `images`, all heads at once; see `projections`.

        Returns:
            For each layer softmax(q k^T / sqrt(d)): [heads, L, L] for one image, [B, heads, L, L]
            for a list.
        """
        single = isinstance(images, Image.Image)
        batch = [images] if isinstance(images, Image.Image) else images
        maps = [found.maps() for found in self.projections(batch, layers, step, noise)]
        return [found[0] for found in maps] if single else maps

    @torch.no_grad()
    def latent_projections(
        self, latents: Tensor, noise: Tensor, layers: Sequence[int] = LAYERS, step: int = STEP
    ) -> list[Projection]:
        """Compute queries and keys as `projections` does, of latents and noise [B, 4, h, w].

        Nothing behind the last layer's queries and keys is computed.
        """
        chosen = [self.self_attention(layer) for layer in layers]
        time = self.timestep(step).to(self.device)
        added = noise.to(latents).expand_as(latents)
        noisy = self.scheduler.add_noise(latents, added, time.expand(len(latents)))
        prompt = self.prompt.expand(len(latents), -1, -1)
        with recording(chosen, self.attentions) as sides:
            self.unet(noisy, time, encoder_hidden_states=prompt)
        return [_projection(module, sides) for module in chosen]

    def self_attention(self, layer: int) -> Any:
        """Look up the self-attention module of an even index into `attentions`."""
        count = len(self.attentions)
        if not -count <= layer < count or layer % 2:  # the list is of even length
            raise OvssError(f"layer must be an even index from {-count} to {count - 1}: {layer}")
        return self.attentions[layer]


# ---- queries and keys


@dataclass(frozen=True)
class LazyMap:
    """Compute one head's map A = softmax(scale q k^T) [L, L] slice by slice, when it is read."""

    query: Tensor  # [L, d]
    key: Tensor  # [L, d]
    scale: float

    @property
    def device(self) -> torch.device:
        """Where its rows are made."""
        return self.query.device

    def __len__(self) -> int:
        return len(self.query)

    def __getitem__(self, rows: slice) -> Tensor:
        """Some rows [R, L], float32."""
        query, key = self.query[rows].float(), self.key.float()
        logits = torch.addmm(query.new_empty(()), query, key.mT, beta=0, alpha=self.scale)
        return logits.softmax(-1)


@dataclass(frozen=True)
class Projection:
    """Hold the queries and keys [B, heads, L, d] of one self-attention layer."""

    query: Tensor
    key: Tensor
    scale: float

    def heads(self, image: int) -> list[LazyMap]:
        """Give one image's maps, a `LazyMap` for each head."""
        pairs = zip(self.query[image], self.key[image], strict=True)
        return [LazyMap(query, key, self.scale) for query, key in pairs]

    def map(self, image: int, head: int) -> Tensor:
        """Compute one head's map [L, L] in the model's dtype."""
        return self.heads(image)[head][:].to(self.query.dtype)

    def maps(self) -> Tensor:
        """Compute all maps [B, heads, L, L]."""
        length = self.query.shape[2]
        maps = self.query.new_empty(*self.query.shape[:2], length, length)
        for image, head in np.ndindex(*maps.shape[:2]):
            maps[image, head] = self.map(image, head)
        return maps


Sides = dict[int, list[Tensor]]  # id of an attention module -> queries, keys [B, L, heads * d]


def _projection(module: Any, sides: Sides) -> Projection:
    query, key = (
        rearrange(side, "b l (h d) -> b h l d", h=module.heads) for side in sides[id(module)]
    )
    return Projection(query, key, float(module.scale))


@contextmanager
def recording(chosen: Sequence[Any], order: Sequence[Any]) -> Iterator[Sides]:
    """Record queries and keys of the `chosen` attention modules (a context manager).

    The forward pass ends at the last of them, in `order`, and so does the block. Afterwards all
    modules are as they were.
    """
    if not chosen:
        raise OvssError("give at least one layer")
    last = max(chosen, key=lambda module: next(i for i, m in enumerate(order) if m is module))
    sides: Sides = {id(module): [] for module in chosen}

    def keep(module: Any, side: Tensor) -> None:
        sides[id(module)].append(side)
        if module is last and len(sides[id(module)]) == 2:
            raise _Finished

    handles = [
        layer.register_forward_hook(lambda _, __, side, module=module: keep(module, side))
        for module in dict.fromkeys(chosen)
        for layer in (module.to_q, module.to_k)  # diffusers calls them in this order
    ]
    try:
        yield sides
    except _Finished:
        pass
    finally:
        for handle in handles:
            handle.remove()


class _Finished(Exception):
    """All that was asked for is there."""
