"""Which node may run next, and what becomes of those whose needs failed: the same for every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from benchmark.matrix.graph import Graph, Node

Status = Literal["done", "found", "failed", "skipped"]
GOOD = ("done", "found")


@dataclass(frozen=True)
class Outcome:
    """What became of a node; JSON values, so that it travels between processes.

    Attributes:
        status: `done` now; `found`, made before; `failed`; `skipped`, since something that it needs failed.
        reason: Why it failed or was skipped.
        log: File with all that it printed.
        seconds: Wall time.
        key: Content key of its result, where it has one.
        record: The record's file, of a cell.
        result: What is worth showing, such as `{"map50": 71.2}`.
    """

    status: Status
    reason: str | None = None
    log: str | None = None
    seconds: float = 0.0
    key: str | None = None
    record: str | None = None
    result: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the outcome as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Event:
    """Something that an engine tells while it runs: `outcome` is None when the node begins."""

    node: Node
    outcome: Outcome | None = None


class Engine(Protocol):
    """Runs a graph. What a node does is `benchmark.matrix.execution.execute`; the order is `Schedule`'s."""

    def run(self, graph: Graph, *, on_event: Callable[[Event], None]) -> dict[str, Outcome]:
        """Executes every node once those that it needs are done; returns every node's outcome.

        A failed node ends only the nodes that need it. Raises KeyboardInterrupt when the user stops it, and leaves no
        process behind.
        """
        ...


class Schedule:
    """The state of a graph while an engine runs it.

    Example of an engine's loop:
        while not schedule.finished:
            while (node := schedule.take()) is not None:   # as long as there is room
                submit(node)
            node, outcome = wait_for_any()
            for told in schedule.finish(node, outcome):
                on_event(told)
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._missing = {node.id: len(set(node.needs)) for node in graph.nodes.values()}
        places = {name: place for place, name in enumerate(graph.nodes)}
        # What most others wait for comes first; else the order in which it was asked for.
        weights = _paths_below(graph)
        self._order = sorted(graph.nodes, key=lambda name: (-weights[name], places[name]))
        self._rank = {name: rank for rank, name in enumerate(self._order)}
        self._ready = [name for name in self._order if self._missing[name] == 0]
        self.running: set[str] = set()
        self.outcomes: dict[str, Outcome] = {}

    @property
    def finished(self) -> bool:
        """Whether every node has an outcome."""
        return len(self.outcomes) == len(self._graph.nodes)

    def take(self, fits: Callable[[Node], bool] = lambda node: True) -> Node | None:
        """Returns the next node that may run and marks it as running; None where there is none at present.

        Args:
            fits: Whether the engine has room for a node now.
        """
        for place, name in enumerate(self._ready):
            node = self._graph.nodes[name]
            if fits(node):
                del self._ready[place]
                self.running.add(name)
                return node
        return None

    def finish(self, name: str, outcome: Outcome) -> list[Event]:
        """Notes what became of a running node; returns it, and the nodes that are skipped because of it."""
        self.running.discard(name)
        self.outcomes[name] = outcome
        told = [Event(self._graph.nodes[name], outcome)]
        if outcome.status in GOOD:
            opened = []
            for waiting in self._graph.dependants[name]:
                self._missing[waiting] -= 1
                if self._missing[waiting] == 0 and waiting not in self.outcomes:
                    opened.append(waiting)
            if opened:
                self._ready = sorted([*self._ready, *opened], key=self._rank.__getitem__)
            return told
        reason = outcome.reason or "failed"
        skipped = Outcome("skipped", reason, outcome.log)
        left = list(self._graph.dependants[name])
        while left:
            one = left.pop()
            if one not in self.outcomes:
                self.outcomes[one] = skipped
                told.append(Event(self._graph.nodes[one], skipped))
                left += self._graph.dependants[one]
        return told


def _paths_below(graph: Graph) -> dict[str, int]:
    """Returns, for every node, how many paths lead from it to others: many wait for what has many."""
    counts: dict[str, int] = {}
    for name in reversed(graph.nodes):
        counts[name] = sum(1 + counts[one] for one in graph.dependants[name])
    return counts
