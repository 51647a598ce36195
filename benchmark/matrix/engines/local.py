"""The engine of one machine: long-lived worker processes, each on cores, or a GPU, of its own.

A worker imports torch once and then executes node after node. One that dies takes nothing with it: its node is tried
once more by a new worker, from the state that the dead one stored.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from benchmark.matrix import notes
from benchmark.matrix.execution import execute
from benchmark.matrix.graph import Graph, Node
from benchmark.matrix.schedule import Event, Outcome, Schedule
from datasets_builders.errors import UserError
from datasets_builders.machine import cores

ATTEMPTS = 2
"""How often a node is begun before the deaths of its workers count as its failure."""
ALONE = ("efficiency",)
"""Kinds of nodes that measure speed: nothing runs beside them."""
_WORKER_BYTES = 2 * 2**30
_STOP = None


@dataclass(frozen=True)
class Seat:
    """Where a worker computes.

    Attributes:
        cores: Cores that it may use; empty where the system cannot pin processes.
        threads: How many threads compute.
        gpu: Value of CUDA_VISIBLE_DEVICES; empty for none.
    """

    cores: tuple[int, ...]
    threads: int
    gpu: str


@dataclass
class _Worker:
    """A running process, its end of the pipe, and what it is doing."""

    seat: Seat
    process: BaseProcess
    connection: Connection
    node: Node | None = None


class LocalEngine:
    """Runs a graph by worker processes of this machine.

    Args:
        workers: How many; None for one a GPU, or as many as cores and memory suggest.
        device: `cpu` or `cuda`.
        function: What a worker does with a node and the file for all that it prints.
    """

    def __init__(
        self,
        workers: int | None,
        device: str,
        function: Callable[[Node, Path], Outcome] = execute,
    ):
        self.seats = seats(workers, device)
        self._function = function
        # A fresh interpreter: a fork of a process with threads may hang.
        self._context = multiprocessing.get_context("spawn")

    def run(self, graph: Graph, *, on_event: Callable[[Event], None]) -> dict[str, Outcome]:
        """See `benchmark.matrix.schedule.Engine`."""
        schedule = Schedule(graph)
        free = list(reversed(self.seats))
        workers: list[_Worker] = []
        deaths: Counter[str] = Counter()
        waiting: list[Node] = []  # whose worker died

        def finish(node: Node, outcome: Outcome) -> None:
            for event in schedule.finish(node.id, outcome):
                on_event(event)

        try:
            while not schedule.finished:
                while node := self._next(schedule, waiting, workers, free):
                    on_event(Event(node))
                busy = [worker for worker in workers if worker.node is not None]
                ends = wait([end for one in busy for end in (one.connection, one.process.sentinel)])
                for worker in [one for one in busy if one.connection in ends or one.process.sentinel in ends]:
                    node = worker.node
                    assert node is not None
                    try:
                        outcome = Outcome(**worker.connection.recv())
                        worker.node = None
                    except (EOFError, OSError):
                        worker.process.join()
                        workers.remove(worker)
                        free.append(worker.seat)
                        deaths[node.id] += 1
                        if deaths[node.id] < ATTEMPTS:
                            waiting.append(node)
                            continue
                        outcome = _died(node, worker.process.exitcode)
                    finish(node, outcome)
        finally:
            for worker in workers:
                _end(worker)
        return schedule.outcomes

    def _next(
        self, schedule: Schedule, waiting: list[Node], workers: list[_Worker], free: list[Seat]
    ) -> Node | None:
        """Gives the next node to an idle worker, started now if need be; None where there is no worker or no node."""
        idle = next((worker for worker in workers if worker.node is None), None)
        if idle is None and not free:
            return None
        busy = [worker.node.kind for worker in workers if worker.node is not None]
        if any(kind in ALONE for kind in busy):
            return None
        node = waiting.pop() if waiting else schedule.take(lambda node: not busy or node.kind not in ALONE)
        if node is None:
            return None
        if idle is None:
            idle = self._start(free.pop())
            workers.append(idle)
        idle.node = node
        with contextlib.suppress(OSError):  # it is dead, which its sentinel tells in a moment
            idle.connection.send(node.to_dict())
        return node

    def _start(self, seat: Seat) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=work, args=(theirs, seat, self._function), name="matrix-worker"
        )
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        return _Worker(seat, process, ours)


def seats(workers: int | None, device: str) -> list[Seat]:
    """Shares out this machine: threads of all workers together are never more than its cores.

    Args:
        workers: How many are wanted; None for one a GPU or, without, up to four, and more where each has four cores
            still; never more than memory has room for.
        device: `cpu` or `cuda`.

    Raises:
        UserError: More workers than cores or GPUs.
    """
    names = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    total = cores()
    gpus = _gpus() if device == "cuda" else []
    room = max(psutil.virtual_memory().available // _WORKER_BYTES, 1)
    usual = len(gpus) if gpus else min(max(min(total, 4), total // 4), room)
    count = usual if workers is None else workers
    limit, what = (len(gpus), "GPUs") if gpus else (total, "cores")
    if not 1 <= count <= limit:
        raise UserError(f"--workers {count}: this machine has {limit} {what}; give 1 to {limit}.")
    # Equal shares: how many threads compute changes the last digits of a number.
    threads = max(total // count, 1)
    return [
        Seat(tuple(names[place * threads : (place + 1) * threads]), threads, gpus[place] if gpus else "")
        for place in range(count)
    ]


def _gpus() -> list[str]:
    """Returns the GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def work(connection: Connection, seat: Seat, function: Callable[[Node, Path], Outcome]) -> None:
    """The worker process: executes the nodes that it is sent until it is told to stop, or its driver is gone."""
    # Ctrl-C reaches the whole group of processes; the driver decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_driver, daemon=True).start()
    os.environ["CUDA_VISIBLE_DEVICES"] = seat.gpu
    os.environ["OMP_NUM_THREADS"] = str(seat.threads)  # read when torch is imported
    if seat.cores:
        os.sched_setaffinity(0, seat.cores)
    from agssp.display import quieten_libraries

    quieten_libraries()
    while True:
        try:
            order: dict[str, Any] | None = connection.recv()
        except EOFError:
            return
        if order is _STOP:
            return
        node = Node.from_dict(order)
        connection.send(function(node, notes.log_file(node)).to_dict())


def _follow_driver() -> None:
    """Ends this process with its driver, however that ended; what it was doing goes on another time."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    wait([driver.sentinel])
    os._exit(1)


def _died(node: Node, code: int | None) -> Outcome:
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    hint = " Signal 9 is often the system's answer to too little memory." if code == -signal.SIGKILL else ""
    reason = f"Its worker process ended {ATTEMPTS} times while doing it (the last time by {how}).{hint}"
    return Outcome("failed", reason, str(notes.log_file(node)))


def _end(worker: _Worker) -> None:
    if worker.node is None:
        with contextlib.suppress(OSError):
            worker.connection.send(_STOP)
        worker.process.join(5)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.connection.close()
