"""Compare one golden case folder with what ovss computes: `python tests/golden/check.py DIR`.

DIR is a case of CLIPer (`config.json`, `inputs.npz`, `outputs.npz`, `outputs_2024.npz`,
`weights.safetensors`; files and arrays may be missing), of its text side (`config.json` with
`classnames`), of PnP-OVSS (`config.json` with `data_type`; `inputs.npz`, `outputs.npz`, `hf/`), or
holds single functions of PnP-OVSS (`functions.npz`, `functions.json`).
For each array the largest error is printed, for label maps the share of equal pixels. The exit
status is 1 if anything lies beyond its tolerance. What is not compared is named with the reason.
See README.md here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import itm
import numpy as np
import pnp_case
import pnp_functions
import scores
import sd
import torch
from outcome import Outcome, Skipped
from PIL import Image
from prompts import text_outputs
from scores import rule_of

from ovss.backbones.clip import ClipBackbone
from ovss.decide import decide
from ovss.errors import OvssError
from ovss.methods.cliper import Cliper
from ovss.refine.compensation import Compensation
from ovss.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]
Variant = Literal["official", "official-2024"]


class HalfPositions(ClipBackbone):
    """Position embeddings rounded to float16, as the authors' code has them without a GPU."""

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Position embeddings [1+L, D] of an (h, w) grid, rounded."""
        return super().positions(grid).half().float()


class Case:
    """A CLIPer case: its inputs, and ovss's methods built for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        self.backbone = ClipBackbone.load(folder / "weights.safetensors")
        self.inputs = dict(np.load(folder / "inputs.npz"))
        foreground, background = (
            torch.from_numpy(self.inputs[f"{side}_text_features"]) for side in ("fg", "bg")
        )
        self.text = torch.cat([foreground, background])
        self.words = Vocabulary(
            tuple((f"class {k}",) for k in range(len(foreground))),
            tuple(f"other {k}" for k in range(len(background))),
        )

    @cached_property
    def pixels(self) -> torch.Tensor:
        """The preprocessed image [1, 3, h, w]."""
        image = Image.fromarray(self.inputs["image_u8"])
        return self.backbone.preprocess(image, self.config["size"])[None]

    @cached_property
    def diffusion(self) -> sd.Diffusion:
        """The diffusion part of the case."""
        return sd.Diffusion(self.folder, self.config, self.inputs)

    def method(
        self,
        variant: Variant,
        attention: str = "fused-attn",
        fuse: bool = True,
        layer: int = -1,
        crop: int = 0,
        compensation: Compensation | None = None,
    ) -> Cliper:
        """The method with the case's settings."""
        return Cliper(
            self.backbone,
            variant,
            attention.removesuffix("-attn"),
            fuse,
            layer,
            self.config["attention_thr"] if variant == "official" else 0.2,
            float(self.config["logit_scale"]),
            compensation=compensation,
            sliding_crop=crop,
        )

    @cached_property
    def slide_pixels(self) -> torch.Tensor:
        """The preprocessed image of the sliding window [1, 3, h, w]."""
        image = Image.fromarray(self.inputs["image_slide_u8"])
        return self.backbone.preprocess(image, self.config["slide_size"])[None]

    def coarse(self, variant: Variant, slide: bool = False, **options: Any) -> tuple[Array, Array]:
        """Score maps [K, h, w] and attention [L, L]."""
        pixels = self.slide_pixels if slide else self.pixels
        found = self.method(variant, **options).coarse_map(pixels, self.text, self.words)
        return found.scores[0].numpy(), found.attention[0].numpy()

    @cache  # noqa: B019 - a case lives as long as the check
    def refined(self, variant: Variant, refinement: str) -> tuple[Array, Array]:
        """Maps [K, h, w] and class scores [K] after "None", "SFSA", "mean" or "selection"."""
        scores = torch.from_numpy(self.coarse(variant)[0])
        refined = scores
        if refinement != "None":
            method = self.method(variant, compensation=self.diffusion.compensation(refinement))
            for refine in method.refiners:
                (refined,) = refine([refined], [self.diffusion.image])
        image_scores = 0.5 * refined.amax((1, 2)) + 0.5 * scores.amax((1, 2))
        return refined.numpy(), image_scores.numpy()


def check(folder: Path) -> Iterator[Outcome | Skipped]:
    """Compare everything in `folder`."""
    if (folder / "functions.npz").exists():
        yield from pnp_functions.compare(folder)
        return
    config = json.loads((folder / "config.json").read_text())
    if "classnames" in config:
        yield from check_text(folder, config)
        return
    if "data_type" in config:
        yield from check_pnp(folder)
        return
    case = Case(folder)
    for file, variant in (("outputs.npz", "official"), ("outputs_2024.npz", "official-2024")):
        if (folder / file).exists():
            yield from check_outputs(case, variant, dict(np.load(folder / file)))


def check_pnp(folder: Path) -> Iterator[Outcome | Skipped]:
    """A case of PnP-OVSS: each part compares the arrays that it knows."""
    case = itm.Case(folder)
    for part in PNP:
        yield from part.compare(case)
    for name in case.golden:
        if not any(part.knows(case, name) for part in PNP):
            yield Skipped(name, "no checker knows this name")


def check_outputs(
    case: Case, variant: Any, golden: dict[str, Array]
) -> Iterator[Outcome | Skipped]:
    """Each array of one outputs file, by the first part of its name."""
    for name, expected in golden.items():
        kind, *rest = name.split("|")
        title = f"{variant}: {name}"
        if kind not in CHECKERS:
            yield Skipped(title, REASONS.get(kind, "no checker knows this name"))
            continue
        try:
            yield compare(title, kind, CHECKERS[kind](case, variant, rest, golden), expected)
        except OvssError as error:
            yield Outcome(f"{title}: {error}", "error", float("inf"), False)


def compare(name: str, kind: str, found: Array, expected: Array) -> Outcome:
    """Labels by their share of equal pixels, everything else by its largest error."""
    if found.shape != expected.shape:
        return Outcome(f"{name} has shape {found.shape}", "error", float("inf"), False)
    refined = "|SFSA" in name or "|mean" in name or "|selection" in name
    if kind in ("label", "cam2label"):
        share = float((found == expected).mean())
        return Outcome(name, "equal", share, share >= (REFINED_LABELS if refined else LABELS))
    errors = np.abs(found - expected)
    if refined:  # one attention value that crosses the threshold changes a whole row
        good = bool((errors <= 1e-4).mean() >= 0.99 and errors.max() <= 0.15)
    else:
        good = np.allclose(found, expected, *TOLERANCES.get(kind.split("_")[0], (RTOL, ATOL)))
    return Outcome(name, "error", float(errors.max()), good)


def check_text(folder: Path, config: dict[str, Any]) -> Iterator[Outcome | str]:
    """The prompts' tokens and features, through open_clip's text tower and tokenizer."""
    golden = dict(np.load(folder / "outputs.npz"))
    found = text_outputs(folder, config, golden["tokens"])
    for name, expected in golden.items():
        yield compare(f"text: {name}", name, found[name].numpy(), expected)


def seg(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`seg|ATT|fuse=F|sel=S` (K, h, w)."""
    return case.coarse(variant, **options_of(rest))[0]


def slide_seg(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`slide_seg|ATT|fuse=F|sel=S|crop=C` (K, h, w): the other image, with windows or without."""
    return case.coarse(variant, slide=True, **options_of(rest))[0]


def slide_input(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`img_slide` (1, 3, h, w)."""
    return case.slide_pixels.numpy()


def half_positions(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`seg_posemb_half` (K, h, w)."""
    backbone = HalfPositions.load(case.folder / "weights.safetensors")
    method = replace(case.method(variant), backbone=backbone)
    return method.coarse_map(case.pixels, case.text, case.words).scores[0].numpy()


def attn(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`attn|ATT|fuse=F|sel=S` (L, L)."""
    return case.coarse(variant, **options_of(rest))[1]


def options_of(rest: list[str]) -> dict[str, Any]:
    """["q-q", "fuse=1", "sel=-2"] -> options of `Case.method`."""
    values = dict(part.split("=") for part in rest[1:])
    return {
        "attention": rest[0],
        "fuse": bool(int(values.get("fuse", "1"))),
        "layer": int(values.get("sel", "-1")),
        "crop": int(values.get("crop", "0")),
    }


def image_input(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`img` (1, 3, h, w)."""
    return case.pixels.numpy()


def raw_sum(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`fused_attn_raw_sum` (heads, 1+L, 1+L)."""
    total = case.backbone.features(case.pixels, attention="sum").attention_sum
    assert total is not None
    return total[0].numpy()


def per_layer(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`fused_attn_per_layer` (layers, heads, 1+L, 1+L)."""
    features = case.backbone.features(case.pixels, attention="sum")
    maps = case.method(variant).weights(features)
    return torch.cat([weights for weights in maps if isinstance(weights, torch.Tensor)]).numpy()


def part_features(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`img_part_features` (layers, 1+L, E)."""
    features = case.backbone.features(case.pixels, attention="sum")
    return case.method(variant).embeddings(features)[:, 0].numpy()


def pipe_pred(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`pipe_pred|REF` (K, h, w)."""
    return case.refined(variant, rest[0])[0]


def pipe_score(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`pipe_score|REF` (K,)."""
    return case.refined(variant, rest[0])[1]


def label(case: Case, variant: Any, rest: list[str], golden: dict[str, Array]) -> Array:
    """`label|REF|i` (H, W) uint8: our scores through CliperRule with setting i."""
    scores, image_scores = map(torch.from_numpy, case.refined(variant, rest[0]))
    height, width = case.inputs["image_u8"].shape[:2]
    rule = rule_of(golden["settings"][int(rest[1])])
    return (decide(rule, scores, (height, width), image_scores) + 1).numpy()


ATOL = RTOL = 1e-5  # scores reach 2 and their logits are scaled by up to 100
TOLERANCES = {"sd": (RTOL, 1e-4), "metric": (1e-12, 0.0)}  # the metric is exact in float64
LABELS = 1.0  # share of equal pixels
REFINED_LABELS = 0.998  # after a compensation
CHECKERS: dict[str, Callable[[Case, Any, list[str], dict[str, Array]], Array]] = {
    "img": image_input,
    "img_slide": slide_input,
    "slide_seg": slide_seg,
    "seg": seg,
    "seg_posemb_half": half_positions,
    "attn": attn,
    "fused_attn_raw_sum": raw_sum,
    "fused_attn_per_layer": per_layer,
    "img_part_features": part_features,
    "pipe_pred": pipe_pred,
    "pipe_score": pipe_score,
    "label": label,
    **{
        name: lambda case, variant, rest, golden, read=read: read(case.diffusion, rest)
        for name, read in sd.READERS.items()
    },
    **{
        name: lambda case, variant, rest, golden, read=read: read(case.inputs, rest, golden)
        for name, read in scores.READERS.items()
    },
}
PNP = (itm, pnp_case)  # each has `compare(case)` and `knows(case, name)`
REASONS = {"settings": "what label|... and cam2label|... are computed with"}


def main(arguments: list[str]) -> int:
    """Print a line per array; 0 if all is within tolerance."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    torch.set_num_threads(1)
    results = list(check(Path(arguments[0])))
    outcomes = [result for result in results if isinstance(result, Outcome)]
    for outcome in outcomes:
        mark = "ok  " if outcome.good else "FAIL"
        print(f"{mark} {outcome.kind} {outcome.value:9.3g}  {outcome.name}")
    for skipped in (result for result in results if isinstance(result, Skipped)):
        print(f"not compared: {skipped.name} ({skipped.reason})")
    failed = sum(not outcome.good for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} arrays within tolerance")
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
