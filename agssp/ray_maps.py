"""Maps of a large corpus by many machines: Ray Data hands blocks of images to actors that write their parts.

The parts are those of a plain run with one thread, in the same work folder, which the whole cluster must see; so the
maps are the same, byte for byte, where the processors are of one kind. An interrupted run of either kind goes on as
the other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agssp.mapping import Blocks
from baselines import ray_session

GPU_OF_DRIVER = 0.01
"""Share of a GPU of a task that maps a corpus: it chooses the normal images, and leaves the rest to an actor."""
_GPU_OF_ACTOR = 0.9


class _Maker:
    """Lives in an actor: opens the source once, then makes the parts of the blocks that it is given."""

    def __init__(self, blocks: Blocks, folder: Path) -> None:
        os.chdir(folder)  # where the user's relative paths begin
        with ray_session.pinned(1):
            self._make = blocks.maker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with ray_session.pinned(1):
            return {"images": np.array([self._make(int(block)) for block in batch["block"]])}


def spread(blocks: Blocks, missing: Sequence[int], on_done: Callable[[int], None]) -> None:
    """Makes the parts of blocks on all cores, or GPUs, of the cluster of the current session; see `mapping.Spread`.

    A lost actor or machine costs the blocks that it was at; others make them.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    on_gpu = blocks.device != "cpu"
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    resources = ray.cluster_resources()
    most = max(int(resources.get("GPU" if on_gpu else "CPU", 1)), 1)
    rows = [{"block": block} for block in missing]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Maker,
        fn_constructor_args=(blocks, Path.cwd()),
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=min(most, len(rows))),
        num_cpus=1,
        num_gpus=_GPU_OF_ACTOR if on_gpu else 0,
        runtime_env=ray_session.environment(1, on_gpu),
    )
    for batch in made.iter_batches(batch_size=1, prefetch_batches=0):
        on_done(int(batch["images"].sum()))
