"""A matrix, and the maps of a corpus, on a Ray cluster of two nodes of one core each, on this machine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agssp import mapper, mapping, ray_maps
from agssp.map_sources import open_source
from agssp.mapping import make_maps
from baselines import ray_session
from benchmark import protocol
from benchmark.cells import Cell
from benchmark.matrix.engines.local import LocalEngine, seats
from benchmark.matrix.engines.ray import RayEngine, share
from benchmark.matrix.graph import Graph, Task, build
from benchmark.matrix.schedule import Event
from benchmark.modes import Choice
from benchmark.records import StoredRecord, iter_records
from datasets_builders.errors import UserError

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
CHOICES = (Choice("scratch"), Choice("industrial", init="none"), Choice("agbp", init="none", maps="random"))


def mock_graph(results: Path) -> Graph:
    """Three cells, two of them on one corpus, and one that must fail: its weights are not there."""
    cells = [
        Task(Cell("csp_darknet", "n", choice.resolved_method, choice.mode, "yolov8", "gc10_toy", 0), choice)
        for choice in (*CHOICES, Choice("imagenet", weights="/no/such/file.pth"))
    ]
    return build(cells, protocol.load("mock-v1"), device="cpu", results=results)


def numbers(results: Path) -> dict[str, Any]:
    """All that two records of one cell must agree in, by mode."""
    found = {}
    for stored in iter_records(results):
        assert isinstance(stored, StoredRecord), stored.reason
        record = stored.record
        found[record.cell.mode] = record.model_dump(
            include={"key", "inputs", "last", "best", "weights", "curve"}
        )
    return found


@contextmanager
def as_many_threads_as_an_actor() -> Iterator[None]:
    """One: a product's last bits can depend on how many threads share it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    # A dead node is given up after ten seconds; by default it would take longer.
    checks = {"health_check_period_ms": 2000, "health_check_failure_threshold": 5}
    started = Cluster(
        initialize_head=True, head_node_args={**size, "include_dashboard": False, "_system_config": checks}
    )
    started.add_node(**size)
    yield started
    started.shutdown()


@needs_ray
@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_maps_of_a_corpus_on_a_cluster_are_those_of_one_machine_byte_for_byte(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = "corpus_synthetic/n150_k2_s0"  # three blocks
    with as_many_threads_as_an_actor():
        plain = make_maps(corpus, open_source("kead:tiny"), out=tmp_path / "plain", shots=2)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(mapper.Mapper, "_score", None)  # this process makes none
    with ray_session.session(cluster.address), mapping.spread_by(ray_maps.spread):
        spread = make_maps(
            corpus,
            open_source("kead:tiny"),
            out=tmp_path / "spread",
            shots=2,
            on_progress=lambda done, total: told.append((done, total)),
        )
    assert spread.fingerprint == plain.fingerprint
    files = sorted(path.relative_to(plain.folder) for path in plain.folder.rglob("*") if path.is_file())
    assert len(files) == 2
    for file in files:
        assert (spread.folder / file).read_bytes() == (plain.folder / file).read_bytes()
    assert told[0] == (0, 150)
    assert told[-1] == (150, 150)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@needs_ray
@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_matrix_survives_the_death_of_a_node_with_the_records_of_the_local_engine(
    cluster: Any, tmp_path: Path, agssp_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "local"
    outcomes = LocalEngine(min(2, os.cpu_count() or 1), "cpu").run(
        mock_graph(there), on_event=lambda event: None
    )
    assert sorted(outcome.status for outcome in outcomes.values()).count("failed") == 1
    # Nothing that the local engine has made may be found again, but the images.
    (agssp_home / "artifacts").rename(tmp_path / "artifacts of before")
    (agssp_home / "runs").rename(tmp_path / "runs of before")
    begun: list[str] = []
    ended: list[str] = []
    doomed = list(cluster.worker_nodes)[-1]

    def kill_when_both_nodes_work(event: Event) -> None:
        (ended if event.outcome else begun).append(event.node.id)
        if event.outcome or event.node.kind != "cell" or not cluster.worker_nodes:
            return
        # A busy machine may never run two pieces of work at once: then the node goes with the last cell's start.
        last = sum(graph.nodes[name].kind == "cell" for name in begun) == 3
        if len(begun) - len(ended) >= 2 or last:
            cluster.remove_node(doomed, allow_graceful=False)

    here = tmp_path / "ray"
    graph = mock_graph(here)
    outcomes = RayEngine(cluster.address).run(graph, on_event=kill_when_both_nodes_work)
    assert not cluster.worker_nodes, "the node was killed"
    assert outcomes.keys() == graph.nodes.keys()
    by_title = {graph.nodes[name].title: outcome for name, outcome in outcomes.items()}
    wrong = {title: outcome for title, outcome in by_title.items() if outcome.status not in ("done", "found")}
    assert {outcome.status for outcome in wrong.values()} == {"failed", "skipped"}
    assert all("/no/such/file.pth" in str(outcome.reason) for outcome in wrong.values())
    assert len(wrong) == 2
    records = numbers(here)
    assert records.keys() == {"scratch", "industrial", "agbp"}
    assert records == numbers(there)
    cells = [outcome for name, outcome in outcomes.items() if outcome.record]
    assert all(Path(str(outcome.record)).is_file() and Path(str(outcome.log)).is_file() for outcome in cells)
    assert not list(agssp_home.glob(".ray-*"))


@needs_ray
@pytest.mark.cluster
@pytest.mark.slow
def test_a_worker_that_does_not_see_the_cache_says_so(cluster: Any, tmp_path: Path, monkeypatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(
        "benchmark.matrix.engines.ray._token", lambda: _given(elsewhere / "a file that is not there")
    )
    graph = mock_graph(tmp_path / "results")
    dataset = graph.of_kind("dataset")[0]
    alone = replace(graph, nodes={dataset.id: dataset})
    (outcome,) = RayEngine(cluster.address).run(alone, on_event=lambda event: None).values()
    assert outcome.status == "failed"
    assert "must see the cache under the same path" in str(outcome.reason)


class _given:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *error: object) -> None:
        pass


@needs_ray
def test_an_address_without_a_cluster_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No Ray cluster at 127\.0\.0\.1:9.*ray start"):
        RayEngine("127.0.0.1:9").run(mock_graph(tmp_path), on_event=lambda event: None)


def test_without_ray_the_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'agssp-bench\[ray\]'"):
        RayEngine()


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 6, 8, 16, 64])
def test_a_node_gets_the_cores_of_a_local_worker(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark.matrix.engines import local

    monkeypatch.setattr(local, "cores", lambda: cores)
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(local, "_WORKER_BYTES", 1)
    assert {seat.threads for seat in seats(None, "cpu")} == {share(cores)}


def test_pinned_processes_stay_on_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets_builders.machine import cores

    before = os.sched_getaffinity(0)
    with ray_session.pinned(1):
        first = os.sched_getaffinity(0)
        assert (len(first), cores()) == (1, 1)
    assert os.sched_getaffinity(0) == before
    moved: list[set[int]] = []
    monkeypatch.setattr(ray_session, "_move_threads", lambda allowed: moved.append(set(allowed)))
    with ray_session.pinned(1), ray_session.pinned(1):
        if len(before) > 1:
            assert moved[0].isdisjoint(moved[1])
        with ray_session.pinned(len(before)):
            assert moved[-1] == before  # fewer are free than wanted: all of them are shared
