"""The network of a PnP-OVSS case: pixels, tokens, logits, attention, gradients, GradCAM."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outcome import Outcome
from PIL import Image
from torch import Tensor

from ovss.backbones.itm import ItmBackbone, Matching, Prompt
from ovss.errors import OvssError

Array = np.ndarray[Any, Any]
RTOL, ATOL = 1e-4, 1e-6
LAYER, HEAD = 7, 9  # what the authors' command chooses, from 0
KNOWN = re.compile(
    r"img_in|input_ids|it(?P<round>\d+)\|"
    r"(?P<what>itm_logits|gradcam|cross_attn|cross_grad)(_l(?P<layer>\d+)h(?P<head>\d+))?"
)


def compare(case: Case) -> Iterator[Outcome]:
    """Each array of the case that the backbone alone explains."""
    for name, expected in case.golden.items():
        tag, rest = case.split(name)
        if not (found := KNOWN.fullmatch(rest)):
            continue
        try:
            yield _outcome(name, case.array(tag, rest, found).numpy(), expected)
        except OvssError as error:
            yield Outcome(f"{name}: {error}", "error", float("inf"), False)


def knows(case: Case, name: str) -> bool:
    """Whether `compare` compares it."""
    return KNOWN.fullmatch(case.split(name)[1]) is not None


class Case:
    """A PnP-OVSS case: a matching network, images, class names and what the authors' code gave."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.inputs = dict(np.load(folder / "inputs.npz"))
        self.golden = dict(np.load(folder / "outputs.npz"))
        self.meta = json.loads(str(self.golden.pop("_meta_json")))
        self.backbone = ItmBackbone.load(folder / "hf")

    def split(self, name: str) -> tuple[str, str]:
        """ "coco_object|img0|it1|gradcam" -> the batch's tag, and the array."""
        tags = [tag for tag in self.meta if name.startswith(f"{tag}|")]
        tag = max(tags, key=len, default="")
        return tag, name[len(tag) + 1 :] if tag else name

    def images(self, tag: str) -> list[Image.Image]:
        """Those of a batch: "img0+1" are two."""
        numbers = re.findall(r"\d+", tag.split("|")[-1])
        return [Image.fromarray(self.inputs[f"img{number}|image_u8"]) for number in numbers]

    def prompts(self, tag: str) -> list[Prompt]:
        """One an image, as the authors' code writes them."""
        return [self.backbone.prompt(names, joined=True) for names in self.meta[tag]["classes"]]

    def pixels(self, tag: str) -> Tensor:
        """[B, 3, S, S]; ADE20K's are resized bilinearly and not normalised."""
        images, side = self.images(tag), self.config["size"]
        if self.config["data_type"] == "ade20k":
            bilinear = Image.Resampling.BILINEAR
            return self.backbone.pixels(images, side, normalize=False, resample=bilinear)
        return self.backbone.pixels(images, side)

    @cache  # noqa: B019 - a case lives as long as the check
    def matching(self, tag: str, turn: int) -> Matching:
        """The pass of round `turn`, without the patches that the authors' code had dropped."""
        pixels, patch = self.pixels(tag), self.backbone.patch
        grid = self.backbone.patch_grid(pixels.shape[-1])
        for index, image in enumerate(pixels):
            for place in self.golden.get(f"{tag}|it{turn}|dropped|b{index}", ()):
                row, column = (patch * int(part) for part in divmod(int(place), grid))
                image[:, row : row + patch, column : column + patch] = 0
        found = (KNOWN.fullmatch(self.split(name)[1]) for name in self.golden)
        layers = {int(match["layer"]) for match in found if match and match["layer"]}
        return self.backbone.match(pixels, self.prompts(tag), sorted(layers | {LAYER}))

    def array(self, tag: str, rest: str, found: re.Match[str]) -> Tensor:
        """The array `rest` of the batch `tag`, as we compute it."""
        if rest == "img_in":
            return self.pixels(tag)
        if rest == "input_ids":
            ids = [prompt.ids for prompt in self.prompts(tag)]
            return torch.nn.utils.rnn.pad_sequence(ids, True, 0)
        matching, what = self.matching(tag, int(found["round"])), found["what"]
        if what == "itm_logits":
            return matching.logits
        layer, head = int(found["layer"] or LAYER), int(found["head"] or HEAD)
        maps, slopes = matching.attention[layer][:, head], matching.gradient[layer][:, head]
        if what != "gradcam":
            return maps if what == "cross_attn" else slopes
        cam = (maps * slopes.clamp(0) * matching.mask[..., None])[:, 1:, 1:]  # [B, T-1, L]
        return cam.unflatten(2, (round(cam.shape[2] ** 0.5), -1))


def _outcome(name: str, found: Array, expected: Array) -> Outcome:
    if found.shape != expected.shape:
        return Outcome(f"{name} has shape {found.shape}", "error", float("inf"), False)
    error = float(np.abs(found - expected).max())
    exact = name.endswith("input_ids")
    good = error == 0 if exact else np.allclose(found, expected, RTOL, ATOL)
    return Outcome(name, "error", error, bool(good))
