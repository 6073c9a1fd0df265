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
CASES.append(GOLDEN / "pnp")  # single functions
if more := os.environ.get("OVSS_GOLDEN_PNP"):
    CASES += sorted(path.parent for path in Path(more).glob("*/config.json"))


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_case(folder: Path) -> None:
    found = list(check.check(folder))
    outcomes = [one for one in found if isinstance(one, check.Outcome)]
    assert [one for one in outcomes if not one.good] == []
    assert len(outcomes) >= (19 if folder.name == "pnp" else 100)
    skipped = {one.reason for one in found if isinstance(one, check.Skipped)}
    assert not any("no checker" in reason for reason in skipped)


CORRUPTED = {  # what is added to the first value of the array
    "img0|it1|selected|b0": 1,
    "img0|it2|dropped|b0": 1,
    "img0|drop2|gradcam_first": 1e-3,
    "img1|drop4|gradcam_agg": 1e-3,
    "img0|drop4|class_maps_first|b0": 1e-3,
    "img1|drop4|class_maps_agg|b0": 1e-3,
    "img0|drop4|post_in|b0": 1e-3,
    "img1|drop4|post_in_first|b0": 1e-3,
    "img0|drop4|blurred|b0": 1e-3,
    "img0|drop4|gt|b0": 1,
    "img1|drop2|metrics": 1e-3,
    "img0|drop4|class_iou": 1e-3,
}


def test_check_finds_each_corrupted_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(GOLDEN / "pnp" / "p2_psc", tmp_path / "case")
    golden = dict(np.load(folder / "outputs.npz"))
    truths = {name: values for name, values in golden.items() if "|gt|" in name}
    kept = {name: golden[name].copy() for name in CORRUPTED}
    for name, change in CORRUPTED.items():
        kept[name].flat[0] += change
    label, first = "img0|drop4|label|blur+crf|b0", "img0|drop4|label_first|None|b0"
    kept[label], kept[first] = golden[label].copy(), golden[first].copy()
    kept[label][:3] += 1
    kept[first][:3] += 1
    kept["img0|it0|new"] = np.zeros(3)
    np.savez(folder / "outputs.npz", _meta_json=golden["_meta_json"], **{**truths, **kept})
    assert check.main([str(folder)]) == 1
    printed = capsys.readouterr().out
    for name in {*CORRUPTED, label, first}:
        assert re.search(rf"FAIL .*{re.escape(name)}", printed), name
    assert "not compared: img0|it0|new (no checker knows this name)" in printed


NETWORK = {  # what is added to the first value of the array
    "img1|img_in": 1e-3,
    "img1|input_ids": 1,
    "img1|it0|itm_logits": 1e-3,
    "img1|it0|cross_attn_l7h9": 1e-3,
    "img1|it0|cross_grad_l7h9": 1e-4,
    "img1|it2|gradcam": 1e-4,
}


def test_check_finds_each_corrupted_array_of_the_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(GOLDEN / "pnp" / "p1_voc", tmp_path / "case")
    golden = dict(np.load(folder / "outputs.npz"))
    for name, change in NETWORK.items():
        golden[name].flat[0] += change
    kept = ("_meta_json", "img0+1|it1|gradcam", "img0+1|it1|dropped|b0", "img0+1|it1|dropped|b1")
    golden = {name: golden[name] for name in (*kept, *NETWORK)}
    np.savez(folder / "outputs.npz", **golden, new=np.zeros(3))
    assert check.main([str(folder)]) == 1
    printed = capsys.readouterr().out
    for name in NETWORK:
        assert re.search(rf"FAIL .*{re.escape(name)}", printed), name
    assert re.search(r"FAIL .*img1\|it2", printed), "its dropped patches are not in the file"
    assert re.search(r"ok .*img0\+1\|it1\|gradcam", printed)
    assert "not compared: new (no checker knows this name)" in printed


def test_a_choice_among_equal_patches_is_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nothing tells the tenth patch from the next, the recorded one is dropped as well."""
    monkeypatch.setattr(check.pnp_case, "CLEAR", 1.0)  # nothing is clear
    folder = shutil.copytree(GOLDEN / "pnp" / "p2_psc", tmp_path / "case")
    golden = dict(np.load(folder / "outputs.npz"))
    kept = ("_meta_json", "img0|it0|selected|b0", *(f"img0|it{t}|dropped|b0" for t in range(4)))
    other = {"img0|it3|dropped|b0": np.arange(30)}
    np.savez(folder / "outputs.npz", **{**{name: golden[name] for name in kept}, **other})
    assert check.main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "not compared: img0|it0|selected|b0 (arbitrary" in printed
    assert "ok   error         0  img0|it3|dropped|b0" in printed
