"""ovss against the official PnP-OVSS code; see golden/README.md."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import check  # noqa: E402

CASES = sorted(path.parent for path in (GOLDEN / "pnp").glob("*/config.json"))
if more := os.environ.get("OVSS_GOLDEN_PNP"):
    CASES += sorted(path.parent for path in Path(more).glob("*/config.json"))


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_case(folder: Path) -> None:
    outcomes = [found for found in check.check(folder) if isinstance(found, check.Outcome)]
    bad = [outcome for outcome in outcomes if not outcome.good]
    assert not bad and len(outcomes) >= 28


CORRUPTED = {  # what is added to the first value of the array
    "img1|img_in": 1e-3,
    "img1|input_ids": 1,
    "img1|it0|itm_logits": 1e-3,
    "img1|it0|cross_attn_l7h9": 1e-3,
    "img1|it0|cross_grad_l7h9": 1e-4,
    "img1|it2|gradcam": 1e-4,
}


def test_check_finds_each_corrupted_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(GOLDEN / "pnp" / "p1_voc", tmp_path / "case")
    golden = dict(np.load(folder / "outputs.npz"))
    for name, change in CORRUPTED.items():
        golden[name].flat[0] += change
    kept = ("_meta_json", "img0+1|it1|gradcam", "img0+1|it1|dropped|b0", "img0+1|it1|dropped|b1")
    golden = {name: golden[name] for name in (*kept, *CORRUPTED)}
    np.savez(folder / "outputs.npz", **golden, new=np.zeros(3))
    assert check.main([str(folder)]) == 1
    printed = capsys.readouterr().out
    for name in CORRUPTED:
        assert re.search(rf"FAIL .*{re.escape(name)}", printed), name
    assert re.search(r"FAIL .*img1\|it2", printed), "its dropped patches are not in the file"
    assert re.search(r"ok .*img0\+1\|it1\|gradcam", printed)
    assert "not compared: new (no checker knows this name)" in printed
