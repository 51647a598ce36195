"""`python -m agssp`."""

from __future__ import annotations

import os
import sys

# Read by OpenMP when torch is imported; why this value: benchmark/__main__.py.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main() -> None:
    """Runs the command line."""
    from agssp.cli import run_app

    sys.exit(run_app(sys.argv[1:]))


if __name__ == "__main__":
    main()
