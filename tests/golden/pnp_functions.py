"""Single functions of PnP-OVSS's authors (`functions.npz`, `functions.json`) against ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outcome import Outcome, Skipped
from PIL import Image
from pnp_numbers import count, metrics_of

from ovss.evaluation import metrics
from ovss.methods.pnp_maps import merge
from ovss.refine.blur import Blur, minmax_normalise
from ovss.refine.crf import DenseCrf
from ovss.taggers.published import PublishedAnswers, class_ids

Array = np.ndarray[Any, Any]
BLUR = Blur(nan_quirk=True)
TOLERANCES = {"merge": 1e-6, "scale01": 0, "blurred": 1e-5, "empty_bg": 1e-5, "scores": 1e-6}
EQUAL = 0.995  # share of equal pixels
GPT = {  # the authors' names of the data sets: ours, and how many classes they have
    "voc": ("voc20", 20),
    "psc": ("context59", 59),
    "ade20k": ("ade150", 150),
    "coco_object": ("coco-object", 80),
    "coco_stuff": ("coco-stuff", 171),
}


def compare(folder: Path) -> list[Outcome | Skipped]:
    """Every array of the two files."""
    arrays = dict(np.load(folder / "functions.npz"))
    texts = json.loads((folder / "functions.json").read_text())
    return [*_arrays(arrays, texts), *_texts(texts)]


def _arrays(golden: dict[str, Array], texts: Any) -> Iterator[Outcome | Skipped]:
    found = dict(_computed(golden, texts))
    for name, expected in golden.items():
        if name in found:
            yield _judge(name, found[name], expected)
        elif not name.endswith(("|in", "|gt", "|pred")) and name not in ("maps", "image_u8"):
            yield Skipped(name, "no checker knows this name")


def _texts(texts: Any) -> Iterator[Outcome | Skipped]:
    for dataset, cases in texts.get("gpt", {}).items():
        right = sum(classes_of(dataset, one["answer"]) == one["best_class_idx"] for one in cases)
        yield Outcome(f"gpt|{dataset}", "equal", right / len(cases), right == len(cases))
    known = [name for name in texts if not name.startswith("merge") and name != "gpt"]
    reasons = {
        "two_words": "an exception of the authors' code; ours takes names of several words",
    }
    for name in known:
        yield Skipped(name, reasons.get(name, "no checker knows this name"))


def _judge(name: str, found: Array, expected: Array) -> Outcome:
    if found.shape != expected.shape:
        return Outcome(f"{name} has shape {found.shape}", "error", float("inf"), False)
    kind = name.split("|")[0].rstrip("0123456789")
    if kind == "post" or name.endswith("label"):
        share = float((found == expected).mean())
        return Outcome(name, "equal", share, share >= EQUAL)
    kind = kind if kind in TOLERANCES else "scale01"  # scale01 ends in digits
    good = np.allclose(found, expected, 0, TOLERANCES[kind], equal_nan=True)
    errors = np.abs(found.astype(np.float64) - expected)
    return Outcome(name, "error", float(np.nanmax(errors, initial=0.0)), good)


def _computed(golden: dict[str, Array], texts: Any) -> Iterator[tuple[str, Array]]:
    """Name and value of everything we can compute from the recorded inputs."""
    for name in golden:
        if name.startswith("merge") and name.endswith("|in"):
            words = words_of(texts[name.removesuffix("|in")]["tokens"])
            maps = merge(torch.from_numpy(golden[name]), words, "official")
            yield name.replace("|in", "|out"), maps.numpy()
    if "maps" in golden:
        yield from _of_maps(golden)
    if "empty_bg|in" in golden:
        maps = torch.from_numpy(golden["empty_bg|in"])
        yield "empty_bg|blurred0", BLUR.blurred(maps)[0].numpy()
        yield "empty_bg|label", labels(maps, "blur+crf", golden["image_u8"])
    if "scores|gt" in golden:
        yield from _of_scores(golden)


def _of_maps(golden: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    maps = torch.from_numpy(golden["maps"])
    yield "scale01", minmax_normalise(maps, nan=True).numpy()
    yield "blurred", BLUR.blurred(maps).numpy()
    for name in golden:
        if name.startswith("post|"):
            mode, _, factor = name.removeprefix("post|").partition("x")
            yield name, labels(maps * float(factor or 1), mode, golden["image_u8"])


def _of_scores(golden: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    size = len(golden["scores|hist"])
    pairs = zip(golden["scores|gt"], golden["scores|pred"], strict=True)
    counts = sum(count(truth, found, size) for truth, found in pairs)
    yield "scores|hist", counts
    yield "scores|metrics", metrics_of(counts)
    yield "scores|iou", metrics.per_class_iou(counts)


def words_of(tokens: Sequence[str]) -> list[list[int]]:
    """Positions of each word's pieces among the tokens after [CLS], "a picture of" left out."""
    words: list[list[int]] = []
    for place, token in enumerate(tokens[4:-1], start=3):
        if token.startswith("##"):
            words[-1].append(place)
        else:
            words.append([place])
    return words


def classes_of(dataset: str, answer: str) -> list[int]:
    """Indices of the classes that an answer of GPT-4o's names, by the authors' rules."""
    name, classes = GPT[dataset]
    answers = PublishedAnswers({"image": answer}, class_ids(name, classes), first_if_none=True)
    return answers.classes("image")


def labels(maps: torch.Tensor, mode: str, pixels: Array) -> Array:
    """The best map [H, W] after "blur+crf", "crf" or "blur"; the first where there are NaN."""
    image = Image.fromarray(pixels)
    steps = {"blur": BLUR, "crf": DenseCrf(workers=1)}
    found = [maps]
    for step in mode.split("+"):
        found = steps[step](found, [image])
    return found[0].max(0).indices.numpy()
