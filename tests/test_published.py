"""The transcribed tables are whole and right, and the papers' own sums come out as recorded."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ovss import paths
from ovss.errors import OvssError, UnknownNameError
from ovss.reporting import cell_arithmetic, published

# Counted by hand in the papers: rows, columns, cells printed as a dash or left blank.
TABLES = {
    ("cliper", "1"): (25, 7, 24),
    ("cliper", "2"): (6, 12, 0),
    ("cliper", "3"): (10, 2, 4),
    ("cliper", "4"): (8, 3, 0),
    ("cliper", "5"): (4, 3, 0),
    ("cliper", "6"): (10, 3, 0),
    ("cliper", "7"): (3, 3, 0),
    ("pnp-ovss", "1"): (16, 2, 5),
    ("pnp-ovss", "2"): (7, 4, 0),
    ("pnp-ovss", "3"): (21, 8, 27),
    ("pnp-ovss", "4"): (8, 5, 6),
    ("pnp-ovss", "5"): (8, 2, 0),
    ("pnp-ovss", "6"): (24, 1, 0),
    ("pnp-ovss", "7"): (23, 5, 8),
    ("pnp-ovss", "8"): (3, 7, 0),
    ("s-seg", "1"): (5, 4, 0),
    ("s-seg", "2"): (3, 4, 0),
    ("s-seg", "3"): (14, 5, 4),
    ("s-seg", "4"): (17, 5, 9),
    ("s-seg", "5"): (8, 1, 0),
    ("s-seg", "6"): (9, 1, 0),
    ("s-seg", "7b"): (9, 1, 0),
    ("s-seg", "8"): (5, 22, 0),
    ("s-seg", "9"): (5, 4, 0),
    ("s-seg", "10"): (5, 8, 5),
    ("fmbseg", "1"): (10, 8, 26),
}

# The sum of all mIoU-like values of a table: a tripwire for a changed digit.
TOTALS = {
    "cliper 1": 5261.3,
    "cliper 2": 4732.3,
    "cliper 3": 933.1,
    "cliper 4": 476.8,
    "cliper 5": 525.1,
    "cliper 6": 1106.4,
    "cliper 7": 435.7,
    "pnp-ovss 3": 2095.9,
    "pnp-ovss 4": 691.2,
    "pnp-ovss 5": 309.3,
    "pnp-ovss 6": 362.9,
    "pnp-ovss 8": 106.3,
    "s-seg 1": 585.5,
    "s-seg 2": 206.2,
    "s-seg 3": 1359.8,
    "s-seg 4": 2191.5,
    "s-seg 7a": 699.9,
    "s-seg 7b": 229.2,
    "s-seg 8": 4537.8,
    "s-seg 9": 155.5,
    "s-seg 10": 366.4,
    "fmbseg 1": 1715.53,
}

# Read a second time in the papers, away from the files.
SPOT_CHECKS = """
cliper:1:CoCu | ViT-S/16:Stuff:mIoU = 22.1
cliper:1:CLIP-DINOiser | ViT-B/16:VOC20:mIoU = 80.2
cliper:1:CLIPSurgery | ViT-B/16:Context:mIoU = 29.3
cliper:1:ClearCLIP | ViT-B/16:VOC:mIoU = 51.8
cliper:1:CLIPer* | ViT-B/16:ADE:mIoU = 19.8
cliper:1:CaR | ViT-L/14:VOC20:mIoU = 91.4
cliper:1:ProxyCLIP | ViT-H/14:Context59:mIoU = 39.6
cliper:1:CLIPer | ViT-L/14:Stuff:mIoU = 28.7
cliper:2:MaskCLIP | ViT-L/14:VOC:R = 72.1
cliper:2:ProxyCLIP | ViT-L/14:Context:P = 52.6
cliper:2:CLIPer | ViT-L/14:Object:mAP = 77.9
cliper:3:ToCo:VOC:mIoU = 72.2
cliper:3:T2M:COCO:mIoU = 43.7
cliper:4:CLIPer | ViT-L/14:VOC:time (ms) = 192
cliper:5:FGC:Context:mIoU = 29.7
cliper:6:Identity matrix | early:VOC:mIoU = 43.3
cliper:7:Single:Object:mIoU = 41.2
pnp-ovss:1:ZeroSeg:-:FT data size = 1.2e6
pnp-ovss:2:BridgeTower | Head:-:Solution = 8
pnp-ovss:2:Gaussian Blur | Standard Deviation:-:End = 0.11
pnp-ovss:3:GroupVit (by CLIPpy):ADE20K-150:mIoU = 6.2
pnp-ovss:3:ZeroSeg*:COCO Object-80:mIoU = 17.8
pnp-ovss:3:MaskClip (by CLIPpy):COCO Stuff-171:mIoU = 8.1
pnp-ovss:3:PnP-OVSS + BridgeTower | 336:Pascal Context-59:mIoU = 25.3
pnp-ovss:4:CaGNet+ST:COCO Stuff-171:mIoU = 13.4
pnp-ovss:5:+ Drop 3 + Dense CRF:Pascal Context:mIoU = 25.1
pnp-ovss:6:Layer Mean | 11:COCO Stuff:mIoU = 11.7
pnp-ovss:6:Head in Layer 8 | 4:COCO Stuff:mIoU = 29.8
pnp-ovss:7:LSeg:-:PT/T data size = 401.3e6
pnp-ovss:8:PnP-OVSS + mPLUG | 336:Pascal Context-59:mIoU = 8.8
s-seg:1:ImageNet + K-Means:P.VOC:oracle mIoU = 68.8
s-seg:2:B2 | Pseudo-mask ViT:COCO:mIoU = 10.4
s-seg:3:GroupViT:P.VOC:mIoU = 50.8
s-seg:3:MaskFormer:COCO:mIoU = 62.1
s-seg:4:DeOP:P.VOC:mIoU = 91.7
s-seg:4:S-Seg+:COCO:mIoU = 53.0
s-seg:5:batch size:-:value = 4096
s-seg:6:base learning rate:-:value = 1e-4
s-seg:7a:S-Seg+ | 26M:COCO:gain = 9.5
s-seg:7b:w/ self-train | 12M:3-Average:mIoU = 34.9
s-seg:8:MaskCLIP:P.VOC:IoU cat = 56.8
s-seg:8:S-Seg:P.VOC:IoU person = 50.7
s-seg:9:ViT-FCN:ImageNet-S:mIoU = 40.4
s-seg:10:ZegFormer:VOC:mIoU = 80.7
fmbseg:1:ReCo:City:mIoU = 21.1
fmbseg:1:CLIP-S4:CS-171:mIoU = 22.1
fmbseg:1:SAM-CLIP:PC-59:mIoU = 29.2
fmbseg:1:FMbSeg:CO-80:mIoU = 57.63
"""


@pytest.fixture
def editable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `data/published` that the package reads for the length of a test."""
    folder = tmp_path / "published"
    shutil.copytree(paths.data("published"), folder)
    monkeypatch.setenv("OVSS_DATA", str(tmp_path))
    return folder


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_every_table_is_whole() -> None:
    frames = {paper: published.load(paper) for paper in published.PAPERS}
    found = {(p, t) for p, frame in frames.items() for t in frame["table"]}
    assert found == {*TABLES, ("s-seg", "7a")}
    for (paper, table), (rows, columns, empty) in TABLES.items():
        cells = frames[paper][frames[paper]["table"] == table]
        per_row = Counter(cells["row"])
        assert len(per_row) == rows, (paper, table)
        assert set(per_row.values()) == {columns}, (paper, table)
        assert (cells["value"] == "").sum() == empty, (paper, table)


def test_table_7a_of_s_seg_has_its_brackets() -> None:
    frame = published.load("s-seg")
    cells = frame[frame["table"] == "7a"]
    assert Counter(cells["metric"]) == {"mIoU": 18, "gain": 12}
    assert cells["row"].nunique() == 6


@pytest.mark.parametrize("paper", published.PAPERS)
def test_cells_are_clean(paper: str) -> None:
    frame = published.load(paper)
    empty = frame["value"] == ""
    assert frame.loc[empty, "note"].str.contains("not reported|left blank").all()
    assert not frame.loc[~empty, "note"].str.contains("not reported|left blank").any()
    for column in published.KEY:
        assert (frame[column] == frame[column].str.strip()).all()
        assert (frame[column] != "").all()
    assert not frame["row"].str.contains(r"Ours|†|★|\[").any()


@pytest.mark.parametrize("paper", published.PAPERS)
def test_scores_are_percentages(paper: str) -> None:
    frame = published.load(paper)
    score = frame["metric"].str.contains("IoU|^mAP$|^F1$|^P$|^R$|^gain$") & (frame["value"] != "")
    values = [cell_arithmetic.number(value)[0] for value in frame.loc[score, "value"]]
    assert values
    assert all(0 < value < 100 for value in values)


def test_no_digit_has_changed() -> None:
    totals = {}
    for paper, frame in ((p, published.load(p)) for p in published.PAPERS):
        for table, cells in frame.groupby("table"):
            kept = cells[cells["metric"].str.contains("IoU|^mAP$|^F1$|^P$|^R$|^gain$")]
            numbers = [cell_arithmetic.number(v)[0] for v in kept["value"] if v]
            if numbers:
                totals[f"{paper} {table}"] = round(sum(numbers), 2)
    assert totals == TOTALS


@pytest.mark.parametrize("line", SPOT_CHECKS.strip().splitlines())
def test_spot_checks(line: str) -> None:
    address, _, value = line.rpartition(" = ")
    paper, table, row, dataset, metric = address.split(":")
    assert published.cell(paper, table, row, dataset, metric) == pytest.approx(float(value))


def test_the_sums_come_out_as_recorded() -> None:
    recorded = published.derived().set_index("id")["adds_up"]
    checked = published.check_derived().set_index("id")
    assert set(recorded[recorded == "no"].index) == set(checked[~checked["agrees"]].index)
    assert list(checked.columns) == [
        "stated", "recomputed", "tolerance", "exact", "agrees", "why",
    ]  # fmt: skip
    assert not (checked["exact"] & ~checked["agrees"]).any()


def test_every_sum_that_fails_has_a_remark() -> None:
    sums = published.derived()
    assert (sums.loc[sums["adds_up"] == "no", "note"] != "").all()
    assert sums["sentence"].str.split().str.len().max() <= 30


def test_s_seg_would_add_up_with_one_other_cell(editable: Path) -> None:
    cell = "s-seg,7a,S-Seg | 15M,COCO,mIoU,"
    _edit(editable / "s-seg.csv", f"{cell}27.9", f"{cell}23.6")
    checked = published.check_derived().set_index("id")["agrees"]
    three = ["sseg-t7b-average-s-seg-15m", "sseg-fig10-coco-15m", "sseg-fig10-relative-coco"]
    assert checked[three].all()
    assert not checked["sseg-t7a-gain-s-seg-15m-coco"]


@pytest.mark.parametrize(
    ("file", "cell", "wrong"),
    [
        ("cliper", "1,CLIPer | ViT-L/14,VOC,mIoU,69.8", "69.6"),
        ("pnp-ovss", "5,+ Drop 2,COCO Stuff,mIoU,15.2", "15.4"),
        ("s-seg", "8,GroupViT,P.VOC,IoU train,44.0", "40.4"),
        ("fmbseg", "1,TCL,CO-80,mIoU,31.6", "36.1"),
    ],
)
def test_a_wrong_digit_is_noticed(editable: Path, file: str, cell: str, wrong: str) -> None:
    prefix = f"{file},{cell}"
    _edit(editable / f"{file}.csv", f"{prefix},", f"{prefix.rpartition(',')[0]},{wrong},")
    recorded = published.derived().set_index("id")["adds_up"]
    checked = published.check_derived().set_index("id")["agrees"]
    assert ((recorded == "yes") != checked).any()


def test_the_page_is_the_generated_one() -> None:
    page = paths.root() / "book" / "appendix" / "sums.md"
    assert page.read_text(encoding="utf-8") == published.sums_page(), "python tools/sums_page.py"


def test_the_page_lists_every_disagreement() -> None:
    page = published.sums_page()
    assert "<<" not in page
    for row in published.derived().query("adds_up == 'no'").to_dict("records"):
        assert row["note"].split("|")[0] in page
    widths = [line.replace("\\|", "").count("|") for line in page.splitlines() if line[:1] == "|"]
    assert set(widths) == {6}


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        (("clipper", "1", "CLIPer", "VOC", "mIoU"), "did you mean 'cliper'"),
        (("cliper", "9", "CLIPer", "VOC", "mIoU"), "table in cliper"),
        (("cliper", "1", "CLIPer", "VOC", "mIoU"), "CLIPer | ViT-B/16"),
        (("cliper", "1", "CLIPer | ViT-B/16", "VOC12", "mIoU"), "dataset"),
        (("cliper", "1", "CLIPer | ViT-B/16", "VOC", "IoU"), "did you mean 'mIoU'"),
    ],
)
def test_an_unknown_cell_says_what_is_there(address: tuple[str, ...], hint: str) -> None:
    with pytest.raises(UnknownNameError, match=hint.replace("|", r"\|")):
        published.cell(*address)


def test_a_cell_without_a_number_is_an_error() -> None:
    with pytest.raises(OvssError, match="not reported"):
        published.cell("cliper", "1", "CaR | ViT-L/14", "Stuff", "mIoU")
    with pytest.raises(OvssError, match="not a number: 'AdamW'"):
        published.cell("s-seg", "5", "optimizer", "-", "value")


def test_damaged_files_are_errors(editable: Path) -> None:
    file = editable / "fmbseg.csv"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole + whole.splitlines()[1] + "\n", encoding="utf-8")
    with pytest.raises(OvssError, match="more than once"):
        published.load("fmbseg")
    file.write_text(whole.replace("metric", "measure"), encoding="utf-8")
    with pytest.raises(OvssError, match="columns"):
        published.load("fmbseg")
    file.unlink()
    with pytest.raises(OvssError, match="OVSS_DATA"):
        published.load("fmbseg")


def test_files_are_plain_csv() -> None:
    for name in (*published.PAPERS, "derived"):
        text = paths.data("published", f"{name}.csv").read_text(encoding="utf-8")
        assert "\r" not in text
        assert len({len(row) for row in csv.reader(text.splitlines())}) == 1


def test_a_table_is_laid_out_as_printed() -> None:
    one = published.printed("cliper", 1, kinds=True)
    assert one.shape == (25, 8) and list(one)[:3] == ["kind", "VOC", "Context"]
    assert one.loc["CaR | ViT-L/14", "VOC20"] == "91.4"
    assert one["kind"].iloc[0].startswith("training-based")
    two = published.printed("cliper", 2)
    assert two.shape == (6, 12) and ("VOC", "mAP") in two
    assert set(published.printed("pnp-ovss", 1)) == {"PT data size", "FT data size"}
    assert (published.printed("pnp-ovss", 1) == "–").sum().sum() == 5
    for paper, table in TABLES:
        cells = published.load(paper)
        wanted = cells[(cells["table"] == table) & (cells["value"] != "")]["value"]
        shown = published.printed(paper, table).to_numpy().ravel()
        assert Counter(shown[shown != "–"]) == Counter(wanted)
    with pytest.raises(OvssError, match="no table"):
        published.printed("cliper", 99)


def test_a_printed_value_keeps_its_digits() -> None:
    assert published.text("cliper", "1", "CaR | ViT-L/14", "VOC20", "mIoU") == "91.4"
    assert any(value.endswith(".0") for value in published.load("cliper")["value"])
    assert published.text("cliper", "1", "no such row", "VOC20", "mIoU") == ""
