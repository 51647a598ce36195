"""What a matrix shows on the terminal: its plan, how far it is, what failed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from agssp.display import console, duration
from benchmark.matrix.graph import ASKED, Graph
from benchmark.matrix.schedule import GOOD, Event, Outcome
from datasets_builders import storage

if TYPE_CHECKING:
    from benchmark.matrix.command import MatrixPlan

_MOST_SHOWN = 8


def show_plan(plan: MatrixPlan) -> None:
    """Prints what a matrix will do."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("matrix", f"[bold]{escape(plan.wanted.name)}[/], {escape(plan.wanted.title)}")
    table.add_row("protocol", f"[bold]{plan.protocol.id}[/] ({plan.reason}): {plan.protocol.title}")
    there = Counter(plan.graph.nodes[name].kind for name in plan.there)
    for kind, count in plan.graph.counts().items():
        table.add_row(kind, f"{count}" + (f", {there[kind]} there" if there[kind] else ""))
    shared = plan.graph.asked - len(plan.graph.nodes)
    table.add_row(
        "shared", f"{shared} of {plan.graph.asked} pieces of work are another's, too, and done once"
    )
    for name, text in plan.estimate.lines():
        table.add_row(name, text)
    table.add_row("device", plan.device)
    table.add_row("records", escape(str(plan.results)))
    table.add_row("cache", escape(str(storage.home())))
    console.print(table)


@contextmanager
def live(plan: MatrixPlan) -> Iterator[Callable[[Event], None]]:
    """Shows how far a matrix is while the context is open; gives the function that is told of events.

    Where nobody watches, every outcome is a line.
    """
    state = _State(plan.graph)
    if not console.is_terminal:

        def tell(event: Event) -> None:
            state.note(event)
            if event.outcome is not None:
                console.print(state.line(event), soft_wrap=True, highlight=False)

        yield tell
        return
    with Live(get_renderable=state.render, console=console, refresh_per_second=4) as view:

        def show(event: Event) -> None:
            state.note(event)
            if event.outcome is not None and event.outcome.status == "failed":
                view.console.print(state.line(event), soft_wrap=True, highlight=False)

        yield show


def show_failures(graph: Graph, outcomes: dict[str, Outcome]) -> None:
    """Prints what failed, why, where to read on, and how many others could not be done for it."""
    failed = [name for name, outcome in outcomes.items() if outcome.status == "failed"]
    for name in failed:
        outcome = outcomes[name]
        skipped = sum(
            1
            for other, one in outcomes.items()
            if one.status == "skipped" and one.log == outcome.log and graph.nodes[other].kind in ASKED
        )
        without = f" (needed by {skipped} of those asked for)" if skipped else ""
        console.print(
            f"[red]failed[/] {escape(graph.nodes[name].title)}{without}: {escape(outcome.reason or '')}\n"
            f"  log: {escape(str(outcome.log))}",
            soft_wrap=True,
            highlight=False,
        )
    counts = Counter(outcomes[node.id].status for node in graph.nodes.values() if node.kind in ASKED)
    told = [
        f"{counts[status]} {status}" for status in ("done", "found", "failed", "skipped") if counts[status]
    ]
    console.print(f"Asked for: {', '.join(told)}.")
    if failed:
        console.print("The same command tries again what failed, and only that.")


class _State:
    """What has been told of a running matrix."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._started = time.monotonic()
        self._running: dict[str, float] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._last = ""

    def note(self, event: Event) -> None:
        """Takes an event in."""
        if event.outcome is None:
            self._running.setdefault(event.node.id, time.monotonic())
            return
        self._running.pop(event.node.id, None)
        self._outcomes[event.node.id] = event.outcome
        if event.outcome.result is not None and event.node.kind in ASKED:
            self._last = f"{event.node.title}: {numbers(event.outcome.result)}"

    def line(self, event: Event) -> str:
        """Returns an outcome as one line."""
        outcome = event.outcome
        assert outcome is not None
        done = f"{len(self._outcomes)}/{len(self._graph.nodes)}"
        colour = "green" if outcome.status in GOOD else "red" if outcome.status == "failed" else "yellow"
        text = rf"\[{done}] [{colour}]{outcome.status}[/] {escape(event.node.title)}"
        if outcome.result:
            text += f": {numbers(outcome.result)}"
        if outcome.status == "done":
            text += f" ({duration(outcome.seconds)})"
        return text + (f": {escape(outcome.reason.splitlines()[0])}" if outcome.reason else "")

    def render(self) -> Group:
        """Returns the view."""
        kinds = self._graph.counts()
        good = Counter(self._graph.nodes[n].kind for n, one in self._outcomes.items() if one.status in GOOD)
        bad = Counter(
            self._graph.nodes[n].kind for n, one in self._outcomes.items() if one.status not in GOOD
        )
        busy = Counter(self._graph.nodes[name].kind for name in self._running)
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("", "done", "running", "waiting", "failed"):
            table.add_column(column, justify="left" if not column else "right")
        for kind, count in kinds.items():
            left = count - good[kind] - bad[kind] - busy[kind]
            counts = (good[kind], busy[kind], left, bad[kind])
            table.add_row(kind, *(str(number) if number else "" for number in counts))
        now = time.monotonic()
        running = [
            f"  {escape(self._graph.nodes[name].title)} ({duration(now - began)})"
            for name, began in list(self._running.items())[:_MOST_SHOWN]
        ]
        rest = self._seconds_left()
        clock = f"{duration(now - self._started)} so far" + (f", about {duration(rest)} left" if rest else "")
        return Group(table, *running, clock, f"last: {escape(self._last)}" if self._last else "")

    def _seconds_left(self) -> float | None:
        """Returns the expected rest: what nodes of each kind took so far, shared by those that run at once."""
        took: dict[str, list[float]] = {}
        for name, outcome in self._outcomes.items():
            if outcome.status == "done":
                took.setdefault(self._graph.nodes[name].kind, []).append(outcome.seconds)
        if not took:
            return None
        everything = [seconds for all_seconds in took.values() for seconds in all_seconds]
        usual = sum(everything) / len(everything)
        left = [node for node in self._graph.nodes.values() if node.id not in self._outcomes]
        total = sum(
            sum(took[node.kind]) / len(took[node.kind]) if node.kind in took else usual for node in left
        )
        return total / max(len(self._running), 1)


def numbers(result: dict[str, Any]) -> str:
    """Returns the metrics of a result for people."""
    names = {
        "map50": "mAP@.5",
        "map50_95": "mAP@.5:.95",
        "image_auroc": "image AUROC",
        "pixel_auroc": "pixel AUROC",
    }
    shown = [f"{title} {result[name]:.1f}" for name, title in names.items() if name in result]
    if "batch_1" in result:
        shown.append(f"{result['parameters'] / 1e6:.1f} M parameters")
        shown.append(f"{result['batch_1']['images_per_second']:.1f} images/s")
    return ", ".join(shown)
