from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from benchmark import protocol as protocols
from benchmark.cells import expand
from benchmark.matrix import presets
from benchmark.matrix.graph import KINDS, AnomalyTask, Graph, Node, Task, build
from benchmark.modes import Choice

MOCK = protocols.load("mock-v1")


def graph_of(*rows: tuple[str, Choice], detector: str = "yolov8", protocol=MOCK, **keywords) -> Graph:
    tasks = [
        Task(cell, choice)
        for backbone, choice in rows
        for cell in expand(protocol, backbone=backbone, choice=choice, detector=detector, datasets=["all"])
    ]
    return build(tasks, protocol, **{"device": "cpu", "results": Path("results")} | keywords)


def whole(name: str, protocol=MOCK) -> Graph:
    wanted = presets.read(name, protocol)
    return build(wanted.tasks, protocol, device="cpu", results=Path("results"))


@pytest.mark.parametrize("protocol", ["paper-v1", "mini-v1", "mock-v1"])
def test_table2_has_as_few_pretrainings_as_its_definition_needs(protocol: str) -> None:
    """Brute force: every cell's own chain written down in words, and then the different ones counted."""
    chosen = protocols.load(protocol)
    backbones, detectors, maps, cells = set(), set(), set(), set()
    for family, methods in {
        "csp_darknet": ["cls"],
        "resnet": ["cls", "mocov3"],
        "swin": ["cls", "simmim"],
    }.items():
        for method in methods:
            modes = ["industrial", "agbp", "agssp"]
            if (family, method) == ("resnet", "mocov3"):
                modes.remove("agssp")
            for mode in modes:
                for dataset in chosen.datasets:
                    cells.add((family, method, mode, dataset))
                    guided = mode != "industrial"
                    backbones.add((family, method, guided))
                    if guided:
                        maps.add("one corpus, one source")
                    if mode == "agssp":
                        detectors.add((family, method))
    graph = whole("table2", chosen)
    assert len(graph.of_kind("backbone")) == len(backbones) == 10
    assert len(graph.of_kind("detector")) == len(detectors) == 4
    assert len(graph.of_kind("maps")) == len(graph.of_kind("boxes")) == len(maps) == 1
    assert len(graph.of_kind("cell")) == 23 * len(chosen.datasets) * len(chosen.seeds)


@pytest.mark.parametrize("protocol", ["paper-v1", "mini-v1", "mock-v1"])
@pytest.mark.parametrize("name", presets.names())
def test_no_two_cells_of_a_preset_are_one(name: str, protocol: str) -> None:
    """An ablation whose value is the recipe's own would be a row less."""
    chosen = protocols.load(protocol)
    cells = [task for task in presets.read(name, chosen).tasks if isinstance(task, Task)]
    assert len(whole(name, chosen).of_kind("cell")) == len(cells)


def test_needs_come_before_what_needs_them() -> None:
    for name in presets.names():
        graph = whole(name)
        seen: set[str] = set()
        for node in graph.nodes.values():
            assert set(node.needs) <= seen
            assert node.kind in KINDS
            assert all(KINDS.index(graph.nodes[one].kind) < KINDS.index(node.kind) for one in node.needs)
            seen.add(node.id)
        assert {node.kind for node in graph.nodes.values() if not graph.dependants[node.id]} <= {
            "cell",
            "anomaly",
            "efficiency",
        }


def test_nodes_travel_as_json_and_by_pickle() -> None:
    for node in whole("table2").nodes.values():
        assert Node.from_dict(json.loads(json.dumps(node.to_dict()))) == node
        assert pickle.loads(pickle.dumps(node)) == node


def test_a_node_is_named_by_what_is_asked_for_not_by_the_place() -> None:
    rows = [("swin", Choice("agssp", "simmim")), ("csp_darknet", Choice("imagenet"))]
    here, there = graph_of(*rows), graph_of(*rows, device="cuda", results=Path("elsewhere"))
    assert list(here.nodes) == list(there.nodes)
    by_kind = {node.kind: node for node in there.nodes.values()}
    assert {kind for kind, node in by_kind.items() if node.gpus} == {"maps", "backbone", "detector", "cell"}
    assert not any(node.gpus for node in here.nodes.values())


@pytest.mark.parametrize(
    ("changed", "more"),
    [
        (Choice("agssp", seed=1), {"backbone", "detector", "cell"}),
        (Choice("agssp", maps="random"), {"maps", "boxes", "backbone", "detector", "cell"}),
        (
            Choice("agssp", corpus="corpus_synthetic/n20_k2_s0"),
            {"corpus", "maps", "boxes", "backbone", "detector", "cell"},
        ),
        (Choice("agssp", changes={"backbone": {"frozen_stages": 0}}), {"backbone", "detector", "cell"}),
        (Choice("agssp", changes={"detector": {"frozen_stages": 0}}), {"detector", "cell"}),
        (Choice("agssp", changes={"finetune": {"frozen_stages": 2}}), {"cell"}),
        (Choice("agssp", init="weights.pth"), {"weights", "backbone", "detector", "cell"}),
        # The recipe's own values, said aloud, change nothing.
        (Choice("agssp", "cls", maps="kead:tiny", init="none"), set()),
        (Choice("agssp", changes={"backbone": {"frozen_stages": 2, "distillation": {"stages": 2}}}), set()),
    ],
)
def test_what_is_asked_for_differently_is_other_work_and_nothing_else(changed: Choice, more: set) -> None:
    plain = graph_of(("csp_darknet", Choice("agssp")))
    both = graph_of(("csp_darknet", Choice("agssp")), ("csp_darknet", changed))
    counts = plain.counts()
    assert {kind for kind, count in both.counts().items() if count > counts.get(kind, 0)} == more


def test_cells_without_public_weights_share_one_reason() -> None:
    graph = graph_of(("csp_darknet", Choice("imagenet")))
    (weights,) = graph.of_kind("weights")
    assert "Give your own: --weights FILE" in weights.spec["unknown"]
    assert all(weights.id in node.needs for node in graph.of_kind("cell"))


def test_other_detectors_share_the_backbone() -> None:
    graph = whole("fig6e")
    assert graph.counts() | {"corpus": 1} == {
        "dataset": 1, "corpus": 1, "weights": 1, "maps": 1, "boxes": 1, "backbone": 1, "detector": 2, "cell": 6,
    }  # fmt: skip


def test_zero_shot_has_no_seeds() -> None:
    tasks = [
        AnomalyTask("winclip", "tiny", shots, "labelled", {}, "casting_billet_toy", seed)
        for shots in (0, 4)
        for seed in (0, 1, 2)
    ]
    graph = build(tasks, MOCK, device="cpu", results=Path("results"))
    assert len(graph.of_kind("anomaly")) == 1 + 3
