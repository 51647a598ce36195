"""A cell with all its stages on faulty disks and clocks: a clear error or the same numbers, never others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("one_cell.py")
ROOT = Path(__file__).parents[3]
IN_NAMESPACE = ("unshare", "--map-root-user", "--mount")

# Every second the clock falls back by an hour; how long something takes is another clock's matter.
BACKWARDS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static int real(clockid_t clock, struct timespec *now) {
    static int (*found)(clockid_t, struct timespec *);
    if (!found) found = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    return found(clock, now);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static time_t began;
    struct timespec steady;
    int result = real(clock, now);
    if (clock != CLOCK_REALTIME) return result;
    real(CLOCK_MONOTONIC, &steady);
    if (!began) began = steady.tv_sec;
    now->tv_sec -= 3600 * (steady.tv_sec - began);
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}

time_t time(time_t *place) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (place) *place = exact.tv_sec;
    return exact.tv_sec;
}
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(place: Path, *ways: str, before: tuple[str, ...] = (), **variables: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [*before, sys.executable, str(SCRIPT), str(place), *ways],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps: list[dict[str, Any]] = json.loads(done.stdout)
    return steps


def reasons(step: dict[str, Any], status: str = "failed") -> list[str]:
    return [one["reason"] for one in step["found"].values() if one["status"] == status]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The numbers of the undisturbed cell."""
    (step,) = run(tmp_path_factory.mktemp("undisturbed") / "place")
    (found,) = step["numbers"]
    return found


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    whole, *steps = run(tmp_path / "place", "flip")
    assert {one["status"] for one in whole["found"].values()} == {"done"}
    assert len(whole["numbers"]) == 1
    made_again = []
    for step in steps:
        if step["numbers"]:
            assert not reasons(step), step["file"]
            made_again.append(step["file"])
        else:
            (reason,) = reasons(step)
            assert "damaged" in reason or "content has changed" in reason, reason
            assert set(reasons(step, "skipped")) <= {reason}
            assert step["numbers after"] == whole["numbers"], step["file"]
        assert step["numbers"] in ([], whole["numbers"]), step["file"]
    # The others were named with what to do, which was done.
    assert {
        "datasets/*/train*.arrow",
        "corpora/*/*/arrow/*.arrow",
        "artifacts/detector/*/artifact.json",
    } <= set(made_again)


def test_a_full_disk_is_named_and_a_larger_one_goes_on_to_the_same_numbers(
    record: dict[str, Any], tmp_path: Path
) -> None:
    if subprocess.run(
        [*IN_NAMESPACE, "mount", "-t", "tmpfs", "none", str(tmp_path)], check=False, capture_output=True
    ).returncode:
        pytest.skip("this system lets nobody mount a file system of their own")
    *small, enough, frozen, thawed = run(tmp_path / "place", "disk", before=IN_NAMESPACE)
    assert enough["numbers"] == thawed["numbers"] == [record]
    assert len(small) > 4
    ended = set()
    for step in small:
        assert step["numbers"] == []
        for reason in reasons(step):
            assert "No space left" in reason or "MiB are free on the disk of" in reason, reason
        ended |= {kind for kind, one in step["found"].items() if one["status"] == "failed"}
    assert {"backbone", "detector", "cell"} <= ended  # it was full everywhere
    assert frozen["numbers"] == []
    assert reasons(frozen)
    assert all("Read-only file system" in reason for reason in reasons(frozen))


def test_a_clock_that_runs_backwards_changes_nothing(record: dict[str, Any], tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = tmp_path / "backwards.c", tmp_path / "backwards.so"
    source.write_text(BACKWARDS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    clock = "import time; a = time.time(); time.sleep(1.1); print(a - time.time())"
    told = subprocess.run(
        [sys.executable, "-c", clock],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        check=True,
    ).stdout
    if float(told) < 3000:
        pytest.skip("this system's clock cannot be replaced by LD_PRELOAD")
    (step,) = run(tmp_path / "place", LD_PRELOAD=str(library))
    assert step["numbers"] == [record]
    (path,) = (tmp_path / "place" / "results").glob("*/*/[!.]*/record.json")
    costs = json.loads(path.read_text())["cost"].values()
    assert all(0 < cost["seconds"] < 3600 for cost in costs)
