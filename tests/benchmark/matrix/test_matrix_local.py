"""The local engine, with work that needs no torch: workers are processes as in earnest."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from benchmark.matrix.engines import local
from benchmark.matrix.engines.local import LocalEngine, seats
from benchmark.matrix.graph import Graph, Node
from benchmark.matrix.schedule import Event, Outcome
from datasets_builders.errors import UserError


def node(name: str, *needs: str, kind: str = "cell", **spec) -> Node:
    return Node(name, kind, f"node {name}", needs, spec)


def graph(*nodes: Node) -> Graph:
    return Graph({one.id: one for one in nodes})


def pretend(one: Node, log: Path) -> Outcome:
    """Stands for `execute` in a worker: notes when it was there, dies or fails where it is told to."""
    spec = one.spec
    with Path(spec["diary"]).open("a") as diary:
        diary.write(f"{one.id} {os.getpid()} {time.monotonic()}\n")
    deaths = spec.get("deaths", 0)
    if deaths and Path(spec["diary"]).read_text().count(f"{one.id} ") <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(spec.get("seconds", 0))
    if spec.get("bad"):
        return Outcome("failed", f"{one.id} is bad", str(log))
    affinity = sorted(os.sched_getaffinity(0))
    return Outcome("done", result={"cores": affinity, "threads": int(os.environ["OMP_NUM_THREADS"])})


def run(
    tmp_path: Path, workers: int, *nodes: Node
) -> tuple[dict[str, Outcome], list[Event], list[list[str]]]:
    diary = tmp_path / "diary"
    made = graph(*(Node(o.id, o.kind, o.title, o.needs, o.spec | {"diary": str(diary)}) for o in nodes))
    events: list[Event] = []
    before = set(psutil.Process().children(recursive=True))
    found = LocalEngine(workers, "cpu", pretend).run(made, on_event=events.append)
    left = set(psutil.Process().children(recursive=True)) - before
    # Python's own helper that counts shared resources may stay.
    assert not [
        one for one in left if "matrix-worker" in one.name() or "spawn_main" in " ".join(one.cmdline())
    ]
    return found, events, [line.split() for line in diary.read_text().splitlines()]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch, agssp_home: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")


@pytest.mark.usefixtures("two_cores")
def test_a_dead_worker_costs_its_node_one_attempt_and_others_nothing(tmp_path: Path) -> None:
    found, events, diary = run(
        tmp_path,
        2,
        node("base"),
        node("once", "base", deaths=1),
        node("twice", "base", deaths=2),
        node("after", "twice"),
        node("bad", "base", bad=True),
        node("behind", "bad"),
        node("fine", "base"),
        node("last", "fine", "once"),
    )
    status = {name: outcome.status for name, outcome in found.items()}
    assert status == {
        "base": "done",
        "once": "done",
        "twice": "failed",
        "after": "skipped",
        "bad": "failed",
        "behind": "skipped",
        "fine": "done",
        "last": "done",
    }
    assert "signal 9" in str(found["twice"].reason)
    assert found["after"].reason == found["twice"].reason
    assert (found["behind"].reason, found["behind"].log) == ("bad is bad", found["bad"].log)
    begun = [entry[0] for entry in diary]
    assert {name: begun.count(name) for name in sorted(set(begun))} == {
        "bad": 1,
        "base": 1,
        "fine": 1,
        "last": 1,
        "once": 2,
        "twice": 2,
    }
    assert begun.index("last") > max(begun.index("fine"), begun.index("once"))
    ended = [event.node.id for event in events if event.outcome is not None]
    assert sorted(ended) == sorted(status)
    # Five deaths and eight nodes, but processes live on: two at a time, and one more for each death.
    assert len({entry[1] for entry in diary}) <= 2 + 3


@pytest.mark.usefixtures("two_cores")
def test_workers_have_cores_of_their_own_and_work_at_once(tmp_path: Path) -> None:
    found, _, diary = run(tmp_path, 2, node("a", seconds=1.5), node("b", seconds=1.5))
    first, second = (set(found[name].result["cores"]) for name in "ab")
    assert not first & second
    assert len(first) == found["a"].result["threads"]
    assert len({entry[1] for entry in diary}) == 2


@pytest.mark.usefixtures("two_cores")
def test_nothing_runs_beside_a_measurement_of_speed(tmp_path: Path) -> None:
    nodes = [node(f"n{i}", seconds=0.3) for i in range(3)]
    _, events, _ = run(tmp_path, 2, nodes[0], node("cost", kind="efficiency", seconds=0.3), *nodes[1:])
    order = [(event.node.id, event.outcome is None) for event in events]
    begin, end = order.index(("cost", True)), order.index(("cost", False))
    assert end == begin + 1  # nothing begins or ends between
    busy: set[str] = set()
    for name, begins in order[:begin]:
        (busy.add if begins else busy.discard)(name)
    assert not busy


@pytest.mark.parametrize("total", [1, 2, 3, 4, 7, 8, 16, 64])
def test_threads_of_all_workers_are_never_more_than_cores(
    monkeypatch: pytest.MonkeyPatch, total: int
) -> None:
    monkeypatch.setattr(local, "cores", lambda: total)
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda pid: set(range(10, 10 + total)))
    for count in (None, *range(1, total + 1)):
        chosen = seats(count, "cpu")
        if count is not None:
            assert len(chosen) == count
        used = [core for seat in chosen for core in seat.cores]
        assert len(used) == len(set(used)) == sum(seat.threads for seat in chosen) <= total
        assert all(seat.threads == len(seat.cores) == total // len(chosen) for seat in chosen)
        assert all(seat.gpu == "" for seat in chosen)


def test_one_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores", lambda: 8)
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [(seat.gpu, seat.threads) for seat in seats(None, "cuda")] == [("2", 4), ("5", 4)]
    with pytest.raises(UserError, match="has 2 GPUs"):
        seats(3, "cuda")


def test_more_workers_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores", lambda: 2)
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda pid: {0, 1})
    for count in (0, 3, -1):
        with pytest.raises(UserError, match="has 2 cores"):
            seats(count, "cpu")
