"""`python -m benchmark submit`: from weights to a row of the board. It imports nothing heavy before it must."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli_options import Device, Json, print_json, quiet_output
from datasets_builders.errors import UserError

app = typer.Typer(
    help="Send weights of your own to the board: prepare a folder, check it, push it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


Folder = Annotated[Path, typer.Argument(help="The submission's folder.")]


@app.command()
def prepare(
    weights: Annotated[str, typer.Argument(help="Weights: a file (safetensors, .pth) or a hub:// address.")],
    backbone: Annotated[str, typer.Option(help="What they are of, such as csp_darknet:n.")],
    name: Annotated[str, typer.Option(help="Name on the board: letters, digits, spaces, . _ ( ) / -")],
    method_text: Annotated[str, typer.Option(help="How they were made, in plain words.")],
    licence: Annotated[str, typer.Option(help="Of the weights, an SPDX identifier: apache-2.0, mit, ...")],
    method: Annotated[
        str | None, typer.Option(help="One word for the pretraining; from the name by default.")
    ] = None,
    pretrained_on: Annotated[
        list[str] | None,
        typer.Option(help="Datasets and corpora that the pretraining saw.", metavar="D ..."),
    ] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option(help="Evaluation datasets; the protocol's first by default.", metavar="D ..."),
    ] = None,
    detector: Annotated[str, typer.Option(help="yolov8, faster_rcnn or dino.")] = "yolov8",
    protocol: Annotated[str, typer.Option(help="auto, paper-v1 or mini-v1.")] = "auto",
    seeds: Annotated[
        list[int] | None, typer.Option(help="Seeds from 0 on; the protocol's by default.", metavar="S ...")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    records: Annotated[
        Path | None, typer.Option(help="Folder of finished records of these weights, instead of running.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make; submissions/NAME by default.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure weights by a protocol and make a folder that can be pushed.

    Interrupted, the same command goes on from the last finished epoch.
    """
    from benchmark.submit.prepare import Cells, full_name, state
    from benchmark.submit.prepare import prepare as make
    from benchmark.submit.schema import SUBMISSIONS_FOLDER

    statement = state(
        name=name,
        backbone=full_name(backbone, protocol),
        method=method or "-".join(name.lower().split()),
        method_text=method_text,
        licence=licence,
        pretrained_on=tuple(pretrained_on or ()),
    )
    cells = Cells(protocol, detector, datasets, seeds, device.value)
    try:
        with quiet_output():
            folder, report = make(
                weights, statement, cells, records, out or Path(SUBMISSIONS_FOLDER) / statement.slug
            )
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from the last finished epoch.", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print_json(report.to_dict() | {"folder": str(folder)})
        return
    typer.echo(f"Prepared {folder}: {len(report.records)} records, valid.")
    for note in report.notes:
        typer.echo(f"  note: {note}")
    typer.echo(f"Send it: python -m benchmark submit push {folder} --repo ORG/RESULTS")


@app.command()
def validate(
    folder: Folder,
    board: Annotated[
        str | None,
        typer.Option(help="Records to look for duplicates in: a folder or hub://ORG/NAME@REVISION."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The weights, where they are not in the folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a submission: format, hashes, metrics, images, seeds, weights, protocol, duplicates.

    Needs no network where the weights are in the folder. Leaves with 0 where it is valid, else with 1.
    """
    from benchmark.submit.validate import validate as check

    with quiet_output():
        report = check(folder, board, weights)
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(f"{'valid' if report.valid else 'refused'}: {folder}")
        for complaint in report.complaints:
            typer.echo(f"  {complaint}")
        for note in report.notes:
            typer.echo(f"  note: {note}")
    raise typer.Exit(0 if report.valid else 1)


@app.command()
def push(
    folder: Folder,
    repo: Annotated[str, typer.Option(help="Dataset repository of the results, ORG/NAME.")],
    weights_repo: Annotated[
        str | None, typer.Option(help="Model repository for the weights; YOU/NAME by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Upload the weights and open a pull request on the results repository.

    Interrupted, the same command goes on: nothing is sent or opened twice.
    """
    from benchmark.submit.push import push as send

    with quiet_output():
        done = send(folder, repo, weights_repo, say=lambda text: typer.echo(text, err=True))
    if as_json:
        print_json(done)
    else:
        typer.echo(f"Weights: {done['weights']}\nPull request: {done['pull_request']}")


@app.command()
def review(
    repo: Annotated[str, typer.Option(help="Dataset repository of the results, ORG/NAME.")],
    number: Annotated[
        int | None, typer.Option("--pr", help="One pull request; all open ones by default.")
    ] = None,
    comment: Annotated[bool, typer.Option("--comment", help="Write what was found under each.")] = False,
    as_json: Json = False,
) -> None:
    """Validate the open pull requests of a results repository; for its maintainers and their CI.

    Leaves with 0 where all are valid, else with 1.
    """
    from benchmark.submit.review import review as look

    with quiet_output():
        found = look(repo, number, comment)
    if number is not None and not found:
        raise UserError(f"{repo} has no open pull request {number}.")
    if as_json:
        print_json([entry.to_dict() for entry in found])
    else:
        typer.echo("\n\n".join(entry.text() for entry in found) or f"{repo} has no open pull request.")
    raise typer.Exit(0 if all(entry.valid for entry in found) else 1)
