"""Cells: what a request expands to, and what a key depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from baselines.weights import LocalWeights
from benchmark import protocol
from benchmark.cells import Cell, cell_identity, cell_key, expand
from benchmark.modes import Choice, Start
from datasets_builders.errors import UserError

MINI = protocol.load("mini-v1")
SCRATCH = Choice("scratch")
SCRATCH_START = Start()
WEIGHTS = LocalWeights(Path("a.safetensors"), "c" * 64, "a.safetensors")


def test_defaults_are_the_protocols() -> None:
    cells = expand(MINI, backbone="swin", choice=SCRATCH)
    assert [(c.variant, c.dataset, c.seed) for c in cells] == [
        ("nano", MINI.datasets[0], s) for s in MINI.seeds
    ]


def test_all_datasets_and_own_seeds() -> None:
    cells = expand(MINI, backbone="csp_darknet:s", choice=SCRATCH, datasets=["all"], seeds=[7])
    assert [(c.variant, c.dataset, c.seed) for c in cells] == [("s", d, 7) for d in MINI.datasets]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"backbone": "swinn"}, "Did you mean 'swin'"),
        ({"backbone": "swin:gigantic"}, "variant of swin"),
        ({"choice": Choice("scrach")}, "Did you mean 'scratch'"),
        ({"choice": Choice("agssp", method="simmim"), "backbone": "resnet"}, "simmim cannot pretrain resnet"),
        ({"choice": Choice("agssp", method="byol")}, "Unknown method"),
        ({"choice": Choice("scratch", maps="random")}, "--maps has no meaning with --mode scratch"),
        ({"choice": Choice("agssp", weights="x.pth")}, "--weights has no meaning with --mode agssp"),
        ({"detector": "yolo8"}, "Did you mean 'yolov8'"),
        ({"datasets": ["neu-det"]}, "Did you mean 'neu_det'"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"seeds": [-1]}, "not negative"),
    ],
)
def test_wrong_requests_are_refused(request_: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(MINI, **({"backbone": "swin", "choice": SCRATCH} | request_))


def test_key_depends_on_what_changes_the_number() -> None:
    def key(cell: Cell, fingerprint: str = "a" * 64, version: int = 1, start: Start = SCRATCH_START) -> str:
        return cell_key(
            cell_identity(cell, MINI, start, dataset_fingerprint=fingerprint, stage_version=version)
        )

    cell = Cell("swin", "nano", "-", "scratch", "yolov8", "gc10_synthetic", 0)
    same = key(cell)
    assert key(cell) == same
    others = [
        key(Cell("swin", "nano", "-", "scratch", "yolov8", "gc10_synthetic", 1)),
        key(Cell("swin", "tiny", "-", "scratch", "yolov8", "gc10_synthetic", 0)),
        key(Cell("swin", "nano", "-", "scratch", "yolov8", "steel_pipe_synthetic", 0)),
        key(cell, fingerprint="b" * 64),
        key(cell, version=2),
        key(cell, start=Start("backbone", WEIGHTS)),
        key(cell, start=Start("detector", WEIGHTS)),
        key(cell, start=Start("backbone", replace(WEIGHTS, sha256="d" * 64))),
    ]
    assert len({same, *others}) == 9
    # Where the weights lie, and what they are called, changes nothing.
    renamed = replace(WEIGHTS, path=Path("elsewhere"), source="another name")
    assert key(cell, start=Start("backbone", renamed)) == key(cell, start=Start("backbone", WEIGHTS))


def test_keys_of_published_cells_stand() -> None:
    # Computed before there were other detectors, ablations and mixed precision: none of them changes it.
    cell = Cell("swin", "nano", "-", "scratch", "yolov8", "casting_billet_synthetic", 0)
    fingerprint = "39657fd68dd5bf2855ef959898b7613fbd196f0e8cd8d06b6a3af8fb46ef3d35"
    paper = protocol.load("paper-v1")
    identity = cell_identity(cell, paper, SCRATCH_START, dataset_fingerprint=fingerprint, stage_version=1)
    assert cell_key(identity) == "5263fb628aefe56030d8ed8a0265a30d19cc7571943be701be74078b83d69bd1"


def test_the_size_of_another_detector_belongs_to_its_key(monkeypatch) -> None:
    from baselines import detectors

    def key() -> str:
        cell = Cell("swin", "nano", "-", "scratch", "dino", "gc10_synthetic", 0)
        return cell_key(
            cell_identity(cell, MINI, SCRATCH_START, dataset_fingerprint="a" * 64, stage_version=1)
        )

    before = key()
    sizes = {**detectors._sizes(), "dino": {"small": {"queries": 31}}}
    monkeypatch.setattr(detectors, "_sizes", lambda: sizes)
    assert key() != before
