"""Stable Diffusion, opened up: the self-attention maps of its U-Net on one noisy image.

As in CLIPer (arXiv 2411.13836), section 3.3: the image's latent gets the noise of one time step,
goes through the U-Net once with an empty prompt, and A is the attention between its L positions.
All work is done by diffusers' and transformers' own modules.
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

from ..errors import OvssError

LAYERS = (-4, -6)  # up_blocks[3].attentions[1] and [0] of Stable Diffusion: 64 x 64 positions
STEP, STEPS = 45, 50  # "time-step 45": an index into PNDM's list, t = 101


@dataclass(eq=False)
class DiffusionBackbone:
    """A latent diffusion model of diffusers with a text-conditioned U-Net.

    Attributes:
        unet, vae, text_encoder, tokenizer, scheduler: diffusers' and transformers' own.
        name, checkpoint: what it is; name and first 12 hex digits of the U-Net's SHA-256.
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
            dtype: float16 by default on a GPU, float32 elsewhere.

        Raises:
            CheckpointError, UnknownNameError: see `diffusion_loading.load_diffusion`.
            OvssError: there is no such device here.
        """
        from .diffusion_loading import load_diffusion  # diffusers takes seconds to import

        try:
            place = torch.device(device)
            kind = dtype or (torch.float16 if place.type == "cuda" else torch.float32)
            torch.empty(0, device=place)
        except (RuntimeError, AssertionError) as error:
            raise OvssError(f"cannot use device {str(device)!r}: {error}") from None
        found = load_diffusion(source, kind)
        unet, vae, text = (one.to(place) for one in (found.unet, found.vae, found.text_encoder))
        parts = (found.tokenizer, found.scheduler, found.name, found.checkpoint)
        return cls(unet, vae, text, *parts, place, kind)

    @property
    def size(self) -> int:
        """Side in pixels of the square that every image is resized to (Stable Diffusion: 512)."""
        return int(self.unet.config.sample_size) * self.reduction

    @property
    def reduction(self) -> int:
        """Pixels per position of the latent, along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @cached_property
    def attentions(self) -> list[Any]:
        """All attention modules in the order they run: self (even index), cross (odd), self ..."""
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
        """The empty prompt, encoded once: [1, T, C]."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            "", padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            return self.text_encoder(tokens.input_ids.to(self.device))[0]

    # ---- from pixels to the U-Net's input

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB image -> pixels [3, size, size] in [-1, 1], nearest; the aspect is not kept."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # [3, H, W]
        return 2 * F.interpolate(pixels[None], (self.size, self.size))[0] - 1

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, size, size] -> the VAE's mean, scaled: [B, 4, size/8, size/8]."""
        encoded = self.vae.encode(pixels.to(self.device, self.dtype)).latent_dist.mean
        return encoded * self.vae.config.scaling_factor

    def timestep(self, step: int = STEP) -> Tensor:
        """The time t of an index into the scheduler's list of 50 steps (PNDM's has 51 entries)."""
        self.scheduler.set_timesteps(STEPS)
        times = self.scheduler.timesteps
        if not -len(times) <= step < len(times):
            raise OvssError(f"step must be 0 to {len(times) - 1}, got {step}")
        return times[step]

    def noise(self, seed: int | torch.Generator = 0) -> Tensor:
        """Noise [1, 4, h, w], drawn on the CPU: equal on all devices, equal for all images."""
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        side = int(self.unet.config.sample_size)
        shape = (1, int(self.unet.config.in_channels), side, side)
        return torch.randn(shape, generator=generator, device=generator.device)

    # ---- attention

    @torch.no_grad()
    def attention(
        self,
        images: Image.Image | Sequence[Image.Image],
        layers: Sequence[int] = LAYERS,
        step: int = STEP,
        noise: int | torch.Generator | Tensor = 0,
    ) -> list[Tensor]:
        """The self-attention maps of `images` in some layers.

        Args:
            images: one RGB image, or a list of B.
            layers: indices into `attentions`, even (self-attention).
            step: index into the list of time steps, see `timestep`.
            noise: a seed, a generator, or the noise itself [1 or B, 4, h, w].

        Returns:
            For each layer, in the order of `layers`, softmax(q k^T / sqrt(d)): [heads, L, L] for
            one image, [B, heads, L, L] for a list.
        """
        single = isinstance(images, Image.Image)
        batch = [images] if isinstance(images, Image.Image) else images
        latents = self.latents(torch.stack([self.preprocess(image) for image in batch]))
        given = noise if isinstance(noise, Tensor) else self.noise(noise)
        maps = self.latent_attention(latents, given, layers, step)
        return [found[0] for found in maps] if single else maps

    @torch.no_grad()
    def latent_attention(
        self, latents: Tensor, noise: Tensor, layers: Sequence[int] = LAYERS, step: int = STEP
    ) -> list[Tensor]:
        """Latents and noise [B, 4, h, w] -> maps [B, heads, L, L] of `layers`.

        Nothing behind the last of them is computed, its values and output included.
        """
        chosen = [self._self_attention(layer) for layer in layers]
        time = self.timestep(step).to(self.device)
        added = noise.to(latents).expand_as(latents)
        noisy = self.scheduler.add_noise(latents, added, time.expand(len(latents)))
        prompt = self.prompt.expand(len(latents), -1, -1)
        with recording(chosen, self.attentions) as maps:
            self.unet(noisy, time, encoder_hidden_states=prompt)
        return [rearrange(maps[id(one)], "(b h) l m -> b h l m", b=len(latents)) for one in chosen]

    def _self_attention(self, layer: int) -> Any:
        count = len(self.attentions)
        if not -count <= layer < count or layer % 2:  # the list is of even length
            raise OvssError(f"layer must be an even index from {-count} to {count - 1}: {layer}")
        return self.attentions[layer]


@contextmanager
def recording(chosen: Sequence[Any], order: Sequence[Any]) -> Iterator[dict[int, Tensor]]:
    """Within it, the `chosen` attention modules keep their maps, under `id(module)`.

    The forward pass ends at the last of them, in `order`, and so does the block. Afterwards all
    modules are as they were.
    """
    if not chosen:
        raise OvssError("give at least one layer")
    last = max(chosen, key=lambda module: next(i for i, m in enumerate(order) if m is module))
    maps: dict[int, Tensor] = {}
    before = [(module, module.processor) for module in chosen]
    try:
        for module in chosen:
            module.set_processor(_Keep(maps, final=module is last))
        yield maps
    except _Finished:
        pass
    finally:
        for module, processor in before:
            module.processor = processor


class _Finished(Exception):
    """All maps that were asked for are there."""


@dataclass(frozen=True)
class _Keep:
    """An attention processor of diffusers that keeps the map [B * heads, L, L]."""

    maps: dict[int, Tensor]
    final: bool

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """The attention's output, unless nobody needs it."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(hidden_states))
        weights = attn.get_attention_scores(query, key)
        self.maps[id(attn)] = weights
        if self.final:
            raise _Finished
        value = attn.head_to_batch_dim(attn.to_v(hidden_states))
        mixed = attn.batch_to_head_dim(weights @ value)
        for module in attn.to_out:
            mixed = module(mixed)
        return mixed
