"""The board's data against the records themselves: rows, trust, quarantine, and an index that is never wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server.client import use_hub
from hub_server.server import HubServer
from hub_server.store import File
from test_records import GOOD, answers, make_record

from benchmark import index
from benchmark.attestations import attest
from benchmark.record_schema import Record, Trust, to_json
from benchmark.records import read_record, write_record
from benchmark.rows import rows
from benchmark.sources import is_safe
from datasets_builders.errors import UserError
from leaderboard.data import ROW_COLUMNS, Board, open_board


def measured(board: Board) -> Any:
    """Returns the rows that were not read in the paper."""
    return board.rows[board.rows.trust != "reported"].reset_index(drop=True)


def add(results: Path, seed: int, noise: float, **changes: Any) -> Path:
    """Stores a record of the tests' cell."""
    detections = answers(noise, seed)
    return write_record(
        make_record(detections, detections, seed=seed, **changes), detections, detections, results
    )


def test_an_empty_board_has_the_papers_rows(tmp_path: Path) -> None:
    board = open_board(tmp_path / "nowhere")
    assert list(board.rows.columns) == list(ROW_COLUMNS)
    assert set(board.rows.trust) == {"reported"}
    assert board.rows.row_id.is_unique
    row = board.rows.query("backbone == 'csp_darknet' and mode == 'agssp' and dataset == 'casting_billet'")
    assert row[["variant", "map50", "map50_95", "seeds"]].to_numpy().tolist() == [["s", 77.2, 44.9, ()]]
    table_2 = board.rows[board.rows.detector == "yolov8"].groupby("dataset").size()
    assert set(table_2[["casting_billet", "steel_pipe", "gc10_det", "gc10_det/mini"]]) == {23}
    assert (len(board.records), len(board.quarantined), len(board.submissions)) == (0, 0, 0)
    with pytest.raises(UserError, match="The paper printed this row"):
        board.row(board.rows.row_id[0])


def test_rows_are_those_of_the_benchmark(two_seeds: tuple[Path, list[float]]) -> None:
    results, _ = two_seeds
    add(results, 0, 1.0, parameters=5)  # other inputs? no: the same key, and stays as it is
    board = open_board(results)
    (expected,) = rows(results)
    (row,) = measured(board).itertuples()
    for name in ("map50", "map50_error", "map50_95", "map50_95_error", "best_map50", "seconds"):
        assert getattr(row, name) == pytest.approx(getattr(expected, name), abs=1e-12)
    assert f"{row.backbone}:{row.variant}" == expected.backbone
    assert (row.seeds, row.protocol, row.fingerprint) == (
        expected.seeds,
        expected.protocol,
        expected.fingerprint,
    )
    assert [board.load(name).path for name in row.record_ids] == [entry.path for entry in expected.records]
    assert board.row(row.row_id) == expected
    assert row.track == ("procedural" if expected.procedural else "real")
    assert (row.submission, row.invalid_reason) == (None, None)
    with pytest.raises(UserError, match="No record"):
        board.load("../../etc/passwd")


def test_a_second_record_of_a_row_and_seed_counts_once(two_seeds: tuple[Path, list[float]]) -> None:
    results, _ = two_seeds
    before = measured(open_board(results))
    original = next(results.rglob("record.json")).parent
    shutil.copytree(original, original.with_name("zz-copy"))
    board = open_board(results)
    assert measured(board).drop(columns="created").equals(before.drop(columns="created"))
    copies = board.records[board.records.copy_of.notna()]
    assert copies.path.tolist() == [
        (original.with_name("zz-copy") / "record.json").relative_to(results).as_posix()
    ]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which records are read."""
    paths: list[Path] = []

    def read(path: Path) -> Record:
        paths.append(path)
        return read_record(path)

    monkeypatch.setattr(index, "read_record", read)
    return paths


def test_only_what_is_new_is_read(tmp_path: Path, fresh_home: Path, reads: list[Path]) -> None:
    results = tmp_path / "results"
    first, second = add(results, 0, 1.0), add(results, 1, 2.0)
    open_board(results)
    assert sorted(reads) == sorted([first, second])
    reads.clear()
    assert len(open_board(results).records) == 2
    assert reads == []
    third = add(results, 2, 1.5)
    assert measured(open_board(results)).seeds[0] == (0, 1, 2)
    assert reads == [third]
    reads.clear()
    shutil.rmtree(second.parent)
    assert measured(open_board(results)).seeds[0] == (0, 2)
    assert reads == []
    first.write_text("{")
    board = open_board(results)
    assert measured(board).seeds[0] == (2,)
    assert board.quarantined.path.tolist() == [first.relative_to(results).as_posix()]
    assert reads == [first]


def test_a_damaged_index_is_made_again(tmp_path: Path, fresh_home: Path) -> None:
    add(tmp_path / "results", 0, 1.0)
    expected = open_board(tmp_path / "results")
    (stored,) = [p for p in (fresh_home / "index").glob("*.parquet") if p.stat().st_size > 10_000]
    for content in (b"", b"PAR1 nonsense PAR1", stored.read_bytes()[:-50]):
        stored.write_bytes(content)
        found = open_board(tmp_path / "results")
        assert found.rows.equals(expected.rows)
        assert found.state == expected.state


def test_many_records_are_read_by_several_processes(
    tmp_path: Path, fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(6):
        add(tmp_path / "results", seed, 1.0)
    broken = tmp_path / "results" / "mini-v1" / "x" / "y" / "record.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("[")
    alone = open_board(tmp_path / "results")
    shutil.rmtree(fresh_home)
    monkeypatch.setattr(index, "_IN_PROCESSES_FROM", 2)
    monkeypatch.setattr(index, "cores", lambda: 2)
    together = open_board(tmp_path / "results")
    assert together.rows.equals(alone.rows)
    assert together.quarantined.equals(alone.quarantined)
    assert len(together.records) == 6


def test_an_index_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path / "results", 0, 1.0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "file"))
    assert len(open_board(tmp_path / "results").records) == 1


# What is not a record


def test_what_is_no_record_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    results = tmp_path / "results"
    good = add(results, 0, 1.0)
    for name, content in {"a": b"{", "b": b"\xff", "c": b"[" * 100_000, "d": b" " * (17 * 2**20)}.items():
        (results / name).mkdir()
        (results / name / "record.json").write_bytes(content)
    (results / "link").mkdir()
    (results / "link" / "record.json").symlink_to(good)
    odd = Path(os.fsdecode(os.fsencode(str(results)) + b"/odd\xff"))
    odd.mkdir()
    (odd / "record.json").write_text("{}")
    orphan = results / "submissions" / "ghost" / "records" / "x"
    shutil.copytree(good.parent, orphan)
    board = open_board(results)
    assert board.records.path.tolist() == [good.relative_to(results).as_posix()]
    reasons = dict(board.quarantined[["path", "reason"]].to_numpy())
    assert set(reasons) == {
        *(f"{name}/record.json" for name in ("a", "b", "c", "d", "link", "odd\\udcff")),
        "submissions/ghost/records/x/record.json",
    }
    assert "larger than the limit" in reasons["d/record.json"]
    assert "does not hold it" in reasons["submissions/ghost/records/x/record.json"]
    assert all(isinstance(reason, str) and reason for reason in reasons.values())


# Trust


@pytest.fixture
def claimed(tmp_path: Path) -> tuple[Path, list[Record]]:
    """A results folder with a row of two seeds, and its records."""
    results = tmp_path / "results"
    paths = [add(results, 0, 1.0), add(results, 1, 2.0)]
    return results, [read_record(path) for path in paths]


def again(noise: list[float]) -> list[Record]:
    """What finetuning again gave."""
    found = [answers(value, 100 + seed) for seed, value in enumerate(noise)]
    return [make_record(d, d, seed=seed) for seed, d in enumerate(found)]


def test_an_attestation_makes_a_row_reproduced_and_another_takes_it_back(
    claimed: tuple[Path, list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, records = claimed
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert measured(open_board(results)).trust.tolist() == ["measured"]
    attest(records, records, results)
    assert measured(open_board(results)).trust.tolist() == ["reproduced"]
    assert all(path.read_bytes() == content for path, content in before.items())  # added, never changed
    # Of other numbers than those of the records here, it says nothing.
    other = add(results, 2, 0.1)
    assert measured(open_board(results)).trust.tolist() == ["measured"]
    shutil.rmtree(other.parent)
    # The newest counts.
    from benchmark import attestations

    class Later(attestations.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2100, 1, 1, tzinfo=tz)

    monkeypatch.setattr(attestations, "datetime", Later)
    _, attestation = attest(records, again([9.0, 9.0]), results)
    assert attestation.finding == "different"
    assert measured(open_board(results)).trust.tolist() == ["measured"]


def test_nobody_attests_from_inside_a_submission(claimed: tuple[Path, list[Record]]) -> None:
    results, records = claimed
    attest(records, records, results / "submissions" / "mine")
    assert measured(open_board(results)).trust.tolist() == ["measured"]


def test_a_record_that_calls_itself_reproduced_is_submitted(tmp_path: Path) -> None:
    add(tmp_path, 0, 1.0, trust=Trust.REPRODUCED)
    assert measured(open_board(tmp_path)).trust.tolist() == ["submitted"]


def test_a_forged_attestation_is_set_aside(claimed: tuple[Path, list[Record]]) -> None:
    results, records = claimed
    path, _ = attest(records, again([9.0, 9.1]), results)
    content = json.loads(path.read_text())
    assert content["finding"] == "different"
    path.write_text(json.dumps(content | {"finding": "reproduced"}))
    board = open_board(results)
    assert measured(board).trust.tolist() == ["measured"]
    assert "does not follow from its numbers" in board.quarantined.reason[0]


# The Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.store.add_user("hf_keeper", "keeper", orgs=["board"])
        use_hub(server, "hf_keeper", tmp_path / "hf", monkeypatch)
        yield server


def _files(hub: HubServer, results: Path) -> dict[str, File]:
    found = {}
    for path in results.rglob("*"):
        if path.is_file():
            file = (File.large if path.suffix == ".parquet" else File.regular)(path.read_bytes())
            found[path.relative_to(results).as_posix()] = file
            if file.sha256:
                hub.store.large[file.sha256] = file.content
    return found


def test_a_repository_is_a_board_and_only_what_changed_is_fetched(
    hub: HubServer, tmp_path: Path, fresh_home: Path
) -> None:
    results = tmp_path / "results"
    add(results, 0, 1.0), add(results, 1, 2.0)
    repo = hub.store.create("dataset", "board/results", False, "keeper")
    repo.apply("main", _files(hub, results).items(), "two", "", "keeper")
    first = repo.commit("main").oid
    board = open_board("hub://board/results")
    assert board.source.commit == first
    local = open_board(results)
    assert measured(board).drop(columns="created").equals(measured(local).drop(columns="created"))
    assert not list(board.source.root.rglob("*.parquet"))
    stored = board.load(board.records.record_id[0])
    assert sorted(p.name for p in stored.path.parent.iterdir()) == ["last.parquet", "record.json"]

    add(results, 2, 1.5)
    repo.apply("main", _files(hub, results).items(), "three", "", "keeper")
    hub.log.clear()
    assert measured(open_board("hub://board/results@main")).seeds[0] == (0, 1, 2)
    fetched = {entry.path for entry in hub.requests("GET", "record.json") if entry.status == 200}
    assert len(fetched) == 1
    # A commit that is here needs no network, nor does a record whose detections are.
    hub.stop()
    assert board.load(board.records.record_id[0]).path == stored.path
    assert measured(open_board("hub://board/results", revision=first)).seeds[0] == (0, 1)
    assert measured(open_board(f"hub://board/results@{first}")).seeds[0] == (0, 1)


def test_a_repository_of_too_many_files_is_no_board(
    hub: HubServer, fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.store.create("dataset", "board/results", False, "keeper")
    repo.apply("main", [(f"{n}.txt", File.regular(b"x")) for n in range(4)], "texts", "", "keeper")
    monkeypatch.setattr("benchmark.sources._MOST_FILES", 3)
    with pytest.raises(UserError, match="more than 3 files"):
        open_board("hub://board/results")


def test_files_of_a_repository_that_would_lie_elsewhere_are_left_out(
    hub: HubServer, fresh_home: Path
) -> None:
    repo = hub.store.create("dataset", "board/results", False, "keeper")
    record = File.regular(to_json(make_record(GOOD, GOOD)).encode())
    names = ["a\\..\\b/record.json", ".git-not/record.json", "C:/record.json", "x/" * 30 + "record.json"]
    bad = [(name, record) for name in names]
    large = ("huge/record.json", File.regular(b" " * (17 * 2**20)))
    repo.apply("main", [*bad, large, ("fine/record.json", record)], "mixed", "", "keeper")
    board = open_board("hub://board/results")
    assert board.records.path.tolist() == ["fine/record.json"]
    assert [p.name for p in board.source.root.iterdir() if p.is_dir()] == ["fine"]


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a/../b", "a//b", "a/./b", "a/b.", "con\u0301/x", "a b", "~/x", "-rf", ""]
)
def test_unsafe_paths(path: str) -> None:
    assert not is_safe(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub://nobody", "names no repository"),
        ("hub://a/b@c/../d", "no such revision|there is no dataset repository"),
        ("hub://board/nothing", "there is no dataset repository"),
    ],
)
def test_addresses_that_lead_nowhere(hub: HubServer, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_board(source)


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="A revision has no meaning"):
        open_board(tmp_path, revision="main")


def test_the_data_layer_imports_no_torch() -> None:
    script = (
        "import sys; from leaderboard.data import open_board; open_board('results');"
        "print([m for m in ('torch', 'mmengine', 'mmcv', 'streamlit', 'datasets') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"
