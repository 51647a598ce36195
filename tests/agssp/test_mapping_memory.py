from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets_builders.corpus.shards import Row, ShardWriter
from datasets_builders.corpus.store import CorpusManifest, corpus_folder, write_manifest
from datasets_builders.images import encode_png
from datasets_builders.storage import file_sha256

MEGABYTE = 2**20


def store_corpus(name: str, images: int, shard: int = 500) -> None:
    """Stores a corpus of noise, 60 kB an image, in two categories that take turns."""
    folder = corpus_folder(name)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pictures = [encode_png(rng.integers(0, 255, (140, 140, 3), np.uint8)) for _ in range(8)]
    files = {}
    for start in range(0, images, shard):
        path = folder / f"{start:06d}.parquet"
        writer = ShardWriter(path, ["cast", "rolled"], "noise", "none")
        for index in range(start, min(start + shard, images)):
            writer.add(Row(f"noise/{index:06d}", index % 2, pictures[index % 8]))
        writer.close()
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_manifest(
        folder,
        CorpusManifest(name, 1, "stamp", ["cast", "rolled"], images, "fingerprint", files, list(files), []),
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_corpus(fresh_home: Path, tmp_path: Path) -> None:
    peaks = {}
    for images in (500, 4000):
        store_corpus(f"noise{images}", images)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, f"noise{images}", str(tmp_path / f"maps{images}")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        maps, peak = done.stdout.split()
        assert int(maps) == images
        peaks[images] = int(peak)
    # The larger corpus is 210 MB larger.
    assert peaks[4000] - peaks[500] < 40 * MEGABYTE, peaks
    assert peaks[500] < 1000 * MEGABYTE, peaks


def map_corpus(name: str, out: Path) -> None:
    """Maps a corpus and prints the number of maps and the peak memory in bytes."""
    from agssp.map_sources import open_source
    from agssp.mapping import make_maps

    store = make_maps(name, open_source("random"), out=out)
    # Not `getrusage`: what it gives begins with the memory of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(sum(1 for _ in store), int(status["VmHWM"].split()[0]) * 1024)


if __name__ == "__main__":
    map_corpus(sys.argv[1], Path(sys.argv[2]))
