"""`python -m benchmark`."""

from __future__ import annotations

import os
import sys

# Read by OpenMP when torch is imported: a waiting thread spins for a moment only and then sleeps. Spinning for long
# takes the cores from whatever else the machine does; sleeping at once costs a third more time on a quiet one.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_LISTS = ("--seeds", "--dataset", "--datasets", "--ids", "--pretrained-on")


def main() -> None:
    """Runs the command line."""
    from benchmark.cli import run_app

    sys.exit(run_app(spread(sys.argv[1:])))


def spread(arguments: list[str]) -> list[str]:
    """Lets `--seeds 0 1 2` stand for `--seeds 0 --seeds 1 --seeds 2`, as people type lists.

    Args:
        arguments: The command line's words.

    Returns:
        The words with the option repeated before each further value.
    """
    words: list[str] = []
    option = None
    for word in arguments:
        if word.startswith("-"):
            option = word if word in _LISTS else None
        elif option and words[-1] != option:
            words.append(option)
        words.append(word)
    return words


if __name__ == "__main__":
    main()
