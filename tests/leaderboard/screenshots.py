"""Takes the pictures of docs/images/leaderboard: every page in light, dark and on a phone.

    python tests/leaderboard/screenshots.py [--out FOLDER] [--results FOLDER] [PAGE ...]

Needs Chromium and its driver. Pictures are WebP, as good as `MOST_BYTES` allow.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from browser import DESKTOP, PHONE, ROOT, browser, photograph, served, show
from PIL import Image

sys.path.insert(0, str(ROOT))

PAGES = {
    "leaderboard": "/",
    "dataset": "/?show=One+dataset&on=casting_billet",
    "explore-ladder": "/explore",
    "explore-cost": "/explore?topic=Cost",
    "explore-few": "/explore?topic=Few+images",
    "explore-anomaly": "/explore?topic=Anomaly+maps",
    "explore-ablations": "/explore?topic=Ablations",
    "record": "/record",
    "datasets": "/datasets?kind=Generated",
    "submit": "/submit",
    "about": "/about",
    "ranks": "/?images=Generated+surfaces&show=One+dataset",
    "compare": "/compare",
}
LOOKS = {"light": (DESKTOP, False), "dark": (DESKTOP, True), "phone": (PHONE, False)}
MOST_BYTES = 120_000


def main() -> None:
    """Takes the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", default=[*PAGES])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "leaderboard")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--home", type=Path, default=None, help="Cache; a temporary one by default")
    parser.add_argument("--looks", nargs="*", default=list(LOOKS))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        home = asked.home or scratch / "home"
        os.environ["AGSSP_BENCH_HOME"] = str(home)
        _judge(asked.results)
        with served(asked.results, home, scratch / "log") as server, browser() as driver:
            for name in asked.pages:
                for look in asked.looks:
                    size, dark = LOOKS[look]
                    taken, file = scratch / "page.png", asked.out / f"{name}-{look}.webp"
                    show(driver, server + PAGES[name], size, dark)
                    photograph(driver, taken, most=1800 if look == "phone" else 2200)
                    compact(taken, file)
                    print(f"{file} {file.stat().st_size / 1000:.0f} kB", flush=True)


def _judge(results: Path) -> None:
    """Computes what the pages would ask for with a button."""
    from benchmark.rows import rows
    from leaderboard.scores import scores_of

    for row in rows(results):
        scores_of(row)


def compact(taken: Path, file: Path) -> None:
    """Writes a picture so small that a repository bears it."""
    picture = Image.open(taken).convert("RGB")
    for quality in (80, 65, 50, 35):
        picture.save(file, quality=quality, method=6)
        if file.stat().st_size < MOST_BYTES:
            return


if __name__ == "__main__":
    main()
