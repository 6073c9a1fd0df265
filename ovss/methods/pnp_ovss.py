"""PnP-OVSS: Luo et al., "Emergent Open-Vocabulary Semantic Segmentation from Off-the-shelf
Vision-Language Models" (CVPR 2024, arXiv 2311.17095). A network that tells whether a caption fits
an image has to look where the words are.

    section 3    "A picture of [class 1] ... [class K]", the classes that are in the image
    Eq. 1        attention of one cross-attention head times its gradient's positive part
    Eq. 2-5      Salience DropOut: take out the 10 patches with most of it, look again, three times
    section 3.3  the sum of the maps, cut at a threshold, blurred, and a dense CRF

The steps themselves are in `pnp_maps.py`, `refine/blur.py` and `refine/crf.py`. The method takes
every class of the vocabulary to be in the image; a tagger finds those that are.

Two variants, because text and authors' code disagree. Each chooses the options that are None:
    "official"  the authors' code, behind the published numbers. The default.
    "paper"     the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ..backbones.itm import ItmBackbone, Prompt
from ..errors import OvssError, UnknownNameError
from ..labels import BACKGROUND
from ..refine.blur import Blur, stretch
from ..refine.crf import DenseCrf
from ..segmenter import Refiner
from ..vocabulary import Vocabulary
from . import pnp_maps
from .pnp_maps import Background

VARIANTS: dict[str, dict[str, Any]] = {
    "official": {
        "joined_names": True,
        "objective": "logit",
        "select_by": "tokens",
        "aggregate": "official",
        "merge": "official",
    },
    "paper": {
        "joined_names": False,
        "objective": "ce",
        "select_by": "classes",
        "aggregate": "sum",
        "merge": "mean",
    },
}
KNOWN: dict[str, tuple[Any, ...]] = {
    "variant": tuple(VARIANTS),
    "objective": ("logit", "ce", None),
    "select_by": ("tokens", "classes", None),
    "aggregate": ("sum", "official", None),
    "merge": ("mean", "official", None),
    "background": ("voc", "psc", None),
    "resample": ("bicubic", "bilinear"),
}
FEWEST = {"rounds": 0, "drop": 1, "batch": 1}


@dataclass(frozen=True)
class Pass:
    """One pass of Salience DropOut over B images.

    Attributes:
        logits: [B, 2]: no match, match.
        tokens: Eq. 1 for all T tokens [B, T, h, w], zero at a shorter caption's padding.
        dropped: [B, h, w] bool, the patches taken out of the images before it.
    """

    logits: Tensor
    tokens: Tensor
    dropped: Tensor

    @property
    def kept(self) -> Tensor:
        """`tokens`, with nothing where a patch was taken out."""
        return self.tokens.masked_fill(self.dropped[:, None], 0)


@dataclass(frozen=True)
class PnpOvss:
    """PnP-OVSS on any image-text matcher with cross-attention.

    Attributes:
        variant: see above.
        layer, head: of the cross-attention, from 0 (Table 2, from 1: BLIP 8, 10); no head: the
            mean over all (Table 6).
        gradcam: weight attention by its gradient (Eq. 1); without, attention alone (Table 5).
        objective: whose gradient: the match "logit" (code), or "ce", the loss (section 3.1).
        rounds: of Salience DropOut (section 3.2), each another pass through the network.
        drop: patches taken out in each round (section 3.2).
        fill: what is put in their place, in the network's pixel values: 0 is the mean colour if the
            images are normalised.
        joined_names: write "pottedplant", without blanks and hyphens (code).
        select_by: take the sum over all "tokens" to choose patches (code), or over "classes".
        aggregate: "sum" of the passes' maps (section 3.2), or "official", the first one twice.
        merge: a name's map is the "mean" of its pieces' (section 3), or "official", which leaves
            the sum to the last name.
        batch_quirk: captions shorter than the batch's longest choose patches by their [SEP] too, as
            in the authors' code; results then depend on the batch.
        threshold: of the maps stretched to [0, 1] (Table 2).
        rescale: stretch several classes' maps to [0, 1] (the authors' code, on COCO only).
        background: "voc", a map of its own where all classes are 0; "psc", only beside fewer than
            three classes; None, never. The paper does not say.
        blur: standard deviation relative to the longer side (Table 2), or None.
        crf: the dense CRF (section 3.3), or None.
        nan_quirk: an empty map, of a class or of the background, becomes NaN and the whole image
            one label, as in the authors' code.
        relabel_quirk: see `pnp_maps.relabel`.
        size: side in pixels of the square that images are squashed to (Table 3).
        normalize, resample: of the images; the authors' code resizes ADE20K's bilinearly and leaves
            their pixels in [0, 1].
        batch: images in the network at once.
    """

    backbone: ItmBackbone
    variant: Literal["official", "paper"] = "official"
    layer: int = 7
    head: int | None = 9
    gradcam: bool = True
    objective: Literal["logit", "ce"] | None = None
    rounds: int = 3
    drop: int = 10
    fill: float = 0.0
    joined_names: bool | None = None
    select_by: Literal["tokens", "classes"] | None = None
    aggregate: Literal["sum", "official"] | None = None
    merge: Literal["mean", "official"] | None = None
    batch_quirk: bool = False
    threshold: float = 0.15
    rescale: bool = False
    background: Background | None = "voc"
    blur: float | None = 0.05
    crf: DenseCrf | None = field(default_factory=DenseCrf)
    nan_quirk: bool = False
    relabel_quirk: bool = False
    size: int = 336
    normalize: bool = True
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    batch: int = 8
    name: str = field(default="pnp-ovss", kw_only=True)

    def __post_init__(self) -> None:
        for option, known in KNOWN.items():
            if getattr(self, option) not in known:
                raise UnknownNameError.of(option, getattr(self, option), map(str, known))
        for option, fewest in FEWEST.items():
            if getattr(self, option) < fewest:
                raise OvssError(f"{option} must be {fewest} or more: {getattr(self, option)}")
        if not isinstance(self.crf, DenseCrf | None):
            raise OvssError(f"crf must be a DenseCrf or None: {self.crf!r}")
        if not 0 <= self.layer < self.backbone.layers:
            raise OvssError(f"layer must be 0 to {self.backbone.layers - 1}: {self.layer}")
        if self.head is not None and not 0 <= self.head < self.backbone.heads:
            raise OvssError(f"head must be 0 to {self.backbone.heads - 1}, or None: {self.head}")
        self.backbone.patch_grid(self.size)
        if self.blur is not None:
            Blur(self.blur)

    def chosen(self, option: str) -> Any:
        """The value of an option: the given one, or the variant's."""
        given = getattr(self, option)
        return VARIANTS[self.variant].get(option) if given is None else given

    @property
    def refiners(self) -> tuple[Refiner, ...]:
        """Section 3.3 from the threshold on; `Segmenter` applies them to `score`."""
        steps: list[Refiner] = [ToPixels(self.background, self.rescale, self.nan_quirk)]
        if self.blur is not None:
            steps.append(Blur(self.blur, self.nan_quirk))
        if self.crf is not None:
            steps.append(self.crf)
        return tuple(steps)

    def score(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> list[Tensor]:
        """RGB images -> maps [K, h, w] on the patch grid, not negative, cut at the threshold."""
        return self.score_each(images, [vocabulary] * len(images))

    def score_each(
        self, images: Sequence[Image.Image], vocabularies: Sequence[Vocabulary]
    ) -> list[Tensor]:
        """As `score`, with words of its own for each image."""
        maps = self.class_maps(images, vocabularies)
        return [pnp_maps.cut(one, self.threshold) for one in maps]

    @torch.no_grad()
    def class_maps(
        self, images: Sequence[Image.Image], vocabularies: Sequence[Vocabulary]
    ) -> list[Tensor]:
        """The sum of all passes' maps [K, h, w] of each image, before the threshold.

        A class's displayed name goes into the caption; synonyms and background words do not.
        """
        maps: list[Tensor] = []
        for start in range(0, len(images), self.batch):
            part = slice(start, start + self.batch)
            prompts = [self.prompt(words) for words in vocabularies[part]]
            seen = list(self.passes(self.pixels(images[part]), prompts))
            maps += self.classes([one.kept for one in seen], prompts)
        return maps

    def prompt(self, vocabulary: Vocabulary) -> Prompt:
        """The caption that names all classes."""
        return self.backbone.prompt(vocabulary.names, joined=self.chosen("joined_names"))

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The network's input [B, 3, size, size]."""
        resample = Image.Resampling[self.resample.upper()]
        return self.backbone.pixels(images, self.size, normalize=self.normalize, resample=resample)

    @torch.no_grad()
    def passes(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Iterator[Pass]:
        """Salience DropOut (Eq. 2-5): the first look, then one after each round."""
        side = self.backbone.patch_grid(pixels.shape[-1])
        pixels = pixels.to(self.backbone.device)
        dropped = torch.zeros(len(pixels), side, side, dtype=torch.bool, device=pixels.device)
        for left in reversed(range(self.rounds + 1)):
            seen = self.look(pixels, prompts, dropped)
            yield seen
            if left:
                agnostic = self.salience(seen, prompts)
                dropped = dropped | pnp_maps.select(agnostic, dropped, self.drop)

    def relabel(self, labels: Tensor, classes: Sequence[int]) -> Tensor:
        """Labels of an image asked for some `classes` of a data set -> the data set's labels.

        BACKGROUND stays; with `relabel_quirk` some pixels get another class.
        """
        background = pnp_maps.has_background(len(classes), self.background)
        numbers = [place + 1 for place in classes]
        return pnp_maps.relabel(labels, numbers, background, self.relabel_quirk) + BACKGROUND

    @torch.no_grad()
    def look(self, pixels: Tensor, prompts: Sequence[Prompt], dropped: Tensor) -> Pass:
        """Eq. 1 on images [B, 3, S, S] without the dropped patches [B, h, w]."""
        patch, layer = self.backbone.patch, self.layer
        hidden = dropped.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]
        found = self.backbone.match(
            pixels.masked_fill(hidden, self.fill),
            prompts,
            (layer,),
            gradient=self.gradcam,
            objective=self.chosen("objective"),
        )
        tokens = pnp_maps.gradcam(found.attention[layer], found.gradient.get(layer), self.head)
        tokens = tokens.masked_fill(~found.mask[:, :, None, None], 0)
        return Pass(found.logits, tokens, dropped)

    def salience(self, seen: Pass, prompts: Sequence[Prompt]) -> Tensor:
        """Section 3.2: the class-agnostic maps [B, h, w] whose highest patches go next."""
        longest = max(len(prompt.ids) for prompt in prompts)
        maps = []
        for tokens, prompt in zip(seen.kept, prompts, strict=True):
            words = list(prompt.words)
            if self.batch_quirk and len(prompt.ids) < longest:
                words.append((len(prompt.ids) - 1,))
            maps.append(pnp_maps.salience(tokens, words, self.chosen("select_by")))
        return torch.stack(maps)

    def classes(self, passes: Sequence[Tensor], prompts: Sequence[Prompt]) -> list[Tensor]:
        """All passes' maps of tokens [B, T, h, w] -> the classes' maps [K, h, w] of each image."""
        total = pnp_maps.aggregate(torch.stack(list(passes)), self.chosen("aggregate"))
        rule = self.chosen("merge")
        pairs = zip(total, prompts, strict=True)
        return [pnp_maps.merge(tokens, prompt.words, rule) for tokens, prompt in pairs]


@dataclass(frozen=True)
class ToPixels:
    """A refiner: maps of classes at the image's size, and the background's before them.

    Attributes:
        background, rescale, nan_quirk: see `PnpOvss`.
    """

    background: Background | None = "voc"
    rescale: bool = False
    nan_quirk: bool = False

    def __call__(self, scores: Sequence[Tensor], images: Sequence[Image.Image]) -> list[Tensor]:
        """Maps [K, h, w] of RGB images -> [K, H, W] or, with the background, [1+K, H, W]."""
        sizes = [(image.height, image.width) for image in images]
        return [self.placed(*pair) for pair in zip(scores, sizes, strict=True)]

    def placed(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """One image's maps [K, h, w] at `size` = (H, W)."""
        large = pnp_maps.enlarge(maps, size)
        if self.rescale and len(large) > 1:
            large = stretch(large, self.nan_quirk)
        return pnp_maps.with_background(large, self.background)
