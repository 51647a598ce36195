"""The table at the end of a matrix: its rows, their differences, and what cannot be told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmark.matrix.live import numbers
from benchmark.rows import Row


def print_summary(outcome: dict[str, Any]) -> None:
    """Prints the rows of a matrix as `report --against` does, then the other things that were asked for.

    Args:
        outcome: Of `benchmark.matrix.command.run_matrix`.

    Raises:
        UserError: A record's detections or dataset are missing.
    """
    from benchmark.analysis import analyse
    from benchmark.report import print_analysis, print_rows

    found = _rows(outcome)
    if found:
        print_rows(found)
    modes = {row.mode for row in found}
    against = next((mode for mode in (outcome["against"], "scratch") if mode in modes), None)
    if against is not None and len(modes) > 1:
        print_analysis(analyse(found, against))
    others = [entry for entry in outcome["cells"] if entry["kind"] != "cell" and entry["result"]]
    if others:
        table = Table(title=outcome["title"], title_justify="left", title_style="bold", box=None)
        table.add_column("measured")
        table.add_column("result")
        for entry in others:
            table.add_row(escape(entry["title"]), numbers(entry["result"]))
        Console().print(table)


def _rows(outcome: dict[str, Any]) -> list[Row]:
    """Returns the rows of the cells that have a record, in the order of `report`."""
    from benchmark.records import StoredRecord, read_record
    from benchmark.rows import row_of

    groups: dict[str, list[StoredRecord]] = {}
    labels: dict[str, str | None] = {}
    for entry in outcome["cells"]:
        if entry["kind"] == "cell" and entry["record"]:
            path = Path(entry["record"])
            record = read_record(path)
            groups.setdefault(record.row_key, []).append(StoredRecord(path, record))
            labels.setdefault(record.row_key, entry["label"])
    rows = [
        replace(row_of(tuple(sorted(group, key=lambda one: one.record.cell.seed))), label=labels[key])
        for key, group in groups.items()
    ]
    return sorted(rows, key=lambda row: (row.protocol, row.dataset))
