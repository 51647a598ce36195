"""`python -m datasets_builders`: list, prepare and look at the datasets."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from datasets_builders import prepared, registry
from datasets_builders.corpus import is_corpus
from datasets_builders.corpus.report import list_facts
from datasets_builders.errors import UserError

if TYPE_CHECKING:
    from datasets_builders.prepared import Prepared

_CORPORA = "For corpus_synthetic"

app = typer.Typer(
    help="Surface-defect datasets: list them, prepare them on this machine, look at them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _facts(card: registry.DatasetCard) -> dict[str, Any]:
    """Returns what `list` tells of a dataset; counts are None while nobody knows them."""
    manifest = prepared.quick_manifest(card)
    splits: dict[str, int] = dict(card.splits)
    images = sum(splits.values()) or None
    boxes = None
    if manifest is not None:
        subset = manifest.subsets[card.config] if card.config else None
        splits = manifest.splits | ({"train": len(subset.train)} if subset else {})
        images, boxes = sum(splits.values()), (subset or manifest).boxes
    elif card.expected is not None:
        images, boxes = card.expected.images, card.expected.boxes
    return {
        "name": card.name,
        "title": card.title,
        "classes": list(card.classes),
        "splits": splits or None,
        "images": images,
        "boxes": boxes,
        "masks": card.masks,
        "licence": card.licence,
        "origin": card.origin,
        "homepage": card.homepage,
        "ready": manifest is not None,
        "partial": manifest is not None and manifest.partial,
        "layout_seen": card.seen,
        "folder": str(prepared.dataset_folder(card)),
    }


@app.command("list")
def list_datasets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show every dataset and corpus, and whether it is ready on this machine."""
    facts = [_facts(card) for card in registry.cards().values()] + list_facts()
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    for column in ("classes", "images", "boxes"):
        table.add_column(column, justify="right")
    for column in ("licence", "origin", "ready"):
        table.add_column(column)
    for fact in facts:
        counts = ["–" if fact[key] is None else str(fact[key]) for key in ("images", "boxes")]
        yes = "partial" if fact["partial"] else "yes"
        ready = yes if fact["ready"] else "on use" if fact["origin"] == "procedural" else "no"
        table.add_row(
            fact["name"],
            str(len(fact["classes"]) or "–"),
            *counts,
            fact["licence"],
            fact["origin"] + ("" if fact.get("layout_seen", True) else "*"),
            ready,
        )
    console = Console()
    console.print(table)
    console.print("on use: built by the first command that needs it; no: see prepare --help", style="dim")
    console.print(
        "*: read by a published description; no file of the owner was at hand for the tests", style="dim"
    )


@app.command()
def prepare(
    names: Annotated[list[str], typer.Argument(help="Names of datasets, see `list`.")],
    raw: Annotated[
        Path | None,
        typer.Option(
            help="Folder, zip or tar file with the files as their owner publishes them.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again even if it is there.")] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept other counts than the owner's; marked as partial.")
    ] = False,
    hub: Annotated[
        str | None,
        typer.Option(help="Fetch this copy, ORG/NAME@REVISION, from the Hub instead.", show_default=False),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Number of images.", rich_help_panel=_CORPORA, show_default=False)
    ] = None,
    categories: Annotated[
        int | None, typer.Option(help="Number of categories.", rich_help_panel=_CORPORA, show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Chooses the images.", rich_help_panel=_CORPORA, show_default=False)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes; one a core by default. For every corpus.",
            rich_help_panel=_CORPORA,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Build or fetch datasets and corpora on this machine, and compare their counts with what was published.

    Sets of origin "raw" need --raw; without it the message says which files, and where to get them.
    """
    if (raw is not None or hub is not None) and len(names) > 1:
        raise UserError("--raw and --hub are the source of one dataset: prepare them one by one.")
    numbers = (images, categories, seed, workers)
    for name in names:
        if is_corpus(name) or name.startswith("corpus"):
            if partial:
                raise UserError(f"{name} is a corpus: it takes whatever is there, without --partial.")
            _prepare_corpus(name, raw, force, *numbers, hub)
        elif any(number is not None for number in numbers):
            raise UserError(f"--images, --categories, --seed and --workers are for corpora, not for {name}.")
        else:
            _print_prepared(prepared.prepare(name, raw, force, partial, hub))


def _prepare_corpus(
    name: str,
    raw: Path | None,
    force: bool,
    images: int | None,
    categories: int | None,
    seed: int | None,
    workers: int | None,
    hub: str | None,
) -> None:
    from datasets_builders.corpus import prepare_corpus, report

    report.print_prepared(prepare_corpus(name, raw, force, images, categories, seed, workers, hub))


@app.command()
def push(
    name: Annotated[
        str, typer.Argument(help="Name of a dataset or corpus, see `list`; its configs go with it.")
    ],
    repo: Annotated[str, typer.Option(help="ORG/NAME of the repository on the Hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Create it for members only.")] = False,
    have_rights: Annotated[
        bool,
        typer.Option("--i-have-the-rights", help="Publish although no known licence allows it."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Publish a dataset or corpus on the Hugging Face Hub, with a card; go on where an earlier push was interrupted."""
    from dataclasses import asdict

    def say(plan: str) -> None:
        typer.echo(plan, err=True)

    if is_corpus(name):
        from datasets_builders.hub_corpus_push import push_corpus

        done = push_corpus(name, repo, private, have_rights, say)
    else:
        from datasets_builders.hub_push import push as push_dataset

        done = push_dataset(name, repo, private, have_rights, say)
    if as_json:
        sys.stdout.write(json.dumps(asdict(done), indent=2, ensure_ascii=False) + "\n")
        return
    typer.echo(f"{'published' if done.changed else 'was published already'}: {done.url}")
    typer.echo(f"to fetch it: python -m datasets_builders prepare {done.name} --hub {repo}@{done.commit}")
    typer.echo(f"to pin it in the catalogue: hub: {{repo: {repo}, revision: {done.commit}}}")


def _print_prepared(done: Prepared) -> None:
    from datasets_builders.building import count_table

    card = registry.card(done.name)
    owner = registry.card(card.dataset)
    manifest = done.manifest
    console = Console()
    how = "fetched" if manifest.source.get("hub") else "built"
    table = Table(title=f"{owner.name}: {how if done.built else 'was ready'}", title_justify="left")
    known = owner.expected is not None
    for column in ("", *(("published", "left out") if known else ()), "found"):
        table.add_column(column, justify="right" if column else "left")
    for row in count_table(owner, manifest):
        published = ["–" if row.published is None else str(row.published), str(row.left_out or "")]
        mark = "" if row.explained else " [red]differs[/]"
        table.add_row(escape(row.what), *(published if known else ()), f"{row.found}{mark}")
    console.print(table)
    for rule, applied in manifest.cleaning.items():
        console.print(
            f"cleaned: {rule}: {applied['count']} ({', '.join(applied['examples'][:3])})",
            highlight=False,
            markup=False,
        )
    if manifest.partial:
        console.print("[yellow]partial:[/] the counts differ from the owner's, as allowed by --partial")
    splits = ", ".join(f"{split} {count}" for split, count in manifest.splits.items())
    console.print(f"splits: {splits}; images with masks: {manifest.masks}", highlight=False)
    for name, subset in manifest.subsets.items():
        console.print(f"{owner.name}/{name}: train {len(subset.train)}, same validation", highlight=False)
    console.print(f"fingerprint: {manifest.fingerprint}", highlight=False, soft_wrap=True)
    console.print(f"folder: {done.folder}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a dataset, see `list`.")],
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
    out: Annotated[
        Path | None,
        typer.Option(help="PNG file to write; NAME-SPLIT.png here by default.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=400, help="Number of images.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the images.")] = 0,
) -> None:
    """Draw a page of images with their boxes and masks."""
    card = registry.card(name)
    dataset = prepared.load(name, split)
    import numpy as np

    from datasets_builders.contact_sheet import contact_sheet
    from datasets_builders.storage import atomic_file

    sheet = contact_sheet(dataset, card, split, count, np.random.default_rng(seed))
    path = out or Path(f"{name.replace('/', '-')}-{split}.png")
    try:
        with atomic_file(path) as temporary:
            sheet.save(temporary, format="PNG")
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. Choose another with --out."
        ) from error
    Console().print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="Name of a dataset, see `list`.")],
    out: Annotated[Path, typer.Option(help="Folder to make; it must not exist.", show_default=False)],
    style: Annotated[str, typer.Option("--format", help="coco or yolo.")] = "coco",
) -> None:
    """Write a dataset as files for other tools: COCO JSON with images, or a YOLO folder."""
    from datasets_builders import exports

    done = exports.export(name, style, out)
    for split, images in done.images.items():
        Console().print(f"{split}: {images} images, {done.boxes[split]} boxes", highlight=False)
    Console().print(f"wrote {done.folder}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def audit(
    names: Annotated[
        list[str], typer.Argument(help="A corpus and the datasets to compare it with, or a dataset.")
    ],
    drop: Annotated[
        bool, typer.Option("--drop", help="Write the corpus without the images that match.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(help="Name of that corpus; NAME-audited by default.", show_default=False),
    ] = None,
    overlaps: Annotated[
        bool | None,
        typer.Option(
            help="Also find images that show parts of each other; slower, and the default for a single dataset.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder for audit.json and sheets; audit-NAMES here by default.", show_default=False
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; one a core by default.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Find images of a corpus that are copies of, or cut from, images of datasets.

    With one dataset alone: images of its own that are, above all across train and validation. Exact copies,
    and copies that were mirrored, turned by 90 degrees, rescaled, re-encoded, or cut to 60 % or more.
    """
    from datasets_builders.audit import command

    command.run(names, report, drop, out, as_json, workers, overlaps)


def main() -> None:
    """Runs the command line; errors that the user can fix end with exit code 2 and no traceback."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)],
    )
    if not sys.stderr.isatty():
        # Read by the Hub's client when it is imported.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app(prog_name="python -m datasets_builders")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
