"""Fixtures of submissions."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("datasets_builders", "benchmark/submit"):
    sys.path.insert(0, str(Path(__file__).parents[2] / folder))

from hub_fixtures import hub, waits  # noqa: E402, F401
from made_submission import _made, dataset, record_files, submission, weights_file  # noqa: E402, F401
