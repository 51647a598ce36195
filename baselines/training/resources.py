"""Cores, threads and memory of this machine."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from types import TracebackType

import psutil

from datasets_builders.errors import UserError
from datasets_builders.machine import cores


def set_threads(workers: int) -> None:
    """Lets torch compute on the cores that data-loading workers leave free, or fewer if OMP_NUM_THREADS says so."""
    import torch

    wish = os.environ.get("OMP_NUM_THREADS", "")
    most = min(int(wish), cores()) if wish.isdecimal() and int(wish) else cores()
    torch.set_num_threads(max(most - workers, 1))


def resolve_device(device: str) -> str:
    """Returns `cpu` or `cuda`.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: `cuda` was asked for and there is none.
    """
    if device == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise UserError("No CUDA device is visible to torch. Run with: --device cpu")
    return "cpu"


def default_workers(device: str) -> int:
    """Returns how many data-loading processes to start.

    On a CPU none: training already uses every core, and a second process would only compete for them. Beside a GPU
    up to eight, one core kept for the main process.
    """
    return 0 if device == "cpu" else min(max(cores() - 1, 0), 8)


@dataclass(frozen=True)
class Peak:
    """Highest memory use, in MiB; `gpu_mib` is None where no GPU worked."""

    ram_mib: float
    gpu_mib: float | None


class PeakMemory:
    """Watches this process's memory while the context is open; `peak` holds the result afterwards."""

    def __init__(self, interval: float = 0.2):
        self._interval = interval
        self._stop = threading.Event()
        self._highest = 0
        self.peak = Peak(0.0, None)

    def __enter__(self) -> PeakMemory:
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch

        self._stop.set()
        self._thread.join()
        gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
        self.peak = Peak(self._highest / 2**20, gpu)

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self._highest = max(self._highest, process.memory_info().rss)
            if self._stop.wait(self._interval):
                return
