"""The chain of pretraining: what a stage's key depends on, what chains share, and that it runs to the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agssp import mapping, stages
from agssp.map_inputs import open_images
from agssp.map_store import open_maps
from agssp.stages import Request, chain
from baselines import backbones
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

BASE = Request(
    mode="agssp",
    backbone=backbones.get("csp_darknet", "n"),
    method="cls",
    detector="yolov8",
    recipes="mock-v1",
    corpus="corpus_synthetic/n12_k2_s0",
    maps="random",
)


def keys(request: Request) -> dict[str, str]:
    return {stage.kind: stage.key for stage in chain(request)}


def test_order_and_kinds_of_each_mode() -> None:
    assert list(keys(BASE)) == ["maps", "boxes", "backbone", "detector"]
    assert list(keys(replace(BASE, mode="agbp"))) == ["maps", "backbone"]
    assert list(keys(replace(BASE, mode="industrial"))) == ["backbone"]


def test_modes_share_what_is_equal() -> None:
    agssp, agbp, industrial = (keys(replace(BASE, mode=mode)) for mode in ("agssp", "agbp", "industrial"))
    assert agbp == {kind: agssp[kind] for kind in ("maps", "backbone")}
    assert industrial["backbone"] != agbp["backbone"]
    other = keys(replace(BASE, backbone=backbones.get("resnet", "18")))
    assert {kind for kind in agssp if agssp[kind] == other[kind]} == {"maps", "boxes"}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"seed": 1}, {"backbone", "detector"}),
        ({"maps": "oracle"}, {"maps", "boxes", "backbone", "detector"}),
        ({"corpus": "corpus_synthetic/n12_k2_s1"}, {"maps", "boxes", "backbone", "detector"}),
        ({"workers": 3, "device": "cpu"}, set()),
        ({"init": "none"}, set()),  # mock-v1 begins with random values anyway
    ],
)
def test_keys_follow_what_changes_the_weights(change, changed) -> None:
    before, after = keys(BASE), keys(replace(BASE, **change))
    assert {kind for kind in before if before[kind] != after[kind]} == changed


def test_a_key_is_the_hash_of_the_inputs_and_of_the_stages_before() -> None:
    maps, boxes, *_ = chain(BASE)
    assert boxes.inputs["upstream"] == {"maps": maps.key}
    assert boxes.key == content_key(boxes.inputs)


def test_maps_from_a_folder_are_told_apart_by_their_content(agssp_home: Path, tmp_path: Path) -> None:
    """A folder knows its content only once it has looked for the map of every image."""
    request = replace(BASE, maps=f"folder:{tmp_path}")
    with pytest.raises(UserError, match="has no map for 12 of 12 images"):
        keys(request)
    ids = open_images(request.corpus or "").ids
    for place, image_id in enumerate(ids):
        path = tmp_path / f"{image_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((4, 6), place / 16, np.float32))
    before = keys(request)
    assert keys(request) == before
    made = chain(request)[0].obtain(lambda event: None, lambda said: None)
    assert made.manifest.summary["source"] == f"folder:{tmp_path.name}"  # records are read by others
    rows = list(open_maps(made.folder / "maps"))
    assert [row.image_id for row in rows] == ids
    assert [float(row.map.max()) for row in rows] == [place / 16 for place in range(12)]

    np.save(tmp_path / f"{ids[5]}.npy", np.ones((4, 6), np.float32))
    assert not set(keys(request).values()) & set(before.values())


def test_maps_are_made_anew_where_their_making_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(BASE)
    monkeypatch.setattr(mapping, "VERSION", mapping.VERSION + 1)
    assert not set(keys(BASE).values()) & set(before.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "simmim"}, "simmim cannot pretrain csp_darknet"),
        ({"recipes": "mini-v7"}, "Did you mean 'mini-v1'"),
        ({"init": "no-such-file.safetensors"}, "no weights file"),
    ],
)
def test_what_cannot_be_is_refused(change, message) -> None:
    with pytest.raises(UserError, match=message):
        chain(replace(BASE, **change))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "variant", "method"),
    [
        ("csp_darknet", "n", "cls"),
        ("resnet", "18", "cls"),
        ("resnet", "18", "mocov3"),
        ("swin", "nano", "cls"),
        ("swin", "nano", "simmim"),
    ],
)
def test_every_small_combination_runs_to_the_end(agssp_home, backbone, variant, method) -> None:
    from safetensors.torch import load_file

    from baselines import artifacts

    request = replace(BASE, backbone=backbones.get(backbone, variant), method=method)
    waited: list[str] = []
    made = [stage.obtain(lambda event: None, waited.append) for stage in chain(request)]
    assert [artifact.manifest.kind for artifact in made] == ["maps", "boxes", "backbone", "detector"]
    assert not waited
    weights = stages.weights_of(made[-1])
    state = load_file(weights.path)
    assert any(name.startswith("bbox_head.") for name in state)
    report = made[-1].manifest.summary["init"]
    assert isinstance(report, dict)
    assert report["share_of_backbone"] == 1.0
    # The frozen backbone of the detector stage is the one that the backbone stage left, but for the rounding of its
    # moving average.
    for name, value in load_file(stages.weights_of(made[2]).path).items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert artifacts.find("detector", made[-1].key) == made[-1]
