"""PnP-OVSS: Luo et al., "Emergent Open-Vocabulary Semantic Segmentation from Off-the-shelf
Vision-Language Models" (CVPR 2024, arXiv 2311.17095). A network that tells whether a caption fits
an image has to attend to where the words are.

    section 3    "A picture of [class 1] ... [class K]", the classes that are in the image
    Eq. 1        attention of one cross-attention head times its gradient's positive part
    Eq. 2-5      Salience DropOut: drop the 10 most salient patches and pass again, three times
    section 3.3  the sum of the maps, thresholded, blurred, and a dense CRF

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
from ..options import IMAGES, SHORT_SIDE, check_fields
from ..refine.blur import Blur, minmax_normalise
from ..refine.crf import DenseCrf
from ..segmenter import Method, Refiner
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


@dataclass(frozen=True)
class Quirks:
    """Switch on accidents of the authors' code; each is off unless parity is asked for.

    Attributes:
        nan: an empty map, of a class or of the background, becomes NaN and the whole image one
            label.
        relabel: labels become a data set's numbers in place, see `pnp_maps.relabel`.
        batch: captions shorter than the batch's longest select patches by their [SEP] too;
            results then depend on the batch.
    """

    nan: bool = False
    relabel: bool = False
    batch: bool = False


@dataclass(frozen=True)
class Pass:
    """Hold what one forward and backward pass of Salience DropOut over B images gives.

    Attributes:
        logits: [B, 2]: no match, match.
        tokens: Eq. 1 for all T tokens [B, T, h, w], zero at a shorter caption's padding.
        dropped: [B, h, w] bool, the patches dropped from the images before it.
    """

    logits: Tensor
    tokens: Tensor
    dropped: Tensor

    @property
    def kept(self) -> Tensor:
        """Zero `tokens` [B, T, h, w] at the dropped patches."""
        return self.tokens.masked_fill(self.dropped[:, None], 0)


@dataclass(frozen=True)
class PnpOvss(Method):
    """Segment by PnP-OVSS with any image-text matching network that has cross-attention.

    Attributes:
        variant: see above.
        layer, head: of the cross-attention, from 0 (Table 2, from 1: BLIP 8, 10); no head: the
            mean over all (Table 6).
        gradcam: weight attention by its gradient (Eq. 1); without, attention alone (Table 5).
        objective: whose gradient: the match "logit" (code), or "ce", the loss (section 3.1).
        rounds: of Salience DropOut (section 3.2), each another pass through the network.
        drop: patches dropped in each round (section 3.2).
        fill: what is put in their place, in the network's pixel values: 0 is the mean colour if the
            images are normalised.
        joined_names: write "pottedplant", without blanks and hyphens (code).
        select_by: sum the saliency over all "tokens" (code), or over "classes".
        aggregate: "sum" of the passes' maps (section 3.2), or "official", the first one twice.
        merge: a name's map is the "mean" of its pieces' (section 3), or "official", which leaves
            the sum to the last name.
        threshold: of the maps, min-max normalised (Table 2).
        rescale: min-max normalise several classes' maps (the authors' code, on COCO only).
        background: "voc", a map of its own where all classes are 0; "psc", only beside fewer than
            three classes; None, never. The paper does not say.
        blur: standard deviation relative to the longer side (Table 2), or None.
        crf: the dense CRF (section 3.3), or None.
        quirks: the accidents of the authors' code.
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
    threshold: float = 0.15
    rescale: bool = False
    background: Background | None = "voc"
    blur: float | None = 0.05
    crf: DenseCrf | None = field(default_factory=DenseCrf)
    quirks: Quirks = field(default_factory=Quirks)
    size: int = 336
    normalize: bool = True
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    batch: int = 8
    name: str = field(default="pnp-ovss", kw_only=True)

    def __post_init__(self) -> None:
        for option, known in KNOWN.items():
            if getattr(self, option) not in known:
                raise UnknownNameError.of(option, getattr(self, option), map(str, known))
        check_fields(
            self,
            layer=(0, self.backbone.layers - 1),
            head=(0, self.backbone.heads - 1),
            rounds=(0, 1000),
            drop=(1, SHORT_SIDE[1] ** 2),
            fill=(-1e6, 1e6),
            threshold=(0.0, 1.0),
            size=SHORT_SIDE,
            batch=IMAGES,
        )
        check_fields(self.quirks)
        if not isinstance(self.crf, DenseCrf | None):
            raise OvssError(f"crf must be a DenseCrf or None: {self.crf!r}")
        self.backbone.patch_grid(self.size)
        if self.blur is not None:
            Blur(self.blur)

    def chosen(self, option: str) -> Any:
        """Return an option's value: the given one, or the variant's."""
        given = getattr(self, option)
        return VARIANTS[self.variant].get(option) if given is None else given

    @property
    def depends_on_batch(self) -> bool:
        """Whether an image's maps depend on the captions beside it."""
        return self.quirks.batch

    @property
    def speed_options(self) -> tuple[str, ...]:
        """`batch`, unless results depend on it."""
        return () if self.depends_on_batch else ("batch",)

    @property
    def predicts_background(self) -> bool:
        """Whether the background has a map, "psc" beside few classes alone."""
        return self.background is not None

    @property
    def may_be_nan(self) -> bool:
        """Whether the authors' NaN is wanted."""
        return self.quirks.nan

    @property
    def refiners(self) -> tuple[Refiner, ...]:
        """List what follows the threshold (section 3.3); `Segmenter` applies it to `score`."""
        steps: list[Refiner] = [ToPixels(self.background, self.rescale, self.quirks.nan)]
        if self.blur is not None:
            steps.append(Blur(self.blur, self.quirks.nan))
        if self.crf is not None:
            steps.append(self.crf)
        return tuple(steps)

    def image_scores(self, coarse: Tensor, refined: Tensor) -> Tensor:
        """The maxima [K] of the last step's maps; an image that became NaN shows no class."""
        return refined.amax((1, 2)).nan_to_num(nan=0.0)

    def score(self, images: Sequence[Image.Image], vocabulary: Vocabulary) -> list[Tensor]:
        """Score B RGB images: thresholded maps [K, h, w] on the patch grid, not negative."""
        return self.score_each(images, [vocabulary] * len(images))

    def score_each(
        self, images: Sequence[Image.Image], vocabularies: Sequence[Vocabulary]
    ) -> list[Tensor]:
        """Score images as `score` does, each with a vocabulary of its own."""
        maps = self.class_maps(images, vocabularies)
        return [pnp_maps.threshold(of_image, self.threshold) for of_image in maps]

    @torch.no_grad()
    def class_maps(
        self, images: Sequence[Image.Image], vocabularies: Sequence[Vocabulary]
    ) -> list[Tensor]:
        """Sum all passes' maps into class maps [K, h, w] of each image, before the threshold.

        A class's displayed name goes into the caption; synonyms and background words do not.
        """
        maps: list[Tensor] = []
        for start in range(0, len(images), self.batch):
            part = slice(start, start + self.batch)
            prompts = [self.prompt(words) for words in vocabularies[part]]
            pixels = self.pixels(images[part])  # [B, 3, S, S]
            kept = [current.kept for current in self.passes(pixels, prompts)]  # [B, T, h, w] each
            maps += self.sum_passes(kept, prompts)
        return maps

    def prompt(self, vocabulary: Vocabulary) -> Prompt:
        """Write and tokenise the caption that names all classes (section 3)."""
        return self.backbone.prompt(vocabulary.names, joined=self.chosen("joined_names"))

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Resize RGB images to the network's input [B, 3, size, size]."""
        resample = Image.Resampling[self.resample.upper()]
        return self.backbone.pixels(images, self.size, normalize=self.normalize, resample=resample)

    @torch.no_grad()
    def passes(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Iterator[Pass]:
        """Run Salience DropOut (Eq. 2-5) on [B, 3, S, S]: a first pass, then one a round."""
        side = self.backbone.patch_grid(pixels.shape[-1])
        pixels = pixels.to(self.backbone.device)
        dropped = torch.zeros(len(pixels), side, side, dtype=torch.bool, device=pixels.device)
        for round_number in range(self.rounds + 1):
            current = self.one_pass(pixels, prompts, dropped)
            yield current
            if round_number < self.rounds:
                saliency = self.saliency(current, prompts)  # [B, h, w]
                dropped = dropped | pnp_maps.select(saliency, dropped, self.drop)

    @torch.no_grad()
    def one_pass(self, pixels: Tensor, prompts: Sequence[Prompt], dropped: Tensor) -> Pass:
        """Compute Eq. 1 on images [B, 3, S, S] whose `dropped` patches [B, h, w] are filled."""
        patch, layer = self.backbone.patch, self.layer
        filled = dropped.repeat_interleave(patch, 1).repeat_interleave(patch, 2)  # [B, S, S]
        matching = self.backbone.match(
            pixels.masked_fill(filled[:, None], self.fill),
            prompts,
            (layer,),
            gradient=self.gradcam,
            objective=self.chosen("objective"),
        )
        attention, gradient = matching.attention[layer], matching.gradient.get(layer)
        tokens = pnp_maps.gradcam(attention, gradient, self.head)  # [B, T, h, w]
        tokens = tokens.masked_fill(~matching.mask[:, :, None, None], 0)
        return Pass(matching.logits, tokens, dropped)

    def saliency(self, current: Pass, prompts: Sequence[Prompt]) -> Tensor:
        """Compute the class-agnostic saliency [B, h, w] whose highest patches go next (3.2)."""
        longest = max(len(prompt.ids) for prompt in prompts)
        maps = []
        for tokens, prompt in zip(current.kept, prompts, strict=True):  # [T, h, w]
            words = list(prompt.words)
            if self.quirks.batch and len(prompt.ids) < longest:
                words.append((len(prompt.ids) - 1,))  # the closing [SEP]
            maps.append(pnp_maps.saliency(tokens, words, self.chosen("select_by")))
        return torch.stack(maps)

    def sum_passes(self, passes: Sequence[Tensor], prompts: Sequence[Prompt]) -> list[Tensor]:
        """Sum the passes' token maps [B, T, h, w] and merge them into [K, h, w] of each image."""
        total = pnp_maps.aggregate(torch.stack(list(passes)), self.chosen("aggregate"))
        rule = self.chosen("merge")
        pairs = zip(total, prompts, strict=True)
        return [pnp_maps.merge(tokens, prompt.words, rule) for tokens, prompt in pairs]

    def relabel(self, labels: Tensor, classes: Sequence[int]) -> Tensor:
        """Map labels [H, W] of an image asked for some `classes` to the data set's labels.

        BACKGROUND stays; with `quirks.relabel` some pixels get another class.
        """
        background = pnp_maps.has_background(len(classes), self.background)
        numbers = [place + 1 for place in classes]
        return pnp_maps.relabel(labels, numbers, background, self.quirks.relabel) + BACKGROUND


@dataclass(frozen=True)
class ToPixels:
    """Upsample class maps to the image and put the background's map before them: a refiner.

    Attributes:
        background, rescale: see `PnpOvss`.
        nan_quirk: see `Quirks.nan`.
    """

    background: Background | None = "voc"
    rescale: bool = False
    nan_quirk: bool = False

    def __call__(self, scores: Sequence[Tensor], images: Sequence[Image.Image]) -> list[Tensor]:
        """Upsample maps [K, h, w] of RGB images to [K, H, W], with a background [1+K, H, W]."""
        placed = []
        for maps, image in zip(scores, images, strict=True):
            large = pnp_maps.upsample(maps, (image.height, image.width))  # [K, H, W]
            if self.rescale and len(large) > 1:
                large = minmax_normalise(large, self.nan_quirk)
            placed.append(pnp_maps.with_background(large, self.background))
        return placed
