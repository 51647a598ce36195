"""A small dataset that may be published, in this process or in one of its own.

    python hub_sets.py push neu_det --repo lab/set

is `python -m datasets_builders` with that dataset in the catalogue.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets_builders import registry

PIN_VARIABLE = "HUB_SETS_PIN"
SHARD_VARIABLE = "HUB_SETS_SHARD_BYTES"


def small_cards(**changes: Any) -> dict[str, registry.DatasetCard]:
    """The catalogue, with a `neu_det` of any size under a free licence."""
    small = replace(
        registry.cards()["neu_det"],
        expected=None,
        subsets={"mini50": 8, "mini100": 12},
        licence="CC BY 4.0",
        **changes,
    )
    derived = {
        f"neu_det/{config}": replace(
            small, name=f"neu_det/{config}", origin="derived", subsets={}, parent="neu_det"
        )
        for config in small.subsets
    }
    return registry.cards() | {"neu_det": small} | derived


def command(*arguments: str) -> list[str]:
    return [sys.executable, __file__, *arguments]


def start(arguments: list[str], environment: dict[str, str], home: Path) -> subprocess.Popen[str]:
    """Starts the command line with a cache of its own."""
    return subprocess.Popen(
        command(*arguments),
        env=os.environ | environment | {"AGSSP_BENCH_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    from datasets_builders import cli, hub_export

    pin = os.environ.get(PIN_VARIABLE)
    cards = small_cards(hub=registry.HubSource(*pin.split("@")) if pin else None)
    registry.cards = lambda: cards  # type: ignore[assignment]
    hub_export.SHARD_BYTES = int(os.environ.get(SHARD_VARIABLE, hub_export.SHARD_BYTES))
    cli.main()
