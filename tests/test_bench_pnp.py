"""PnP-OVSS in the bench: its transcription is the method, and its table is printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clips import noise
from itms import save_blip
from ovss.backbones.itm import ItmBackbone
from ovss.vocabulary import Vocabulary

pytest.importorskip("pydensecrf")
BENCH = Path(__file__).parents[1] / "tools" / "bench"
sys.path.insert(0, str(BENCH))
import pnp_plain  # noqa: E402
import pnp_stages  # noqa: E402

WORDS = Vocabulary.of("pottedplant, dog, tvmonitor")
CHOSEN = {"size": 96, "layer": 1, "head": 2}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ItmBackbone:
    return ItmBackbone.load(save_blip(tmp_path_factory.mktemp("zoo") / "blip"))


def test_the_transcription_is_the_method(backbone: ItmBackbone) -> None:
    image = noise(60, 44)
    sides = [kind(backbone, image, WORDS, **CHOSEN) for kind in (pnp_stages.Plain, pnp_stages.Ours)]
    plain, ours = pnp_stages.compare(sides, 1)
    assert len(plain.side.labels.unique()) > 1
    assert (plain.side.labels == ours.side.labels).float().mean() > 0.995
    assert pnp_stages.agreement(plain.side.labels, ours.side.labels).startswith("float32: 100")
    for run in (plain, ours):
        assert min(run.seconds) > 0 and run.total == sum(run.seconds)
    method, prompt = ours.side.method, ours.side.method.prompt(WORDS)
    with pnp_plain.training(backbone):
        pixels = method.pixels([image])
        total = pnp_plain.dropout(backbone, pixels, prompt, (1, 2), lambda _: None)
    (expected,) = method.class_maps([image], [WORDS])
    parts = [total[[place - 1 for place in word]] for word in prompt.words]
    torch.testing.assert_close(parts[1][0], expected[1], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(parts[2].sum(0), expected[2], rtol=1e-4, atol=1e-7)
    for weight in backbone.network.model.parameters():
        assert weight.grad is None and not weight.requires_grad


@pytest.mark.slow
def test_quick_run_prints_its_table() -> None:
    command = [sys.executable, str(BENCH), "--quick", "--part", "pnp", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    for stage in (*pnp_stages.STAGES, "end to end"):
        assert re.search(rf"^{stage} +\d+\.\d +\d+\.\d +\d+\.\dx ", done.stdout, re.M), done.stdout
    equal = re.search(r"^float32: ([\d.]+) % of the labels equal, of 4 kinds", done.stdout, re.M)
    assert equal and float(equal[1]) >= 99.5
