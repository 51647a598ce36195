"""What can go wrong on the way: answers that are errors, connections that break, answers that never come."""

from __future__ import annotations

import dataclasses
import re
import threading

WAIT_SECONDS = 500


class Gate:
    """Stops a request in its middle until the test opens it."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Event(), threading.Event()

    def wait_until_reached(self) -> None:
        if not self._reached.wait(WAIT_SECONDS):
            raise TimeoutError("no request came to the gate")

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        self._reached.set()
        self._open.wait(WAIT_SECONDS)


@dataclasses.dataclass
class Fault:
    """One thing that goes wrong `times` times with requests of `method` whose path matches.

    Attributes:
        status: Answer with this status instead of doing anything.
        cut: Close the connection: after that many bytes of an upload were read, or of an answer
            were sent.
        lost: Do what is asked, then close the connection instead of answering.
        gate: Stop at the place where `cut` would cut.
        garble: Send as many bytes as announced, but others.
    """

    method: str
    path: re.Pattern[str]
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    cut: int | None = None
    lost: bool = False
    gate: Gate | None = None
    garble: bool = False


class Faults:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planned: list[Fault] = []

    def plan(self, method: str, path: str, **what: object) -> Fault:
        fault = Fault(method, re.compile(path), **what)  # type: ignore[arg-type]
        with self._lock:
            self._planned.append(fault)
        return fault

    def next_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._planned:
                if fault.times > 0 and method in fault.method.split("|") and fault.path.search(path):
                    fault.times -= 1
                    return fault
        return None

    def all_happened(self) -> bool:
        with self._lock:
            return all(fault.times <= 0 for fault in self._planned)
