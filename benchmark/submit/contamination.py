"""Which evaluation datasets the pretraining may have seen, as far as this project can tell from names."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmark.submit.schema import Contamination
from datasets_builders import corpus, registry
from datasets_builders.corpus import catalogue

_OVERLAPS = Path(__file__).with_name("overlaps.yaml")
_SOURCES = Path(catalogue.__file__).with_name("sources.yaml")


@cache
def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def contamination(pretrained_on: Iterable[str], datasets: Iterable[str]) -> tuple[Contamination, ...]:
    """Finds evaluation datasets whose images are among what was pretrained on.

    Args:
        pretrained_on: Names as the submitter states them; those of this project are looked up, others say nothing.
        datasets: The evaluation datasets of the submission's records.

    Returns:
        One entry a dataset and statement that touch, in a fixed order.
    """
    wanted = sorted({(name, registry.card(name).dataset) for name in datasets})
    found = []
    for stated in dict.fromkeys(pretrained_on):
        for name, parent in wanted:
            reason = _reason(stated, parent)
            if reason:
                found.append(Contamination(dataset=name, source=stated, reason=reason))
    return tuple(found)


def is_known(stated: str) -> bool:
    """Tells whether a name is of a dataset or corpus of this project, so that it was looked up."""
    return stated in registry.cards() or (corpus.is_corpus(stated) and not catalogue.is_own(stated))


def _reason(stated: str, dataset: str) -> str | None:
    cards = registry.cards()
    if stated in cards:
        same = cards[stated].dataset == dataset
        return "pretrained on images of the evaluation dataset itself" if same else None
    if not is_known(stated):
        return None
    # Of a generated corpus nothing is shared: its images are drawn from other seeds than those of the datasets.
    entry = catalogue.entry(stated.partition("/")[0])
    shared = [source for source in _sources(entry) if dataset in _read(_OVERLAPS).get(source, ())]
    return f"its source {shared[0]} holds images of the evaluation dataset" if shared else None


def _sources(entry: dict[str, Any]) -> list[str]:
    groups = entry.get("groups", ())
    listed = [name for name, source in _read(_SOURCES).items() if source.get("group") in groups]
    return [*entry.get("sources", ()), *listed]
