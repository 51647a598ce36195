"""Submissions on their way to a Hub on loopback: at the same time, killed, with lost answers, and reviewed there."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from hub_server.server import HubServer
from made_submission import make_submission, make_weights, seal

from benchmark.submit.push import push
from benchmark.submit.review import review
from benchmark.submit.validate import validate
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key
from leaderboard.data import open_board

RESULTS = "board/results"


@pytest.fixture
def results(hub: HubServer, fresh_home: Path) -> Any:
    """A results repository of somebody else."""
    hub.store.add_user("hf_keeper", "keeper", orgs=["board"])
    return hub.store.create("dataset", RESULTS, False, "keeper")


@pytest.fixture
def another(tmp_path: Path, dataset: None) -> Path:
    """A second submission, with weights and answers of its own."""
    return make_submission(
        tmp_path / "second", make_weights(tmp_path / "second.safetensors", seed=5), first=20, name="Second"
    )


def pull_files(results: Any, number: int) -> set[str]:
    changed, conflicts = results.changes_of(results.discussion(number))
    assert not conflicts
    return set(changed)


def test_push_brings_weights_and_a_pull_request(hub: HubServer, results: Any, submission: Path) -> None:
    told: list[str] = []
    done = push(submission, RESULTS, say=told.append)
    model = hub.store.repos["model", "ann/odd-idea"]
    address, _, commit = done["weights"].partition("@")
    assert address == "hub://ann/odd-idea"
    assert commit == f"{model.commit('main').oid}/weights.safetensors"
    sent = model.commit("main").files["weights.safetensors"]
    assert sent.content == (submission / "weights.safetensors").read_bytes()
    assert done["pull_request"].endswith("/datasets/board/results/discussions/1")
    there = pull_files(results, 1)
    own = {p.relative_to(submission).as_posix() for p in submission.rglob("*") if p.is_file()}
    expected = {f"submissions/odd-idea/{path}" for path in (own - {"weights.safetensors"}) | {"weights.json"}}
    assert there == expected
    assert "public" in told[0]  # said before it is sent
    # Nothing of it is on the board before a maintainer merges it.
    assert "submissions" not in str(results.commit("main").files)
    again = push(submission, RESULTS, say=told.append)
    assert again == done
    assert len(results.discussions) == 1
    assert max(hub.uploaded().values()) == 1


def test_merged_it_is_on_the_board_as_submitted(hub: HubServer, results: Any, submission: Path) -> None:
    push(submission, RESULTS)
    results.merge(results.discussion(1), "keeper")
    board = open_board(f"hub://{RESULTS}", revision="main")
    assert board.source.commit == results.commit("main").oid
    row = board.rows[board.rows.trust != "reported"].iloc[0]
    assert (row.trust, row.submission, row.seeds) == ("submitted", "Odd idea", (0, 1))
    assert row.map50_error > 0
    stored = board.load(row.record_ids[0])  # its detections are fetched now
    assert (stored.path.parent / "last.parquet").is_file()
    assert push(submission, RESULTS)["pull_request"].endswith("/1")  # merged: nothing to do
    assert len(results.discussions) == 1


def test_two_at_the_same_time_both_arrive(
    hub: HubServer, results: Any, submission: Path, another: Path
) -> None:
    hub.store.add_user("hf_ann", "ann", orgs=["lab"])
    outcomes: dict[str, Any] = {}

    def send(folder: Path) -> None:
        try:
            outcomes[folder.name] = push(folder, RESULTS)
        except BaseException as error:
            outcomes[folder.name] = error

    # The first is held in the middle of its commit until the second is through.
    gate = hub.hold("POST", r"/api/datasets/board/results/commit/main", after=1)
    first = threading.Thread(target=send, args=(submission,))
    first.start()
    gate.wait_until_reached()
    send(another)
    gate.open()
    first.join()
    assert {type(outcome) for outcome in outcomes.values()} == {dict}, outcomes
    assert len(results.discussions) == 2
    names = {path.split("/")[1] for number in (1, 2) for path in pull_files(results, number)}
    assert names == {"odd-idea", "second"}
    for number in (1, 2):
        results.merge(results.discussion(number), "keeper")
    board = open_board(f"hub://{RESULTS}")
    assert set(board.submissions.name) == {"Odd idea", "Second"}
    assert board.quarantined.empty


STOPS = {
    "weights": ("PUT", r"/lfs/"),
    "the model's commit": ("POST", r"/api/models/ann/odd-idea/commit/main"),
    "before the pull request": ("POST", r"/api/datasets/board/results/preupload/main"),
    "in the pull request": ("POST", r"/api/datasets/board/results/commit/main"),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS.keys())
def test_killed_and_run_again_nothing_is_lost_or_twice(
    hub: HubServer,
    results: Any,
    submission: Path,
    stop: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = validate(submission)  # torch's threads do not survive a fork: validated before it
    monkeypatch.setattr("benchmark.submit.push.validate", lambda folder, board: report)
    gate = hub.hold(*stop, after=1)
    child = multiprocessing.get_context("fork").Process(target=push, args=(submission, RESULTS))
    child.start()
    gate.wait_until_reached()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    gate.open()
    done = push(submission, RESULTS)
    assert len(results.discussions) == 1
    assert len(pull_files(results, 1)) == len([p for p in submission.rglob("*") if p.is_file()])
    assert done["pull_request"].endswith("/1")
    weights = hub.store.repos["model", "ann/odd-idea"].commit("main").files["weights.safetensors"]
    assert weights.content == (submission / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["models/ann/odd-idea", "datasets/board/results"])
def test_a_lost_answer_makes_no_second_one(
    hub: HubServer, results: Any, submission: Path, waits: list[float], kind: str
) -> None:
    hub.lose_answer("POST", rf"/api/{kind}/commit/main")
    push(submission, RESULTS)
    assert hub.faults.all_happened()
    assert len(results.discussions) == 1
    assert len(hub.store.repos["model", "ann/odd-idea"].history("main")) == 2  # its creation, and one commit


def test_what_cannot_be_sent_is_said_before_anything_is(
    hub: HubServer, results: Any, submission: Path, tmp_path: Path
) -> None:
    foreign = hub.store.create("model", "ann/mine", False, "ann")
    from hub_server.store import File

    foreign.apply("main", [("model.bin", File.regular(b"other work"))], "mine", "", "ann")
    with pytest.raises(UserError, match="holds other files: nothing was sent"):
        push(submission, RESULTS, "ann/mine")
    with pytest.raises(UserError, match="there is no dataset repository board/nowhere"):
        push(submission, "board/nowhere")
    bad = shutil.copytree(submission, tmp_path / "bad")
    (bad / "README.md").write_text("my own words")
    with pytest.raises(UserError, match=r"It is not valid; nothing was sent"):
        push(bad, RESULTS)
    assert not results.discussions
    assert not hub.uploaded()


def test_a_copy_of_what_is_on_the_board_is_not_sent(hub: HubServer, results: Any, submission: Path) -> None:
    push(submission, RESULTS)
    results.merge(results.discussion(1), "keeper")
    seal(submission, name="Mine now")
    with pytest.raises(UserError, match="the same weights are on the board as 'Odd idea'"):
        push(submission, RESULTS)
    assert len(results.discussions) == 1


def test_review_says_what_it_found_under_each_once(
    hub: HubServer, results: Any, submission: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import CommitOperationAdd

    from datasets_builders import hub as client

    push(submission, RESULTS)
    api = client.client()
    spoilt = json.loads((submission / "submission.json").read_text()) | {"name": "<b>x</b>"}
    api.create_commit(
        RESULTS,
        [CommitOperationAdd("submissions/x/submission.json", json.dumps(spoilt).encode())],
        commit_message="Submission: <b>x</b>",
        repo_type="dataset",
        create_pr=True,
    )
    api.create_commit(
        RESULTS,
        [CommitOperationAdd("attestations/forged/attestation.json", b"{}")],
        commit_message="Trust me",
        repo_type="dataset",
        create_pr=True,
    )
    api.create_commit(
        RESULTS,
        [CommitOperationAdd(".gitattributes", b"* -text")],
        commit_message="Only tidying up",
        repo_type="dataset",
        create_pr=True,
    )
    found = review(RESULTS, None, comment=True)
    assert [entry.valid for entry in found] == [True, False, False, False]
    reasons = [" ".join(entry.complaints) for entry in found]
    assert "not a valid record: name" in reasons[1]
    assert "must add one folder submissions/NAME and nothing else" in reasons[2]
    assert "changes or removes '.gitattributes'" in reasons[3]
    assert "no baseline on the board" in found[0].text()
    review(RESULTS, None, comment=True)  # a second time: nothing is said twice
    for number, entry in enumerate(found, start=1):
        comments = [e for e in results.discussion(number).events if e["type"] == "comment"]
        said = [e["data"]["latest"]["raw"] for e in comments]
        assert said.count(entry.text()) == 1
        assert len(said) == 2  # what it was opened with, and ours
        assert "<b>" not in said[1]


def test_a_board_without_pull_requests_needs_no_review(hub: HubServer, results: Any) -> None:
    from typer.testing import CliRunner

    from benchmark.submit.cli import app

    done = CliRunner().invoke(app, ["review", "--repo", RESULTS])
    assert (done.exit_code, done.output.strip()) == (0, f"{RESULTS} has no open pull request.")
    done = CliRunner().invoke(app, ["review", "--repo", RESULTS, "--pr", "7"])
    assert isinstance(done.exception, UserError)


def test_a_submission_in_the_folder_of_another_is_refused(
    hub: HubServer, results: Any, submission: Path
) -> None:
    from huggingface_hub import CommitOperationAdd

    from datasets_builders import hub as client

    push(submission, RESULTS)
    files = results.commit("refs/pr/1").files
    moved = [
        CommitOperationAdd(path.replace("odd-idea", "odd-thief"), file.content)
        for path, file in files.items()
        if path.startswith("submissions/")
    ]
    client.client().create_commit(
        RESULTS, moved, commit_message="Submission: moved", repo_type="dataset", create_pr=True
    )
    (entry,) = review(RESULTS, 2, comment=False)
    assert entry.complaints == ["It belongs into submissions/odd-idea."]


def test_a_pull_request_from_a_history_that_is_gone_is_refused_and_the_others_are_looked_at(
    hub: HubServer, results: Any, submission: Path
) -> None:
    push(submission, RESULTS)
    main = results.commit("main")
    results.refs["refs/heads/main"] = results._store(None, main.files, "squashed", "", "keeper").oid
    (entry,) = review(RESULTS, None, comment=False)
    assert entry.complaints == ["It has no commit in common with main: open it again."]


def test_review_shows_the_difference_to_the_boards_baseline(
    hub: HubServer, results: Any, submission: Path, weights_file: Path
) -> None:
    from hub_server.store import File
    from made_submission import answers, make_record

    from benchmark.record_schema import Trust, to_json

    baseline = make_record(weights_file, 0, answers(50))
    baseline = baseline.model_copy(
        update={"cell": baseline.cell.model_copy(update={"mode": "scratch", "method": "-"})}
    )
    path = f"{baseline.folder.as_posix()}/record.json"
    results.apply("main", [(path, File.regular(to_json(baseline).encode()))], "a baseline", "", "keeper")
    sent = make_record(weights_file, 1, answers(60))  # somebody's ImageNet row is no baseline
    sent = sent.model_copy(
        update={"cell": sent.cell.model_copy(update={"mode": "imagenet"}), "trust": Trust.SUBMITTED}
    )
    theirs = f"submissions/other/records/{sent.folder.as_posix()}/record.json"
    results.apply("main", [(theirs, File.regular(to_json(sent).encode()))], "a submission", "", "keeper")
    push(submission, RESULTS)
    (entry,) = review(RESULTS, None, comment=False)
    assert entry.valid, entry.complaints
    row = open_board(submission.parent / "nowhere").rows  # an empty board has the paper's rows
    assert len(row) > 0
    claimed = [json.loads(p.read_text())["last"]["metrics"]["map50"] for p in submission.rglob("record.json")]
    difference = sum(claimed) / 2 - baseline.last.metrics.map50
    assert f"| {difference:+.2f} to scratch |" in entry.text()
    copy = "elsewhere/" + path  # of the same row and seed: it counts once
    results.apply("main", [(copy, File.regular(to_json(baseline).encode()))], "a copy", "", "keeper")
    assert f"| {difference:+.2f} to scratch |" in review(RESULTS, None, comment=False)[0].text()
    inputs = baseline.inputs | {"seed": 7, "another": "row"}
    second = baseline.model_copy(update={"inputs": inputs, "key": content_key(inputs)})
    path = f"{second.folder.as_posix()}/record.json"
    results.apply("main", [(path, File.regular(to_json(second).encode()))], "a second row", "", "keeper")
    assert "| several rows of scratch on the board |" in review(RESULTS, None, comment=False)[0].text()
