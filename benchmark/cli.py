"""The command line of the benchmark: making records, and tables of them. Nothing heavy is imported before it must."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmark import record_cli
from benchmark.cli_options import Device, Json, print_json, quiet_output
from benchmark.submit import cli as submit_cli
from datasets_builders.errors import UserError

app = typer.Typer(
    name="benchmark",
    help="Which pretraining makes a surface-defect detector better, by how much, and can you trust the number?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.add_typer(record_cli.app)
app.add_typer(submit_cli.app, name="submit")

RESULTS = Path("results")


Results = Annotated[Path, typer.Option("--results", help="Folder of records.")]


@app.command()
def run(
    backbone: Annotated[
        str, typer.Option(help="csp_darknet, resnet, swin or lite0; with a size: swin:tiny.")
    ],
    mode: Annotated[
        str,
        typer.Option(
            help="Pretraining: scratch, imagenet, coco, industrial, agbp, agssp, or custom with --weights."
        ),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            help="How the backbone is pretrained: cls, mocov3 or simmim; of custom weights any word."
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Datasets, or all of the protocol's; the protocol's first by default.", metavar="D ..."
        ),
    ] = None,
    detector: Annotated[str, typer.Option(help="yolov8, faster_rcnn or dino.")] = "yolov8",
    protocol: Annotated[str, typer.Option(help="auto, paper-v1 or mini-v1.")] = "auto",
    seeds: Annotated[
        list[int] | None, typer.Option(help="Seeds; the protocol's by default.", metavar="S ...")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights instead of the mode's public ones: a file or hub:// address.")
    ] = None,
    maps: Annotated[
        str | None,
        typer.Option(help="Source of anomaly maps: kead:tiny, memory:lite0, oracle, random, folder:DIR."),
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="Images of the pretraining.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Weights that the pretraining begins with; none: random values.")
    ] = None,
    pretraining_seed: Annotated[
        int, typer.Option(help="Seed of the pretraining, which all cells share.")
    ] = 0,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    results: Results = RESULTS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Train, evaluate and record one row: every dataset and seed asked for.

    Finished cells are not run again; an interrupted one goes on from its last epoch.
    """
    from benchmark.modes import Choice
    from benchmark.run import run_cells

    try:
        outcome = run_cells(
            backbone=backbone,
            choice=Choice(mode, method, weights, maps, corpus, init, pretraining_seed),
            datasets=dataset,
            detector=detector,
            protocol_name=protocol,
            seeds=seeds,
            device=device.value,
            results=results,
            dry_run=dry_run,
        )
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from the last finished epoch.", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print_json(outcome)
    if any(entry["status"] == "failed" for entry in outcome["cells"]):
        raise typer.Exit(1)


class MatrixEngine(StrEnum):
    """Where a matrix runs."""

    LOCAL = "local"
    RAY = "ray"


@app.command()
def matrix(
    preset: Annotated[
        str, typer.Argument(help="table2 to table6, fig6a to fig6e, fig7, mini, or a YAML file of your own.")
    ],
    protocol: Annotated[str, typer.Option(help="auto, paper, mini or mock, or with a version.")] = "auto",
    only: Annotated[
        str | None, typer.Option(help="Keep what fits: backbone=swin,mode=agssp; a name twice takes either.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(help="Seeds; the protocol's by default.", metavar="S ...")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many cells.")] = None,
    engine: Annotated[
        MatrixEngine, typer.Option(help="This machine, or a Ray cluster.")
    ] = MatrixEngine.LOCAL,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Of --engine local: processes; one a GPU, or by cores and memory by default."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    results: Results = RESULTS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Run a whole table: its cells, what they share once, and the table with differences at the end.

    Nothing finished is done again, and a failure ends only what needs it: the same command tries it again.
    """
    from benchmark.matrix.command import Request, run_matrix

    request = Request(
        preset, protocol, only, seeds, limit, engine.value, address, workers, device.value, results
    )
    try:
        outcome = run_matrix(request, dry_run=dry_run)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where it was.", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print_json(outcome)
    elif not dry_run:
        from benchmark.matrix.summary import print_summary

        print_summary(outcome)
    if outcome.get("failed"):
        raise typer.Exit(1)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List backbones, modes, detectors, protocols and datasets."""
    from benchmark.listing import inventory, print_inventory

    if as_json:
        print_json(inventory())
    else:
        print_inventory(inventory())


class Layout(StrEnum):
    """Forms of a table."""

    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    HTML = "html"


@app.command()
def report(
    results: Results = RESULTS,
    layout: Annotated[
        Layout | None,
        typer.Option("--format", help="Print the paper's Table 2 layout, with the paper's own numbers."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Mode to compare every row with: intervals, groups, ranks; seconds a record."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the records of a results folder, mean and standard error over seeds."""
    from benchmark.rows import rows

    if layout is not None and as_json:
        raise UserError("--format and --json exclude each other.")
    found = rows(results)
    analysis = None
    if against is not None:
        from benchmark.analysis import analyse

        analysis = analyse(found, against)
    if layout is not None:
        from benchmark.tables import FORMATS, build

        tables = build(found, against, analysis.comparisons if analysis else ())
        typer.echo(FORMATS[layout.value](tables), nl=False)
    elif as_json:
        entries = [row.to_dict() for row in found]
        print_json({"rows": entries} | analysis.to_dict() if analysis else entries)
    else:
        from benchmark.report import print_analysis, print_rows

        print_rows(found)
        if analysis:
            print_analysis(analysis)


@app.command()
def compare(
    a: Annotated[
        str, typer.Argument(help="A record, a folder of records, or words: backbone=swin,mode=agssp.")
    ],
    b: Annotated[str, typer.Argument(help="The same for the other row.")],
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Say whether row A differs from row B: difference, 95 % interval, classes, and a verdict in plain words."""
    from benchmark.compare import compare as compare_rows
    from benchmark.compare import together
    from benchmark.report import print_comparison

    found = compare_rows(results, a, b)
    if as_json:
        print_json(
            {
                "datasets": [entry.to_dict() for entry in found],
                "together": [entry.to_dict() for entry in together(found)],
            }
        )
    else:
        print_comparison(found)


@app.command()
def anomaly(
    detector: Annotated[
        str, typer.Option(help="kead, winclip, or another source of maps: memory, random, oracle, folder.")
    ],
    dataset: Annotated[str, typer.Option(help="A dataset; its validation split is scored.")],
    encoder: Annotated[
        str, typer.Option(help="Of the detector: tiny, base, large, huge, or MODEL/TAG of open_clip.")
    ] = "",
    shots: Annotated[int, typer.Option(min=0, help="Normal images; 0: zero-shot.")] = 4,
    seeds: Annotated[
        list[int] | None, typer.Option(help="Of the choice of normal images; 0 by default.", metavar="S ...")
    ] = None,
    normals: Annotated[
        str,
        typer.Option(help="Normal images: labelled, auto, or a file of ids of training images, one a line."),
    ] = "labelled",
    encoder_weights: Annotated[
        Path | None, typer.Option(help="Local file with the encoder's weights.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Of the encoder: auto, fp32, bf16 or fp16.")] = None,
    descriptions: Annotated[
        Path | None, typer.Option(help="Your own descriptions of objects and defects (YAML).")
    ] = None,
    no_vv: Annotated[bool, typer.Option("--no-vv", help="KeAD without V-V attention.")] = False,
    no_descriptions: Annotated[
        bool, typer.Option("--no-descriptions", help="KeAD with generic states alone.")
    ] = False,
    layer_aliasing: Annotated[
        bool, typer.Option("--layer-aliasing", help="KeAD with the released code's equal layers.")
    ] = False,
    redundancy_removal: Annotated[
        bool, typer.Option("--redundancy-removal", help="KeAD with the released code's text features.")
    ] = False,
    image_score: Annotated[str, typer.Option(help="Of KeAD: paper or released.")] = "paper",
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Measure how well a detector's anomaly maps find defects, and what they cost (the paper's Table 4, Fig. 7)."""
    from agssp.map_sources import SourceOptions
    from benchmark.anomaly import run_anomaly

    switches = {
        "vv": (not no_vv, True),
        "descriptions": (not no_descriptions, True),
        "layer_aliasing": (layer_aliasing, False),
        "redundancy_removal": (redundancy_removal, False),
        "image_score": (image_score, "paper"),
    }
    settings = {name: value for name, (value, default) in switches.items() if value != default}
    try:
        with quiet_output():
            outcome = run_anomaly(
                detector=detector,
                encoder=encoder,
                dataset=dataset,
                shots=shots,
                seeds=seeds or [0],
                normals=normals,
                device=device.value,
                results=results,
                options=SourceOptions(encoder_weights, precision, settings, descriptions),
            )
    except KeyboardInterrupt:
        print(
            "Interrupted. Finished seeds are recorded; the same command goes on with the rest.",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    if as_json:
        print_json(outcome)


def run_app(arguments: list[str]) -> int:
    """Runs a command line.

    Args:
        arguments: Its words, without the program's name.

    Returns:
        Exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted.
    """
    try:
        app(arguments, prog_name="python -m benchmark")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0
