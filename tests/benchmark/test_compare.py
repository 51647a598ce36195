"""Comparisons of rows made of records with detections: what is found, what is refused, what is printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_records import STAGE, make_record

from benchmark import analysis, report
from benchmark import compare as module
from benchmark.cli import run_app
from benchmark.compare import Comparison, baseline_of, compare, select, together
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, evaluate
from benchmark.records import CellIdentity, DatasetUsed, EpochResult, Record, write_record
from benchmark.reported import ReportedRow
from benchmark.rows import rows
from benchmark.statistics.resampling import draw_images
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

CLASSES = ("scratch", "inclusion")
IMAGES = 50
IDS = [f"{i:03d}" for i in range(IMAGES)]


def labels_of(dataset: str) -> GroundTruth:
    """Two objects an image, one of each class; each dataset has its own."""
    rng = np.random.default_rng(len(dataset))
    boxes = [np.concatenate([rng.uniform(0, 100, (2, 2)), rng.uniform(20, 50, (2, 2))], 1) for _ in IDS]
    return GroundTruth.from_images(CLASSES, IDS, np.full((IMAGES, 2), 200), boxes, [[0, 1]] * IMAGES)


def store_row(
    results: Path,
    mode: str,
    found: float,
    seeds: tuple[int, ...] = (0, 1, 2),
    *,
    dataset: str = "steel_pipe",
    backbone: str = "swin",
    variant: str = "base",
    method: str = "simmim",
    fingerprint: str = "b" * 64,
    protocol: str = "paper",
    procedural: bool = False,
) -> list[Path]:
    """Stores a row whose detector finds an object with probability `found`, and makes as many errors as finds."""
    truth, paths = labels_of(dataset), []
    corners = truth.boxes.copy()
    corners[:, 2:] += corners[:, :2]
    for seed in seeds:
        rng = np.random.default_rng([seed, len(mode), int(1000 * found)])
        boxes, scores, labels = [], [], []
        for i in range(IMAGES):
            kept = rng.random(2) < found
            right = corners[2 * i : 2 * i + 2][kept] + rng.uniform(0, 2, (kept.sum(), 1))
            boxes.append(np.concatenate([right, right + 60]))
            scores.append(rng.uniform(0, 1, len(boxes[-1])))
            labels.append(np.tile(np.flatnonzero(kept), 2))
        detections = Detections.from_images(CLASSES, IDS, boxes, scores, labels)
        metrics = evaluate(truth, detections)
        result = EpochResult(epoch=4, metrics=metrics, detections_sha256=detections.sha256())
        inputs: dict[str, Any] = {
            "seed": seed,
            "of": [mode, found, dataset, backbone, method, fingerprint, protocol],
            "upstream": {"backbone": STAGE.key},
        }
        changes: dict[str, Any] = {
            "key": content_key(inputs),
            "inputs": inputs,
            "cell": CellIdentity(
                backbone=backbone,
                variant=variant,
                method=method,
                mode=mode,
                detector="yolov8",
                dataset=dataset,
                seed=seed,
            ),
            "protocol": make_record().protocol.model_copy(update={"name": protocol}),
            "dataset": DatasetUsed(
                name=dataset,
                fingerprint=fingerprint,
                classes=CLASSES,
                splits={"train": 1, "validation": IMAGES},
                procedural=procedural,
            ),
            "last": result,
            "best": result,
            "curve": [],
        }
        record = Record.model_validate(dict(make_record()) | changes)
        paths.append(write_record(record, detections, detections, results))
    return paths


@pytest.fixture(autouse=True)
def _small(monkeypatch) -> None:
    monkeypatch.setattr(module, "_labels", lambda dataset: labels_of(dataset.name))
    monkeypatch.setattr(module, "draw_images", lambda images: draw_images(images, 200))


def only(found: list[Comparison]) -> Comparison:
    assert len(found) == 1
    return found[0]


def test_a_better_row_is_called_better_with_the_difference_of_the_records(tmp_path) -> None:
    store_row(tmp_path, "agssp", 0.9)
    store_row(tmp_path, "imagenet", 0.6)
    entry = only(compare(tmp_path, "mode=agssp", "mode=imagenet,backbone=swin"))
    means = {row.mode: row.map50 for row in rows(tmp_path)}
    found = entry.metrics["map50"]
    assert found.value == pytest.approx(means["agssp"] - means["imagenet"], abs=1e-9)
    assert 0 < found.low < found.value < found.high
    assert entry.differs()
    assert entry.verdict().startswith(
        f"A is better than B by {found.value:.1f} points of mAP@.5 (95 % interval"
    )
    assert "one seed" not in entry.verdict()
    assert set(entry.classes) == set(CLASSES)
    again = only(compare(tmp_path, "mode=imagenet", "mode=agssp"))
    assert again.metrics["map50"].value == pytest.approx(-found.value)
    assert again.verdict().startswith("A is worse than B")


def test_rows_that_chance_explains_are_not_called_different(tmp_path) -> None:
    store_row(tmp_path, "agssp", 0.701)
    store_row(tmp_path, "imagenet", 0.7)
    entry = only(compare(tmp_path, "mode=agssp", "mode=imagenet"))
    found = entry.metrics["map50"]
    assert found.low < 0 < found.high
    assert "told from chance" in entry.verdict()
    assert f"One of {found.smallest:.1f} points would be found in 4 of 5" in entry.verdict()


def test_two_records_are_compared_on_images_alone_and_that_is_said(tmp_path) -> None:
    a, b = store_row(tmp_path, "agssp", 0.9, (0,)) + store_row(tmp_path, "imagenet", 0.6, (0,))
    for one, other in ((str(a), str(b)), (str(a.parent), str(b.parent))):
        entry = only(compare(tmp_path, one, other))
        assert entry.metrics["map50"].seed_error is None
        assert "speaks of these trained detectors alone" in entry.verdict()


def test_several_datasets_are_one_family(tmp_path) -> None:
    for dataset in ("steel_pipe", "gc10_det", "fd"):
        store_row(tmp_path, "agssp", 0.75, dataset=dataset)
        store_row(tmp_path, "imagenet", 0.7, dataset=dataset)
    found = compare(tmp_path, "mode=agssp", "mode=imagenet")
    assert [entry.a.dataset for entry in found] == ["fd", "gc10_det", "steel_pipe"]
    smallest = min(found, key=lambda entry: entry.metrics["map50"].p)
    assert smallest.adjusted["map50"] == pytest.approx(min(1, 3 * smallest.metrics["map50"].p))
    (joined,) = together(found)
    assert joined.datasets == ("fd", "gc10_det", "steel_pipe")
    means = {(row.mode, row.dataset): row.map50 for row in rows(tmp_path)}
    expected = [means["agssp", name] - means["imagenet", name] for name in joined.datasets]
    assert joined.metrics["map50"].value == pytest.approx(np.mean(expected))


def test_what_shares_images_or_is_of_another_kind_is_not_joined(tmp_path) -> None:
    for dataset, procedural in (("fd", False), ("fd/mini50", False), ("gc10_synthetic", True)):
        for mode in ("agssp", "imagenet"):
            store_row(tmp_path, mode, 0.7, dataset=dataset, procedural=procedural)
    found = compare(tmp_path, "mode=agssp", "mode=imagenet")
    assert len(found) == 3
    assert together(found) == []


def test_the_interval_is_the_paired_bootstrap_of_literal_resampling(tmp_path) -> None:
    """One seed each: the spread of differences, images drawn one by one and evaluated anew."""
    store_row(tmp_path, "agssp", 0.8, (0,))
    store_row(tmp_path, "imagenet", 0.7, (0,))
    found = only(compare(tmp_path, "mode=agssp", "mode=imagenet")).metrics["map50"]
    truth = labels_of("steel_pipe")
    both = {}
    for row in rows(tmp_path):
        path, record = row.records[0]
        both[row.mode] = Detections.load(path.parent / record.detections_files[0])
    rng = np.random.default_rng(0)
    values = []
    for _ in range(150):
        chosen = rng.integers(0, IMAGES, IMAGES)
        names = [f"{n:03d}" for n in range(IMAGES)]
        boxes = [truth.boxes[2 * i : 2 * i + 2] for i in chosen]
        drawn = GroundTruth.from_images(CLASSES, names, np.full((IMAGES, 2), 200), boxes, [[0, 1]] * IMAGES)
        maps = {}
        for mode, detections in both.items():
            parts = [detections.of_image(int(i)) for i in chosen]
            again = Detections.from_images(
                CLASSES, names, [p.boxes for p in parts], [p.scores for p in parts], [p.labels for p in parts]
            )
            maps[mode] = evaluate(drawn, again).map50
        values.append(maps["agssp"] - maps["imagenet"])
    # 150 draws know a standard deviation to 6 %.
    assert found.image_error == pytest.approx(np.std(values), rel=0.2)
    half = stats.t.ppf(0.975, IMAGES - 1) * found.error
    assert [found.low, found.high] == pytest.approx([found.value - half, found.value + half])


def test_what_cannot_be_compared_is_refused(tmp_path) -> None:
    store_row(tmp_path, "agssp", 0.8, (0,))
    store_row(tmp_path, "agssp", 0.7, (0,))
    (imagenet,) = store_row(tmp_path, "imagenet", 0.6, (0,))
    store_row(tmp_path, "coco", 0.6, (0,), fingerprint="c" * 64)
    store_row(tmp_path, "scratch", 0.6, (0,), protocol="mini")
    for a, b, message in (
        ("mode=agssp", "mode=imagenet", "means more than one row"),
        ("mode=coco", "mode=imagenet", "share no dataset"),
        ("mode=scratch", "mode=imagenet", "share no dataset"),
        ("mode=imagenet", str(imagenet), "the same record"),
        ("mode=agbp", "mode=imagenet", "No row of"),
        ("mood=agbp", "mode=imagenet", "Did you mean 'mode'"),
        ("nowhere", "mode=imagenet", "No record nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            compare(tmp_path, a, b)


def test_exchanged_detections_are_found_out(tmp_path) -> None:
    (a,) = store_row(tmp_path, "agssp", 0.9, (0,))
    (b,) = store_row(tmp_path, "imagenet", 0.6, (0,))
    shutil.copy(a.parent / "last.parquet", b.parent / "last.parquet")
    with pytest.raises(UserError, match=r"not those of its detections.*verify"):
        compare(tmp_path, str(a), str(b))


def test_a_copy_of_a_record_counts_once(tmp_path, caplog) -> None:
    (path,) = store_row(tmp_path, "agssp", 0.9, (0,))
    shutil.copytree(path.parent, tmp_path / "copy")
    (row,) = select(tmp_path, "mode=agssp")
    assert row.seeds == (0,)
    assert "has the row and the seed of" in caplog.text


def test_the_baseline_is_of_the_same_backbone_and_method() -> None:
    def row(mode: str, method: str, backbone: str = "swin:base") -> ReportedRow:
        return ReportedRow("fd", "yolov8", backbone, method, mode, 50.0, 25.0)

    simmim, cls, other = row("imagenet", "simmim"), row("imagenet", "cls"), row("scratch", "-", "lite0:std")
    agssp, scratch, kin = row("agssp", "simmim"), row("scratch", "-"), row("agbp", "cls", "lite0:std")
    everything = [simmim, cls, other, agssp, scratch, kin]
    assert baseline_of(agssp, everything, None) is simmim
    assert baseline_of(agssp, everything, "scratch") is scratch
    assert baseline_of(kin, everything, None) is other  # its backbone has no ImageNet row
    assert baseline_of(simmim, everything, None) is None  # it is a baseline itself
    assert baseline_of(scratch, everything, None) is None  # two could be meant
    assert baseline_of(scratch, [scratch, cls], None) is cls


def test_an_analysis_groups_and_ranks(tmp_path, capsys) -> None:
    for dataset in ("steel_pipe", "gc10_det"):
        for mode, found in (("agssp", 0.95), ("agbp", 0.5), ("imagenet", 0.505)):
            store_row(tmp_path, mode, found, dataset=dataset)
    outcome = analysis.analyse(rows(tmp_path), "imagenet")
    assert len(outcome.comparisons) == 4
    for block in outcome.blocks:
        assert block.groups[0] == ("swin:base agssp (simmim, kead:tiny)",)
        assert set(block.groups[1]) == {
            "swin:base agbp (simmim, kead:tiny)",
            "swin:base imagenet (simmim, kead:tiny)",
        }
        assert block.smallest is not None
        assert 0 < block.smallest < 30
        assert block.seeds_known
    standings = list(outcome.standings["paper-v1"].items())
    assert standings[0][0].startswith("swin:base agssp")
    assert standings[0][1].rank_interval == (1, 1)
    assert standings[1][1].rank_interval[0] < 3
    json.dumps(outcome.to_dict(), allow_nan=False)
    report.print_analysis(outcome)
    shown = capsys.readouterr().out
    assert "cannot be told apart: swin:base" in shown
    assert "Over gc10_det, steel_pipe, paper-v1" in shown
    better = next(entry for entry in outcome.together if "agssp" in entry.a)
    assert better.adjusted["map50"] < 0.05
    # Two of 20 x 20 ways are as large, and there are two rows.
    assert better.exchanged["map50"] == pytest.approx(2 * 2 / 400)
    with pytest.raises(UserError, match="No row has the mode 'coco'"):
        analysis.analyse(rows(tmp_path), "coco")


def test_a_dataset_that_is_not_here_is_left_out_of_an_analysis(tmp_path, monkeypatch, caplog) -> None:
    for dataset in ("steel_pipe", "gc10_det"):
        for mode in ("agssp", "scratch"):
            store_row(tmp_path, mode, 0.7, dataset=dataset)

    def labels(dataset: DatasetUsed) -> GroundTruth:
        if dataset.name == "steel_pipe":
            raise UserError("steel_pipe is not ready")
        return labels_of(dataset.name)

    monkeypatch.setattr(module, "_labels", labels)
    outcome = analysis.analyse(rows(tmp_path), "scratch")
    assert [entry.a.dataset for entry in outcome.comparisons] == ["gc10_det"]
    assert "left out: steel_pipe" in caplog.text
    monkeypatch.setattr(
        module, "_labels", lambda dataset: labels(dataset.model_copy(update={"name": "steel_pipe"}))
    )
    with pytest.raises(UserError, match="No dataset of these records can be used here"):
        analysis.analyse(rows(tmp_path), "scratch")


def test_the_commands(tmp_path, capsys) -> None:
    store_row(tmp_path, "agssp", 0.9)
    store_row(tmp_path, "scratch", 0.5, method="-")
    place = ["--results", str(tmp_path)]
    assert run_app(["compare", "mode=agssp", "mode=scratch", *place, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["datasets"]
    assert entry["map50"]["low"] < entry["map50"]["value"] < entry["map50"]["high"]
    assert entry["map50"]["p_adjusted"] < 0.05
    assert entry["a"]["mode"] == "agssp"
    assert entry["verdict"].startswith("A is better")
    assert run_app(["compare", "mode=agssp", "mode=scratch", *place]) == 0
    shown = capsys.readouterr().out
    assert "A is better than B" in shown
    assert "AP@.5 inclusion" in shown
    assert run_app(["report", "--against", "scratch", *place]) == 0
    assert "Difference to scratch" in capsys.readouterr().out
    assert run_app(["report", "--against", "scratch", "--json", *place]) == 0
    assert len(json.loads(capsys.readouterr().out)["comparisons"]) == 1
    assert run_app(["report", "--format", "csv", "--json", *place]) == 2
