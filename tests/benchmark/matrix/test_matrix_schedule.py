from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchmark.matrix.graph import Graph, Node
from benchmark.matrix.schedule import Outcome, Schedule


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any graph of up to twelve nodes; each needs some of those before it."""
    nodes: dict[str, Node] = {}
    for number in range(draw(st.integers(1, 12))):
        needs = draw(st.lists(st.sampled_from(list(nodes)), unique=True)) if nodes else []
        nodes[f"n{number}"] = Node(f"n{number}", "cell", f"node {number}", tuple(needs), {})
    return Graph(nodes)


def above(graph: Graph, name: str) -> set[str]:
    """All that a node stands on, by the definition."""
    direct = set(graph.nodes[name].needs)
    return direct.union(*(above(graph, one) for one in direct))


@given(graphs(), st.sets(st.integers(0, 11)), st.integers(1, 4), st.randoms(use_true_random=False))
def test_needs_come_first_and_a_failure_ends_only_what_needs_it(graph, failing, room, chance) -> None:
    bad = {f"n{number}" for number in failing} & graph.nodes.keys()
    schedule = Schedule(graph)
    running: list[Node] = []
    told: list[str] = []
    while not schedule.finished:
        while len(running) < room and (node := schedule.take()) is not None:
            good = {name for name, one in schedule.outcomes.items() if one.status == "done"}
            assert set(node.needs) <= good
            running.append(node)
        assert running, "nothing runs, and nothing can be begun"
        node = running.pop(chance.randrange(len(running)))
        outcome = Outcome("failed", f"{node.id} is bad") if node.id in bad else Outcome("done")
        told += [event.node.id for event in schedule.finish(node.id, outcome)]
    assert sorted(told) == sorted(graph.nodes)  # each once
    for name, outcome in schedule.outcomes.items():
        causes = above(graph, name) & bad
        if causes:
            assert outcome.status == "skipped"
            assert outcome.reason in {f"{cause} is bad" for cause in causes}
        else:
            assert outcome.status == ("failed" if name in bad else "done")


def test_what_many_wait_for_comes_first() -> None:
    names = ["a", "b", "c", "d"]
    nodes = {name: Node(name, "cell", name, (), {}) for name in names}
    nodes["c1"] = Node("c1", "cell", "c1", ("c",), {})
    first = Schedule(Graph(nodes)).take()
    assert first is not None
    assert first.id == "c"


def test_an_engine_may_pass_over_what_it_has_no_room_for() -> None:
    nodes = {name: Node(name, kind, name, (), {}) for name, kind in (("a", "cell"), ("b", "dataset"))}
    schedule = Schedule(Graph(nodes))
    taken = schedule.take(lambda node: node.kind == "dataset")
    assert taken is not None
    assert taken.id == "b"
    assert schedule.take(lambda node: False) is None
    assert schedule.running == {"b"}
