"""Runs a matrix on a Ray cluster: every machine sees the cache, the results folder and this project's environment.

Ray places each node of the graph where its cores and GPUs are free, and does the work of a lost process or machine
again on another; what was finished there lies in the shared cache, and is found. The order is decided here, so that a
failed node ends nothing but what needs it.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from agssp import ray_maps
from baselines import ray_session
from benchmark.environment import project_version
from benchmark.matrix import notes
from benchmark.matrix.engines.local import ALONE
from benchmark.matrix.graph import COMPUTING, Graph, Node
from benchmark.matrix.schedule import Event, Outcome, Schedule
from datasets_builders import storage

MOST_SUBMITTED = 500
"""Nodes that Ray is told of at once: more than any cluster runs, so that one that grows by itself sees the demand."""
RETRIES = 3
"""Lost processes or machines that one node survives."""
STARTED = "started"


class RayEngine:
    """An engine on a Ray cluster; see `benchmark.matrix.schedule.Engine`."""

    def __init__(self, address: str | None = None):
        """Takes the address of a cluster; see `baselines.ray_session.session`.

        Raises:
            UserError: Ray is not installed.
        """
        ray_session.require()
        self._address = address

    def run(self, graph: Graph, *, on_event: Callable[[Event], None]) -> dict[str, Outcome]:
        """See `benchmark.matrix.schedule.Engine`.

        Raises:
            UserError: There is no such cluster.
        """
        with ray_session.session(self._address), _token() as token:
            import ray

            schedule = Schedule(graph)
            running: dict[Any, Node] = {}
            try:
                while not schedule.finished:
                    while len(running) < MOST_SUBMITTED and (node := schedule.take()) is not None:
                        running[self._submit(node, token)] = node
                    ready, _ = ray.wait(list(running), timeout=None)
                    for messages in ready:
                        node = running[messages]
                        told = self._next(messages, node)
                        if told is None:
                            on_event(Event(node))
                            continue
                        del running[messages]
                        for event in schedule.finish(node.id, told):
                            on_event(event)
            finally:
                for messages in running:
                    ray.cancel(messages)
        return schedule.outcomes

    def _submit(self, node: Node, token: Path) -> Any:
        """Hands a node to Ray; returns the stream of its two messages: that it has started, and its outcome."""
        import ray

        largest, threads = _largest_machine(), 1
        if node.kind in COMPUTING:
            # More than the machine has would wait for ever.
            threads = min(node.cpus, largest) if node.gpus else share(largest)
        cores, gpus = largest if node.kind in ALONE else threads, float(node.gpus)
        if node.kind == "maps":
            # It chooses normal images and then waits for actors that it starts (Ray Data): it must not keep what they
            # need, or where there is one GPU they would wait for each other.
            cores, gpus = 0, min(gpus, ray_maps.GPU_OF_DRIVER)
        options = {
            "num_cpus": cores,
            "num_gpus": gpus,
            "num_returns": "streaming",
            "max_retries": RETRIES,
            "runtime_env": ray_session.environment(threads, node.gpus),
            "name": node.title,
        }
        return ray.remote(_work).options(**options).remote(node.to_dict(), token, project_version(), threads)

    def _next(self, messages: Any, node: Node) -> Outcome | None:
        """Returns the outcome, or None for the message that the node has started."""
        import ray

        try:
            found = ray.get(next(messages))
        except ray.exceptions.RayTaskError as error:  # this project cannot be imported there, say
            return Outcome(
                "failed", f"{type(error.cause).__name__}: {error.cause}", str(notes.log_file(node))
            )
        except (ray.exceptions.RayError, StopIteration) as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            reason = f"Its worker process ended {RETRIES + 1} times while doing it: {text[0]}"
            return Outcome("failed", reason, str(notes.log_file(node)))
        return None if found == STARTED else Outcome(**found)


def _work(values: dict[str, Any], token: Path, version: str, threads: int) -> Iterator[Any]:
    """What a worker of the cluster does with a node."""
    from agssp import mapping
    from agssp.display import quieten_libraries
    from benchmark.matrix.execution import execute

    yield STARTED
    node, host = Node.from_dict(values), socket.gethostname()
    if not token.is_file():
        reason = (
            f"{host} does not see {token.parent}: every machine of the cluster must see the cache under the same path."
            f" Choose a shared folder: {storage.HOME_VARIABLE}=DIR python -m benchmark matrix ..."
        )
        yield Outcome("failed", reason).to_dict()
    elif project_version() != version:
        yield Outcome(
            "failed", f"{host} has version {project_version()} of this project, not {version}."
        ).to_dict()
    else:
        quieten_libraries()
        with ExitStack() as stack:
            if node.kind == "maps":
                stack.enter_context(mapping.spread_by(ray_maps.spread))
            elif not node.gpus:
                stack.enter_context(ray_session.pinned(threads))
            yield execute(node, notes.log_file(node)).to_dict()


def share(cores: int) -> int:
    """Returns how many of a machine's cores a node computes on: as many as a worker of `local.seats`."""
    return cores // min(max(min(cores, 4), cores // 4), cores)


def _largest_machine() -> int:
    import ray

    return max((int(one["Resources"].get("CPU", 0)) for one in ray.nodes() if one["Alive"]), default=1) or 1


@contextmanager
def _token() -> Iterator[Path]:
    """Gives a file in the cache, by which a worker sees that it has the driver's cache."""
    path = storage.home().absolute() / f".ray-{secrets.token_hex(8)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
