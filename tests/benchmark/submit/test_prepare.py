"""What `prepare` makes of what a user gives it, and what it refuses before hours are spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_submission import BACKBONE, DATASET, SAID, answers, make_record, make_submission, seal

from benchmark.record_schema import Pretraining, StageUsed
from benchmark.records import read_record, write_record
from benchmark.submit.contamination import contamination
from benchmark.submit.prepare import Cells, full_name, prepare, state
from benchmark.submit.schema import read_submission
from benchmark.submit.validate import validate
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key, file_sha256


def test_the_folder_holds_what_the_statement_lists(submission: Path, weights_file: Path) -> None:
    said = read_submission(submission)
    assert said.weights.sha256 == file_sha256(weights_file) == file_sha256(submission / "weights.safetensors")
    assert said.load.share_of_backbone == 1.0
    assert said.load.missing == said.load.unexpected == ()
    for path, file in said.files.items():
        local = submission / "records" / path
        assert (file_sha256(local), local.stat().st_size) == (file.sha256, file.bytes)
    records = [read_record(path) for path in sorted(submission.rglob("record.json"))]
    assert [(r.trust, r.cell.seed, r.cell.mode) for r in records] == [
        ("submitted", s, "custom") for s in (0, 1)
    ]


def test_the_card_says_the_results_to_people_and_machines(submission: Path) -> None:
    text = (submission / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    data = yaml.safe_load(head)
    (entry,) = data["model-index"]
    maps = [read_record(p).last.metrics.map50 for p in submission.rglob("record.json")]
    metric = entry["results"][0]["metrics"][0]
    assert (metric["type"], metric["value"]) == ("map50", pytest.approx(sum(maps) / 2, abs=1e-4))
    assert entry["results"][0]["dataset"]["type"] == DATASET
    assert (data["license"], entry["name"]) == ("apache-2.0", "Odd idea")
    assert f"| mock-v1 | {DATASET} | yolov8 | 0 1 | {sum(maps) / 2:.2f} ± " in body
    assert SAID["method_text"] in body
    assert "may have seen" in body
    assert "images of the evaluation dataset itself" in body


def test_a_pickle_is_stored_as_safetensors(tmp_path: Path, weights_file: Path, dataset: None) -> None:
    import torch
    from safetensors.torch import load_file

    from benchmark.submit import prepare as module

    tensors = load_file(weights_file)
    torch.save({"state_dict": tensors}, tmp_path / "w.pth")
    stored = module._as_safetensors(tmp_path / "w.pth")
    found = load_file(stored)
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensors[name].float()) or found[name].dtype == torch.int64
        for name in tensors
    )
    assert module._as_safetensors(tmp_path / "w.pth") == stored
    # Records of it are records of the stored file; it can be sent.
    assert validate(make_submission(tmp_path / "sub", stored, name="From a pickle")).valid


@pytest.mark.parametrize("stage", ["backbone", "detector"])
def test_weights_of_this_projects_own_stages_can_be_sent(
    tmp_path: Path, weights_file: Path, dataset: None, stage: str
) -> None:
    inputs = {"stage": stage, "seed": 0}
    used = StageUsed(key=content_key(inputs), inputs=inputs, summary={})
    made = Pretraining(
        corpus="corpus_synthetic", corpus_fingerprint="0" * 64, maps=None, stages={stage: used}
    )
    for seed in (0, 1):
        detections = answers(seed)
        record = make_record(weights_file, seed, detections)
        own = {
            name: value
            for name, value in record.inputs.items()
            if name not in ("weights_sha256", "weights_input")
        }
        own |= {"weights_sha256": None, "upstream": {stage: used.key}}
        cell = record.cell.model_copy(update={"mode": "agssp", "method": "cls"})
        values = record.model_dump() | {
            "inputs": own,
            "key": content_key(own),
            "cell": cell,
            "pretraining": made,
        }
        write_record(type(record).model_validate(values), detections, detections, tmp_path / "results")
    folder, report = prepare(
        str(weights_file), state(**SAID), Cells(), tmp_path / "results", tmp_path / "submissions" / "x"
    )
    assert report.valid
    assert len(list(folder.rglob("record.json"))) == 2


def test_what_cannot_be_prepared(tmp_path: Path, weights_file: Path, submission: Path) -> None:
    statement = state(**SAID)
    with pytest.raises(UserError, match="is there already"):
        prepare(str(weights_file), statement, Cells(), tmp_path, submission)
    with pytest.raises(UserError, match=r"No record in .* was measured with these weights"):
        prepare(str(weights_file), statement, Cells(), tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="no weights file"):
        prepare(str(tmp_path / "none.pth"), statement, Cells(), None, tmp_path / "out")
    with pytest.raises(UserError, match=r"^--licence: "):
        state(**SAID | {"licence": "do what you like"})
    with pytest.raises(UserError, match="Did you mean 'swin'"):
        full_name("swim", "mini-v1")
    assert full_name("csp_darknet", "mock-v1") == BACKBONE
    assert full_name("swin:tiny", "auto") == "swin:tiny"


@pytest.mark.parametrize(
    ("stated", "dataset", "reason"),
    [
        ("neu_det", "neu_det", "images of the evaluation dataset itself"),
        ("gc10_det/mini", "gc10_det", "images of the evaluation dataset itself"),
        ("gc10_det", "gc10_det/mini", "images of the evaluation dataset itself"),
        (
            "corpus_x_sdd_gc10",
            "gc10_det/mini",
            "its source gc10_cls224 holds images of the evaluation dataset",
        ),
        ("corpus", "magnetic_tile", "its source magnetic_tile holds images of the evaluation dataset"),
        ("corpus", "neu_det", "its source neu_seg holds images of the evaluation dataset"),
    ],
)
def test_what_the_pretraining_may_have_seen(stated: str, dataset: str, reason: str) -> None:
    (found,) = contamination([stated, stated], [dataset])
    assert (found.dataset, found.source) == (dataset, stated)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("stated", "dataset"),
    [
        ("neu_det", "gc10_det"),
        ("corpus_x_sdd_gc10", "neu_det"),
        ("corpus_synthetic", "neu_det"),
        ("corpus_synthetic/n500_k9_s0", DATASET),
        ("corpus_own_mine", "neu_det"),
        ("ImageNet-1k", "fd"),
    ],
)
def test_what_it_did_not_see(stated: str, dataset: str) -> None:
    assert contamination([stated], [dataset]) == ()


def test_sources_that_overlap_exist() -> None:
    from benchmark.submit import contamination as module
    from datasets_builders import registry

    overlaps: dict[str, Any] = module._read(module._OVERLAPS)
    sources = module._read(module._SOURCES)
    for source, names in overlaps.items():
        assert source in sources
        assert set(names) <= set(registry.cards())


def test_validate_says_what_it_did_not_look_at(submission: Path) -> None:
    seal(submission, pretrained_on=(), contamination=())
    report = validate(submission)
    assert report.valid
    assert report.notes == [
        "It does not say what it was pretrained on.",
        "Duplicates were not looked for: name a board with --board.",
    ]
    assert json.loads(json.dumps(report.to_dict()))["valid"] is True


def test_weights_may_lie_elsewhere(submission: Path, tmp_path: Path) -> None:
    moved = (submission / "weights.safetensors").rename(tmp_path / "elsewhere.safetensors")
    assert "neither weights.safetensors nor weights.json" in validate(submission).complaints[0]
    assert validate(submission, weights=moved).valid
