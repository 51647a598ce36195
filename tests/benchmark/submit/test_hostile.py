"""Submissions by an enemy: each is refused, and for its own reason."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_submission import (
    FINGERPRINT,
    SAID,
    answers,
    edit,
    make_record,
    make_submission,
    make_weights,
    seal,
)

import datasets_builders
from benchmark.detections import Detections
from benchmark.record_schema import Record, Trust, to_json
from benchmark.submit.folder import check_amount
from benchmark.submit.prepare import Cells, prepare, state
from benchmark.submit.validate import validate
from datasets_builders.errors import UserError

MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[free money](https://evil.example)",
    "![x](https://evil.example/pixel.png)",
    "`rm -rf`",
    "a | b",
    "see https://evil.example",
    "**best**",
]
FORMULAS = ["=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(A1)", "'=1", "\t=1"]
INVISIBLE = [
    "safe\u202eevil",
    "zero\u200bwidth",
    "bell\x07",
    "line\nbreak",
    "\ud800",
    "\x1b[31mred",
    "nul\x00",
]


def refusal(folder: Path, board: Path | None = None) -> str:
    """Returns the reasons, which there must be, and which must be printable ASCII where a stranger's words are."""
    report = validate(folder, board)
    assert report.complaints, "it was taken for valid"
    text = " | ".join(report.complaints)
    assert text.replace("\n", "").isprintable()
    return text


def test_the_untouched_one_is_valid(submission: Path) -> None:
    report = validate(submission)
    assert report.valid, report.complaints
    assert len(report.records) == 2
    assert report.notes[0].startswith(
        "casting_billet_synthetic: casting_billet_synthetic: pretrained on images of the evaluation dataset itself"
    )


# Weights


class _Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_pickle_with_code_is_not_run(submission: Path, tmp_path: Path, name: str) -> None:
    traces = tmp_path / "it-ran"
    bomb = pickle.dumps({"state_dict": _Bomb(traces)})
    path = tmp_path / name
    path.write_bytes(bomb)
    with pytest.raises(UserError, match=r"holds more than tensors|damaged|no weights file"):
        prepare(str(path), state(**SAID), Cells(), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.copyfile(path, submission / "weights.safetensors")
    assert "is not the file that submission.json names" in refusal(submission)
    _plant_weights(submission, bomb)
    assert "is no safetensors file" in refusal(submission)
    assert not traces.exists()


def _plant_weights(submission: Path, content: bytes) -> None:
    """Puts other weights into a submission, and makes every hash fit."""
    path = submission / "weights.safetensors"
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()

    def relabel(said: dict[str, Any]) -> None:
        said["weights"] |= {"sha256": sha256, "bytes": len(content)}
        said["load"]["sha256"] = sha256

    edit(submission / "submission.json", relabel)
    for record in list(submission.rglob("record.json")):
        _rewrite(
            record, lambda r: r["weights"].update(sha256=sha256) or r["inputs"].update(weights_sha256=sha256)
        )
    seal(submission)


def _safetensors(header: dict[str, Any] | bytes, data: bytes = b"", claim: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claim is None else claim) + text + data


F32 = {"dtype": "F32", "shape": [4]}
LYING = {
    "header longer than the file": _safetensors({}, claim=2**62),
    "header of a gigabyte": _safetensors({}, claim=2**30),
    "tensor beyond the end": _safetensors({"a": F32 | {"data_offsets": [0, 16]}}, b"\0" * 8),
    "tensor smaller than its shape": _safetensors({"a": F32 | {"data_offsets": [0, 8]}}, b"\0" * 8),
    "gigantic shape": _safetensors(
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, b"\0" * 8
    ),
    "negative offsets": _safetensors({"a": F32 | {"data_offsets": [-16, 0]}}, b"\0" * 16),
    "overlapping tensors": _safetensors(
        {"a": F32 | {"data_offsets": [0, 16]}, "b": F32 | {"data_offsets": [0, 16]}}, b"\0" * 16
    ),
    "a hole": _safetensors({"a": F32 | {"data_offsets": [16, 32]}}, b"\0" * 32),
    "deep header": _safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no JSON": _safetensors(b"{" + b"\xff" * 20),
    "metadata that is no JSON": _safetensors(
        {"__metadata__": {"agssp_bench": "{" * 9}, "a": F32 | {"data_offsets": [0, 16]}}, b"\0" * 16
    ),
}


@pytest.mark.parametrize("content", LYING.values(), ids=LYING.keys())
def test_lying_safetensors_are_refused(submission: Path, content: bytes) -> None:
    _plant_weights(submission, content)
    assert any(word in refusal(submission) for word in ("damaged", "claims", "no JSON", "known layouts"))


def _rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Edits a record, makes its key anew and moves it where it then belongs."""
    from datasets_builders.storage import content_key

    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    content["key"] = content_key(content["inputs"])
    path.write_text(json.dumps(content), encoding="utf-8")
    record = Record.model_validate(content)
    home = path.parents[3]
    target = home / record.folder
    if target != path.parent:
        path.parent.rename(target)
    return target / "record.json"


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, weights_file: Path, dataset: None) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights_file)
    tensors["backbone.stem.conv.weight"] = torch.full_like(tensors["backbone.stem.conv.weight"], float("nan"))
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="values that are no numbers"):
        make_submission(tmp_path / "sub", tmp_path / "nan.safetensors")


def test_weights_of_another_backbone_are_refused(submission: Path) -> None:
    # Every record and the statement call it a resnet; the file is none.
    edit(submission / "submission.json", lambda said: said.update(backbone="csp_darknet:s"))
    for record in list(submission.rglob("record.json")):
        edit(record, lambda r: r["cell"].update(variant="s"))
        content = Record.model_validate_json(record.read_bytes())
        target = submission / "records" / content.folder
        record.parent.rename(target)
    seal(submission)
    assert "inputs are not those of its cell" in refusal(submission)


# Sizes


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "record.json", "last.parquet", "submission.json", "README.md"]
)
def test_files_that_claim_100_gb_are_not_opened(submission: Path, name: str) -> None:
    path = next(submission.rglob(name))
    with path.open("ab") as file:
        file.truncate(100 * 2**30)  # sparse: takes no room
    assert "claims 107,374,182,400 bytes" in refusal(submission)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "not a readable record"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "not a readable record"),
        (b" " * (17 * 2**20), "claims 17,825,792 bytes"),
        (b'{"name": "\xff\xfe"}', "not a readable record"),
        (b'{"name": "\\ud800"}', "not a valid record"),
        (b'{"name": 1, "name": 2}', "appears twice"),
        (b'{"name": ' + b"9" * 10_000 + b"}", "not a readable record"),
        (b'{"bytes": NaN}', "not a valid record"),
        (b"", "not a readable record"),
    ],
    ids=["deep list", "deep object", "17 MB", "bytes", "surrogate", "twice", "long number", "NaN", "empty"],
)
@pytest.mark.parametrize("name", ["submission.json", "record.json"])
def test_json_bombs_are_refused(submission: Path, content: bytes, reason: str, name: str) -> None:
    path = next(submission.rglob(name))
    path.write_bytes(content)
    if name == "record.json":
        seal(submission)
    assert reason in refusal(submission)


def test_too_many_files_are_refused(submission: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.submit.folder.MOST_FILES", 5)
    assert "more than 5 files" in refusal(submission)


def test_many_files_that_are_too_large_together_are_refused(
    submission: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.submit.folder.MOST_BYTES", 10_000)
    assert "bytes together; at most 10,000 are allowed" in refusal(submission)


def test_weights_in_many_folders_are_refused_before_any_is_fetched() -> None:
    with pytest.raises(UserError, match=r"holds 2 files weights\.safetensors"):
        check_amount(
            dict.fromkeys(("submissions/x/a/weights.safetensors", "submissions/x/weights.safetensors"), 1)
        )


# Paths


def test_links_are_refused(submission: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    record = next(submission.rglob("record.json"))
    record.unlink()
    record.symlink_to(secret)
    assert "is a link" in refusal(submission)
    record.unlink()
    shutil.rmtree(submission / "records")
    (submission / "records").symlink_to(tmp_path)
    assert "is a link" in refusal(submission)
    link = tmp_path / "link"
    link.symlink_to(submission)
    assert "There is no folder" in refusal(link)


@pytest.mark.parametrize(
    "name", ["../../escape", "/etc/passwd", "mock-v1/../../../x", "mock-v1\\..\\x", "a/b/c/d/e/record.json"]
)
def test_paths_that_leave_the_folder_are_refused(submission: Path, name: str) -> None:
    def point_outside(said: dict[str, Any]) -> None:
        said["files"][name] = next(iter(said["files"].values()))

    edit(submission / "submission.json", point_outside)
    assert "is listed and not there" in refusal(submission)


@pytest.mark.parametrize(
    "name",
    [
        ".hidden",
        "evil.py",
        "records/mock-v1/x.sh",
        "records/<b>/a",
        "models/x",
        "records/a/b/c/d/e",
        "wei\ud800rd",
    ],
)
def test_other_files_are_refused(submission: Path, name: str) -> None:
    path = Path(os.fsdecode(os.fsencode(str(submission)) + b"/" + name.encode("utf-8", "surrogatepass")))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    text = refusal(submission)
    assert "belongs to no submission" in text or "deeper" in text


def test_a_pipe_is_refused(submission: Path) -> None:
    os.mkfifo(submission / "README.md.x")
    assert "is no plain file" in refusal(submission)


def test_a_record_in_the_place_of_another_is_refused(submission: Path, record_files: list[Path]) -> None:
    folder = record_files[0].parent
    folder.rename(folder.with_name(folder.name.replace("seed0", "seed7")))
    seal(submission)
    assert "belongs into" in refusal(submission)


# Texts


@pytest.mark.parametrize("text", [*MARKUP, *FORMULAS, *INVISIBLE, "", " padded ", "x" * 3000])
def test_texts_that_are_more_than_text_are_refused(submission: Path, text: str) -> None:
    for field in ("name", "method_text"):
        with pytest.raises(UserError, match=f"^--{field.replace('_', '-')}: "):
            state(**SAID | {field: text})
        edit(submission / "submission.json", lambda said: said.update({field: text}))  # noqa: B023
        assert "not a valid record" in refusal(submission) or "readable" in refusal(submission)
        edit(submission / "submission.json", lambda said: said.update({field: SAID[field]}))  # noqa: B023
    with pytest.raises(UserError, match=r"^--pretrained-on: "):
        state(**SAID | {"pretrained_on": (text,)})


@pytest.mark.parametrize(
    "name", ["..", "../up", ".hidden", "a/../b/..", "a/../b/.. x", "CON:", "x" * 61, "a"]
)
def test_names_that_are_paths_become_no_paths(name: str, tmp_path: Path) -> None:
    if name == "a/../b/.. x":
        slug = state(**SAID | {"name": name}).slug
        assert (tmp_path / slug).resolve().parent == tmp_path.resolve()
        assert slug == "a-b-x"
        return
    with pytest.raises(UserError, match=r"^--name: "):
        state(**SAID | {"name": name})


@pytest.mark.parametrize(
    "text", ["<script>x</script>", "=cmd|calc", "[x](javascript:1)", "a`b", "right\u202eleft"]
)
def test_texts_inside_a_record_are_looked_at_too(
    submission: Path, record_files: list[Path], text: str
) -> None:
    edit(record_files[0], lambda record: record["environment"].update(processor=text))
    seal(submission)
    found = refusal(submission)
    assert "markup" in found or "formula" in found or "not a valid record" in found


def test_a_card_with_words_of_its_own_is_refused(submission: Path) -> None:
    with (submission / "README.md").open("a") as file:
        file.write("\n<script src='https://evil.example'></script>\n")
    assert "is not the card" in refusal(submission)


# Numbers


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", "-1.0", "100.5", '"99"', "null", "true"]
)
def test_metrics_that_cannot_be_are_refused(submission: Path, record_files: list[Path], value: str) -> None:
    content = json.loads(record_files[0].read_text())
    for place in (content["last"]["metrics"], content["best"]["metrics"], content["curve"][-1]):
        place["map50"] = "HERE"
    record_files[0].write_text(json.dumps(content).replace('"HERE"', value))
    seal(submission)
    found = refusal(submission)
    assert "not a valid record" in found or "not a readable record" in found


def test_edited_numbers_are_found_although_everything_fits(
    submission: Path, record_files: list[Path]
) -> None:
    def better(record: dict[str, Any]) -> None:
        for at in ("last", "best"):
            record[at]["metrics"]["map50"] += 0.5
        record["curve"][-1]["map50"] += 0.5

    edit(record_files[0], better)
    assert "is not the file that submission.json lists" in refusal(submission)
    seal(submission)
    assert "its numbers are not those of its detections: last: map50 is" in refusal(submission)


def _replace_answers(path: Path, detections: Detections) -> None:
    """Puts other detections beside a record, with a hash that fits; its numbers stay."""
    for old in path.parent.glob("*.parquet"):
        old.unlink()
    detections.save(path.parent / "last.parquet")
    content = json.loads(path.read_text())
    for at in ("last", "best"):
        content[at]["detections_sha256"] = detections.sha256()
    path.write_text(json.dumps(content))


def test_detections_on_other_images_are_refused(submission: Path, record_files: list[Path]) -> None:
    others = answers(0, tuple(f"x{number:02d}" for number in range(12)))
    _replace_answers(record_files[0], others)
    seal(submission)
    assert "its numbers are not those of its detections" in refusal(submission)


def test_the_same_run_under_several_seeds_is_refused(
    tmp_path: Path, weights_file: Path, dataset: None
) -> None:
    from benchmark.records import write_record

    results, one = tmp_path / "results", answers(0)
    for seed in range(5):
        write_record(make_record(weights_file, seed, one), one, one, results)
    with pytest.raises(UserError, match="different seeds have the same detections"):
        prepare(str(weights_file), state(**SAID), Cells(), results, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_chosen_seeds_are_refused(tmp_path: Path, weights_file: Path, dataset: None) -> None:
    from benchmark.records import write_record

    for seed in (3, 8):
        found = answers(seed)
        write_record(make_record(weights_file, seed, found), found, found, tmp_path / "results")
    with pytest.raises(UserError, match=r"seeds must be 0, 1, \.\.\. without a gap.*they are 3 8"):
        prepare(str(weights_file), state(**SAID), Cells(), tmp_path / "results", tmp_path / "out")


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [("own_plant", "somebody's own images"), ("neu_det_v2", "there is no dataset 'neu_det_v2'")],
)
def test_rows_on_no_dataset_of_the_benchmark_are_refused(submission: Path, dataset: str, reason: str) -> None:
    for record in list(submission.rglob("record.json")):
        edit(record, lambda r: (r["cell"].update(dataset=dataset), r["dataset"].update(name=dataset)))
        target = submission / "records" / Record.model_validate_json(record.read_bytes()).folder
        target.parent.mkdir(parents=True, exist_ok=True)
        record.parent.rename(target)
    for place in (submission / "records" / "mock-v1").iterdir():
        if not any(place.iterdir()):
            place.rmdir()
    seal(submission, with_card=False)  # there is none for a dataset that nobody knows
    assert reason in refusal(submission)


@pytest.mark.parametrize("trust", [Trust.MEASURED, Trust.REPRODUCED])
def test_trust_cannot_be_claimed(submission: Path, record_files: list[Path], trust: Trust) -> None:
    edit(record_files[0], lambda record: record.update(trust=trust.value))
    seal(submission)
    assert f"calls itself '{trust.value}'" in refusal(submission)


def test_other_settings_than_the_protocols_are_refused(submission: Path, record_files: list[Path]) -> None:
    def longer(record: dict[str, Any]) -> None:
        record["protocol"]["settings"]["epochs"] = 300

    edit(record_files[0], longer)
    seal(submission)
    assert "was measured by other settings than those of mock-v1" in refusal(submission)


def test_a_protocol_that_counts_no_more_is_refused(submission: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark import protocol

    monkeypatch.setattr(protocol, "invalid_reason", lambda name, version: "It was wrong.")
    assert "protocol mock-v1 counts no more: It was wrong." in refusal(submission)


def test_another_version_of_the_data_is_refused(submission: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets_builders, "fingerprint", lambda name: "e" * 64)
    assert f"fingerprint {FINGERPRINT[:12]}, here eeeeeeeeeeee" in refusal(submission)


def test_inputs_of_another_cell_are_refused(submission: Path, record_files: list[Path]) -> None:
    _rewrite(record_files[0], lambda record: record["inputs"].update(stage_version=1))
    seal(submission)
    assert "its inputs are not those of its cell here: stage_version" in refusal(submission)


def test_a_statement_that_hides_the_training_data_is_refused(submission: Path) -> None:
    seal(submission, contamination=())
    assert "statement on training data is not what follows" in refusal(submission)


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59Z", "2999-01-01T00:00:00Z"])
def test_what_was_made_in_the_future_is_refused(
    submission: Path, record_files: list[Path], moment: str
) -> None:
    edit(record_files[0], lambda record: record.update(created=moment))
    seal(submission)
    assert "was finished in the future" in refusal(submission)
    edit(submission / "submission.json", lambda said: said.update(created=moment))
    assert "submission.json was made in the future" in refusal(submission)


@pytest.mark.parametrize("name", ["SUBMISSION.JSON", "weights.zip", "weights.safetensors.lnk"])
def test_files_that_look_like_the_right_ones_are_refused(submission: Path, name: str) -> None:
    (submission / name).write_bytes(b"{}")
    assert "belongs to no submission" in refusal(submission)


# Copies


def test_a_copy_under_a_new_name_is_refused(submission: Path, tmp_path: Path, weights_file: Path) -> None:
    board = tmp_path / "board"
    shutil.copytree(submission, board / "submissions" / "odd-idea")
    assert validate(submission, board).valid  # itself, sent again
    seal(submission, name="My own work")
    assert "the same weights are on the board as 'Odd idea'" in refusal(submission, board)
    # Other weights, the same answers.
    copied = make_submission(
        tmp_path / "copied", make_weights(tmp_path / "w2.safetensors", seed=2), name="Copied"
    )
    assert "the board has the same detections in" in refusal(copied, board)
    # Its own work under a name that is taken.
    own = make_submission(tmp_path / "own", make_weights(tmp_path / "w3.safetensors", seed=3), first=7)
    assert "the board has another submission named 'Odd idea'" in refusal(own, board)


# Parquet


def _parquet(path: Path, rows: int, **options: Any) -> None:
    """Detections of one image as the format has them, all zeros: next to nothing on disk."""
    from benchmark.detections import _schema

    schema = _schema()
    columns = [pa.array(np.zeros(rows, field.type.to_pandas_dtype())) for field in schema]
    header = json.dumps({"format": "agssp-bench/detections/1", "classes": ["a"], "image_ids": ["x"]})
    table = pa.Table.from_arrays(columns, schema=schema.with_metadata({"agssp_bench": header}))
    pq.write_table(table, path, row_group_size=2**30, **options)


def test_parquet_that_unfolds_is_refused(submission: Path, record_files: list[Path]) -> None:
    path = record_files[0].parent / "last.parquet"
    _parquet(path, 6_000_000, compression="zstd")
    assert path.stat().st_size < 1_000_000
    seal(submission)
    assert "6000000 detections, more than the limit" in refusal(submission)


def test_parquet_of_other_columns_is_refused(submission: Path, record_files: list[Path]) -> None:
    text = pa.table({"image": pa.array(["x" * 2**20] * 64)})  # 64 MB in a few bytes
    path = record_files[0].parent / "last.parquet"
    pq.write_table(text, path, compression="zstd")
    assert path.stat().st_size < 2_000_000
    seal(submission)
    assert "columns are not image, category" in refusal(submission)


def test_parquet_cut_or_garbled_is_refused(submission: Path, record_files: list[Path]) -> None:
    path = record_files[0].parent / "last.parquet"
    content = path.read_bytes()
    for bad in (content[:-20], content[:40], b"PAR1" + b"\xff" * 100 + b"PAR1", bytes(len(content))):
        path.write_bytes(bad)
        seal(submission)
        assert "detections file" in refusal(submission) or "not a readable" in refusal(submission)


def test_json_of_the_tests_is_what_the_project_writes(submission: Path, record_files: list[Path]) -> None:
    record = Record.model_validate_json(record_files[0].read_bytes())
    assert to_json(record) == record_files[0].read_text(encoding="utf-8")


# Anything else

_ODD = (
    None,
    -1,
    0,
    1e308,
    2**70,
    "",
    "x",
    "../..",
    "a" * 5000,
    [],
    {},
    [[]],
    True,
    "\u202e",
    ["x"],
    {"a": 1},
)


def _spoil(content: Any, rng: random.Random) -> None:
    """Replaces, removes or adds something somewhere inside."""
    place = content
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            place = inner
            continue
        action = rng.random()
        if action < 0.15:
            del place[key]
        elif action < 0.25 and isinstance(place, dict):
            place["extra"] = inner
        else:
            place[key] = rng.choice(_ODD)
        return


@pytest.mark.parametrize("name", ["submission.json", "record.json"])
def test_whatever_is_changed_it_is_refused_and_nothing_breaks(
    submission: Path, record_files: list[Path], name: str
) -> None:
    rng = random.Random(0)
    path = submission / name if name == "submission.json" else record_files[0]
    original, statement = path.read_text(), (submission / "submission.json").read_text()
    for _ in range(40):
        content = json.loads(original)
        _spoil(content, rng)
        if content == json.loads(original):
            continue
        path.write_text(json.dumps(content))
        if name == "record.json":
            seal(submission)
        report = validate(submission)
        harmless = {
            "created",
            "cost",
            "resumes",
            "environment",
            "curve",
            "source",
            "schema_version",
            "precision",
        }
        if not report.complaints:  # it changed what nobody can check, or what says the same
            changed = _difference(json.loads(original), content)
            assert not changed or set(changed) & harmless, changed
        (submission / "submission.json").write_text(statement)
    path.write_text(original)


def _difference(one: Any, other: Any) -> list[str]:
    """Names along the way to the first difference."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in {**one, **other}:
            if one.get(name) != other.get(name):  # a name left out is None
                return [name, *_difference(one.get(name), other.get(name))]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for a, b in zip(one, other, strict=True):
            if a != b:
                return _difference(a, b)
    return []
