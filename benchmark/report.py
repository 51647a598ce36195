"""What `report` shows on the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmark.rows import Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from benchmark.analysis import Analysis
    from benchmark.compare import Comparison, Together
    from benchmark.statistics.difference import Difference


def print_rows(found: list[Row]) -> None:
    """Prints rows as one table for each protocol and dataset."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for (protocol, dataset), group in itertools.groupby(found, key=lambda row: (row.protocol, row.dataset)):
        entries = list(group)
        invalid = entries[0].invalid
        table = Table(title=f"{dataset}, {protocol}", title_justify="left", title_style="bold", box=None)
        for column in ("row", "seeds"):
            table.add_column(column)
        for column in ("mAP@.5", "mAP@.5:.95", "best @.5", "params"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in entries:
            table.add_row(
                escape(row.title if row.detector == "yolov8" else f"{row.detector} {row.title}"),
                " ".join(str(seed) for seed in row.seeds),
                _with_error(row.map50, row.map50_error),
                _with_error(row.map50_95, row.map50_95_error),
                f"{row.best_map50:.1f}",
                f"{row.parameters / 1e6:.1f}M",
                style=None if invalid is None else "dim",
            )
        console.print(table)
        if invalid is not None:
            console.print(f"These rows no longer count: {escape(invalid)}", soft_wrap=True)
        console.print()


def _with_error(mean: float, error: float | None) -> str:
    return f"{mean:.1f}" if error is None else f"{mean:.1f} ± {error:.1f}"


def print_analysis(analysis: Analysis) -> None:
    """Prints differences to the baseline, what each dataset can tell apart, and ranks."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not analysis.comparisons:
        console.print(f"No row has a row of mode {analysis.against} beside it.", markup=False)
    table = _differences(f"Difference to {analysis.against}, mAP@.5", "row", "dataset")
    for entry in analysis.comparisons:
        place = f"{entry.a.dataset}, {entry.a.protocol}"
        table.add_row(escape(entry.a.title), place, *_shown(entry.metrics["map50"], entry.adjusted["map50"]))
    if analysis.comparisons:
        console.print(table)
    if any(entry.metrics["map50"].seed_error is None for entry in analysis.comparisons):
        console.print("Where a row has one seed, the scatter of training is not in the interval.")
    if analysis.together:
        console.print("\n[bold]Means over datasets[/] (p after Holm's correction over them)", soft_wrap=True)
        _print_joined(console, analysis.together)
    for block in analysis.blocks:
        console.print(f"\n[bold]{block.dataset}, {block.protocol}[/]", soft_wrap=True)
        for group in block.groups:
            words = "cannot be told apart: " if len(group) > 1 else "differs from all others: "
            if len(block.groups) > 1 or len(group) > 1:
                console.print(escape(f"  {words}{'; '.join(group)}"), soft_wrap=True)
        if block.smallest:  # nothing scatters where nothing was found
            held = "" if block.seeds_known else " (images alone: a row has one seed)"
            console.print(f"  found in 4 of 5 comparisons: {block.smallest:.1f} points{held}", soft_wrap=True)
    for protocol, entries in analysis.standings.items():
        table = Table(title=f"All datasets, {protocol}, mAP@.5", title_justify="left", box=None)
        for column in ("row", "mean of the middle half", "95 %", "mean rank", "95 %"):
            table.add_column(column, justify="left" if column == "row" else "right")
        for title, standing in entries.items():
            iqm, ranks = standing.iqm_interval, standing.rank_interval
            table.add_row(
                escape(title),
                f"{standing.iqm:.1f}",
                f"{iqm[0]:.1f} to {iqm[1]:.1f}",
                f"{standing.rank:.1f}",
                f"{ranks[0]:.1f} to {ranks[1]:.1f}",
            )
        console.print(table)


def print_comparison(found: list[Comparison]) -> None:
    """Prints the comparison of two rows, one part a dataset."""
    from rich.console import Console
    from rich.markup import escape

    from benchmark.compare import together

    console = Console()
    for entry in found:
        console.print(f"[bold]{entry.a.dataset}, {entry.a.protocol}[/]", soft_wrap=True)
        for name, row in (("A", entry.a), ("B", entry.b)):
            seeds = " ".join(map(str, row.seeds))
            numbers = f"mAP@.5 {_with_error(row.map50, row.map50_error)}, "
            numbers += f"mAP@.5:.95 {_with_error(row.map50_95, row.map50_95_error)}"
            console.print(
                escape(f"  {name}: {row.detector} {row.title}, seeds {seeds}: {numbers}"), soft_wrap=True
            )
        table = _differences("", "A less B")
        for metric, label in (("map50", "mAP@.5"), ("map50_95", "mAP@.5:.95")):
            table.add_row(label, *_shown(entry.metrics[metric], entry.adjusted[metric]))
        for name, one in entry.classes.items():
            table.add_row(escape(f"AP@.5 {name}"), *_shown(one, entry.classes_adjusted.get(name)))
        console.print(table)
        console.print(f"  {entry.verdict()}\n", soft_wrap=True)
    _print_joined(console, together(found))


def _print_joined(console: Console, found: Sequence[Together]) -> None:
    """Interval and p know images and seeds, the last p seeds alone; see docs/statistics.md."""
    from rich.markup import escape

    from benchmark.compare import METRICS

    for entry in found:
        console.print(f"\n[bold]Over {', '.join(entry.datasets)}, {entry.protocol}[/]", soft_wrap=True)
        console.print(escape(f"  {entry.a} less {entry.b}, mean of the datasets"), soft_wrap=True)
        for metric, label in METRICS.items():
            value, interval, p = _shown(entry.metrics[metric], entry.adjusted[metric])
            exchanged = _probability(entry.exchanged[metric])
            console.print(
                f"  {label:<11} {value} points (95 % interval {interval}), p {p}; seeds exchanged: p {exchanged}",
                soft_wrap=True,
            )


def _probability(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _differences(title: str, *names: str) -> Table:
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold", box=None)
    for column in (*names, "difference", "95 % interval", "p (Holm)"):
        table.add_column(column, justify="left" if column in names else "right", no_wrap=column not in names)
    return table


def _shown(found: Difference | None, adjusted: float | None) -> tuple[str, str, str]:
    if found is None or adjusted is None:
        return "-", "too few objects", "-"
    interval = f"{found.low:+.1f} to {found.high:+.1f}"
    return f"{found.value:+.1f}", interval, _probability(adjusted)
