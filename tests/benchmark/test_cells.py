"""Cells: what a request expands to, and what a key depends on."""

from __future__ import annotations

import pytest

from benchmark import protocol
from benchmark.cells import Cell, cell_identity, cell_key, expand
from datasets_builders.errors import UserError

MINI = protocol.load("mini-v1")


def test_defaults_are_the_protocols() -> None:
    cells = expand(MINI, backbone="swin", mode="scratch")
    assert [(c.variant, c.dataset, c.seed) for c in cells] == [
        ("nano", MINI.datasets[0], s) for s in MINI.seeds
    ]


def test_all_datasets_and_own_seeds() -> None:
    cells = expand(MINI, backbone="csp_darknet:s", mode="scratch", datasets=["all"], seeds=[7])
    assert [(c.variant, c.dataset, c.seed) for c in cells] == [("s", d, 7) for d in MINI.datasets]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"backbone": "swinn"}, "Did you mean 'swin'"),
        ({"backbone": "swin:gigantic"}, "variant of swin"),
        ({"mode": "scrach"}, "Did you mean 'scratch'"),
        ({"mode": "agssp"}, "cannot run in this version"),
        ({"detector": "yolo8"}, "Did you mean 'yolov8'"),
        ({"datasets": ["neu-det"]}, "Did you mean 'neu_det'"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"seeds": [-1]}, "not negative"),
    ],
)
def test_wrong_requests_are_refused(request_: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(MINI, **({"backbone": "swin", "mode": "scratch"} | request_))


def test_key_depends_on_what_changes_the_number() -> None:
    def key(cell: Cell, fingerprint: str = "a" * 64, version: int = 1) -> str:
        return cell_key(cell_identity(cell, MINI, dataset_fingerprint=fingerprint, stage_version=version))

    cell = Cell("swin", "nano", "-", "scratch", "yolov8", "gc10_synthetic", 0)
    same = key(cell)
    assert key(cell) == same
    others = [
        key(Cell("swin", "nano", "-", "scratch", "yolov8", "gc10_synthetic", 1)),
        key(Cell("swin", "tiny", "-", "scratch", "yolov8", "gc10_synthetic", 0)),
        key(Cell("swin", "nano", "-", "scratch", "yolov8", "steel_pipe_synthetic", 0)),
        key(cell, fingerprint="b" * 64),
        key(cell, version=2),
    ]
    assert len({same, *others}) == 6
