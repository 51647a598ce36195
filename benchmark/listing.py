"""What there is to choose from; imports nothing heavy."""

from __future__ import annotations

from typing import Any

from agssp.recipes import METHODS
from baselines import backbones
from baselines.detectors import DETECTORS
from benchmark.modes import MODES
from datasets_builders import is_ready, registry


def inventory() -> dict[str, Any]:
    """Returns every name that the commands take, for people and for `--json`."""
    from benchmark import protocol

    return {
        "backbones": {name: backbones.variants(name) for name in backbones.names()},
        "detectors": list(DETECTORS),
        "modes": dict(MODES),
        "methods": {name: list(families) for name, families in METHODS.items()},
        "protocols": {name: protocol.load(name).title for name in protocol.names()},
        "datasets": {
            name: {
                "title": registry.card(name).title,
                "classes": len(registry.card(name).classes),
                "origin": registry.card(name).origin,
                "ready": is_ready(name),
            }
            for name in registry.names()
        },
    }


def print_inventory(found: dict[str, Any]) -> None:
    """Prints an inventory as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for column in columns:
            made.add_column(column)
        return made

    choices = table("Models", "backbone", "sizes")
    for name, sizes in found["backbones"].items():
        choices.add_row(name, ", ".join(sizes))
    console.print(choices)
    console.print(f"\n[bold]Detectors[/]\n{', '.join(found['detectors'])}\n")
    modes = table("Modes", "mode", "pretraining")
    for name, title in found["modes"].items():
        modes.add_row(name, title)
    console.print(modes)
    methods = table("\nMethods of backbone pretraining", "method", "backbones")
    for name, families in found["methods"].items():
        methods.add_row(name, ", ".join(families))
    console.print(methods)
    protocols = table("\nProtocols", "protocol", "")
    for name, title in found["protocols"].items():
        protocols.add_row(name, title)
    console.print(protocols)
    sets = table("\nDatasets", "dataset", "classes", "origin", "on this machine", "")
    for name, entry in found["datasets"].items():
        procedural = entry["origin"] == "procedural"
        state = "ready" if entry["ready"] else "generated on first use" if procedural else "no"
        sets.add_row(name, str(entry["classes"]), entry["origin"], state, entry["title"])
    console.print(sets)
