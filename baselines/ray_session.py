"""Ray, where it is installed (extra `ray`): one session for all that uses it, and cores of their own for its tasks.

Everything that tasks leave, they leave in files: the cache and the results folder lie where every machine of the
cluster sees them under the same path.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from datasets_builders import storage
from datasets_builders.errors import UserError
from datasets_builders.machine import cores

_OBJECT_STORE_BYTES = 100 * 2**20
"""Only names and outcomes travel through it; Ray takes no less than 75 MB."""


_ANSWER_SECONDS = 10


def require() -> None:
    """Makes sure that Ray is installed.

    Raises:
        UserError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--engine ray needs Ray: pip install 'agssp-bench[ray]'. Or leave it out.")


@contextmanager
def session(address: str | None) -> Iterator[None]:
    """Connects to a cluster, or starts one on this machine's cores that ends with the context.

    Args:
        address: Of the cluster's head, such as `10.0.0.1:6379`, or `auto` for the one of this machine; None to start
            one.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    require()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():  # the caller's
        yield
        return
    _check_answers(address)
    own: dict[str, Any] = {
        "num_cpus": cores(),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(own if address is None else {}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "" if address is None else " One begun by `ray start` may want its token: RAY_AUTH_MODE=token"
        raise UserError(f"No Ray cluster at {address or 'this machine'}: {error}.{hint}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Asks at an address, as Ray does, but for seconds and not for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"No Ray cluster at {address}: {error}. Start one: ray start --head, and on other machines: "
            "ray start --address HOST:6379"
        ) from None


def environment(cpus: int, gpus: float) -> dict[str, Any]:
    """Returns Ray's runtime environment of a task: the driver's cache, and as many threads as it has cores."""
    variables = {
        storage.HOME_VARIABLE: str(storage.home().absolute()),
        "OMP_NUM_THREADS": str(max(cpus, 1)),
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
    }
    if not gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return {"env_vars": variables}


@contextmanager
def pinned(count: int) -> Iterator[None]:
    """Keeps this process on some cores of its machine, which no other pinned process is on, if so many are free.

    Ray counts cores but lets every task run on all of them; the libraries take as many threads as they see cores.
    """
    if not hasattr(os, "sched_getaffinity"):  # only Linux can
        yield
        return
    before = os.sched_getaffinity(0)
    folder = Path(tempfile.gettempdir()) / f"agssp-bench-cores-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    with ExitStack() as held:
        mine: set[int] = set()
        for core in sorted(before):
            if len(mine) == count:
                break
            try:
                held.enter_context(FileLock(folder / str(core), blocking=False))
            except Timeout:
                continue
            mine.add(core)
        if len(mine) < count:  # others are there; which of them leave first is not known
            mine |= set(sorted(before - mine)[: count - len(mine)])
        _move_threads(mine)
        try:
            yield
        finally:
            _move_threads(before)


def _move_threads(allowed: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), allowed)
        except ProcessLookupError:  # it has just ended
            continue
