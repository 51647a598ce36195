"""Plans: which protocol and why, and what is refused before anything is trained."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmark import planning
from benchmark.modes import Choice
from datasets_builders import prepared
from datasets_builders.errors import UserError


def plan(tmp_path, **changes) -> planning.Plan:
    asked = {
        "backbone": "csp_darknet",
        "choice": Choice("scratch"),
        "detector": "yolov8",
        "datasets": None,
        "protocol_name": "auto",
        "seeds": None,
        "device": "cpu",
        "results": tmp_path,
    }
    return planning.make_plan(**(asked | changes))


def on_this_machine(monkeypatch, **states: bool) -> None:
    """Pretends that these datasets are prepared; the value says whether only in part."""

    def manifest(card):
        return SimpleNamespace(partial=states[card.dataset]) if card.dataset in states else None

    monkeypatch.setattr(prepared, "quick_manifest", manifest)


def test_without_a_gpu_the_small_protocol(tmp_path, monkeypatch) -> None:
    on_this_machine(monkeypatch, casting_billet=False)
    made = plan(tmp_path)
    assert (made.protocol.id, made.reason) == ("mini-v1", "no GPU here")
    assert made.seconds_per_cell() is not None


@pytest.mark.parametrize(
    ("states", "datasets", "expected", "reason"),
    [
        ({"casting_billet": False}, None, "paper-v1", "the data are here"),
        ({"gc10_det": False}, ["gc10_det/mini"], "paper-v1", "the data are here"),
        ({}, None, "mini-v1", "not the data of paper-v1: casting_billet"),
        ({"casting_billet": False}, ["all"], "mini-v1", "steel_pipe, gc10_det/mini, gc10_det"),
    ],
)
def test_with_a_gpu_the_papers_protocol_where_its_data_is(
    tmp_path, monkeypatch, states, datasets, expected, reason
) -> None:
    on_this_machine(monkeypatch, **states)
    monkeypatch.setattr(planning, "resolve_device", lambda device: "cuda")
    made = plan(tmp_path, datasets=datasets)
    assert made.protocol.id == expected
    assert reason in made.reason


def test_a_part_of_a_dataset_gives_no_number_of_the_paper(tmp_path, monkeypatch) -> None:
    on_this_machine(monkeypatch, casting_billet=True)
    with pytest.raises(UserError, match="only a part"):
        plan(tmp_path, protocol_name="paper-v1")
    made = plan(tmp_path, protocol_name="mini-v1", datasets=["casting_billet"])
    assert made.to_dict()["datasets"] == {"casting_billet": "partial"}


def test_a_dataset_that_is_not_there_names_the_command(tmp_path, monkeypatch) -> None:
    on_this_machine(monkeypatch)
    with pytest.raises(UserError, match=r"python -m datasets_builders prepare gc10_det --raw DIR"):
        plan(tmp_path, protocol_name="paper-v1", datasets=["gc10_det/mini"])


def test_cuda_that_is_not_there_is_an_error(tmp_path, monkeypatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu"):
        plan(tmp_path, device="cuda")
