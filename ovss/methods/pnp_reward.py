"""The reward of PnP-OVSS's section 3.4 (arXiv 2311.17095): is a mask good, as CLIP sees it?

    p_i(x)  = softmax over the image's classes of CLIP's similarity of x and each class's name
    reward  = number of classes i with  p_i(M_i * image) > p_i(black)            (Eq. 6-7)

M_i is the mask of class i, so a class earns 1 if what its mask lets through looks more like it than
a black image does. No ground truth is looked at, only which classes are in the image. An image of
one class earns nothing ever: its probability is 1, whatever the mask.

The masks of all layers and heads come from one pass over an image: attention and gradient of all of
them are kept (`look`), and a candidate only cuts its own map out of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from ..backbones.itm import Matching
from ..errors import OvssError
from ..refine.blur import Blur, stretch
from ..vocabulary import Vocabulary
from .pnp_maps import enlarge
from .pnp_ovss import PnpOvss

HALF = 0.5  # an enlarged or blurred mask holds the pixels that are at least half in
Rewards = NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """An image and the names of the classes in it: all that the search may know."""

    id: str
    image: Image.Image
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise OvssError(f"the image {self.id!r} comes without a class: leave it out")


@dataclass(frozen=True)
class Candidate:
    """Hyperparameters to try, named as in `PnpOvss`; without blur the mask has hard edges."""

    layer: int
    head: int
    threshold: float
    blur: float | None = None


@torch.no_grad()
def look(
    method: PnpOvss, examples: Sequence[Example], progress: bool = False
) -> Iterator[tuple[Example, Tensor]]:
    """Eq. 1 for all layers and heads of each image, in one pass: [layers, heads, K, h, w]."""
    backbone = method.backbone
    side = backbone.patch_grid(method.size)
    starts = range(0, len(examples), method.batch)
    for start in tqdm(starts, desc="looking", unit="batch", disable=not progress):
        part = examples[start : start + method.batch]
        prompts = [method.prompt(Vocabulary.of(example.names)) for example in part]
        found = backbone.match(
            method.pixels([example.image for example in part]),
            prompts,
            range(backbone.layers),
            gradient=method.gradcam,
            objective=method.chosen("objective"),
        )
        tokens = torch.stack([_weighted(found, layer) for layer in range(backbone.layers)], 1)
        for maps, prompt, example in zip(tokens, prompts, part, strict=True):
            pieces = [maps[:, :, list(places)].mean(2) for places in prompt.words]
            yield example, torch.stack(pieces, 2).unflatten(-1, (side, side)).cpu()


def _weighted(found: Matching, layer: int) -> Tensor:
    """Attention times the gradient's positive part, without the class token: [B, heads, T, L]."""
    attention, gradient = found.attention[layer], found.gradient.get(layer)
    return (attention if gradient is None else attention * gradient.clamp(min=0))[..., 1:]


def masks(maps: Tensor, threshold: float, blur: float | None, side: int) -> Tensor:
    """Maps of an image's classes [K, h, w] -> binary masks [K, side, side], bool.

    Args:
        threshold: of each map stretched to [0, 1] (Table 2).
        blur: standard deviation of a Gaussian relative to `side`, or None.
    """
    hard = (stretch(maps, nan=True) >= threshold).float()
    large = enlarge(hard, (side, side))
    return (large if blur is None else Blur(blur).blurred(large)) >= HALF


@dataclass(frozen=True)
class Scene:
    """What is kept of an example: its maps, pixels, and what CLIP makes of its words."""

    maps: Tensor  # [layers, heads, K, h, w]
    pixels: Tensor  # [3, S, S] uint8
    text: Tensor  # [K, E]
    black: Tensor  # [K], the probabilities of a black image

    def behind(self, shown: Tensor) -> Tensor:
        """What masks [K, S, S] let through, [K, 3, S, S] in [0, 1]."""
        return self.pixels.float()[None] / 255 * shown[:, None]


@dataclass(eq=False)
class Reward:
    """The reward of candidates on some images.

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
    def most(self) -> int:
        """The largest reward there can be: the classes of images with more than one."""
        sizes = [len(example.names) for example in self.examples]
        return sum(size for size in sizes if size > 1)

    @cached_property
    def scenes(self) -> list[Scene]:
        """All images, looked at once; ask for them before threads do."""
        black = self._embed(torch.zeros(1, 3, self._side, self._side))
        pairs = look(self.method, self.examples, self.progress)
        return [self._scene(example, maps, black) for example, maps in pairs]

    @torch.no_grad()
    def __call__(self, candidate: Candidate) -> Rewards:
        """How many classes of each image win over a black image, [I]."""
        rewards = np.zeros(len(self.scenes), dtype=np.int64)
        judged = [i for i, scene in enumerate(self.scenes) if len(scene.text) > 1]
        for part in self._parts(judged):
            shown = [self._shown(self.scenes[i], candidate) for i in part]
            views = [self.scenes[i].behind(one) for i, one in zip(part, shown, strict=True)]
            embedded = self._embed(torch.cat(views)).split([len(one) for one in shown])
            for i, some, vectors in zip(part, shown, embedded, strict=True):
                rewards[i] = self._won(self.scenes[i], some, vectors)
        return rewards

    def _parts(self, images: Sequence[int]) -> Iterator[list[int]]:
        """Images whose classes together fill a batch; one image is never divided."""
        part: list[int] = []
        for i in images:
            if part and sum(len(self.scenes[j].text) for j in (*part, i)) > self.batch:
                yield part
                part = []
            part.append(i)
        if part:
            yield part

    def _shown(self, scene: Scene, candidate: Candidate) -> Tensor:
        """The masks of an image's classes, [K, S, S] bool."""
        maps = scene.maps[candidate.layer, candidate.head]
        return masks(maps, candidate.threshold, candidate.blur, self._side)

    def _won(self, scene: Scene, shown: Tensor, embedded: Tensor) -> int:
        """Eq. 7 for an image: its masks [K, S, S] and embeddings [K, E] of what they show.

        An empty mask shows the black image: it earns nothing, whatever rounding makes of it.
        """
        wins = self._likely(embedded, scene.text).diagonal() > scene.black
        return int((wins.cpu() & shown.flatten(1).any(1)).sum())

    def _scene(self, example: Example, maps: Tensor, black: Tensor) -> Scene:
        text = self.clip.text_features(Vocabulary.of(example.names)).float()
        square = example.image.resize((self._side, self._side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)
        return Scene(maps, pixels, text, self._likely(black, text)[0])

    def _likely(self, embedded: Tensor, text: Tensor) -> Tensor:
        """Eq. 6: probabilities [V, K] of the image's classes for views [V, E]."""
        scale = self.clip.model.logit_scale.detach().float().exp()
        return F.softmax(scale * embedded @ text.T, 1)

    @torch.no_grad()
    def _embed(self, views: Tensor) -> Tensor:
        """Images [V, 3, S, S] in [0, 1] -> unit vectors [V, E]."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.clip.mean, self.clip.std))
        pixels = ((views - mean) / std).to(self.clip.device, self.clip.dtype)
        return self.clip.image_embedding(pixels).float()

    @property
    def _side(self) -> int:
        return int(self.clip.model.visual.image_size[0])
