"""What `run` tells of its cells."""

from __future__ import annotations

import pytest

from benchmark import run


def test_reasons_and_folders_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"status": "failed", "dataset": "d", "seed": 0, "reason": "no file /a[b]c[/d]"}
    run._show_outcome({"cells": [failed], "results": "r"})
    run._show_outcome({"cells": [], "results": "my [red] results"})
    told = capsys.readouterr().err
    assert "failed d seed 0: no file /a[b]c[/d]" in told
    assert "report --results 'my [red] results'" in told
