"""Measures mapping: images a CPU second of each source, bytes a map, floating-point operations of each encoder.

    python tests/performance/bench_maps.py --images 96 --sources kead:tiny memory:lite0 random

Sources run in this process, one after the other, on the default procedural corpus; starting, opening and the choice of
normal samples count. On a loaded machine trust CPU seconds rather than seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from agssp.map_sources import open_source
from agssp.mapping import make_maps


def measure(spec: str, corpus: str) -> str:
    """Maps a corpus and tells what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        source = open_source(spec)
        steps: list[tuple[int, float]] = []
        store = make_maps(
            corpus,
            source,
            out=Path(folder) / "maps",
            on_progress=lambda done, total: steps.append((done, time.process_time())),
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        mapping = steps[-1][1] - steps[0][1]
        size = sum(facts["bytes"] for facts in store.files.values())
        rows, columns = store.grid
        return (
            f"{spec:14} {len(store)} images in {wall:.1f} s, {cpu:.1f} CPU s, of these {mapping:.1f} for the maps: "
            f"{len(store) / mapping:.1f} images a CPU s; {rows} x {columns}, {size / len(store):.0f} bytes a map"
        )


def operations(model_name: str, dual_from: int, taps: list[int]) -> str:
    """Counts the operations of one image through a vision tower with the V-V stream."""
    import open_clip

    from agssp.kead import vv_attention

    settings = open_clip.get_model_config(model_name)
    with torch.device("meta"):
        visual = open_clip.CLIP(**settings).visual.eval()
        image = torch.empty(1, 3, *visual.image_size)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        vv_attention.encode(
            visual, image, taps=taps, dual_from=dual_from, vv=True, layer_aliasing=False, cls=True
        )
    return f"{model_name}: {counter.get_total_flops() / 1e9:.1f} GFLOP an image"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--sources", nargs="+", default=["random", "oracle", "memory:lite0", "kead:tiny"])
    options = parser.parse_args()
    for spec in options.sources:
        sys.stdout.write(measure(spec, f"corpus_synthetic/n{options.images}_k3_s0") + "\n")
        sys.stdout.flush()
    for model_name, dual_from, taps in (
        ("ViT-B-16-plus-240", 4, [3, 6, 9, 12]),
        ("ViT-L-14-336", 6, [6, 12, 18, 24]),
        ("ViT-H-14-378-quickgelu", 8, [8, 16, 24, 32]),
    ):
        sys.stdout.write(operations(model_name, dual_from, taps) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
