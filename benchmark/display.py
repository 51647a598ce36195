"""What a run shows on the terminal before it begins: its plan."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from agssp.display import console, duration
from benchmark.planning import Plan, backbone_title, corpus_state, dataset_state
from datasets_builders import storage


def show_plan(plan: Plan) -> None:
    """Prints what a run will do."""
    cell = plan.cells[0]
    recipe = plan.protocol.recipe(cell.backbone, cell.detector)
    length = f"{recipe.epochs} epochs" if recipe.epochs else f"{recipe.iterations} iterations"
    each = plan.seconds_per_cell()
    cost = (
        f"about {duration(each)} a cell on {plan.protocol.estimate.machine}" if each else "not measured yet"
    )
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("protocol", f"[bold]{plan.protocol.id}[/] ({plan.reason}): {plan.protocol.title}")
    table.add_row("detector", f"{cell.detector} with {backbone_title(cell)}, mode [bold]{cell.mode}[/]")
    for name in plan.datasets:
        table.add_row("dataset", f"{name} ({dataset_state(name)})")
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(cell.seed for cell in plan.cells))
    table.add_row("cells", f"{len(plan.cells)} (seeds {seeds})")
    table.add_row(
        "recipe", f"{length}, batch {recipe.batch_size}, {recipe.image_size} px, {recipe.optimizer.type}"
    )
    weights = plan.start.weights
    if weights is not None:
        table.add_row("weights", f"{escape(weights.source)} (sha256 {weights.sha256[:12]})")
    if plan.start.corpus is not None:
        table.add_row("corpus", f"{escape(plan.start.corpus)} ({corpus_state(plan.start.corpus)})")
    for stage in plan.stages():
        state = f"[green]{stage['status']}[/]" if stage["status"] == "ready" else stage["status"]
        key = f" {stage['key'][:12]}" if stage["key"] else ""
        table.add_row("stage", f"{escape(stage['title'])} ({state}{key})")
    for note in plan.start.notes:
        table.add_row("note", escape(note))
    if any(stage["status"] != "ready" for stage in plan.stages()):
        cost += ", after the stages above, which are made once"
    table.add_row("time", cost)
    table.add_row("device", plan.device)
    table.add_row("records", escape(str(plan.results)))
    table.add_row("cache", escape(str(storage.home())))
    console.print(table)
