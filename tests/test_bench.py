"""The bench: its plain transcription gives what our pipeline gives, and its table is printed."""

from __future__ import annotations

import gc
import mmap
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clips import noise, save_clip
from diffusions import save_diffusion
from ovss.backbones.clip import ClipBackbone
from ovss.backbones.diffusion import DiffusionBackbone
from ovss.methods.cliper import Cliper
from ovss.refine.compensation import compensate
from ovss.segmenter import Segmenter
from ovss.vocabulary import Vocabulary

BENCH = Path(__file__).parents[1] / "tools" / "bench"
sys.path.insert(0, str(BENCH))
import peak  # noqa: E402
import plain  # noqa: E402
import stages  # noqa: E402

WORDS = Vocabulary.of("cat, dog, grass, sky")
PICTURE = noise(60, 44)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> stages.Task:
    backbone = ClipBackbone.load(save_clip(tmp_path_factory.mktemp("zoo") / "clip"))
    method = Cliper(backbone, short_side=48)
    return stages.Task(PICTURE, method, method.backbone.text_features(WORDS), torch.zeros(0))


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> DiffusionBackbone:
    return DiffusionBackbone.load(save_diffusion(tmp_path_factory.mktemp("zoo") / "sd"))


@torch.no_grad()
def test_the_coarse_map(task: stages.Task) -> None:
    method = task.coarse
    found = plain.coarse_map(method.backbone, task.pixels(), task.text)
    (expected,) = method.score([PICTURE], WORDS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_maps_of_the_whole_network(diffusion: DiffusionBackbone) -> None:
    latents = diffusion.latents(diffusion.preprocess(PICTURE)[None])
    processors = [module.processor for module in diffusion.attentions]
    found = plain.attention_maps(diffusion, latents, diffusion.noise(0))
    assert processors == [module.processor for module in diffusion.attentions]
    for ours, theirs in zip(diffusion.attention(PICTURE), found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_chain() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [(2 * torch.randn(3, 36, 36, generator=generator)).softmax(-1) for _ in range(2)]
    coarse = torch.rand(5, 6, 6, generator=generator)
    expected = compensate(coarse.flatten(1).T, maps).T.reshape(5, 6, 6)
    torch.testing.assert_close(plain.compensate(coarse, maps), expected)


def test_stages_end_where_the_segmenter_ends(
    task: stages.Task, diffusion: DiffusionBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weights

    from ovss.refine.compensation import Compensation

    monkeypatch.setattr(weights, "words", lambda: WORDS)
    task = stages.Task(PICTURE, task.coarse, task.text, diffusion.noise(0))
    ours, theirs = stages.compare([stages.Ours(task, diffusion), stages.Plain(task, diffusion)], 1)
    found = Segmenter(task.coarse, (Compensation(diffusion),))(PICTURE, WORDS)
    torch.testing.assert_close(ours.side.refined, found.scores)
    assert torch.equal(ours.side.decided, found.labels)
    # One attention value that crosses the threshold changes a row: the mean, not the largest.
    assert (theirs.side.refined - found.scores).abs().mean() < 1e-4
    assert 0 < sum(ours.seconds) <= 1.001 * ours.total


def test_peaks_are_seen() -> None:
    meter = peak.meter(torch.device("cpu"))
    with mmap.mmap(-1, 2**26) as held:  # 64 MiB that are given back for certain
        torch.frombuffer(held, dtype=torch.uint8).fill_(1)
        gc.collect()
    first, second = meter.lap(), meter.lap()
    meter.close()
    assert 60e6 < first < 120e6 and second < first / 2


def test_peaks_are_seen_where_the_kernel_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_reset", lambda: False)
    meter = peak.meter(torch.device("cpu"))
    held = torch.ones(2**24)
    assert isinstance(meter, peak.SampledMeter) and 60e6 < meter.lap() < 120e6
    meter.close()
    assert len(held) == 2**24


@pytest.mark.slow
def test_quick_run_prints_its_table() -> None:
    command = [sys.executable, str(BENCH), "--quick", "--part", "cliper", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1500)
    for stage in (*stages.STAGES, "end to end"):
        assert re.search(rf"^{stage} +\d+\.\d +\d+\.\d +\d+\.\dx ", done.stdout, re.M), done.stdout
    equal = re.search(r"^float32: ([\d.]+) % of the labels equal", done.stdout, re.M)
    classes = re.search(r"labels hold (\d+) of 21 classes", done.stdout)
    assert equal and float(equal[1]) >= 99.8 and classes and int(classes[1]) >= 5
