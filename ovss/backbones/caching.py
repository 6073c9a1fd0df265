"""Networks that remember the images they saw, so that the rows of a table can share the work."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from .clip import ClipBackbone, ClipFeatures
from .diffusion import DiffusionBackbone
from .diffusion.backbone import LAYERS, STEP, LazyMap, Projection
from .itm import ItmBackbone, Matching, Prompt

PROMPTS = 4096  # tokenised captions that are kept
Attention = bool | Literal["sum"]
Key = tuple[bytes, int, int, int | bytes]  # image, layer, step, noise


@dataclass(frozen=True)
class CachedFeatures(ClipFeatures):
    """Features that many ask for, and what was `derived` from them; both are dropped together."""

    derived: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(eq=False)
class CachedClip(ClipBackbone):
    """A `ClipBackbone` that computes `features` once for equal pixels and equal options.

    What it returns is shared: methods must not change it in place.

    Attributes:
        capacity: images whose features are kept; the oldest batch goes first. The default holds
            a batch of 8 as CLIPer and as the other methods ask for it.
    """

    capacity: int = 16
    _calls: deque[tuple[Attention, Tensor, ClipFeatures]] = field(
        default_factory=deque, init=False, repr=False
    )

    @torch.no_grad()
    def features(self, pixels: Tensor, *, attention: Attention = True) -> ClipFeatures:
        """As `ClipBackbone.features`, bit for bit."""
        for asked, seen, found in self._calls:
            if asked == attention and torch.equal(seen, pixels):
                return found
        found = CachedFeatures(**vars(super().features(pixels, attention=attention)))
        self._calls.append((attention, pixels.clone(), found))
        while sum(len(seen) for _, seen, _ in self._calls) > self.capacity:
            self._calls.popleft()
        return found


@dataclass(eq=False)
class CachedDiffusion(DiffusionBackbone):
    """A `DiffusionBackbone` that sends an image through the U-Net once for each step and noise.

    Queries and keys of many images are kept, whole maps only of the last ones. What it returns is
    shared: nobody must change it in place. Noise given as a generator is not remembered.

    Attributes:
        capacity: images whose queries and keys are kept, in all layers, steps and noises asked.
        map_values: values of the maps that are kept, 256 MB of float32 by default; the layer that
            was read last stays even if it has more.
    """

    capacity: int = 512
    map_values: int = 2**26
    _kept: OrderedDict[bytes, dict[Key, Projection]] = field(
        default_factory=OrderedDict, init=False, repr=False
    )
    _maps: OrderedDict[Key, list[LazyMap]] = field(
        default_factory=OrderedDict, init=False, repr=False
    )

    @torch.no_grad()
    def projections(
        self,
        images: Sequence[Image.Image],
        layers: Sequence[int] = LAYERS,
        step: int = STEP,
        noise: int | torch.Generator | Tensor = 0,
    ) -> list[Projection]:
        """As `DiffusionBackbone.projections`, up to what a batch's other images change."""
        if isinstance(noise, torch.Generator) or not images:
            return super().projections(images, layers, step, noise)
        names = [_digest(self.preprocess(image)) for image in images]
        draws = _draws(noise, len(images))
        keys = [
            [(name, layer, step, draw) for name, draw in zip(names, draws, strict=True)]
            for layer in layers
        ]
        new = [
            place
            for place, name in enumerate(names)
            if any(one[place] not in self._kept.get(name, {}) for one in keys)
        ]
        if new:
            given = noise[new] if isinstance(noise, Tensor) and len(noise) > 1 else noise
            found = super().projections([images[place] for place in new], layers, step, given)
            for one, projection in zip(keys, found, strict=True):
                self._keep([one[place] for place in new], projection)
        answer: list[Projection] = [self._recall(one) for one in keys]
        self._forget()
        return answer

    def heads(self, key: Key, projection: Projection, image: int) -> list[LazyMap]:
        """The maps of one image in one layer; each is made once, when it is first read."""
        if key not in self._maps:
            pairs = zip(projection.query[image], projection.key[image], strict=True)
            self._maps[key] = [_WholeMap(query, k, projection.scale) for query, k in pairs]
        self._maps.move_to_end(key)
        while len(self._maps) > 1 and self._held() > self.map_values:
            self._maps.popitem(last=False)
        return self._maps[key]

    def _keep(self, keys: Sequence[Key], found: Projection) -> None:
        for place, key in enumerate(keys):
            one = slice(place, place + 1)
            part = Projection(found.query[one].clone(), found.key[one].clone(), found.scale)
            self._kept.setdefault(key[0], {})[key] = part

    def _recall(self, keys: Sequence[Key]) -> _Remembered:
        parts = [self._kept[key[0]][key] for key in keys]
        query, key = torch.cat([p.query for p in parts]), torch.cat([p.key for p in parts])
        return _Remembered(query, key, parts[0].scale, keys, self)

    def _forget(self) -> None:
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)

    def _held(self) -> int:
        return sum(len(one) ** 2 for heads in self._maps.values() for one in heads)


@dataclass(eq=False)
class CachedItm(ItmBackbone):
    """Cache what an `ItmBackbone` computes: pixels, prompts, encoded images and matchings.

    Each different image is encoded once, whatever it is asked for. The same batch of images and
    prompts is matched once, for all layers and heads, so rows that drop the same patches share the
    pass. Logits, maps and gradients are those of `ItmBackbone` up to the last digits. What it
    returns is shared: nobody must change it in place.

    Attributes:
        map_values: values that each of its caches keeps, 256 MB of float32 by default; the oldest
            go first.
    """

    map_values: int = 2**26
    _pixels: OrderedDict[Any, Tensor] = field(default_factory=OrderedDict, init=False, repr=False)
    _prompts: OrderedDict[Any, Prompt] = field(default_factory=OrderedDict, init=False, repr=False)
    _encoded: OrderedDict[Any, Tensor] = field(default_factory=OrderedDict, init=False, repr=False)
    _matched: OrderedDict[tuple[bytes, str], Matching] = field(
        default_factory=OrderedDict, init=False, repr=False
    )

    def prompt(
        self, names: Sequence[str], *, joined: bool = False, prefix: str = "A picture of "
    ) -> Prompt:
        """Tokenise a caption as `ItmBackbone.prompt`, each different one once."""
        key = (repr(names), joined, prefix)
        if key not in self._prompts:
            self._prompts[key] = super().prompt(names, joined=joined, prefix=prefix)
        if len(self._prompts) > PROMPTS:
            self._prompts.popitem(last=False)
        return self._prompts[key]

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
        if key not in self._pixels:
            self._pixels[key] = super().pixels(images, size, normalize=normalize, resample=resample)
        _bound(self._pixels, self.map_values)
        return self._pixels[key]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] as `ItmBackbone.encode`, each different one once."""
        keys = [(_digest(image), image.shape) for image in pixels]
        new = {key: place for place, key in enumerate(keys) if key not in self._encoded}
        if new:
            encoded = super().encode(pixels[list(new.values())])  # [N, 1+L, E]
            self._encoded.update(zip(new, (one.clone() for one in encoded), strict=True))
        images = torch.stack([self._encoded[key] for key in keys])
        _bound(self._encoded, self.map_values)
        return images

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
        key = _digest(pixels), " ".join([str(tuple(pixels.shape)), objective, *texts])
        matching = self._matched.pop(key, None)
        if matching is None or (gradient and not matching.gradient):
            every = range(self.layers)
            matching = super().match(pixels, prompts, every, gradient=gradient, objective=objective)
        self._matched[key] = matching
        while len(self._matched) > 1 and self._matched_values() > self.map_values:
            self._matched.popitem(last=False)
        slopes = matching.gradient if gradient else {}
        return Matching(
            matching.logits,
            matching.mask,
            {layer: matching.attention[layer] for layer in layers},
            {layer: slopes[layer] for layer in layers if slopes},
        )

    def _matched_values(self) -> int:
        parts = (part for one in self._matched.values() for part in (one.attention, one.gradient))
        return sum(maps.numel() for part in parts for maps in part.values())


@dataclass(frozen=True)
class _Remembered(Projection):
    """A projection whose heads come from the memory that made it."""

    keys: Sequence[Key]
    memory: CachedDiffusion

    def heads(self, image: int) -> list[LazyMap]:
        return self.memory.heads(self.keys[image], self, image)


class _WholeMap(LazyMap):
    """A map that is made whole when a part of it is first read, and kept."""

    @cached_property
    def whole(self) -> Tensor:
        return super().__getitem__(slice(None))

    def __getitem__(self, rows: slice) -> Tensor:
        return self.whole[rows]


def _draws(noise: int | Tensor, images: int) -> list[int | bytes]:
    """What each image's noise is remembered by."""
    if isinstance(noise, int):
        return [noise] * images
    return [_digest(one) for one in noise.expand(images, -1, -1, -1)]


def _bound(cache: OrderedDict[Any, Tensor], values: int) -> None:
    """Drop the oldest tensors until `values` are left; the newest stays."""
    while len(cache) > 1 and sum(one.numel() for one in cache.values()) > values:
        cache.popitem(last=False)


def _digest(values: Tensor) -> bytes:
    return _digest_bytes(values.detach().cpu().contiguous().numpy().tobytes())


def _digest_bytes(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
