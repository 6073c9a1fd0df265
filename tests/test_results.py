"""Results files, and published numbers beside them."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ovss import Segmenter, evaluate, files, paths
from ovss.errors import OvssError
from ovss.evaluation import metrics
from ovss.evaluation.result import Result
from ovss.reporting import kept_counts, results
from ovss.reporting.results import COLUMNS, ResultsError


def result(hit: float = 0.7, seed: int = 0, images: int = 40, **changes: Any) -> Result:
    """A made-up evaluation; `seed` draws the images, `hit` how many pixels are right."""
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(images):
        target = rng.integers(-1, 3, 300)
        wrong = rng.random(300) > hit
        pred = np.where(wrong, rng.integers(-1, 3, 300), target)
        tables.append(metrics.confusion(pred, target, 3))
    stack = np.stack(tables)
    made = Result(
        "lab-21", "mmseg", "clip@1", "cpu", 0, ("cat", "dog", "car"), True,
        tuple(f"val_{i:04d}" for i in range(images)), metrics.areas(stack), stack.sum(0),
        np.full(images, 2.0 / images),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def row(value: float = 40.0, **changes: Any) -> dict[str, Any]:
    shared = {"experiment": "e", "row": "a", "dataset": "lab-20", "protocol": "mmseg"}
    return {**shared, "metric": "mIoU", "value": value, "images": 8, "profile": "lab", **changes}


def test_write_read_replace(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "e.csv"
    results.write(path, [row(1.0), row(2.0, row="b", low=1.5, high=2.5, seed=3)])
    results.write(path, [row(9.00004), row(5.0, row="c")])
    frame = results.read(path)
    assert tuple(frame.columns) == COLUMNS
    assert frame["row"].tolist() == ["a", "b", "c"]
    assert frame["value"].tolist() == [9.0, 2.0, 5.0]
    assert frame["low"].isna().tolist() == [True, False, True]
    assert frame["seed"].tolist() == [pd.NA, 3, pd.NA]
    assert (frame["version"] != "").all() and (frame["date"].str.len() == 10).all()
    assert frame["checkpoint"].tolist() == ["", "", ""]


def test_a_number_that_did_not_change_keeps_its_row(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    results.write(path, [row(1.0, date="2020-01-01", commit="old", seconds_per_image=0.5)])
    before = path.stat().st_mtime_ns, path.read_bytes()
    results.write(path, [row(1.0, seconds_per_image=0.7)])
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    results.write(path, [row(1.0, checkpoint="clip@2")])
    assert results.read(path)["date"].tolist() != ["2020-01-01"]


def test_text_that_looks_like_a_number_or_na_survives(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    results.write(path, [row(row="01"), row(row="NA"), row(row='say "x", y')])
    assert results.read(path)["row"].tolist() == ["01", "NA", 'say "x", y']
    results.write(path, [row(row="01")])
    assert len(results.read(path)) == 3


def test_write_refuses(tmp_path: Path) -> None:
    incomplete = row()
    del incomplete["dataset"]
    with pytest.raises(ResultsError, match="dataset"):
        results.write(tmp_path / "e.csv", [incomplete])
    with pytest.raises(ResultsError, match="colour"):
        results.write(tmp_path / "e.csv", [row(colour="red")])
    (tmp_path / "e.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ResultsError, match=r"e\.csv is no results file"):
        results.write(tmp_path / "e.csv", [row()])
    assert results.read(tmp_path / "absent.csv").empty


def write_some(name: str, path: Path) -> None:
    for index in range(8):
        results.write(path, [row(float(index), row=f"{name}{index}")])


def test_writers_in_parallel_lose_nothing(tmp_path: Path) -> None:
    path, fork = tmp_path / "e.csv", multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_some, args=(name, path)) for name in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    names = {f"{name}{index}" for name in "xyz" for index in range(8)}
    assert set(results.read(path)["row"]) == names


def test_record_keeps_rows_and_counts(results_folder: Path) -> None:
    one = result()
    results.record(one, "table-6", "q-q | last", profile="smoke")
    assert paths.results("smoke") == results_folder / "smoke"
    frame = results.read(results.file_of("table-6", "smoke"))
    assert frame["metric"].tolist() == ["mIoU", "pixel accuracy"]
    first = frame.iloc[0]
    assert first["value"] == pytest.approx(one.miou, abs=1e-4)
    assert (first["low"], first["high"]) == pytest.approx(tuple(one.interval), abs=1e-4)
    assert first["images"] == 40 and first["seconds_per_image"] == 0.05
    assert first["profile"] == "smoke" and first["checkpoint"] == "clip@1"
    kept = results.read_counts("table-6", "q-q | last", "lab-21", profile="smoke")
    assert kept is not None and kept.ids == one.ids and kept.has_background
    np.testing.assert_array_equal(kept.areas, one.areas)
    kept_there = counts_of(results_folder / "smoke" / "table-6.csv")
    assert kept_there == set(frame["counts"]) and len(kept_there) == 1
    assert results.read_counts("table-6", "k-k", "lab-21", profile="smoke") is None
    assert results.read_counts("table-6", "q-q last", "lab-21", profile="smoke") is None


def counts_of(file: Path) -> set[str]:
    """Names of the files of counts beside a results file."""
    return {path.name for path in (file.parent / "counts" / file.stem).iterdir()}


def test_rows_of_like_names_have_counts_of_their_own(results_folder: Path) -> None:
    made = {name: result(seed=seed) for seed, name in enumerate(("A + B", "A - B", "A/B", "A*B"))}
    for name, one in made.items():
        results.record(one, "e", name)
    for name, one in made.items():
        kept = results.read_counts("e", name, "lab-21")
        assert kept is not None
        np.testing.assert_array_equal(kept.areas, one.areas)


def test_counts_that_no_row_names_are_removed(results_folder: Path) -> None:
    file = results.file_of("e")
    results.record(result(), "e", "a")
    first = counts_of(file)
    results.record(result(seed=1), "e", "a")
    assert len(counts_of(file)) == 1 and not counts_of(file) & first
    results.write(file, [row(3.0)])  # a number without counts takes the row's place
    results.write(file, [row(4.0, dataset="lab-21"), row(5.0, dataset="lab-21", metric="P")])
    assert results.read_counts("e", "a", "lab-21") is not None  # the pixel accuracy names it still
    results.write(file, [row(4.0, dataset="lab-21", metric="pixel accuracy")])
    assert counts_of(file) == set() and results.read_counts("e", "a", "lab-21") is None
    assert not [path.name for path in file.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("step", ["counts", "rows", "removal"])
def test_a_kill_leaves_rows_and_counts_that_belong_together(
    results_folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Killed before the counts are written, between counts and rows, and before the clearing up."""
    file = results.file_of("e")
    results.record(result(), "e", "a")
    atomic = files.atomic

    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    def kill_rows(path: Path) -> Any:
        return kill() if path.suffix == ".csv" else atomic(path)

    with monkeypatch.context() as patch:
        if step == "rows":
            patch.setattr(files, "atomic", kill_rows)
        else:
            place = {"counts": (kept_counts, "save"), "removal": (results, "remove_unnamed")}
            patch.setattr(*place[step], kill)
        with pytest.raises(Killed):
            results.record(result(hit=0.4), "e", "a")
    value = results.read(file).query("metric == 'mIoU'")["value"].item()
    assert value == pytest.approx(
        (result(hit=0.4) if step == "removal" else result()).miou, abs=1e-4
    )
    kept = results.read_counts("e", "a", "lab-21")
    assert kept is not None
    assert value == pytest.approx(100 * metrics.miou_of_areas(kept.areas.sum(0)), abs=1e-4)
    results.record(result(hit=0.4), "e", "a")
    assert len(counts_of(file)) == 1


def test_missing_counts_are_an_error_and_not_absent(results_folder: Path) -> None:
    results.record(result(), "e", "a")
    file = results.file_of("e")
    (path,) = (file.parent / "counts" / "e").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ResultsError, match="missing or damaged"):
        results.read_counts("e", "a", "lab-21")
    path.unlink()
    with pytest.raises(ResultsError, match="missing or damaged"):
        results.read_counts("e", "a", "lab-21")
    results.record(result(), "e", "a")  # the same numbers: the counts are written again
    assert results.read_counts("e", "a", "lab-21") is not None


def test_a_lock_that_somebody_left_stops_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_counts, "PATIENCE", 0.5)
    path, mark = tmp_path / "e.csv", tmp_path / ".e.csv.lock"
    for left in ("", "what is this", "12345\nanother-machine\n"):
        mark.write_text(left)
        results.write(path, [row(1.0, row=left[:3] or "empty")])
        assert not mark.exists()
    assert len(results.read(path)) == 3


def test_a_lock_that_is_held_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_counts, "PATIENCE", 0.2)
    monkeypatch.setattr(kept_counts, "_stamp", lambda path: (1, time.monotonic_ns()))  # renewed
    with kept_counts.locked(tmp_path / "e.csv"), pytest.raises(ResultsError, match="in use by"):
        results.write(tmp_path / "e.csv", [row()])
    results.write(tmp_path / "e.csv", [row()])


def test_a_destination_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "file").write_text("")
    places = (tmp_path / "other.csv", tmp_path, tmp_path / "file" / "r.csv", Path("/proc/no/r.csv"))
    for place in places:
        with pytest.raises(OvssError):
            results.check_results_file(place)
    results.check_results_file(tmp_path / "new" / "r.csv")
    assert not (tmp_path / "new").exists()
    results.write(tmp_path / "r.csv", [row(seed=3)])
    results.check_results_file(tmp_path / "r.csv")
    text = (tmp_path / "r.csv").read_text()
    (tmp_path / "r.csv").write_text(text.replace(",3,lab", ",0.5,lab"))
    with pytest.raises(ResultsError, match="no results file"):
        results.check_results_file(tmp_path / "r.csv")
    old = "\n".join(line.rpartition(",")[0] for line in text.splitlines())
    (tmp_path / "r.csv").write_text(old + "\n")  # written before rows named their counts
    assert results.read(tmp_path / "r.csv")["counts"].tolist() == [""]


def test_rows_may_differ_in_more_than_their_key(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    for checkpoint, value in (("clip@1", 1.0), ("clip@2", 2.0), ("clip@1", 3.0)):
        results.write(path, [row(value, checkpoint=checkpoint)], apart=("checkpoint",))
    assert results.read(path)["value"].tolist() == [3.0, 2.0]


def test_counts_and_rows_that_are_older_are_whole() -> None:
    """Every row of the repository that names counts finds them."""
    for file in sorted(paths.data("results", "lab").glob("*.csv")):
        named = set(results.read(file)["counts"]) - {""}
        folder = kept_counts.folder_of(file)
        assert named == ({path.name for path in folder.iterdir()} if folder.is_dir() else set())


def scored(hit: float = 0.7, **changes: Any) -> Result:
    """As `result`, with image scores that are high where the class is found."""
    one = result(hit)
    rng = np.random.default_rng(1)
    noise = rng.random((one.images, 3)) * (1 - hit)
    scores = (one.areas[:, 0, 1:] / one.areas[:, 1, 1:].clip(1) + noise).astype(np.float32)
    present = rng.random(one.images) < 0.5  # class "car" is in half of the images
    areas = one.areas.copy()
    areas[:, :, 3] *= present[:, None]
    scores[:, 2] = np.where(present, scores[:, 2], noise[:, 2] / hit)
    return dataclasses.replace(one, areas=areas, image_scores=scores, **changes)


def test_image_level_numbers_are_those_of_the_metrics(results_folder: Path) -> None:
    one, threshold = scored(0.4), 0.6
    results.record(one, "t2", "a", threshold=threshold)
    frame = results.read(results.file_of("t2")).set_index("metric")
    assert list(frame.index) == ["mIoU", "pixel accuracy", "mAP", "F1", "P", "R"]
    assert one.image_scores is not None
    score, present = one.image_scores, one.areas[:, 1, 1:] > 0
    wanted = metrics.precision_recall_f1(score > threshold, present)
    found = frame["value"][["P", "R", "F1"]].tolist()
    assert found == pytest.approx(100 * np.array(wanted), abs=1e-4)
    ap = [metrics.average_precision(score[:, k], present[:, k]) for k in range(3)]
    assert frame["value"]["mAP"] == pytest.approx(100 * np.mean(ap), abs=1e-4)
    for name in ("mAP", "F1", "P", "R"):
        low, value, high = frame.loc[name, ["low", "value", "high"]]
        assert low < value < high, name
    kept = results.read_counts("t2", "a", "lab-21")
    assert kept is not None and kept.image_level is not None
    np.testing.assert_array_equal(kept.image_level.scores, score)
    np.testing.assert_array_equal(kept.image_level.present, present)
    assert kept.image_level.threshold == threshold
    with pytest.raises(OvssError, match="classes='all'"):
        results.record(result(), "t2", "b", threshold=0.5)


def test_a_star_makes_another_row(results_folder: Path) -> None:
    rows = {"CLIPer* (text)": result(0.9), "CLIPer (text)": result(0.3)}
    for row, one in rows.items():
        results.record(one, "e", row)
    for row, one in rows.items():
        kept = results.read_counts("e", row, "lab-21")
        assert kept is not None
        np.testing.assert_array_equal(kept.areas, one.areas)


def test_rows_of_one_run_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "t4.csv"

    def measure(ms: float, miou: float) -> pd.DataFrame:
        times = [row(ms + i, row=name, metric="time (ms)") for i, name in enumerate("ab")]
        results.write(path, [row(miou), *times], one_run=True)
        return results.read(path)

    assert measure(10, 40)["value"].tolist() == [40, 10, 11]
    assert measure(20, 40)["value"].tolist() == [40, 10, 11]  # only the times differ
    assert measure(20, 41)["value"].tolist() == [41, 20, 21]
    results.write(path, [row(5, row="c", metric="time (ms)")])
    assert measure(30, 41)["value"].tolist() == [41, 20, 21, 5]


def test_counts_are_small_and_repeatable(results_folder: Path) -> None:
    one = result(images=400)
    folder = kept_counts.folder_of(results.file_of("e"))
    results.record(one, "e", "a")
    (path,) = folder.iterdir()
    first = path.read_bytes()
    assert len(first) < 40_000
    path.unlink()
    results.record(one, "e", "a")
    assert path.read_bytes() == first
    results.record(dataclasses.replace(one, protocol="mmseg-image-classes"), "e", "a")
    assert len(list(folder.iterdir())) == 2


def test_published_tables() -> None:
    table = results.published("cliper", 5)
    assert list(table.columns) == ["row", "dataset", "metric", "value", "note"]
    chosen = table[(table["row"] == "ELF + FGC") & (table["dataset"] == "VOC")]
    assert chosen["value"].tolist() == [69.8]
    with pytest.raises(ResultsError, match="no table '99'"):
        results.published("cliper", "99")


def test_a_table_tells_how_many_classes_are_thin(
    results_folder: Path, voc: Path, segmenter: Segmenter
) -> None:
    found = evaluate(segmenter, "voc21", root=voc, limit=6, progress=False)
    results.record(found, "few", "colours")
    (cell,) = results.compare("few")["ours: voc21"]
    assert found.thin_classes and f"(6, {len(found.thin_classes)} thin" in cell


def test_a_number_that_few_images_decide_is_marked() -> None:
    cell = {"value": 4.2, "low": 4.1, "high": 4.3, "images": 400, "thin": 0, "rests on": 2.7}
    assert results.show(cell) == "4.2 [4.1, 4.3] (400, rests on 3)"
    assert results.show({**cell, "thin": 2, "rests on": 5.1}) == "4.2 [4.1, 4.3] (400, 2 thin)"
    unknown = {**cell, "thin": math.nan, "rests on": math.nan}
    assert results.show(unknown) == "4.2 [4.1, 4.3] (400)"


def test_compare(results_folder: Path) -> None:
    results.write(
        results.file_of("elf"),
        [row(41.234, experiment="elf", row="fused", dataset="lab-20", low=39.8, high=42.5)],
    )
    frame = results.compare(
        "elf",
        paper="cliper",
        table=5,
        rows={"last": "baseline", "fused": "ELF", "ours only": "no such row"},
        datasets={"lab-20": "VOC"},
    )
    assert frame.index.tolist() == ["last", "fused", "ours only"]
    assert frame["ours: lab-20"].tolist() == ["not run yet", "41.2 [39.8, 42.5] (8)", "not run yet"]
    assert frame["paper: VOC"].tolist() == ["51.2", "61.2", "not reported"]
    plain = results.compare("elf")
    assert plain.columns.tolist() == ["ours: lab-20"] and plain.index.tolist() == ["fused"]
    assert results.compare("never run").empty
    whole = results.compare(
        "elf",
        paper="cliper",
        table=2,
        metric="P",
        rows={"fused": "SCLIP | ViT-L/14"},
        datasets={"lab-20": "VOC"},
    )
    assert whole["paper: VOC"].tolist() == ["81.0"]  # with its last digit
    results.write(
        results.file_of("elf"), [row(1.0, experiment="elf", row="other", dataset="lab-all")]
    )
    pairs = results.side_by_side("elf")[["row", "dataset"]].to_numpy().tolist()
    assert pairs == [["fused", "lab-20"], ["other", "lab-all"]]  # nothing that was not to be run
    cells = results.side_by_side("elf", paper="cliper", table=5, datasets={"lab-20": "VOC"})
    assert cells["row"].tolist() == ["fused"] and math.isnan(cells["published"].iloc[0])
