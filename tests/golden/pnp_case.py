"""A golden case of PnP-OVSS, from the images to the metric: what `check.py` compares of it.

The network's own arrays (logits, attention, gradients, GradCAM of a pass) are not compared here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from itm import Case
from outcome import Outcome, Skipped
from pnp_numbers import SIZES, class_numbers, count, metrics_of

from ovss import Segmenter, Vocabulary
from ovss.errors import OvssError
from ovss.evaluation import metrics
from ovss.methods import pnp_maps
from ovss.methods.pnp_configs import CONFIGS
from ovss.methods.pnp_ovss import Pass, PnpOvss, Quirks
from ovss.refine.crf import DenseCrf
from ovss.segmenter import Method

Array = np.ndarray[Any, Any]
DATASETS = {
    "voc": "voc21",
    "psc": "context60",
    "ade20k": "ade150",
    "coco_object": "coco-object",
    "coco_stuff": "coco-stuff",
}
OFFICIAL = {"layer": 7, "head": 9, "quirks": Quirks(nan=True, relabel=True, batch=True)}
TOLERANCES = {"post_in": (0, 1e-5), "blurred": (0, 1e-5), "metrics": (0, 1e-6)}
TOLERANCES = {**TOLERANCES, "post_in_first": (0, 1e-5), "class_iou": (0, 1e-6), "gt": (0, 0)}
CLEAR = 1e-7  # between the last value that is chosen and the next
EQUAL = 0.995  # share of equal pixels
EQUAL_FIRST = 0.98  # of label_first|None, whose maps are nearly proportional
REASONS = {"select_margin": "how clear the choice of patches was"}


@dataclass(frozen=True)
class Known(Method):
    """A method whose maps are known: the refiners of another one, and what they refine."""

    steps: tuple[Any, ...]
    maps: tuple[torch.Tensor, ...]
    name: str = "known"

    may_be_nan = True

    @property
    def refiners(self) -> tuple[Any, ...]:
        """Those of the other method."""
        return self.steps

    def score_each(self, images: Any, vocabularies: Any) -> list[torch.Tensor]:
        """One [K, h, w] per image."""
        return list(self.maps)

    def score(self, images: Any, vocabulary: Any) -> list[torch.Tensor]:
        """The same."""
        return list(self.maps)


class Run:
    """What was recorded under one tag, a batch of images, and ovss's method for it."""

    def __init__(self, case: Case, tag: str) -> None:
        self.backbone, self.config, self.inputs = case.backbone, case.config, case.inputs
        parts = ((case.split(name), values) for name, values in case.golden.items())
        self.golden = {rest: values for (own, rest), values in parts if own == tag}
        *prefix, images = tag.split("|")
        self.data = prefix[0] if prefix else case.config["data_type"]
        self.places = [int(name) for name in images.replace("img", "").split("+")]
        meta = case.meta[tag]
        self.words = [Vocabulary(tuple((name,) for name in names)) for names in meta["classes"]]
        self.numbers = [class_numbers(self.data, found) for found in meta["best_class_idx"]]
        self.images = case.images(tag)
        self.arbitrary: set[str] = set()  # choices of patches among equal ones

    def method(self, drops: int, **changes: Any) -> PnpOvss:
        """The authors' settings with `drops` passes."""
        options = {**CONFIGS[DATASETS[self.data]], **OFFICIAL, "rounds": drops - 1, **changes}
        return PnpOvss(self.backbone, size=self.config["size"], **options)

    @cached_property
    def prompts(self) -> list[Any]:
        """The captions."""
        return [self.method(1).prompt(words) for words in self.words]

    @cached_property
    def passes(self) -> list[Pass]:
        """All four passes; fewer rounds are the first of them."""
        method = self.method(4)
        pixels, passes = method.pixels(self.images), []
        dropped = torch.zeros(len(pixels), *[method.backbone.patch_grid(method.size)] * 2) > 0
        for step in range(4):
            seen = method.one_pass(pixels, self.prompts, dropped)
            passes.append(seen)
            saliency = method.saliency(seen, self.prompts)
            dropped = dropped | pnp_maps.select(saliency, dropped, method.drop)
            for place in range(len(pixels)):
                name = f"it{step + 1}|dropped|b{place}"
                if name in self.golden and not clear(saliency[place], method.drop):
                    self.arbitrary |= {f"it{step}|selected|b{place}"}
                    dropped[place] = patches(self.golden[name], dropped[place])
        return passes

    def tokens(self, drops: int, which: str) -> torch.Tensor:
        """GradCAM of all tokens [B, T, h, w]: of the "first" pass, or "agg" of all."""
        if which == "first":
            return self.passes[0].kept
        kept = torch.stack([one.kept for one in self.passes[:drops]])
        return pnp_maps.aggregate(kept, "official")

    def class_maps(self, drops: int, which: str, image: int) -> torch.Tensor:
        """The classes' maps [K, h, w] of one image."""
        tokens = self.tokens(drops, self.source(drops, which))
        return pnp_maps.merge(tokens[image], self.prompts[image].words, "official")

    def source(self, drops: int, which: str) -> str:
        """The tokens' maps behind those of the classes.

        The script for COCO also gives the sum of all passes to what it calls the first drop.
        """
        name = f"drop{drops}|class_maps_first|b0"
        if which == "agg" or drops == 1 or not self.data.startswith("coco"):
            return which
        if name not in self.golden:
            return "agg"
        tokens = {key: self.tokens(drops, key)[0] for key in ("first", "agg")}
        maps = {
            key: pnp_maps.merge(t, self.prompts[0].words, "official") for key, t in tokens.items()
        }
        error = {
            key: np.abs(found.numpy() - self.golden[name]).max() for key, found in maps.items()
        }
        return min(error, key=error.__getitem__)

    def segmenter(self, drops: int, first: bool, post: str) -> Segmenter:
        """From the classes' maps on; `post` is "blur+crf", "blur", "crf" or "None"."""
        options: dict[str, Any] = {"rescale": True} if first else {}
        blur, crf = 0.05 if "blur" in post else None, DenseCrf(workers=1) if "crf" in post else None
        method = self.method(drops, blur=blur, crf=crf, **options)
        which = "first" if first else "agg"
        found = (self.class_maps(drops, which, place) for place in range(len(self.images)))
        kept = tuple(pnp_maps.threshold(maps, method.threshold) for maps in found)
        return Segmenter(Known(method.refiners, kept))

    @cache  # noqa: B019 - a run lives as long as the check
    def labels(self, drops: int, first: bool, post: str) -> list[Array]:
        """The data set's numbers [H, W] of each image, 0 for the background."""
        found = self.segmenter(drops, first, post)(self.images, self.words)
        return [
            pnp_maps.relabel(one.labels, numbers, self.has_background(numbers), True).numpy()
            for one, numbers in zip(found, self.numbers, strict=True)
        ]

    def has_background(self, numbers: Sequence[int]) -> bool:
        """Whether the background has a map of its own."""
        rule: Any = CONFIGS[DATASETS[self.data]]["background"]
        return pnp_maps.has_background(len(numbers), rule)

    def refined(self, steps: int, first: bool, image: int) -> Array:
        """Maps [C, H, W] after some of the refiners."""
        segmenter = self.segmenter(4, first, "blur")
        maps = segmenter.method.score([], self.words[0])
        for refine in segmenter.method.refiners[:steps]:
            maps = refine(maps, self.images)
        return maps[image].numpy()

    def truth(self, image: int) -> Array | None:
        """The labels that `scores` gets: the border of VOC is background; None for polygons."""
        place, name = self.places[image], "gt_stuff_png" if self.data == "coco_stuff" else "gt_png"
        if self.data == "coco_object" or f"img{place}|{name}" not in self.inputs:
            return None
        truth = self.inputs[f"img{place}|{name}"].astype(np.int64)
        if self.data == "coco_stuff":
            return np.where(truth == 255, 0, truth + 1)
        return np.where(truth == 255, 0, truth) if self.data == "voc" else truth

    def counts(self, drops: int) -> Array:
        """The confusion matrix of the batch after blur and CRF."""
        truths = [self.golden[f"drop4|gt|b{place}"] for place in range(len(self.images))]
        return sum(
            count(truth, found, SIZES[self.data])
            for truth, found in zip(truths, self.labels(drops, drops == 1, "blur+crf"), strict=True)
        )


def compare(case: Case) -> Iterator[Outcome | Skipped]:
    """Every array of the case that `knows` accepts."""
    for tag in case.meta:
        run = Run(case, tag)
        for name, expected in run.golden.items():
            _, kind, *rest = (*name.split("|"), "")
            if kind in REASONS:
                yield Skipped(f"{tag}|{name}", REASONS[kind])
            elif kind == "selected" and run.passes and name in run.arbitrary:
                yield Skipped(f"{tag}|{name}", "arbitrary; the recorded choice is taken over")
            elif kind == "gt" and run.truth(int(rest[0][1:])) is None:
                yield Skipped(f"{tag}|{name}", "drawn from polygons; the metric reads it")
            elif kind in READERS:
                yield _judge(f"{tag}|{name}", kind, rest, _read(run, name), expected)


def knows(case: Case, name: str) -> bool:
    """Whether `compare` says something of it."""
    kind = (*case.split(name)[1].split("|"), "")[1]
    return kind in READERS or kind in REASONS


def _read(run: Run, name: str) -> Array | str:
    stage, kind, *rest = name.split("|")
    try:
        return READERS[kind](run, int(stage.removeprefix("drop").removeprefix("it")), rest)
    except OvssError as error:
        return str(error)


def _judge(title: str, kind: str, rest: list[str], found: Array | str, expected: Array) -> Outcome:
    if isinstance(found, str) or found.shape != expected.shape:
        said = found if isinstance(found, str) else f"shape {found.shape}"
        return Outcome(f"{title}: {said}", "error", float("inf"), False)
    if kind.startswith("label"):
        share = float((found == expected).mean())
        needed = EQUAL_FIRST if (kind, rest[0]) == ("label_first", "None") else EQUAL
        return Outcome(title, "equal", share, share >= needed)
    relative, absolute = TOLERANCES.get(kind, (1e-4, 1e-6))
    good = np.allclose(found, expected, relative, absolute, equal_nan=True)
    errors = np.abs(found.astype(np.float64) - expected)
    return Outcome(title, "error", float(np.nanmax(errors, initial=0.0)), good)


def selected(run: Run, step: int, rest: list[str]) -> Array:
    """`it{t}|selected|b` (10,): the patches taken out after pass t, as a set."""
    place = int(rest[0][1:])
    new = run.passes[step + 1].dropped[place] & ~run.passes[step].dropped[place]
    return _as_recorded(new, run.golden[f"it{step}|selected|b{place}"])


def dropped(run: Run, step: int, rest: list[str]) -> Array:
    """`it{t}|dropped|b`: the patches that are not in the image of pass t, as a set."""
    place = int(rest[0][1:])
    return _as_recorded(run.passes[step].dropped[place], run.golden[f"it{step}|dropped|b{place}"])


def clear(saliency: torch.Tensor, count: int) -> bool:
    """Whether the `count` highest values are apart from the rest; if not, any choice is as good."""
    ordered = saliency.flatten().sort(descending=True).values
    return bool(ordered[count - 1] - ordered[count] > CLEAR)


def patches(numbers: Array, like: torch.Tensor) -> torch.Tensor:
    """Patches' numbers -> bool [h, w]."""
    mask = torch.zeros(like.numel(), dtype=torch.bool)
    mask[torch.from_numpy(numbers)] = True
    return mask.view_as(like)


def _as_recorded(patches: torch.Tensor, recorded: Array) -> Array:
    """Their numbers; in the recorded order where they are the same set."""
    numbers = patches.flatten().nonzero()[:, 0].numpy()
    return recorded if set(numbers.tolist()) == set(recorded.tolist()) else numbers


def gradcam_of(which: str) -> Reader:
    """`drop{D}|gradcam_first` and `gradcam_agg` (B, T, G, G), without the first token."""
    return lambda run, drops, rest: run.tokens(drops, which)[:, 1:].numpy()


def class_maps_of(which: str) -> Reader:
    """`drop{D}|class_maps_first|b` and `class_maps_agg|b` (K, G, G)."""
    return lambda run, drops, rest: run.class_maps(drops, which, int(rest[0][1:])).numpy()


def refined_by(steps: int, first: bool) -> Reader:
    """`drop4|post_in|b`, `post_in_first|b` and `blurred|b` (C, H, W)."""
    return lambda run, drops, rest: run.refined(steps, first, int(rest[0][1:]))


def labels_of(first: bool) -> Reader:
    """`drop{D}|label|POST|b`, `label_first|POST|b` (H, W); one pass has only one kind."""
    return lambda run, drops, rest: run.labels(drops, first or drops == 1, rest[0])[
        int(rest[1][1:])
    ]


Reader = Callable[[Run, int, list[str]], Array]
READERS: dict[str, Reader] = {
    "selected": selected,
    "dropped": dropped,
    "gradcam_first": gradcam_of("first"),
    "gradcam_agg": gradcam_of("agg"),
    "class_maps_first": class_maps_of("first"),
    "class_maps_agg": class_maps_of("agg"),
    "post_in": refined_by(1, False),
    "post_in_first": refined_by(1, True),
    "blurred": refined_by(2, False),
    "label": labels_of(False),
    "label_first": labels_of(True),
    "gt": lambda run, drops, rest: run.truth(int(rest[0][1:])),
    "metrics": lambda run, drops, rest: metrics_of(run.counts(drops)),
    "class_iou": lambda run, drops, rest: metrics.per_class_iou(run.counts(drops)),
}
