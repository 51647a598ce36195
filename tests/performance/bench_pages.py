"""Seconds until a browser shows the board of many records, and until a filter of it is drawn.

python tests/performance/bench_pages.py [RECORDS]
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "leaderboard")]

from bench_board import make  # noqa: E402
from browser import browser, served, show  # noqa: E402


def main() -> None:
    """Measures."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as scratch:
        home, results = Path(scratch) / "home", Path(scratch) / "results"
        os.environ["AGSSP_BENCH_HOME"] = str(home)
        make(results, records)
        for state in ("nothing indexed", "index on disk"):
            begun = time.perf_counter()
            with (
                served(results, home, Path(scratch) / "log", warm=True) as address,
                contextlib.ExitStack() as stack,
            ):
                _print(f"python -m leaderboard, {state}: until it serves", begun)
                driver = stack.enter_context(browser())
                for what in ("first page", "next visitor's first page"):
                    begun = time.perf_counter()
                    show(driver, address)
                    # `settled` waits a second to be sure that nothing changes any more.
                    _print(f"  {what}", begun + 1)
    _script_times(records)


def _print(what: str, begun: float) -> None:
    print(f"{what:<64}{time.perf_counter() - begun:8.2f} s", flush=True)


def _script_times(records: int) -> None:
    """Times the page's own work, without the browser's."""
    from streamlit.testing.v1 import AppTest

    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results"
        os.environ |= {"AGSSP_BENCH_HOME": f"{scratch}/home", "AGSSP_BENCH_RESULTS": str(results)}
        make(results, records)
        page = AppTest.from_file(str(ROOT / "leaderboard" / "app.py"), default_timeout=300)
        page.run()
        times: dict[str, list[tuple[float, float]]] = {}

        def step(what: str, change: object) -> None:
            begun, worked = time.perf_counter(), time.process_time()
            change.run()  # type: ignore[attr-defined]
            spent = time.process_time() - worked, time.perf_counter() - begun
            times.setdefault(what, []).append(spent)
            assert not page.exception

        for _ in range(5):
            step("a filter", page.multiselect(key="mode").set_value(["agssp"]))
            step("a second filter", page.multiselect(key="backbone").set_value(["swin:n"]))
            step("words", page.text_input(key="search").set_value("gc10"))
            step("all of it again", page.button[0].click())
            step("one dataset", page.segmented_control(key="show").set_value("One dataset"))
            step("all datasets", page.segmented_control(key="show").set_value("All datasets"))
        for what, seconds in times.items():
            worked, waited = map(statistics.median, zip(*seconds, strict=True))
            print(f"{what:<64}{waited:8.2f} s, of which the processor worked {worked:.2f} s")


if __name__ == "__main__":
    main()
