"""Networks with a cache of what they computed, so that the rows of a table can share the work.

Each cache is bounded in bytes of the device it lies on (`CAPACITY` by default) and drops what was
used least recently; what was asked for last stays, however large.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from .clip import ClipBackbone, ClipFeatures
from .diffusion import DiffusionBackbone
from .diffusion.backbone import LAYERS, STEP, LazyMap, Projection
from .itm import ItmBackbone, Matching, Prompt

CAPACITY = 2**30  # bytes: for a ViT-B/16 three batches of 8 images of 336 x 448
PROMPTS = 4096  # tokenised captions that are kept
Attention = bool | Literal["sum"]
ProjectionKey = tuple[bytes, int, int, int | bytes]  # image, layer, step, noise
Key = TypeVar("Key")
Value = TypeVar("Value")


class ByteCache(Generic[Key, Value]):
    """A cache that drops the least recently used values beyond a number of bytes."""

    def __init__(self) -> None:
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._sizes: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._values)

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return sum(self._sizes.values())

    def get(self, key: Key) -> Value | None:
        """Look up a value, which becomes the most recently used one."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Key, value: Value, capacity: int, size: int | None = None) -> None:
        """Keep a value (or measure it again), then drop old ones until `capacity` is kept.

        Args:
            size: the value's bytes; by default those of its tensors.
        """
        self._values[key] = value
        self._values.move_to_end(key)
        self._sizes[key] = tensor_bytes(value) if size is None else size
        while len(self._values) > 1 and self.size > capacity:
            oldest, _ = self._values.popitem(last=False)
            del self._sizes[oldest]


def tensor_bytes(value: Any) -> int:
    """Count the bytes of all tensors in nested dataclasses, mappings and sequences."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(tensor_bytes, value))
    if is_dataclass(value):
        return sum(tensor_bytes(getattr(value, part.name)) for part in fields(value))
    return 0


# ---- CLIP


@dataclass(frozen=True)
class CachedFeatures(ClipFeatures):
    """Features that several methods read, and what they `derived` from them; dropped together."""

    derived: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(eq=False)
class CachedClip(ClipBackbone):
    """A `ClipBackbone` that computes `features` once for equal pixels and equal options.

    What it returns is shared: methods must not change it in place.

    Attributes:
        capacity: bytes of features that are kept, with what methods made of them.
    """

    capacity: int = CAPACITY
    cache: ByteCache[Any, CachedFeatures] = field(default_factory=ByteCache, init=False, repr=False)

    @torch.no_grad()
    def features(self, pixels: Tensor, *, attention: Attention = True) -> ClipFeatures:
        """Compute the features of pixels [B, 3, h, w] as `ClipBackbone.features`, bit for bit."""
        key = _digest(pixels), tuple(pixels.shape), pixels.dtype, attention
        found = self.cache.get(key)
        if found is None:
            found = CachedFeatures(**vars(super().features(pixels, attention=attention)))
        self.cache.put(key, found, self.capacity)  # it may have grown since it was measured
        return found


# ---- diffusion


@dataclass(eq=False)
class CachedDiffusion(DiffusionBackbone):
    """A `DiffusionBackbone` that sends an image through the U-Net once for each step and noise.

    Queries and keys of many images are kept, whole maps only of the last ones. What it returns is
    shared: nobody must change it in place. Noise given as a generator is not cached.

    Attributes:
        capacity: bytes of queries and keys that are kept, in all layers, steps and noises asked.
        map_capacity: bytes of whole maps that are kept.
    """

    capacity: int = CAPACITY
    map_capacity: int = CAPACITY // 4
    cache: ByteCache[bytes, dict[ProjectionKey, Projection]] = field(
        default_factory=ByteCache, init=False, repr=False
    )
    map_cache: ByteCache[ProjectionKey, list[LazyMap]] = field(
        default_factory=ByteCache, init=False, repr=False
    )

    @torch.no_grad()
    def projections(
        self,
        images: Sequence[Image.Image],
        layers: Sequence[int] = LAYERS,
        step: int = STEP,
        noise: int | torch.Generator | Tensor = 0,
    ) -> list[Projection]:
        """Compute the queries and keys [B, heads, L, d] of B images in each layer.

        As `DiffusionBackbone.projections`, up to what a batch's other images change.
        """
        if isinstance(noise, torch.Generator) or not images:
            return super().projections(images, layers, step, noise)
        names = [_digest(self.preprocess(image)) for image in images]
        kept = {name: self.cache.get(name) or {} for name in names}
        draws = _draws(noise, len(images))
        keys = [
            [(name, layer, step, draw) for name, draw in zip(names, draws, strict=True)]
            for layer in layers
        ]
        new = [i for i, name in enumerate(names) if any(of[i] not in kept[name] for of in keys)]
        if new:
            given = noise[new] if isinstance(noise, Tensor) and len(noise) > 1 else noise
            found = super().projections([images[i] for i in new], layers, step, given)
            for of_layer, projection in zip(keys, found, strict=True):
                for place, i in enumerate(new):
                    kept[names[i]][of_layer[i]] = _of_image(projection, place)
        answer: list[Projection] = [
            self._joined(of, [kept[name][key] for name, key in zip(names, of, strict=True)])
            for of in keys
        ]
        for name, values in kept.items():
            self.cache.put(name, values, self.capacity)
        return answer

    def heads(self, key: ProjectionKey, projection: Projection, image: int) -> list[LazyMap]:
        """Return the maps of one image in one layer; each is made once, when it is first read."""
        found = self.map_cache.get(key)
        if found is None:
            pairs = zip(projection.query[image], projection.key[image], strict=True)
            found = [_WholeMap(query, k, projection.scale) for query, k in pairs]
            size = sum(4 * len(one) ** 2 for one in found)  # float32, once they are read
            self.map_cache.put(key, found, self.map_capacity, size)
        return found

    def _joined(self, keys: Sequence[ProjectionKey], parts: Sequence[Projection]) -> Projection:
        """The queries and keys of a batch, of those of its images."""
        query = torch.cat([part.query for part in parts])  # [B, heads, L, d]
        key = torch.cat([part.key for part in parts])  # [B, heads, L, d]
        return _CachedProjection(query, key, parts[0].scale, keys, self)


@dataclass(frozen=True)
class _CachedProjection(Projection):
    """A projection whose maps come from the cache of the network that made it."""

    keys: Sequence[ProjectionKey]
    owner: CachedDiffusion

    def heads(self, image: int) -> list[LazyMap]:
        return self.owner.heads(self.keys[image], self, image)


class _WholeMap(LazyMap):
    """A map that is made whole when a part of it is first read, and kept."""

    @cached_property
    def whole(self) -> Tensor:
        return super().__getitem__(slice(None))

    def __getitem__(self, rows: slice) -> Tensor:
        return self.whole[rows]


def _of_image(projection: Projection, place: int) -> Projection:
    """One image's queries and keys [1, heads, L, d], which do not hold the batch's memory."""
    one = slice(place, place + 1)
    query, key = projection.query[one].clone(), projection.key[one].clone()
    return Projection(query, key, projection.scale)


# ---- image-text matching


@dataclass(eq=False)
class CachedItm(ItmBackbone):
    """Cache what an `ItmBackbone` computes: pixels, prompts, encoded images and matchings.

    Each different image is encoded once, whatever it is asked for. The same batch of images and
    prompts is matched once, for all layers and heads, so rows that drop the same patches share the
    pass. Logits, maps and gradients are those of `ItmBackbone` up to the last digits. What it
    returns is shared: nobody must change it in place.

    Attributes:
        capacity: bytes of attention and gradients that are kept; pixels (on the CPU) and encoded
            images have a quarter of it each.
    """

    capacity: int = CAPACITY
    cache: ByteCache[Any, Matching] = field(default_factory=ByteCache, init=False, repr=False)
    pixel_cache: ByteCache[Any, Tensor] = field(default_factory=ByteCache, init=False, repr=False)
    image_cache: ByteCache[Any, Tensor] = field(default_factory=ByteCache, init=False, repr=False)
    prompt_cache: ByteCache[Any, Prompt] = field(default_factory=ByteCache, init=False, repr=False)

    def prompt(
        self, names: Sequence[str], *, joined: bool = False, prefix: str = "A picture of "
    ) -> Prompt:
        """Tokenise a caption as `ItmBackbone.prompt`, each different one once."""
        key = (repr(names), joined, prefix)
        found = self.prompt_cache.get(key)
        if found is None:
            found = super().prompt(names, joined=joined, prefix=prefix)
            self.prompt_cache.put(key, found, PROMPTS, 1)
        return found

    def pixels(
        self,
        images: Sequence[Image.Image],
        size: int,
        *,
        normalize: bool = True,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Tensor:
        """Resize images to [B, 3, size, size] as `ItmBackbone.pixels`, each batch once."""
        contents = b"".join(_digest_bytes(image.tobytes()) for image in images)
        key = (contents, *((image.size, image.mode) for image in images), size, normalize, resample)
        found = self.pixel_cache.get(key)
        if found is None:
            found = super().pixels(images, size, normalize=normalize, resample=resample)
            self.pixel_cache.put(key, found, self.capacity // 4)
        return found

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] as `ItmBackbone.encode`, each different one once."""
        keys = [(_digest(image), image.shape, image.dtype) for image in pixels]
        kept: dict[Any, Any] = {key: self.image_cache.get(key) for key in keys}
        new = {key: i for i, key in enumerate(keys) if kept[key] is None}
        if new:
            encoded = super().encode(pixels[list(new.values())])  # [N, 1+L, E]
            kept |= zip(new, (one.clone() for one in encoded), strict=True)
        for key, image in kept.items():
            self.image_cache.put(key, image, self.capacity // 4)
        return torch.stack([kept[key] for key in keys])  # [B, 1+L, E]

    def match(
        self,
        pixels: Tensor,
        prompts: Sequence[Prompt],
        layers: Sequence[int] = (),
        *,
        gradient: bool = True,
        objective: Literal["logit", "ce"] = "logit",
    ) -> Matching:
        """Match images and prompts as `ItmBackbone.match`, each batch once for all layers."""
        self._check(pixels, prompts, layers, objective)
        texts = [str(prompt.ids.tolist()) for prompt in prompts]
        key = (_digest(pixels), tuple(pixels.shape), pixels.dtype, objective, *texts)
        matching = self.cache.get(key)
        if matching is None or (gradient and not matching.gradient):
            every = range(self.layers)
            matching = super().match(pixels, prompts, every, gradient=gradient, objective=objective)
            self.cache.put(key, matching, self.capacity)
        slopes = matching.gradient if gradient else {}
        return Matching(
            matching.logits,
            matching.mask,
            {layer: matching.attention[layer] for layer in layers},
            {layer: slopes[layer] for layer in layers if slopes},
        )


# ---- keys


def _draws(noise: int | Tensor, images: int) -> list[int | bytes]:
    """What stands for each image's noise in a key."""
    if isinstance(noise, int):
        return [noise] * images
    return [_digest(one) for one in noise.expand(images, -1, -1, -1)]


def _digest(values: Tensor) -> bytes:
    """Hash a tensor's bytes, of any dtype."""
    return _digest_bytes(values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())


def _digest_bytes(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
