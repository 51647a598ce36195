"""docs/extending.md, as it stands: its files and lines join a copy of the project, and its commands run there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PACKAGES = ("agssp", "baselines", "benchmark", "datasets_builders")


def blocks() -> list[tuple[str, str, str]]:
    return BLOCK.findall(PAGE)


def make_plates(folder: Path, count: int = 24) -> None:
    """Pictures with a dark dent, or without, and their labels."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        pixels = rng.integers(100, 140, (64, 64, 3), dtype=np.uint8)
        if index % 3:
            x, y = rng.integers(0, 44, 2)
            pixels[y : y + 16, x : x + 20] = 20 + 80 * (index % 2)
            box = (index % 2, (x + 10) / 64, (y + 8) / 64, 20 / 64, 16 / 64)
            (folder / "labels" / f"{index}.txt").write_text("{} {:.6f} {:.6f} {:.6f} {:.6f}\n".format(*box))
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")


def test_each_addition_is_one_file_and_one_line() -> None:
    additions = [(path, text) for language, path, text in blocks() if language != "sh"]
    files = [path for path, _ in additions if not (ROOT / path).exists()]
    lines = [(path, text) for path, text in additions if (ROOT / path).exists()]
    assert len(files) == len(set(files)) == len(lines) == 4
    assert all(path.endswith(".yaml") and text.count("\n") == 1 for path, text in lines)


def test_a_method_takes_30_lines() -> None:
    section = PAGE.partition("## Your pretraining method in 30 lines\n")[2].partition("\n## ")[0]
    parts = [text for language, _, text in BLOCK.findall(section) if language != "sh"]
    assert sum(text.count("\n") for text in parts) == 30


@pytest.mark.slow
def test_the_page_works_as_it_stands(tmp_path: Path, agssp_home: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    make_plates(tmp_path / "plates")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    printed = ""
    for language, path, text in blocks():
        if language != "sh":
            with (tmp_path / path).open("a", encoding="utf-8") as file:
                file.write(text)
            continue
        for line in text.splitlines():
            command = [sys.executable, *shlex.split(line)[1:]]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
            printed = done.stdout
    records = [json.loads(file.read_text()) for file in (tmp_path / "mine").glob("*/*/*/record.json")]
    cells = {(one["cell"]["backbone"], one["cell"]["mode"], one["cell"]["method"]) for one in records}
    assert cells == {
        ("csp_darknet", "scratch", "-"),
        ("plain_net", "agssp", "cls"),
        ("csp_darknet", "agbp", "denoising"),
    }
    guided = next(one for one in records if one["cell"]["method"] == "denoising")
    losses = guided["pretraining"]["stages"]["backbone"]["summary"]
    assert {"loss_task", "loss_distill"} <= losses["first_losses"].keys()
    assert losses["lambda"] > 0
    assert "plain_net:small agssp" in printed
