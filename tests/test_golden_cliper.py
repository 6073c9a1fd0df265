"""ovss against the official CLIPer code; see golden/README.md."""

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

CASES = sorted(path.parent for path in (GOLDEN / "cliper").glob("*/config.json"))
if more := os.environ.get("OVSS_GOLDEN"):
    CASES += sorted(path.parent for path in Path(more).glob("*/config.json"))


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_case(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LABELS", 0.999)  # other processors round differently
    outcomes = [found for found in check.check(folder) if isinstance(found, check.Outcome)]
    bad = [outcome for outcome in outcomes if not outcome.good]
    assert not bad and len(outcomes) >= (3 if folder.name == "text" else 80)


def test_everything_is_compared() -> None:
    """Nothing but the settings is left out of a whole case, and the settings are used."""
    for folder in CASES:
        names = [name for file in folder.glob("outputs*.npz") for name in np.load(file)]
        kinds = {name.split("|")[0] for name in names}
        known = {"tokens", "encode_text_template0", "class_features"} | set(check.CHECKERS)
        assert kinds - known <= set(check.REASONS)


def test_check_fails_on_a_wrong_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(GOLDEN / "cliper" / "c1_p16", tmp_path / "case")
    (folder / "outputs_2024.npz").unlink()
    golden = dict(np.load(folder / "outputs.npz"))
    kept = {"img": golden["img"], "seg|q-q|fuse=1|sel=-1": golden["seg|q-q|fuse=1|sel=-1"] + 1e-3}
    np.savez(folder / "outputs.npz", **kept, settings=golden["settings"], new=np.zeros(3))
    assert check.main([str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL error     0.001  official: seg|q-q" in printed and "1 of 2 arrays" in printed
    assert "not compared: official: settings (what label|" in printed
    assert "not compared: official: new (no checker knows this name)" in printed


SLIDE = "slide_seg|fused-attn|fuse=1|sel=-1|crop"
CORRUPTED = {  # what is added to the first value of the array
    f"{SLIDE}=128": 1e-4,
    f"{SLIDE}=0": 1e-4,
    "seg_posemb_half": 1e-4,
    "cam2label|0": 1,
    "cam2label_valid|4": 1e-4,
    "metric|ign255": 1e-9,
    "metric_iou|ign0_255": 1e-9,
    "metric_hist|ign255": 1,
    "label|None|2": 1,
    "pipe_score|None": 1e-3,
    "fused_attn_raw_sum": 1e-3,
}


def test_check_finds_each_corrupted_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(GOLDEN / "cliper" / "c1_p16", tmp_path / "case")
    (folder / "outputs_2024.npz").unlink()
    golden = dict(np.load(folder / "outputs.npz"))
    kept = {name: golden[name].copy() for name in CORRUPTED}
    for name, change in CORRUPTED.items():
        kept[name].flat[0] += change
    kept[f"{SLIDE}=96"] = kept[f"{SLIDE}=128"]  # windows with gaps: the code gives NaN
    kept["metric|ign0"] = golden["metric|ign255"][:2]
    np.savez(folder / "outputs.npz", settings=golden["settings"], **kept)
    assert check.main([str(folder)]) == 1
    printed = capsys.readouterr().out
    for name in kept:
        assert re.search(rf"FAIL .*official: {re.escape(name)}", printed), name
    assert "sliding_crop=96 every sliding_stride=112 pixels leave gaps" in printed
    assert "0 of 13 arrays within tolerance" in printed
    np.savez(
        folder / "outputs.npz", settings=golden["settings"], img=golden["seg_posemb_half"] * np.nan
    )
    assert check.main([str(folder)]) == 1
