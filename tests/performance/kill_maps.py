"""Kills `python -m agssp maps` at random moments, lets it end, and compares with a run that nobody disturbed.

    python tests/performance/kill_maps.py --dataset corpus_synthetic --maps kead:tiny --kills 5

Says how many images were mapped at each kill, and whether all files are equal in the end.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(dataset: str, source: str, out: Path) -> subprocess.Popen[bytes]:
    """Starts a run."""
    command = [sys.executable, "-m", "agssp", "maps", dataset, "--maps", source, "--out", str(out)]
    return subprocess.Popen(command)


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main() -> None:
    """Reads the command line; leaves with 1 where files differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="corpus_synthetic", help="2,000 images by default.")
    parser.add_argument("--maps", default="kead:tiny")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        out, parts = Path(folder) / "killed", Path(folder) / ".killed.work" / "parts"
        for kill in range(options.kills):
            process = start(options.dataset, options.maps, out)
            # Some parts further, then a random moment.
            wanted = len(list(parts.glob("[!.]*"))) + chance.randint(0, 4)
            while process.poll() is None and len(list(parts.glob("[!.]*"))) < wanted:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 2))
            process.kill()
            ended = process.wait()
            made = len(list(parts.glob("[!.]*")))
            sys.stdout.write(
                f"kill {kill + 1}: exit {ended}, {made} parts of 64 images, joined: {out.exists()}\n"
            )
            sys.stdout.flush()
        assert start(options.dataset, options.maps, out).wait() == 0
        whole = Path(folder) / "whole"
        assert start(options.dataset, options.maps, whole).wait() == 0
        equal = files_of(out) == files_of(whole)
        sizes = {name: len(data) for name, data in files_of(whole).items()}
        sys.stdout.write(f"files {sizes}, byte for byte equal: {equal}\n")
        if not equal:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
