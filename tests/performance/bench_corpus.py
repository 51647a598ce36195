"""Measures a procedural corpus build: images a second, peak memory, shards.

    python tests/performance/bench_corpus.py --images 2000 20000 --workers 2

Each build runs in a process of its own, in a temporary cache; memory is the resident set of that process and
its workers together, sampled while it runs. On a loaded machine trust CPU seconds rather than images a second.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

INTERVAL = 0.05


def build(images: int, workers: int) -> None:
    """Builds the corpus in this process and prints what it cost as JSON."""
    from datasets_builders.corpus import prepare_corpus

    started = time.perf_counter()
    done = prepare_corpus("corpus_synthetic", images=images, workers=workers)
    facts = {
        "images": done.manifest.images,
        "workers": workers,
        "seconds": round(time.perf_counter() - started, 1),
        "shards": len(done.manifest.shards),
        "megabytes": round(sum(file["bytes"] for file in done.manifest.files.values()) / 1e6, 1),
        "fingerprint": done.manifest.fingerprint,
    }
    sys.stdout.write(json.dumps(facts))


def measure(images: int, workers: int) -> dict[str, object]:
    """Runs one build and watches its memory and CPU time."""
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"AGSSP_BENCH_HOME": home, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--one", str(images), "--workers", str(workers)]
        output = Path(home) / "facts.json"
        with output.open("w") as file:
            process = psutil.Popen(command, env=environment, stdout=file)
        together, alone, cpu = 0, 0, {}
        while process.poll() is None:
            total = 0
            for one in [process, *_children(process)]:
                try:
                    memory = one.memory_info().rss
                    times = one.cpu_times()
                except psutil.Error:
                    continue
                cpu[one.pid] = times.user + times.system
                total += memory
                alone = max(alone, memory)
            together = max(together, total)
            time.sleep(INTERVAL)
        if process.returncode:
            raise SystemExit(f"the build of {images} images failed")
        facts = json.loads(output.read_text())
    seconds = sum(cpu.values())
    return facts | {
        "images_per_second": round(images / facts["seconds"], 1),
        "cpu_seconds": round(seconds, 1),
        "images_per_cpu_second": round(images / seconds, 1),
        "peak_mb_all_processes": round(together / 1e6, 1),
        "peak_mb_largest_process": round(alone / 1e6, 1),
    }


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--workers", type=int, default=len(psutil.Process().cpu_affinity()))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        build(options.one, options.workers)
        return
    for images in options.images:
        sys.stdout.write(json.dumps(measure(images, options.workers), indent=1) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
