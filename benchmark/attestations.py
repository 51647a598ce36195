"""Attestations: what came of finetuning a row's weights again. Added beside records, never written into them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from benchmark.environment import Environment
from benchmark.evaluate import Percent
from benchmark.record_schema import Moment, Part, Record, Sha256, to_json
from benchmark.records import read_model
from datasets_builders.storage import atomic_file, content_key

FOLDER = "attestations"
ATTESTATION_FILE = "attestation.json"
LEVEL = 0.95


class Finding(StrEnum):
    """What finetuning again found."""

    REPRODUCED = "reproduced"
    """The claimed mean lies within the interval that the new seeds allow."""
    DIFFERENT = "different"
    """It does not."""
    UNDECIDED = "undecided"
    """One new seed gives no interval, and its detections are not the claimed ones."""


class SeedResult(Part):
    """One seed of a row."""

    key: Sha256
    """Of its record."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """The seed."""
    map50: Percent
    """mAP@.5 at the last epoch."""
    detections_sha256: Sha256
    """Of the detections at the last epoch."""

    @classmethod
    def of(cls, record: Record) -> SeedResult:
        """Returns what an attestation keeps of a record."""
        return cls(
            key=record.key,
            seed=record.cell.seed,
            map50=record.last.metrics.map50,
            detections_sha256=record.last.detections_sha256,
        )


class Attestation(Part):
    """A row that was finetuned again."""

    schema_version: Literal[1] = 1
    """Of this format."""
    row_key: Sha256
    """Of the row."""
    claimed: Annotated[tuple[SeedResult, ...], Field(min_length=1, max_length=1000)]
    """Its records."""
    rerun: Annotated[tuple[SeedResult, ...], Field(min_length=1, max_length=1000)]
    """The new ones."""
    finding: Finding
    """What follows from these numbers (see `decide`)."""
    environment: Environment
    """Of the rerun."""
    created: Moment
    """When, UTC."""

    @model_validator(mode="after")
    def _follows(self) -> Attestation:
        if self.finding is not decide(self.claimed, self.rerun):
            raise ValueError("its finding does not follow from its numbers")
        return self


def interval(rerun: Sequence[SeedResult], claimed_seeds: int) -> tuple[float, float] | None:
    """Returns where the mean of so many claimed seeds lies in 95 of 100 cases, if both are of one distribution.

    A prediction interval from the rerun's scatter alone: whoever submits cannot widen it by a scatter of their own.

    Args:
        rerun: The new seeds.
        claimed_seeds: How many seeds the claimed mean is over.

    Returns:
        Low and high, percent; None where one new seed tells no scatter.
    """
    if len(rerun) < 2:
        return None
    from scipy.special import stdtrit

    values = [entry.map50 for entry in rerun]
    quantile = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2))
    half = quantile * statistics.stdev(values) * math.sqrt(1 / len(values) + 1 / claimed_seeds)
    mean = statistics.fmean(values)
    return mean - half, mean + half


def decide(claimed: Sequence[SeedResult], rerun: Sequence[SeedResult]) -> Finding:
    """Says whether a rerun agrees with what was claimed."""
    found = {entry.seed: entry.detections_sha256 for entry in rerun}
    if all(found.get(entry.seed) == entry.detections_sha256 for entry in claimed):
        return Finding.REPRODUCED  # the same detections, bit for bit
    allowed = interval(rerun, len(claimed))
    if allowed is None:
        return Finding.UNDECIDED
    mean = statistics.fmean(entry.map50 for entry in claimed)
    return Finding.REPRODUCED if allowed[0] <= mean <= allowed[1] else Finding.DIFFERENT


def attest(claimed: Iterable[Record], rerun: Iterable[Record], results: Path) -> tuple[Path, Attestation]:
    """Writes what a rerun found as a new file of the results folder; nothing that is there changes.

    Args:
        claimed: The row's records.
        rerun: The new records.
        results: The results folder.

    Returns:
        The file and what it holds.
    """
    originals, new = list(claimed), list(rerun)
    old_results, new_results = (
        tuple(map(SeedResult.of, sorted(group, key=lambda r: r.cell.seed))) for group in (originals, new)
    )
    attestation = Attestation(
        row_key=originals[0].row_key,
        claimed=old_results,
        rerun=new_results,
        finding=decide(old_results, new_results),
        environment=new[0].environment,
        created=datetime.now(UTC),
    )
    name = f"{attestation.row_key[:12]}-{content_key(attestation.model_dump(mode='json'))[:12]}"
    path = results / FOLDER / name / ATTESTATION_FILE
    with atomic_file(path) as temporary:
        temporary.write_text(to_json(attestation), encoding="utf-8")
    return path, attestation


def read_attestation(path: Path) -> Attestation:
    """Reads an attestation; nothing in it is trusted.

    Raises:
        UserError: As `benchmark.records.read_record`.
    """
    return read_model(path, Attestation)
