"""`pretrain-backbone` and `pretrain-detector`: what they refuse at once, and that their stages are the benchmark's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from agssp.cli import run_app
from agssp.stages import Request, chain
from baselines import backbones
from benchmark import cli as benchmark_cli
from datasets_builders.corpus import prepare_corpus

SMALL = ["--recipes", "mock-v1", "--corpus", "corpus_synthetic/n12_k2_s0", "--device", "cpu"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain-backbone", "--backbone", "csp_darknt"], "Did you mean 'csp_darknet'"),
        (["pretrain-backbone", "--backbone", "csp_darknet", "--method", "simmim"], "simmim cannot pretrain"),
        (["pretrain-backbone", "--backbone", "csp_darknet", "--mode", "agssp"], "pretrain-detector"),
        (
            ["pretrain-backbone", "--backbone", "csp_darknet", "--mode", "industrial", "--maps", "random"],
            "--maps has no meaning",
        ),
        (["pretrain-detector", "--backbone", "csp_darknet", "--detector", "yolov9"], "Did you mean 'yolov8'"),
        (
            ["pretrain-detector", "--backbone", "csp_darknet", "--corpus", "corpus_x_sdd_gc10"],
            "docs/corpus.md",
        ),
        (["pretrain-detector", "--backbone", "csp_darknet", "--recipes", "mini"], "Did you mean 'mini-v1'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    words: list[str], message: str, fresh_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app([*words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_images_is_told_how_to_become_a_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain-backbone", "--backbone", "csp_darknet", "--corpus", str(tmp_path)]
    assert run_app([*words, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"prepare corpus_own_NAME --raw {tmp_path}" in message


def test_classes_of_one_category_are_not_learnt(
    tmp_path: Path, fresh_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    prepare_corpus("corpus_own_line", tmp_path, workers=1)
    words = ["--backbone", "csp_darknet", "--corpus", "corpus_own_line"]
    assert run_app(["pretrain-backbone", *words, "--out", str(tmp_path / "out")]) == 2
    assert "corpus_own_line has one" in capsys.readouterr().err
    assert benchmark_cli.run_app(["run", "--mode", "industrial", *words, "--dry-run"]) == 2
    assert "--method mocov3 or simmim" in capsys.readouterr().err
    assert (
        benchmark_cli.run_app(["run", "--mode", "industrial", "--method", "mocov3", *words, "--dry-run"]) == 0
    )


def test_an_export_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run_app(["pretrain-backbone", "--backbone", "csp_darknet", "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_own_images_from_folder_to_weights(
    fresh_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the error for a folder says: an entry of sources.yaml, prepared, is a corpus like any other."""
    import numpy as np
    from PIL import Image

    from datasets_builders.corpus import prepare_corpus

    raw = tmp_path / "raw"
    (raw / "my_line").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(raw / "my_line" / f"{number}.png")
    (raw / "sources.yaml").write_text("my_line: {category: steel_plate, licence: ours}\n")
    prepare_corpus("corpus", raw=raw, workers=1)
    words = ["pretrain-backbone", "--backbone", "csp_darknet", "--mode", "industrial", "--recipes", "mock-v1"]
    out = tmp_path / "out"
    assert run_app([*words, "--corpus", "corpus", "--device", "cpu", "--out", str(out)]) == 0
    assert "my_line: ours" in (out / "README.md").read_text()


@pytest.mark.slow
def test_stages_are_the_benchmarks_and_are_made_once(
    agssp_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain-detector", "--backbone", "csp_darknet", *SMALL, "--maps", "random", "--json"]
    assert run_app([*words, "--out", str(tmp_path / "first")]) == 0
    made = json.loads(capsys.readouterr().out)
    request = Request(
        mode="agssp",
        backbone=backbones.get("csp_darknet", "n"),
        method="cls",
        detector="yolov8",
        recipes="mock-v1",
        corpus="corpus_synthetic/n12_k2_s0",
        maps="random",
    )
    stages = chain(request)
    assert {stage["stage"]: stage["key"] for stage in made["stages"]} == {s.kind: s.key for s in stages}
    assert made["files"] == [
        "README.md",
        "weights.safetensors",
        "openmmlab.pth",
        "openmmlab.py",
        "ultralytics.safetensors",
    ]
    assert run_app([*words, "--out", str(tmp_path / "second")]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["stages"] == made["stages"]
    assert "made in" not in told.err
    for name in made["files"]:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
