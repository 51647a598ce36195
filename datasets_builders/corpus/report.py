"""What the command line says of corpora: their line in `list`, and the tables of a build."""

from __future__ import annotations

import itertools
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from datasets_builders.corpus.catalogue import entries, entry, is_corpus, is_own
from datasets_builders.corpus.prepared import PreparedCorpus
from datasets_builders.corpus.sources import known_sources
from datasets_builders.corpus.store import SKIPPED_LIST, corpora_folder, corpus_folder, quick_manifest
from datasets_builders.errors import counted
from datasets_builders.manifest import MANIFEST

NAMED_SKIPS = 10


def list_facts() -> list[dict[str, Any]]:
    """Returns what `list` tells of every corpus: those of the catalogue, then others on this machine."""
    facts = [_facts(name, entry) for name, entry in entries().items()]
    root = corpora_folder()
    folders = sorted([*root.glob(f"*/{MANIFEST}"), *root.glob(f"*/*/{MANIFEST}")])
    for path in folders:
        name = path.parent.relative_to(root).as_posix()
        if name not in entries() and not name.startswith("."):
            base = name.partition("/")[0]
            known = (
                entry(name) if is_own(name) else entries().get(base, {"title": "taken from another corpus"})
            )
            facts.append(_facts(name, known))
    return facts


def _facts(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    manifest = quick_manifest(name)
    procedural = "synthetic" in entry
    categories = manifest.categories if manifest else entry.get("categories", [])
    images = manifest.images if manifest else None
    if procedural and manifest is None:
        images = entry["synthetic"]["defaults"]["images"]
    return {
        "kind": "corpus",
        "name": name,
        "title": entry["title"],
        "classes": list(categories),
        "splits": None,
        "images": images,
        "boxes": None,
        "masks": "none",
        "licence": "Apache-2.0" if procedural else "own" if is_own(name) else "mixed",
        "origin": _origin(name, procedural),
        "homepage": None,
        "ready": manifest is not None,
        # A corpus that was taken from another one lacks images on purpose.
        "partial": manifest is not None
        and is_corpus(name)
        and any(s["expected"] not in (None, s["found"]) for s in manifest.sources),
        "layout_seen": _layouts_seen(entry),
        "folder": str(corpus_folder(name)),
    }


def _origin(name: str, procedural: bool) -> str:
    if procedural or is_own(name):
        return "procedural" if procedural else "own"
    return "raw" if is_corpus(name) else "derived"


def _layouts_seen(entry: dict[str, Any]) -> bool:
    """Tells whether real files in the layout of every one of a corpus's public sources were read."""
    if "synthetic" in entry or "categories" not in entry:  # drawn here, or taken from another corpus
        return True
    sources = known_sources()
    read = [sources[name] for name in entry.get("sources", sources) if sources[name].group != "private"]
    return all(source.seen_in_the_wild for source in read)


def print_prepared(done: PreparedCorpus) -> None:
    """Prints found and expected numbers of a corpus by source and category, and what was skipped."""
    console = Console()
    manifest = done.manifest
    how = "fetched" if manifest.hub else "built"
    table = Table(title=f"{done.name}: {how if done.built else 'was ready'}", title_justify="left")
    table.add_column("source, category")
    for column in ("found", "expected", "skipped"):
        table.add_column(column, justify="right")
    table.add_column("licence")
    table.add_column("layout")
    for source in manifest.sources:
        if source["present"]:
            _add_source(table, source)
    console.print(table)
    missing = [
        f"{s['name']} ({'?' if s['expected'] is None else s['expected']})"
        for s in manifest.sources
        if not s["present"]
    ]
    if missing:
        console.print(
            f"not there, {len(missing)} source(s) (expected): {', '.join(missing)}",
            highlight=False,
            markup=False,
        )
    if done.ignored:
        console.print(f"not a source, passed over: {', '.join(done.ignored)}", highlight=False, markup=False)
    if manifest.skipped:
        path = done.folder / SKIPPED_LIST
        with path.open(encoding="utf-8") as file:
            for line in itertools.islice(file, NAMED_SKIPS):
                what, _, why = line.rstrip("\n").partition("\t")
                console.print(f"skipped: {what}: {why}", highlight=False, markup=False, soft_wrap=True)
        if manifest.skipped > NAMED_SKIPS:
            console.print(
                f"and {manifest.skipped - NAMED_SKIPS} more, all in {path}", markup=False, soft_wrap=True
            )
    size = sum(file["bytes"] for file in manifest.files.values())
    console.print(
        f"{counted(manifest.images, 'image', 'images')},"
        f" {counted(len(manifest.categories), 'category', 'categories')},"
        f" {counted(len(manifest.shards), 'shard', 'shards')}, {size / 1e6:.1f} MB",
        highlight=False,
    )
    if is_own(done.name) and len(manifest.categories) == 1:
        console.print(
            "one category: pretrain by mocov3 or simmim. For cls, put the images of each product or surface into a"
            " folder of its own.",
            soft_wrap=True,
        )
    console.print(f"fingerprint: {manifest.fingerprint}", highlight=False, soft_wrap=True)
    console.print(f"folder: {done.folder}", highlight=False, markup=False, soft_wrap=True)


def _add_source(table: Table, source: dict[str, Any]) -> None:
    seen = source.get("seen_in_the_wild", True)
    expected = source["expected"]
    differs = "" if expected is None or expected == source["found"] else " [yellow]differs[/]"
    table.add_row(
        f"[bold]{escape(source['name'])}[/]",
        f"{source['found']}{differs}",
        "–" if expected is None else str(expected),
        str(source["skipped"] or ""),
        escape(source["licence"]),
        "" if seen else "not yet seen in the wild",
    )
    assumed = " (assumed)" if source.get("categories_from") == "assumed" else ""
    for category, number in source["expected_by_category"].items():
        found = source["found_by_category"].get(category, 0)
        table.add_row(
            escape(f"  {category}{assumed}"), str(found), "–" if number is None else str(number), "", "", ""
        )
