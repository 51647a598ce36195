"""What a rerun proves: the interval holds in as many cases as it says, and nobody can widen it."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats
from test_records import answers, make_record

from benchmark.attestations import (
    Attestation,
    Finding,
    SeedResult,
    attest,
    decide,
    interval,
    read_attestation,
)
from benchmark.record_schema import Record


def results(values: list[float], kind: str = "a") -> list[SeedResult]:
    """Seeds with these numbers; detections are equal where kind and number are."""
    return [
        SeedResult(key="0" * 64, seed=seed, map50=value, detections_sha256=f"{ord(kind):02x}{seed:062x}")
        for seed, value in enumerate(values)
    ]


def test_the_interval_is_students() -> None:
    new = [41.0, 43.5, 42.1]
    low, high = interval(results(new), 2)  # type: ignore[misc]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(new) * math.sqrt(1 / 3 + 1 / 2)
    assert (low, high) == pytest.approx((statistics.fmean(new) - half, statistics.fmean(new) + half))
    assert interval(results([41.0]), 3) is None


def test_honest_rows_agree_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(0)
    agreed = 0
    for _ in range(2000):
        claimed, new = rng.normal(50, 1.5, 3), rng.normal(50, 1.5, 3)
        agreed += decide(results(list(claimed), "a"), results(list(new), "b")) is Finding.REPRODUCED
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / 2000) < agreed / 2000 < 0.95 + 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_wide_scatter_of_claims_does_not_help() -> None:
    new = results([50.0, 50.4, 49.8], "b")
    assert decide(results([60.0, 60.2, 60.1]), new) is Finding.DIFFERENT
    assert decide(results([90.0, 30.0, 60.0]), new) is Finding.DIFFERENT
    assert decide(results([50.2, 50.1, 50.0]), new) is Finding.REPRODUCED


def test_one_seed_decides_only_where_its_detections_are_the_same() -> None:
    assert decide(results([50.0], "a"), results([50.0], "b")) is Finding.UNDECIDED
    assert decide(results([50.0], "a"), results([50.0], "a")) is Finding.REPRODUCED
    assert decide(results([50.0, 51.0], "a"), results([50.0], "a")) is Finding.UNDECIDED


def _records(noise: list[float]) -> list[Record]:
    found = [answers(value, seed) for seed, value in enumerate(noise)]
    return [make_record(d, d, seed=seed) for seed, d in enumerate(found)]


def test_attestations_are_added_one_beside_the_other(tmp_path: Path) -> None:
    claimed, new = _records([1.0, 2.0]), _records([1.2, 1.9])
    first, found = attest(claimed, new, tmp_path)
    assert read_attestation(first) == found
    assert found.row_key == claimed[0].row_key
    assert [entry.map50 for entry in found.claimed] == [r.last.metrics.map50 for r in claimed]
    second, _ = attest(claimed, _records([1.0, 2.1]), tmp_path)
    assert second != first
    assert len(list((tmp_path / "attestations").iterdir())) == 2


def test_a_finding_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    _, found = attest(_records([1.0, 2.0]), _records([9.0, 9.5]), tmp_path)
    assert found.finding is Finding.DIFFERENT
    with pytest.raises(ValidationError, match="does not follow from its numbers"):
        Attestation.model_validate(found.model_dump() | {"finding": Finding.REPRODUCED})
