"""What `python -m agssp maps` does: opens the source, shows the progress, says what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agssp.display import console
from agssp.map_sources import SourceOptions, open_source
from agssp.map_store import METADATA, MapStore
from agssp.mapping import make_shard, spread_by
from baselines.training.resources import resolve_device


def make(
    *,
    dataset: str,
    spec: str,
    out: Path,
    split: str,
    shots: int,
    normals: str,
    seed: int,
    encoder_weights: Path | None,
    precision: str | None,
    descriptions: Path | None,
    device: str,
    num_shards: int,
    shard: int,
    on_ray: bool = False,
    address: str | None = None,
) -> dict[str, Any]:
    """Makes maps, or a share of them; see `agssp.mapping.make_shard`.

    Args:
        dataset: Name of a dataset or corpus.
        spec: Source of the maps.
        out: Folder to make.
        split: Of the dataset.
        shots: Normal samples of each category.
        normals: How they are chosen.
        seed: Of the choice, and of random maps.
        encoder_weights: Of the source's encoder.
        precision: Of the source's encoder.
        descriptions: The user's own descriptions of objects and defects.
        device: `auto`, `cpu` or `cuda`.
        num_shards: Processes that share the work.
        shard: Which of them this is.
        on_ray: Spread over a Ray cluster.
        address: Of that cluster; see `baselines.ray_session.session`.

    Returns:
        What there is now, for `--json`.

    Raises:
        UserError: Something asked for cannot be had.
        typer.Exit: With 130, when interrupted.
    """
    options = SourceOptions(encoder_weights, precision, descriptions=descriptions)
    source = open_source(spec, seed=seed, device=resolve_device(device), options=options)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with _spread(on_ray, address), Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(f"{source.name}: preparing {dataset}", total=None)
            store = make_shard(
                dataset,
                source,
                out=out,
                split=split,
                shots=shots,
                normals=normals,
                seed=seed,
                num_shards=num_shards,
                shard=shard,
                on_progress=lambda done, total: progress.update(
                    task, completed=done, total=total, description=f"{source.name}: mapping {dataset}"
                ),
            )
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on where it was.")
        raise typer.Exit(130) from None
    if store is None:
        console.print(
            f"Shard {shard} of {num_shards} is done; the last shard to finish writes {out}.", highlight=False
        )
        return {"finished": False, "folder": str(out), "shard": shard, "num_shards": num_shards}
    _say(store)
    return {
        "finished": True,
        "folder": str(out),
        "maps": len(store),
        "grid": list(store.grid),
        "fingerprint": store.fingerprint,
        "categories": store.categories,
        "identity": store.identity,
    }


@contextmanager
def _spread(on_ray: bool, address: str | None) -> Iterator[None]:
    if not on_ray:
        yield
        return
    from agssp import ray_maps
    from baselines import ray_session

    with ray_session.session(address), spread_by(ray_maps.spread):
        yield


def _say(store: MapStore) -> None:
    size = sum(facts["bytes"] for facts in store.files.values())
    rows, columns = store.grid
    console.print(
        f"{len(store)} maps of {rows} x {columns}, {len(store.categories)} categories, {size / 1e6:.1f} MB",
        highlight=False,
    )
    if any(store.normals.values()):
        console.print(
            f"normal samples: {store.request['shots']} a category, named in {METADATA}", highlight=False
        )
    console.print(f"fingerprint: {store.fingerprint}", highlight=False, soft_wrap=True)
    console.print(f"folder: {store.folder}", highlight=False, soft_wrap=True)
