"""`python -m leaderboard [RESULTS]`: serves the board on this machine alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Starts the server; Ctrl-C stops it."""
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        print(
            "Usage: python -m leaderboard [RESULTS]\n\nServes the board of a results folder on localhost:8501."
        )
        sys.exit(0 if len(sys.argv) == 2 else 2)
    environment = dict(os.environ)
    if len(sys.argv) == 2:
        environment["AGSSP_BENCH_RESULTS"] = sys.argv[1]
    page = Path(__file__).with_name("app.py")
    options = ["--server.address=localhost", "--browser.gatherUsageStats=false", "--server.headless=true"]
    command = [sys.executable, "-m", "streamlit", "run", str(page), *options]
    try:
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)  # noqa: S603 (no shell, our own words)
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
