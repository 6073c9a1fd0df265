"""PnP-OVSS's hyperparameters without ground truth: section 3.4 of arXiv 2311.17095.

A random search draws layers, heads and thresholds from Table 2's grid; the reward of `reward.py`
says which is best. Then the blur is chosen with the others fixed. Candidates are tried in parallel;
what was tried is kept in a journal, and the same call goes on where a killed one stopped.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from ..backbones.clip import ClipBackbone
from ..datasets import Dataset, read_batches
from ..errors import OvssError
from ..evaluation import fingerprint
from ..evaluation.counting import check_options, draw
from ..evaluation.journal import Journal, Record, ResumeError, interrupts_explained, open_journal
from ..options import check_number
from ..provenance import describe
from ..taggers import Tagger
from .pnp_ovss import PnpOvss
from .pnp_reward import Candidate, Example, Reward, Rewards

# Table 2: start, end and step; the ends belong to the grid.
THRESHOLDS = (0.05, 0.15, 0.25, 0.35, 0.45)
BLURS = (0.01, 0.03, 0.05, 0.07, 0.09, 0.11)
ITERATIONS, GROUPS = 34, 3  # supplement 9
SEARCHED = ("layer", "head", "threshold", "blur")
SETTLED = ("gradcam", "objective", "joined_names", "size", "normalize", "resample")


@dataclass(frozen=True)
class Trial:
    """A candidate and its reward on each image [I]."""

    candidate: Candidate
    rewards: Rewards

    @property
    def reward(self) -> int:
        """Summed over the images."""
        return int(self.rewards.sum())


@dataclass(frozen=True)
class SearchResult:
    """Hold what a search has tried.

    Attributes:
        trials: the first stage's in the order drawn, each once, then the blur's.
        max_reward: the largest reward there can be.
        ids: of the images, [I].
    """

    trials: tuple[Trial, ...]
    max_reward: int
    ids: tuple[str, ...]

    @property
    def best(self) -> Trial:
        """The last stage's highest reward; of equal ones the first that was tried."""
        stage = [one for one in self.trials if one.candidate.blur is not None] or self.trials
        return max(stage, key=lambda one: one.reward)

    @property
    def options(self) -> dict[str, Any]:
        """The best candidate as options of `PnpOvss`."""
        return asdict(self.best.candidate)

    def table(self) -> pd.DataFrame:
        """List all trials, best first: layer, head, threshold, blur, reward, share of the most."""
        rows = [asdict(one.candidate) | {"reward": one.reward} for one in self.trials]
        frame = pd.DataFrame(rows, columns=[*SEARCHED, "reward"])
        frame["share"] = frame["reward"] / max(1, self.max_reward)
        return frame.sort_values("reward", ascending=False, kind="stable", ignore_index=True)


def examples_of(
    data: Dataset, tagger: Tagger, limit: int | None = None, seed: int = 0, batch: int = 8
) -> list[Example]:
    """Images of a data set with the names of the classes that a tagger sees in them.

    Those without a class are left out. Of the ground truth nothing is kept; only the tagger that
    asks for it (`Oracle`) reads it. Nor are the images: each is read when it is needed.

    Args:
        batch: images tagged at once.
    """
    found = []
    for indices, samples in read_batches(data, draw(len(data), limit, seed), batch):
        tags = tagger(samples, data.vocabulary)
        for index, sample, classes in zip(indices, samples, tags, strict=True):
            if classes:
                names = tuple(data.names[k] for k in classes)
                found.append(Example(sample.id, partial(_image, data, index), names))
    return found


def _image(data: Dataset, index: int) -> Image.Image:
    return data[index].image


def search(
    method: PnpOvss,
    clip: ClipBackbone,
    examples: Sequence[Example],
    *,
    iterations: int = ITERATIONS,
    groups: int = GROUPS,
    thresholds: Sequence[float] = THRESHOLDS,
    blurs: Sequence[float] = BLURS,
    resume: str | os.PathLike[str] | None = None,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> SearchResult:
    """Search layer, head and threshold at random, then the blur among all its values.

    Args:
        method: what is searched for; how it treats images and words is kept.
        clip: the judge of the reward.
        examples: images with the names of their classes, never a mask.
        iterations: draws of each group.
        groups: the layers are divided among them (supplement 9: three).
        thresholds, blurs: the grids; no blurs leave the second stage out.
        resume: a folder that keeps the trials; run again after a crash to go on. More iterations,
            other groups and other seeds make use of what is there.
        seed: of the draws.
        workers: candidates tried at once.
        progress: show progress bars on stderr.

    Raises:
        OvssError: no image, or an option out of range.
        ResumeError: the resume folder belongs to other images or models, or is in use.
    """
    check_search(iterations, groups, workers, seed)
    space = (method.backbone.layers, method.backbone.heads)
    drawn = draw_candidates(*space, thresholds, iterations, groups, seed)
    mark = {} if resume is None else _fingerprint(method, clip, examples)
    with interrupts_explained(resume), open_journal(resume, mark) as journal:
        reward = Reward(method, clip, examples, progress=progress)
        trials = try_all(reward, drawn, journal, workers, progress, "search")
        best = max(trials, key=lambda one: one.reward).candidate
        blurred = [replace(best, blur=blur) for blur in blurs]
        trials += try_all(reward, blurred, journal, workers, progress, "blur")
    return SearchResult(tuple(trials), reward.max_reward, tuple(example.id for example in examples))


def reward_of_heads(
    method: PnpOvss,
    clip: ClipBackbone,
    examples: Sequence[Example],
    *,
    resume: str | os.PathLike[str] | None = None,
    workers: int = 2,
    progress: bool = True,
) -> Rewards:
    """The reward of every layer and head at the method's threshold, [layers, heads, I].

    A resume folder of `search` serves both.
    """
    layers, heads = method.backbone.layers, method.backbone.heads
    all_heads = [
        Candidate(layer, head, method.threshold) for layer in range(layers) for head in range(heads)
    ]
    mark = {} if resume is None else _fingerprint(method, clip, examples)
    with interrupts_explained(resume), open_journal(resume, mark) as journal:
        reward = Reward(method, clip, examples, progress=progress)
        trials = try_all(reward, all_heads, journal, workers, progress, "heads")
    return np.stack([one.rewards for one in trials]).reshape(layers, heads, -1)


def check_search(iterations: int, groups: int, workers: int, seed: int) -> None:
    """Refuse options that no search can have, before anything runs."""
    check_options(seed=seed)
    for name, value in (("iterations", iterations), ("groups", groups), ("workers", workers)):
        check_number(name, value, 1)


def draw_candidates(
    layers: int, heads: int, thresholds: Sequence[float], iterations: int, groups: int, seed: int
) -> list[Candidate]:
    """Each group's draws from its share of the layers, one group after another, each once."""
    drawn = []
    for group, share in enumerate(np.array_split(np.arange(layers), min(groups, layers))):
        space = {"layer": share, "head": np.arange(heads), "threshold": np.array(thresholds)}
        drawn += [
            Candidate(int(one["layer"]), int(one["head"]), float(one["threshold"]))
            for one in _random_search(space, iterations, 1000 * seed + group)
        ]
    return list(dict.fromkeys(drawn))


def try_all(
    reward: Reward,
    candidates: Iterable[Candidate],
    journal: Journal,
    workers: int,
    progress: bool,
    title: str,
) -> list[Trial]:
    """The trials of candidates in their order; those in the journal are not tried again."""
    known = dict(_read(record, len(reward.examples)) for record in journal.records)
    wanted = list(candidates)
    missing = [one for one in dict.fromkeys(wanted) if one not in known]
    if missing:
        reward.judged  # noqa: B018 - computed here, not by all threads at once
    bar = tqdm(
        total=len(wanted), initial=len(wanted) - len(missing), desc=title, disable=not progress
    )
    with bar, ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(reward, one): one for one in missing}
        try:
            for done in as_completed(running):
                known[running[done]] = done.result()
                journal.append(asdict(running[done]) | {"rewards": done.result().tolist()})
                bar.update()
                bar.set_postfix(best=max(int(one.sum()) for one in known.values()))
        except BaseException:  # Ctrl-C: what has not begun is not waited for
            pool.shutdown(cancel_futures=True)
            raise
    return [Trial(one, known[one]) for one in wanted]


def _read(record: Record, images: int) -> tuple[Candidate, Rewards]:
    """A trial of the journal.

    Raises:
        ResumeError: it is none of this search.
    """
    try:
        rewards = np.array(record["rewards"], np.int64).reshape(images)
        return Candidate(*(record[name] for name in SEARCHED)), rewards
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeError(
            f"the resume folder holds trials of another search ({error!r}): choose another"
        ) from None


def _random_search(space: dict[str, Any], draws: int, seed: int) -> list[dict[str, Any]]:
    """Draws of gradient-free-optimizers' random search, which never looks at a score."""
    try:
        from gradient_free_optimizers.ask_tell import RandomSearchOptimizer
    except ImportError:
        raise OvssError(
            "the search needs gradient-free-optimizers: pip install gradient-free-optimizers"
        ) from None
    start = {name: values[0] for name, values in space.items()}
    with _global_generators_kept():
        return RandomSearchOptimizer(space, [(start, 0.0)], random_state=seed).ask(draws)


@contextmanager
def _global_generators_kept() -> Iterator[None]:
    """The library seeds Python's and NumPy's global generators: put them back."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _fingerprint(method: PnpOvss, clip: ClipBackbone, examples: Sequence[Example]) -> Record:
    """What must be equal for trials to be comparable."""
    total = hashlib.sha256()
    for one in examples:
        total.update(f"{one.id}: {', '.join(one.names)}\n".encode())
        total.update(one.image.tobytes())
    return {
        "search": "pnp-ovss reward",
        "code": fingerprint.source(),
        "libraries": fingerprint.libraries(),
        "images": f"{len(examples)} ({total.hexdigest()[:16]})",
        "network": _network(method.backbone),
        **{name: fingerprint.identity(method.chosen(name)) for name in SETTLED},
        "clip": _network(clip),
    }


def _network(backbone: Any) -> str:
    told = describe(backbone)
    return f"{told['checkpoint']} {told.get('dtype', '')}".strip()
