"""ovss against the official CLIPer code; see golden/README.md."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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


def test_check_fails_on_a_wrong_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    import numpy as np

    folder = shutil.copytree(GOLDEN / "cliper" / "c1_p16", tmp_path / "case")
    (folder / "outputs_2024.npz").unlink()
    golden = dict(np.load(folder / "outputs.npz"))
    kept = {"img": golden["img"], "seg|q-q|fuse=1|sel=-1": golden["seg|q-q|fuse=1|sel=-1"] + 1e-3}
    np.savez(folder / "outputs.npz", **kept, something_new=np.zeros(3))
    assert check.main([str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL error     0.001  official: seg|q-q" in printed
    assert "not covered yet: official: something_new" in printed and "1 of 2 arrays" in printed
