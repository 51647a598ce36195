from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark import protocol as protocols
from benchmark.matrix import presets
from benchmark.matrix.graph import Task
from benchmark.reported import reported_rows
from datasets_builders.errors import UserError

PAPER, MINI, MOCK = (protocols.load(name) for name in ("paper-v1", "mini-v1", "mock-v1"))
ROOT = Path(__file__).parents[3]


def techniques(name: str) -> set[tuple[str, ...]]:
    tasks = [task for task in presets.read(name, PAPER).tasks if isinstance(task, Task)]
    return {
        (
            cell.dataset,
            cell.detector,
            f"{cell.backbone}:{cell.variant}",
            cell.method,
            cell.mode,
        )
        for cell in (task.cell for task in tasks)
    }


def test_under_the_papers_protocol_tables_have_the_papers_cells() -> None:
    reported = {(row.dataset, row.detector, row.backbone, row.method, row.mode) for row in reported_rows()}
    table2, table3, fig6e = (techniques(name) for name in ("table2", "table3", "fig6e"))
    assert len(table2) == 23 * 4
    assert table2 | table3 | fig6e == reported


@pytest.mark.parametrize("protocol", [PAPER, MINI, MOCK], ids=lambda protocol: protocol.id)
@pytest.mark.parametrize("name", presets.names())
def test_every_preset_stands_under_every_protocol(name: str, protocol) -> None:
    wanted = presets.read(name, protocol)
    assert wanted.tasks
    assert wanted.title
    assert len({json.dumps(task.facts() | {"changes": str(getattr(task, "choice", ""))}) + str(task) for task in
                wanted.tasks}) == len(wanted.tasks)  # fmt: skip


def test_mini_needs_no_network() -> None:
    tasks = presets.read("mini", MINI).tasks
    assert {task.facts()["mode"] for task in tasks} == {"scratch", "imagenet", "industrial", "agbp", "agssp"}
    assert {task.facts()["backbone"] for task in tasks if task.facts()["mode"] == "imagenet"} == {"lite0"}


def test_table5_varies_what_it_says() -> None:
    changes = [dict(task.choice.changes["backbone"]) for task in presets.read("table5", MOCK).tasks]
    assert changes == [
        {"frozen_stages": frozen, "distillation": {"stages": stages}}
        for frozen in (0, 2)
        for stages in (1, 2)
    ]


def test_only_keeps_what_fits_and_limit_the_first() -> None:
    tasks = presets.read("table2", MOCK).tasks
    kept = presets.select(tasks, "backbone=swin, mode=agssp,mode=agbp", None)
    assert {(task.facts()["backbone"], task.facts()["mode"]) for task in kept} == {
        ("swin", "agssp"),
        ("swin", "agbp"),
    }
    assert len(kept) == 4 * len(MOCK.datasets)
    assert presets.select(tasks, "mode=scratch", 3) == presets.select(tasks, "mode=scratch", None)[:3]
    assert presets.select(tasks, None, None) == tasks


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("bakbone=swin", "backbone"),
        ("backbone", "write NAME=VALUE"),
        ("backbone=swim", "csp_darknet, resnet, swin"),
        ("mode=coco,backbone=swin", "leaves nothing"),
    ],
)
def test_wrong_filters_are_named(only: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        presets.select(presets.read("table2", MOCK).tasks, only, None)


def test_a_preset_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: Mine\n"
        "against: scratch\n"
        "datasets: [casting_billet_toy]\n"
        "seeds: [3, 4]\n"
        "cells:\n"
        "  - {backbone: csp_darknet, mode: [scratch, {mock: industrial, default: agbp}]}\n"
    )
    wanted = presets.read(str(path), MOCK)
    assert (wanted.name, wanted.title, wanted.against) == ("mine", "Mine", "scratch")
    assert [(task.cell.mode, task.cell.seed) for task in wanted.tasks] == [
        ("scratch", 3),
        ("scratch", 4),
        ("industrial", 3),
        ("industrial", 4),
    ]
    assert [task.cell.seed for task in presets.read(str(path), MOCK, [7]).tasks] == [7, 7]


def test_the_preset_of_the_documentation_stands(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "matrix.md").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    tasks = presets.read(str(path), MOCK).tasks
    assert len(tasks) == 2 * (1 + 2 * 2 + 1)
    assert tasks[-1].label == "nothing frozen"
    assert {name for name in presets.names() if f"| `{name}` |" in page} == set(presets.names())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\n", "datasets"),
        ("title: [", "no YAML file"),
        ("title: x\ndatasets: all\ncells: [{backbone: swin}]\n", "entry 1 of cells: mode"),
        ("title: x\ndatasets: all\ncells: [{backbone: swin, mode: scratch, size: 3}]\n", "size"),
        ("title: x\ndatasets: all\ncells: [{backbone: swim, mode: scratch}]\n", "Did you mean 'swin'"),
        ("title: x\ndatasets: {paper: all}\n", "nothing for mock-v1"),
        ("title: x\ndatasets: [no_such]\n", "no_such"),
        ("title: x\ndatasets: nothing\n", "give `all` or a list"),
    ],
)
def test_mistakes_in_a_preset_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        presets.read(str(path), MOCK)
    assert message in str(caught.value)


def test_unknown_presets_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="table2"):
        presets.read("table22", MOCK)
    with pytest.raises(UserError, match="no preset file"):
        presets.read(str(tmp_path / "none.yaml"), MOCK)


def test_help_and_dry_run_import_nothing_heavy(tmp_path: Path, agssp_home: Path) -> None:
    code = (
        "import sys; from benchmark.cli import run_app;"
        "assert run_app(sys.argv[1:]) == 0;"
        "assert not {'torch', 'datasets', 'pandas'} & sys.modules.keys()"
    )
    for words in (["--help"], ["table2", "--protocol", "mock", "--device", "cpu", "--dry-run", "--json"]):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                "matrix",
                *words,
                *(["--results", str(tmp_path)] if words[1:] else []),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["nodes"]["cell"] == {"planned": 92, "there": 0}
    assert plan["nodes"]["backbone"]["planned"] == 10
    assert plan["shared"] > 200
    assert plan["estimate"]["unknown"] == 92 + 10 + 4 + 1
    assert [cell["status"] for cell in plan["cells"]] == ["planned"] * 92
    assert not list(tmp_path.iterdir())
