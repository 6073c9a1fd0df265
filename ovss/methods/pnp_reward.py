"""Reward masks without ground truth: PnP-OVSS's section 3.4 (arXiv 2311.17095), judged by CLIP.

    p_i(x)  = softmax over the image's classes of CLIP's similarity of x and each class's name
    reward  = number of classes i with  p_i(M_i * image) > p_i(black)            (Eq. 6-7)

M_i is the mask of class i, so a class earns 1 if what its mask lets through looks more like it than
a black image does. No ground truth is looked at, only which classes are in the image. An image of
one class earns nothing ever: its probability is 1, whatever the mask.

GradCAM of all layers and heads comes from one pass over an image (`gradcam_all_heads`); a candidate
only takes its own map out of that and thresholds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..backbones.clip import ClipBackbone
from ..errors import OvssError, ScoreError
from ..refine.blur import Blur, minmax_normalise
from ..vocabulary import Vocabulary
from .pnp_maps import upsample
from .pnp_ovss import PnpOvss

HALF = 0.5  # an upsampled or blurred mask holds the pixels that are at least half in
Rewards = NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """An image and the names of the classes in it: all that the search may know.

    Attributes:
        picture: the image, or what reads it when it is needed.
    """

    id: str
    picture: Image.Image | Callable[[], Image.Image]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise OvssError(f"the image {self.id!r} comes without a class: leave it out")

    @property
    def image(self) -> Image.Image:
        """The image, read anew each time if it lies on the disk."""
        return self.picture() if callable(self.picture) else self.picture


@dataclass(frozen=True)
class Candidate:
    """Name the hyperparameters to try, as in `PnpOvss`; without blur the mask has hard edges."""

    layer: int
    head: int
    threshold: float
    blur: float | None = None


@torch.no_grad()
def gradcam_all_heads(
    method: PnpOvss, examples: Sequence[Example], progress: bool = False
) -> Iterator[tuple[Example, Tensor]]:
    """Compute Eq. 1 for all layers and heads in one pass: [layers, heads, K, h, w] an image."""
    backbone = method.backbone
    side = backbone.patch_grid(method.size)
    starts = range(0, len(examples), method.batch)
    for start in tqdm(starts, desc="GradCAM", unit="batch", disable=not progress):
        part = examples[start : start + method.batch]
        prompts = [method.prompt(Vocabulary.of(example.names)) for example in part]
        matching = backbone.match(
            method.pixels([example.image for example in part]),
            prompts,
            range(backbone.layers),
            gradient=method.gradcam,
            objective=method.chosen("objective"),
        )
        attention = torch.stack(list(matching.attention.values()), 1)  # [B, N, H, T, 1+L]
        if matching.gradient:
            attention = attention * torch.stack(list(matching.gradient.values()), 1).clamp(min=0)
        for maps, prompt, example in zip(attention[..., 1:], prompts, part, strict=True):
            pieces = [maps[:, :, list(places)].mean(2) for places in prompt.words]  # [N, H, L]
            yield example, torch.stack(pieces, 2).unflatten(-1, (side, side)).cpu()


def masks(maps: Tensor, threshold: float, blur: float | None, side: int) -> Tensor:
    """Threshold an image's class maps [K, h, w] into binary masks [K, side, side], bool.

    Args:
        threshold: of each map, min-max normalised (Table 2).
        blur: standard deviation of a Gaussian relative to `side`, or None.
    """
    hard = (minmax_normalise(maps, nan=True) >= threshold).float()  # [K, h, w]
    large = upsample(hard, (side, side))
    return (large if blur is None else Blur(blur).blurred(large)) >= HALF


@dataclass(frozen=True)
class Judged:
    """Hold what is kept of an example: its maps, pixels, and what CLIP makes of its words."""

    maps: Tensor  # [layers, heads, K, h, w]
    pixels: Tensor  # [3, S, S] uint8
    text: Tensor  # [K, E]
    black: Tensor  # [K], the probabilities of a black image

    def masked_images(self, masks: Tensor) -> Tensor:
        """Black out all but masks [V, S, S]: images [V, 3, S, S] in [0, 1]."""
        return self.pixels.float()[None] / 255 * masks[:, None]


@dataclass(eq=False)
class Reward:
    """Reward candidates on some images (Eq. 6-7).

    Attributes:
        method: its images, prompts and objective are used; its own layer, head and so on are not.
        clip: the judge; images are squashed to the square it was trained at.
        examples: images with their classes' names.
        batch: masked images in CLIP at once.
        progress: show a progress bar of the passes on stderr.
    """

    method: PnpOvss
    clip: ClipBackbone
    examples: Sequence[Example]
    batch: int = 64
    progress: bool = False

    def __post_init__(self) -> None:
        if not self.examples:
            raise OvssError("the reward needs at least one image")

    @property
    def max_reward(self) -> int:
        """Count the classes of images with more than one: the largest reward there can be."""
        sizes = [len(example.names) for example in self.examples]
        return sum(size for size in sizes if size > 1)

    @cached_property
    def judged(self) -> list[Judged]:
        """Pass over all images once; ask for it before threads do."""
        black = self._embed(torch.zeros(1, 3, self._side, self._side))
        pairs = gradcam_all_heads(self.method, self.examples, self.progress)
        return [self._judged(example, maps, black) for example, maps in pairs]

    @torch.no_grad()
    def __call__(self, candidate: Candidate) -> Rewards:
        """Count how many classes of each image win over a black image, [I].

        An empty mask shows the black image: it earns nothing, and CLIP is not asked.
        """
        rewards = np.zeros(len(self.judged), dtype=np.int64)
        for part in self._parts([i for i, one in enumerate(self.judged) if len(one.text) > 1]):
            shown, views = [], []
            for i in part:
                one = self.judged[i]
                maps = one.maps[candidate.layer, candidate.head]  # [K, h, w]
                found = masks(maps, candidate.threshold, candidate.blur, self._side)
                shown.append(found.flatten(1).any(1))  # [K], the masks that are not empty
                views.append(one.masked_images(found[shown[-1]]))
            if not any(map(len, views)):
                continue
            embedded = self._embed(torch.cat(views)).split([len(view) for view in views])
            for i, some, vectors in zip(part, shown, embedded, strict=True):
                one = self.judged[i]
                own = self._class_probabilities(vectors, one.text).cpu()[:, some].diagonal()
                rewards[i] = int((own > one.black.cpu()[some]).sum())
        return rewards

    def _parts(self, images: Sequence[int]) -> Iterator[list[int]]:
        """Images whose classes together fill a batch; one image is never divided."""
        part: list[int] = []
        for i in images:
            if part and sum(len(self.judged[j].text) for j in (*part, i)) > self.batch:
                yield part
                part = []
            part.append(i)
        if part:
            yield part

    def _judged(self, example: Example, maps: Tensor, black: Tensor) -> Judged:
        text = self.clip.text_features(Vocabulary.of(example.names)).float()
        square = example.image.resize((self._side, self._side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)
        unmasked = self._class_probabilities(black, text)[0]  # [K]
        if not (maps.isfinite().all() and unmasked.isfinite().all()):
            networks = (self.method.backbone.checkpoint, self.clip.checkpoint)
            raise ScoreError(self.method.name, 0, networks, example.id)
        return Judged(maps, pixels, text, unmasked)

    def _class_probabilities(self, embedded: Tensor, text: Tensor) -> Tensor:
        """Eq. 6: probabilities [V, K] of the image's classes for views [V, E]."""
        scale = self.clip.model.logit_scale.detach().float().exp()
        return F.softmax(scale * embedded @ text.T, 1)

    @torch.no_grad()
    def _embed(self, views: Tensor) -> Tensor:
        """Embed images [V, 3, S, S] in [0, 1] as unit vectors [V, E]."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.clip.mean, self.clip.std))
        pixels = ((views - mean) / std).to(self.clip.device, self.clip.dtype)
        return self.clip.image_embedding(pixels).float()

    @property
    def _side(self) -> int:
        return int(self.clip.model.visual.image_size[0])
