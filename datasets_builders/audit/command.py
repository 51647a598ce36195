"""`python -m datasets_builders audit`: compare, report, and drop."""

from __future__ import annotations

import json
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from datasets_builders import corpus, registry
from datasets_builders.corpus.store import quick_manifest
from datasets_builders.errors import UserError, unknown_name
from datasets_builders.storage import atomic_file

if TYPE_CHECKING:
    from datasets_builders.audit.pictures import Collection
    from datasets_builders.audit.report import Audit

JSON_FILE = "audit.json"


def _is_corpus(name: str) -> bool:
    """Tells whether a name is that of a corpus: of the catalogue, or made from one and kept under its own."""
    return corpus.is_corpus(name) or (name not in registry.cards() and quick_manifest(name) is not None)


def _open(name: str) -> Collection:
    from datasets_builders.audit import pictures

    if _is_corpus(name):
        return pictures.open_corpus(name)
    if name not in registry.cards():
        known = [*registry.names(), *corpus.names()]
        raise unknown_name("dataset or corpus", name, known, registry.LIST_COMMAND)
    return pictures.open_dataset(name)


def compare(names: list[str], workers: int, overlaps: bool | None = None) -> list[Audit]:
    """Compares the first collection with each of the others, or a dataset with itself.

    Args:
        names: A corpus or dataset, then the datasets to compare it with; or one dataset.
        workers: Processes.
        overlaps: See `matching.find_matches`; None for a dataset with itself only.

    Raises:
        UserError: A name is unknown, given twice or a corpus where a dataset is needed, or is not prepared, or a
            process was killed.
    """
    first, *others = names
    if len(set(names)) < len(names):
        raise UserError("A name is given twice. To compare a dataset with itself, give it once.")
    for name in others:
        if _is_corpus(name):
            raise UserError(
                f"{name} is a corpus: it comes first, then the datasets.\n"
                f"  Next: python -m datasets_builders audit {name} DATASET"
            )
    if not others and _is_corpus(first):
        raise UserError(
            f"{first} is a corpus: say which datasets to compare it with.\n"
            f"  Next: python -m datasets_builders audit {first} DATASET [DATASET ...]"
        )
    # The heavy imports come after what can be refused without them.
    collections = [_open(name) for name in names]
    from datasets_builders.audit.matching import find_matches
    from datasets_builders.audit.report import Audit

    queries = collections[0]
    partly = not others if overlaps is None else overlaps
    try:
        return [
            Audit(queries, references, find_matches(queries, references, workers, partly))
            for references in collections[1:] or collections
        ]
    except BrokenProcessPool as error:
        raise UserError(
            "A process of the audit was killed, most likely for want of memory.\n"
            f"  Next: python -m datasets_builders audit {' '.join(names)} --workers 1"
        ) from error


def write_report(audits: list[Audit], folder: Path) -> list[Path]:
    """Writes `audit.json`, and for each comparison with matches a sheet of them, into a folder.

    Returns:
        The files.

    Raises:
        UserError: The folder cannot be written.
    """
    from datasets_builders.audit.report import as_data
    from datasets_builders.audit.sheet import sheet

    written = [folder / JSON_FILE]
    try:
        with atomic_file(written[0]) as temporary:
            text = json.dumps([as_data(audit) for audit in audits], indent=1, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        for audit in audits:
            if audit.leaks():
                names = dict.fromkeys((audit.queries.name, audit.references.name))
                written.append(folder / ("-".join(names).replace("/", "_") + ".png"))
                with atomic_file(written[-1]) as temporary:
                    sheet(audit).save(temporary, format="PNG", optimize=True)
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder}: {error.strerror or error}. Choose another folder with --report."
        ) from error
    return written


def drop(audits: list[Audit], name: str, workers: int) -> corpus.PreparedCorpus:
    """Writes the corpus that was compared without the images that match a dataset.

    Args:
        audits: Comparisons of one corpus.
        name: Name of the new corpus.
        workers: Processes.

    Raises:
        UserError: The name cannot be used, or nothing would be left.
    """
    from datasets_builders.audit.filtering import write_filtered

    dropped: dict[str, str] = {}
    for audit in audits:
        for match in sorted(audit.found.matches, key=lambda match: -match.score):
            image_id = audit.queries.image_id(match.query)
            other = f"{audit.references.name} {audit.references.image_id(match.reference)}"
            dropped.setdefault(image_id, f"{match.kind} of {other}, score {match.score:.2f}")
    manifest = quick_manifest(corpus.prepared.full_name(audits[0].queries.name))
    assert manifest is not None, "it was opened"
    return write_filtered(manifest, dropped, name, workers)


def run(
    names: list[str],
    report: Path | None,
    drop_matches: bool,
    out: str | None,
    as_json: bool,
    workers: int | None,
    overlaps: bool | None = None,
) -> None:
    """Runs the command; see `python -m datasets_builders audit --help`.

    Args:
        names: As for `compare`.
        report: Folder for the report; None for `audit-NAME[-NAME...]` here.
        drop_matches: Write a filtered corpus.
        out: Its name; None for the corpus's with `-audited` added.
        as_json: Print JSON instead of tables.
        workers: Processes; None for as many as there are cores.
        overlaps: As for `compare`.

    Raises:
        UserError: As `compare`, `write_report` and `drop`.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: give at least 1.")
    if out is not None and not drop_matches:
        raise UserError("--out is the name of the filtered corpus: it needs --drop.")
    target = out or f"{names[0].replace('/', '-')}-audited"
    if drop_matches:
        if len(names) == 1 or not _is_corpus(names[0]):
            raise UserError("--drop filters a corpus: give a corpus first, then the datasets.")
        from datasets_builders.audit.filtering import check_name

        check_name(target)
    from datasets_builders.machine import cores

    count = min(workers or cores(), cores())
    audits = compare(names, count, overlaps)
    folder = report or Path("audit-" + "-".join(name.replace("/", "_") for name in names))
    written = write_report(audits, folder)
    filtered = drop(audits, target, count) if drop_matches else None
    from datasets_builders.audit.report import as_data, show

    if as_json:
        data = {"audits": [as_data(audit) for audit in audits], "files": [str(path) for path in written]}
        if filtered is not None:
            data["filtered"] = {"name": filtered.name, "images": filtered.manifest.images}
        sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        return
    console = Console()
    for audit in audits:
        show(audit, console)
        console.print()
    for path in written:
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    if filtered is not None:
        console.print(
            f"wrote corpus {filtered.name}: {filtered.manifest.images} of {len(audits[0].queries)} images",
            highlight=False,
        )
