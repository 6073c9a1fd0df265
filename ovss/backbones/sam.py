"""Segment Anything (Kirillov et al. 2023): masks from points, and all masks of an image.

The model is transformers' own. An image is embedded once; any number of prompts is decoded from the
embedding. How logits become masks, and how a grid of points becomes the masks of an image, follows
the authors' `SamPredictor` and `SamAutomaticMaskGenerator`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import OvssError
from ..images import to_pixels
from ..options import IMAGES, check_fields

FOREGROUND, BACKGROUND = 1, 0  # labels of points


class Embedded(NamedTuple):
    """An image as the mask decoder reads it.

    Attributes:
        features: [1, C, h, w].
        size: (height, width) of the image.
        resized: (height, width) of the part of the padded input that is the image.
    """

    features: Tensor
    size: tuple[int, int]
    resized: tuple[int, int]


class Prediction(NamedTuple):
    """What the decoder says to each of P prompts: M masks, and how good it holds each one.

    Attributes:
        logits: [P, M, H, W], positive inside, at the image's size.
        iou: [P, M], the predicted intersection over union.
    """

    logits: Tensor
    iou: Tensor

    def best(self) -> tuple[Tensor, Tensor]:
        """Take the mask of highest predicted IoU: masks [P, H, W] booleans, its IoU [P]."""
        iou, index = self.iou.max(1)
        return self.logits[torch.arange(len(index)), index] > 0, iou


class Masks(NamedTuple):
    """The masks of an image, the surest first.

    Attributes:
        masks: [N, H, W] booleans.
        iou: [N], predicted.
        stability: [N], see `stability_score`.
        boxes: [N, 4], left, top, right, bottom in pixels, all inside the mask.
        points: [N, 2], the (x, y) that each one was asked at.
    """

    masks: Tensor
    iou: Tensor
    stability: Tensor
    boxes: Tensor
    points: Tensor


@dataclass(frozen=True)
class AutomaticMasks:
    """How all masks of an image are found; the defaults are the authors' for SAM ViT-H.

    Attributes:
        points_per_side: of the grid of prompts.
        batch: prompts decoded at a time.
        predicted_iou: masks need more than this.
        stability: masks need at least this stability score.
        stability_offset: by which the logits' threshold is moved for that score.
        box_nms: of two masks whose boxes have a larger IoU the less sure one is dropped.
        smallest, largest: share of the image that a mask may cover.
    """

    points_per_side: int = 32
    batch: int = 64
    predicted_iou: float = 0.88
    stability: float = 0.95
    stability_offset: float = 1.0
    box_nms: float = 0.7
    smallest: float = 0.0
    largest: float = 1.0

    def __post_init__(self) -> None:
        anything = (-math.inf, math.inf)
        check_fields(
            self,
            points_per_side=(1, 1 << 10),
            batch=IMAGES,
            predicted_iou=anything,
            stability=anything,
            stability_offset=(0.0, math.inf),
            box_nms=anything,
        )
        if not 0 <= self.smallest <= self.largest <= 1:
            raise OvssError(
                f"0 <= smallest <= largest <= 1 must hold, got {self.smallest}, {self.largest}"
            )


@dataclass(eq=False)
class SamBackbone:
    """A promptable segmentation model.

    Attributes:
        model: transformers' `SamModel`.
        mean, std: of the pixels, per channel.
        name, checkpoint: what it is; name and first 12 hex digits of the weights' SHA-256.
        settings: hash of the configuration files, see `loading.settings_of`.
    """

    model: Any = field(repr=False)
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
    ) -> SamBackbone:
        """Load a lab zoo name, a SAM of `registry.CHECKPOINTS`, or a folder.

        Raises:
            CheckpointError, UnknownNameError: see `sam_loading.load_sam`.
            OvssError: there is no such device here.
        """
        from .loading import load_onto
        from .sam_loading import load_sam  # transformers takes seconds to import

        return cls(**load_onto(load_sam, source, device, dtype))

    @property
    def size(self) -> int:
        """Give the side of the padded input in pixels."""
        return int(self.model.config.vision_config.image_size)

    def preprocess(self, image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """Scale an RGB image's longest side to `size`, normalise and pad it: [3, S, S].

        Returns:
            The pixels on the CPU, and (height, width) of the image within them.
        """
        scale = self.size / max(image.size)
        width, height = (int(side * scale + 0.5) for side in image.size)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        pixels = to_pixels(resized, self.mean, self.std)  # [3, h, w]
        padded = F.pad(pixels, (0, self.size - width, 0, self.size - height))
        return padded, (height, width)

    @torch.no_grad()
    def embed(self, image: Image.Image) -> Embedded:
        """Encode an image once, for any number of prompts."""
        pixels, resized = self.preprocess(image)
        pixels = pixels[None].to(self.device, self.dtype)  # [1, 3, S, S]
        features = self.model.vision_encoder(pixels).last_hidden_state  # [1, C, h, w]
        return Embedded(features, (image.height, image.width), resized)

    def predict(
        self,
        image: Embedded | Image.Image,
        points: Tensor,
        labels: Tensor | None = None,
        *,
        single: bool = False,
    ) -> Prediction:
        """Decode P prompts of N points each.

        Args:
            points: [P, N, 2], (x, y) in pixels of the image.
            labels: [P, N], FOREGROUND or BACKGROUND; None: all foreground.
            single: one mask for each prompt instead of three (part, whole, and what is around it),
                for prompts that are not ambiguous.

        Raises:
            OvssError: the points have another shape, or lie outside the image.
        """
        embedded = image if isinstance(image, Embedded) else self.embed(image)
        points, labels = _checked(points, labels, embedded.size)
        low, iou = self._decode(embedded, points, labels, single)
        return Prediction(self._upscale(low, embedded), iou)

    @torch.no_grad()
    def automatic(
        self, image: Embedded | Image.Image, options: AutomaticMasks | None = None
    ) -> Masks:
        """Find all masks of an image from a grid of points.

        Three masks of each point; those that the model holds good and that are stable stay, of near
        duplicates the surest. Follows `SamAutomaticMaskGenerator` without crops and without its
        removal of small regions, which the authors leave off.
        """
        options = options or AutomaticMasks()
        embedded = image if isinstance(image, Embedded) else self.embed(image)
        grid = point_grid(options.points_per_side, embedded.size)  # [P, 2]
        found = [self._good(embedded, part, options) for part in grid.split(options.batch)]
        masks = Masks(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        from torchvision.ops import nms

        keep = nms(masks.boxes.float(), masks.iou.float(), options.box_nms)
        return Masks(*(part[keep] for part in masks))

    def _good(self, embedded: Embedded, points: Tensor, options: AutomaticMasks) -> Masks:
        """The masks of points [P, 2] that pass the filters."""
        prompts = points[:, None].to(self.device, torch.float32)
        labels = torch.ones(prompts.shape[:2], device=self.device, dtype=torch.long)
        low, iou = (part.flatten(0, 1) for part in self._decode(embedded, prompts, labels, False))
        asked = points.repeat_interleave(len(iou) // len(points), 0)
        sure = iou > options.predicted_iou
        low, iou, asked = low[sure], iou[sure], asked[sure.cpu()]
        logits = self._upscale(low[:, None], embedded)[:, 0]  # [N, H, W]
        stability = stability_score(logits, options.stability_offset)
        masks = logits > 0
        share = masks.float().mean((1, 2))
        keep = stability >= options.stability
        keep &= (share >= options.smallest) & (share <= options.largest)
        boxes = mask_boxes(masks[keep])
        return Masks(masks[keep], iou[keep], stability[keep], boxes, asked[keep.cpu()])

    @torch.no_grad()
    def _decode(
        self, embedded: Embedded, points: Tensor, labels: Tensor, single: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits at a quarter of the input's side [P, M, s, s], and predicted IoU [P, M]."""
        (height, width), (rows, columns) = embedded.size, embedded.resized
        scale = torch.tensor([columns / width, rows / height])
        found = self.model(
            image_embeddings=embedded.features,
            input_points=(points.cpu() * scale)[None].to(self.device, torch.float32),
            input_labels=labels[None].to(self.device),
            multimask_output=not single,
        )
        return found.pred_masks[0].float(), found.iou_scores[0].float()

    def _upscale(self, low: Tensor, embedded: Embedded) -> Tensor:
        """Logits [P, M, s, s] at the image's size [P, M, H, W]; the padding is cut off."""
        rows, columns = embedded.resized
        large = F.interpolate(low, (self.size, self.size), mode="bilinear", align_corners=False)
        return F.interpolate(
            large[..., :rows, :columns], embedded.size, mode="bilinear", align_corners=False
        )


def stability_score(logits: Tensor, offset: float = 1.0) -> Tensor:
    """Compare the masks at two thresholds, the logits' zero plus and minus `offset`: IoU [...].

    Of logits [..., H, W]; nan where the larger mask is empty.
    """
    inner, outer = ((logits > bound).sum((-1, -2)) for bound in (offset, -offset))
    return inner / outer


def mask_boxes(masks: Tensor) -> Tensor:
    """Find the first and last columns and rows of masks [N, H, W]: [N, 4] left, top, right, bottom.

    The box of an empty mask is all zeros.
    """
    spans = []
    for seen in (masks.any(1), masks.any(2)):  # [N, W], [N, H]
        count = seen.shape[1]
        first = seen.float().argmax(1)
        last = count - 1 - seen.flip(1).float().argmax(1)
        empty = ~seen.any(1)
        spans.append((first.masked_fill(empty, 0), last.masked_fill(empty, 0)))
    (left, right), (top, bottom) = spans
    return torch.stack([left, top, right, bottom], 1)


def point_grid(per_side: int, size: tuple[int, int]) -> Tensor:
    """Spread points evenly over an image of `size` (height, width), row by row: [n * n, 2]."""
    middle = (torch.arange(per_side, dtype=torch.float64) + 0.5) / per_side
    y, x = torch.meshgrid(middle * size[0], middle * size[1], indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1).float()


def _checked(points: Tensor, labels: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Points and labels of a prompt, refused where they cannot be meant."""
    if points.ndim != 3 or points.shape[-1] != 2 or not points.numel():
        raise OvssError(f"points must be [prompts, points, 2], got {list(points.shape)}")
    if labels is None:
        labels = torch.full(points.shape[:2], FOREGROUND)
    if labels.shape != points.shape[:2]:
        raise OvssError(f"labels must be {list(points.shape[:2])}, got {list(labels.shape)}")
    if not bool(((labels == FOREGROUND) | (labels == BACKGROUND)).all()):
        raise OvssError("labels must be 1 (foreground) or 0 (background)")
    limit = torch.tensor([size[1], size[0]])
    inside = (points.cpu() >= 0) & (points.cpu() <= limit)
    if not bool(inside.all()):  # NaN is nowhere
        raise OvssError(f"points must lie in the image of {size[1]} x {size[0]} pixels")
    return points.float(), labels.long()
