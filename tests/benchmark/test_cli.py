"""The command line: quick help, clear errors with exit code 2, and a whole run through every step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark.__main__ import spread

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "datasets", "mmengine", "mmcv", "pandas", "cv2", "pyarrow")


def benchmark(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmark", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("run --seeds 0 1 2 --json", "run --seeds 0 --seeds 1 --seeds 2 --json"),
        ("run --dataset a b --seeds 3", "run --dataset a --dataset b --seeds 3"),
        ("verify a b", "verify a b"),
        ("run --seeds=4", "run --seeds=4"),
    ],
)
def test_lists_are_typed_as_people_type_them(typed: str, meant: str) -> None:
    assert spread(typed.split()) == meant.split()


@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "--json"], ["run", "--help"]])
def test_help_and_list_import_nothing_heavy(words: list[str]) -> None:
    script = (
        f"import sys; sys.argv = ['benchmark', *{words!r}]\n"
        "from benchmark.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as leaving: assert not leaving.code, leaving.code\n"
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_list_names_every_choice() -> None:
    found = json.loads(benchmark("list", "--json").stdout)
    assert found["backbones"]["swin"] == ["nano", "tiny", "base"]
    assert list(found["modes"]) == ["scratch", "imagenet", "coco", "industrial", "agbp", "agssp", "custom"]
    assert found["methods"]["simmim"] == ["swin"]
    assert {"mini-v1", "paper-v1"} <= set(found["protocols"])
    assert "casting_billet_synthetic" in found["datasets"]


RUN = ["run", "--backbone", "csp_darknet", "--mode", "scratch", "--protocol", "mini-v1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--backbone", "swim", "--mode", "scratch"], "Did you mean 'swin'"),
        (["run", "--backbone", "swin", "--mode", "scrach"], "Did you mean 'scratch'"),
        (
            ["run", "--backbone", "swin", "--mode", "agssp", "--method", "mocov3"],
            "mocov3 cannot pretrain swin",
        ),
        ([*RUN, "--maps", "random"], "--maps has no meaning with --mode scratch"),
        (
            ["run", "--backbone", "swin", "--mode", "imagenet", "--device", "cpu"],
            "Give your own: --weights FILE",
        ),
        ([*RUN, "--dataset", "neu_dat"], "Did you mean 'neu_det'"),
        ([*RUN[:-1], "mini-v9"], "Did you mean 'mini-v1'"),
        ([*RUN, "--seeds", "1", "1"], "distinct"),
        ([*RUN, "--dataset", "neu_det"], "python -m datasets_builders prepare neu_det --raw DIR"),
        ([*RUN, "--results", "/proc/nowhere"], "cannot be written"),
        ([*RUN, "--device", "tpu"], "auto"),
        (["report", "--results", "nowhere-at-all"], "No records"),
        (["verify", "nowhere.json"], "No record"),
        (["dance"], "No such command"),
    ],
)
def test_wrong_input_is_one_clear_error(words: list[str], message: str, fresh_home) -> None:
    done = benchmark(*words, AGSSP_BENCH_HOME=str(fresh_home))
    assert done.returncode == 2
    assert message in " ".join((done.stderr + done.stdout).replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_dry_run_prints_the_plan_and_trains_nothing(tmp_path) -> None:
    done = benchmark(*RUN[:5], "--dry-run", "--json", "--results", str(tmp_path / "r"), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["protocol"], plan["reason"]) == ("mini-v1", "no GPU here")
    assert [cell["status"] for cell in plan["cells"]] == ["planned"] * 3
    assert plan["seconds_per_cell"] > 0
    assert not (tmp_path / "r").exists()


MOCK = [
    "run", "--backbone", "csp_darknet", "--mode", "scratch", "--protocol", "mock-v1",
    "--dataset", "casting_billet_synthetic", "--json",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_ends_in_records_that_verify_and_are_not_made_twice(tmp_path, agssp_home) -> None:
    results = tmp_path / "results"
    done = benchmark(*MOCK, "--seeds", "0", "1", "--results", str(results))
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout)
    assert [cell["status"] for cell in outcome["cells"]] == ["recorded", "recorded"]
    paths = [cell["record"] for cell in outcome["cells"]]
    record = json.loads(Path(paths[0]).read_text())
    assert record["cell"]["seed"] == 0
    assert record["dataset"]["procedural"]
    assert record["dataset"]["splits"] == {"train": 400, "validation": 200}
    assert record["environment"]["device"] == "cpu"
    assert record["weights"] is None
    assert not list((agssp_home / "runs").glob("*/progress.pt"))

    verified = benchmark("verify", *paths)
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.count("equal: ") == 2

    again = json.loads(benchmark(*MOCK, "--seeds", "0", "--results", str(results)).stdout)
    assert again["cells"][0]["status"] == "already recorded"
    assert again["cells"][0]["last"] == outcome["cells"][0]["last"]

    rows = json.loads(benchmark("report", "--results", str(results), "--json").stdout)
    assert [row["seeds"] for row in rows] == [[0, 1]]
    mean = sum(cell["last"]["map50"] for cell in outcome["cells"]) / 2
    assert rows[0]["map50"] == pytest.approx(mean)

    # A number edited by hand is found out.
    forged = json.loads(Path(paths[1]).read_text())
    for point in (forged["last"], forged["best"]):
        point["metrics"]["map50_95"] += 1.0
    for point in forged["curve"]:
        if point["map50_95"] is not None:
            point["map50_95"] += 1.0
    Path(paths[1]).write_text(json.dumps(forged))
    found = benchmark("verify", paths[1])
    assert found.returncode == 1
    assert "different" in found.stdout


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path, agssp_home) -> None:
    # ResNet's epochs are long enough for the interruption to come before the end.
    words = [
        "run",
        "--backbone",
        "resnet:18",
        *MOCK[3:],
        "--seeds",
        "7",
        "--results",
        str(tmp_path / "results"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmark", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    runs = agssp_home / "runs"
    before = set(runs.glob("*"))
    deadline = time.monotonic() + 300
    while not (set(runs.glob("*/progress.pt")) - before) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.fail("the run was over before it could be interrupted")
    assert process.returncode == 130, errors
    assert "The same command goes on" in errors
    outcome = json.loads(benchmark(*words).stdout)
    assert outcome["cells"][0]["status"] == "recorded"
    assert json.loads(Path(outcome["cells"][0]["record"]).read_text())["resumes"] == 1
