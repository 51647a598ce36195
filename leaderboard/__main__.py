"""`python -m leaderboard [RESULTS] [--OPTION ...]`: serves the board, on this machine alone unless told otherwise."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from leaderboard import RESULTS_VARIABLE

_APP = Path(__file__).with_name("app.py")
_LONGEST_DRAWING = 600
"""Seconds."""
_EXPECTED = {
    "streamlit.config": "An update to the [server] config option section was detected",
    "streamlit.runtime.scriptrunner_utils.script_run_context": "Thread 'MainThread': missing ScriptRunContext",
}
"""Logger -> how its warning begins that a page is drawn before the server has its options; others are shown."""
_USAGE = """Usage: python -m leaderboard [RESULTS] [--OPTION ...]

Serves the board of a results folder (by default ./results), or of hub://ORG/NAME@REVISION, on http://localhost:8501.
Options are Streamlit's, such as --server.port=9000. docs/leaderboard.md says how to publish a board."""


def main() -> None:
    """Becomes the server; Ctrl-C stops it."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(_USAGE)
        sys.exit(0)
    results = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    if any(not argument.startswith("--") for argument in arguments):
        print(_USAGE, file=sys.stderr)
        sys.exit(2)
    if results is not None:
        if not results.startswith("hub://") and not Path(results).is_dir():
            print(
                f"Error: there is no folder {results}. Name one with records, or hub://ORG/NAME.",
                file=sys.stderr,
            )
            sys.exit(1)
        os.environ[RESULTS_VARIABLE] = results
    _warm_up(os.environ.get(RESULTS_VARIABLE, "results"))
    from streamlit.web import cli

    cli.main(["run", str(_APP), *arguments])


def _unexpected(record: logging.LogRecord) -> bool:
    return _EXPECTED[record.name] not in record.getMessage()


def _warm_up(source: str) -> None:
    """Reads the records and draws the first page once, so that the first visitor waits for neither."""
    from streamlit.testing.v1 import AppTest

    from datasets_builders.errors import UserError
    from leaderboard.data import open_board

    try:
        board = open_board(source)
    except UserError as error:  # the page says it too, and tries again
        print(f"Warning: {error}", file=sys.stderr)
        return
    print(f"{source}: {len(board.records)} records, {len(board.quarantined)} files set aside.")
    for name in _EXPECTED:
        logging.getLogger(name).addFilter(_unexpected)
    try:
        drawn = AppTest.from_file(_APP, default_timeout=_LONGEST_DRAWING).run()
    except RuntimeError as error:  # too slow: visitors wait, or see why
        print(f"Warning: the first page was not drawn before serving: {error}", file=sys.stderr)
        return
    for problem in drawn.exception:
        print(f"Warning: the first page ends in an error: {problem.message}", file=sys.stderr)


if __name__ == "__main__":
    main()
