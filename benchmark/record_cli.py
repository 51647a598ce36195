"""Commands about one record: check it, look at it, use its detector. Nothing heavy is imported before it must."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli_options import Device, Json, print_json, quiet_output
from datasets_builders.errors import UserError

app = typer.Typer()


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
        print_json(outcome)
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
        print_json({"folder": str(made.folder), "files": list(made.files)})
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
    from baselines.training.resources import resolve_device
    from benchmark.predict import predict as find

    chosen = resolve_device(device.value)
    with quiet_output():
        found = find(detector, images, out, threshold=threshold, device=chosen, weights=weights)
    if as_json:
        print_json(found)
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
    from baselines.training.resources import resolve_device
    from benchmark.efficiency import describe, measure, of_names, of_record
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
        print_json(found)
    else:
        typer.echo("\n".join(describe(found)))
