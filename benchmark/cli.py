"""The command line of the benchmark. It imports nothing heavy before a command needs it."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmark.cli_options import Device, Json, quiet_output
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
        _print_json(outcome)
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
        _print_json(outcome)
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
        _print_json(inventory())
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
        _print_json({"rows": entries} | analysis.to_dict() if analysis else entries)
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
    from benchmark.report import print_comparison

    found = compare_rows(results, a, b)
    if as_json:
        _print_json([entry.to_dict() for entry in found])
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
        _print_json(outcome)


@app.command()
def verify(
    records: Annotated[list[Path], typer.Argument(help="Records: their files (.json) or folders.")],
    how: Annotated[
        bool, typer.Option("--how", help="Print instead what makes each record again: command and hashes.")
    ] = False,
    rerun: Annotated[
        bool,
        typer.Option(
            "--rerun", help="Finetune again, the row of a record or a submission, and attest the outcome."
        ),
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="With --rerun: the weights, where the record does not lead to them.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="With --rerun: results folder of the attestation; the records' own by default."),
    ] = None,
    device: Annotated[Device, typer.Option(help="With --rerun: where to compute.")] = Device.AUTO,
) -> None:
    """Recompute a record's metrics from its detections and say whether they are equal.

    Leaves with 0 where all are equal (with --rerun: reproduced), 1 where one is not, 2 where one cannot be checked.
    """
    if how and rerun:
        raise UserError("--how and --rerun exclude each other.")
    if rerun:
        from benchmark.rerun import rerun as again

        found = [entry for path in records for entry in again(path, results, weights, device.value)]
        typer.echo("\n".join(entry.text() for entry in found))
        codes = {"reproduced": 0, "different": 1, "undecided": 2}
        outcome = {codes[entry.attestation.finding.value] for entry in found}
        raise typer.Exit(1 if 1 in outcome else max(outcome))
    if weights is not None or results is not None:
        raise UserError("--weights and --results have no meaning without --rerun.")
    if how:
        from benchmark.provenance import how as script

        typer.echo("\n".join(map(script, records)), nl=False)
        return
    from benchmark.verify import verify_paths

    raise typer.Exit(verify_paths(records))


@app.command()
def explain(
    record: Annotated[Path, typer.Argument(help="A record: record.json, or its folder.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.", show_default=False)],
    against: Annotated[
        Path | None, typer.Option(help="Another record of the same data, to stand beside it.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=100, help="Without --ids: number of images.")] = 6,
    ids: Annotated[
        list[str] | None,
        typer.Option(help="Images; those where the records differ most by default.", metavar="ID ..."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Score from which on detections count; of each record's best F1 by default."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Of the record; those that its training left here by default.")
    ] = None,
    against_weights: Annotated[Path | None, typer.Option(help="Of the other record.")] = None,
    detections_only: Annotated[
        bool, typer.Option("--detections-only", help="Leave the attention maps out; needs no weights.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Orders images between which nothing decides.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw where a record's detector looks and what it finds, beside another's (the paper's Fig. 4)."""
    from benchmark.explain import explain as draw

    if against is None and against_weights is not None:
        raise UserError("--against-weights has no meaning without --against RECORD.")
    with quiet_output():
        outcome = draw(
            [record] if against is None else [record, against],
            out,
            number=images,
            ids=ids or [],
            threshold=threshold,
            weights=[weights] if against is None else [weights, against_weights],
            detections_only=detections_only,
            seed=seed,
        )
    if as_json:
        _print_json(outcome)
    else:
        typer.echo(f"wrote {out}: {len(outcome['images'])} images")


@app.command()
def export(
    record: Annotated[Path, typer.Argument(help="A record: record.json, or its folder.")],
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Score from which on detections count; of the best F1 on validation by default.",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Of the record; those that its training left here by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a record's finetuned detector as a folder: for `predict`, for Python, for OpenMMLab and others."""
    from benchmark.trained import export_detector

    with quiet_output():
        made = export_detector(record, out, weights, threshold)
    if as_json:
        _print_json({"folder": str(made.folder), "files": list(made.files)})
    else:
        typer.echo(f"{made.folder}: {', '.join(made.files)}")


@app.command()
def predict(
    detector: Annotated[Path, typer.Argument(help="A folder that `export` wrote, or a record.")],
    images: Annotated[list[Path], typer.Argument(help="Images, and folders of images.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to make: detections.json, and the images with their boxes.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Score from which on detections count; the detector's by default."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Of a record; those that its training left here by default.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    as_json: Json = False,
) -> None:
    """Find defects in images with a finetuned detector."""
    from benchmark.planning import resolve_device
    from benchmark.predict import predict as find

    chosen = resolve_device(device.value)
    with quiet_output():
        found = find(detector, images, out, threshold=threshold, device=chosen, weights=weights)
    if as_json:
        _print_json(found)
        return
    for name, answers in found["images"].items():
        typer.echo(f"{name}: {len(answers)} found")
        for one in answers:
            x, y, width, height = (round(value) for value in one["box"])
            typer.echo(f"  {one['category']} {one['score']:.2f}, {width} x {height} pixels at {x}, {y}")
    for name, reason in found["skipped"].items():
        typer.echo(f"skipped: {name}: {reason}", err=True)
    if out is not None:
        typer.echo(f"wrote {out}")


@app.command()
def efficiency(
    record: Annotated[
        Path | None, typer.Argument(help="A record: record.json, or its folder. Or name a detector:")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="csp_darknet, resnet, swin or lite0; with a size: swin:tiny.")
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="yolov8 (default), faster_rcnn or dino.", show_default=False)
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="Gives the detector's settings; paper-v1 by default.", show_default=False),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Number of classes; 6 by default.", show_default=False)
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the input; the record's or protocol's by default.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    as_json: Json = False,
) -> None:
    """Measure what a detector costs: parameters, FLOPs, memory, images per second (the paper's Table 6)."""
    from benchmark.efficiency import describe, measure, of_names, of_record
    from benchmark.planning import resolve_device
    from benchmark.records import read_record

    if (record is None) == (backbone is None):
        raise UserError("Name either a RECORD or a detector: python -m benchmark efficiency --backbone swin")
    if record is not None:
        if any(option is not None for option in (detector, protocol, classes)):
            raise UserError(
                "A RECORD says its detector, protocol and classes itself: leave these options out."
            )
        subject = of_record(read_record(record), image_size)
    else:
        subject = of_names(
            str(backbone), detector or "yolov8", protocol or "paper-v1", classes or 6, image_size
        )
    with quiet_output():
        found = measure(subject, resolve_device(device.value))
    if as_json:
        _print_json(found)
    else:
        typer.echo("\n".join(describe(found)))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


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
