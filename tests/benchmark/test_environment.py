from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from benchmark import environment
from benchmark.environment import Environment, Gpu, collect

PROJECT = Path(environment.__file__).resolve().parents[1]


def tool(folder: Path, name: str, script: str) -> None:
    """Puts a program of this name first on the path."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_describes_this_process() -> None:
    found = collect()
    assert found.python == platform.python_version()
    assert found.packages["torch"] == metadata.version("torch")
    assert set(found.packages) <= set(environment.PACKAGES)
    assert found.cores >= 1
    assert found.memory_mib > 100
    assert found.cpu
    assert Environment.model_validate_json(found.model_dump_json(), strict=True) == found


def test_threads_are_torchs_once_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert collect().threads == torch.get_num_threads()
    assert collect().cuda == torch.version.cuda
    monkeypatch.delitem(sys.modules, "torch")
    assert collect().threads is None


def test_imports_nothing_heavy(python: str) -> None:
    code = (
        "import sys; from benchmark.environment import collect; collect();"
        "print([name for name in ('torch', 'datasets', 'pandas', 'cv2', 'mmengine') if name in sys.modules])"
    )
    done = subprocess.run([python, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that holds this project's source tree, as far as this module looks."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "agssp-bench"\nversion = "9.8.7"\n')
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.setattr(environment, "_CHECKOUT", folder)
    return folder


def test_commit_and_dirty_flag(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    found = collect()
    assert (found.project_version, found.git_commit, found.git_dirty) == ("9.8.7", head, False)
    (checkout / "results.json").write_text("{}")  # untracked: not part of the code
    assert collect().git_dirty is False
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert collect().git_dirty is True


def test_gits_own_variables_do_not_lead_elsewhere(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "other")
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert collect().git_commit == head


def test_installed_inside_somebody_elses_repository(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = checkout / ".venv" / "site-packages"
    packages.mkdir(parents=True)
    monkeypatch.setattr(environment, "_CHECKOUT", packages)
    found = collect()
    assert (found.git_commit, found.git_dirty) == (None, None)
    # A user's own project with this package copied into it is not this project either.
    (checkout / "pyproject.toml").write_text('[project]\nname = "someone-elses"\nversion = "1"\n')
    monkeypatch.setattr(environment, "_CHECKOUT", checkout)
    assert collect().git_commit is None


def test_repository_without_commits(tmp_path: Path, checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    git(checkout, "init", "-q")
    found = collect()
    assert (found.git_commit, found.git_dirty) == (None, None)


def test_missing_tools_are_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = collect()
    assert (found.git_commit, found.gpus, found.gpu_driver) == (None, (), None)


def test_failing_and_hanging_tools_are_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(environment, "_TOOL_SECONDS", 0.2)
    for script in ("exit 9", "exec sleep 60", "echo garbage", "printf '\\377\\000,x,y'"):
        tool(tmp_path, "nvidia-smi", script)
        tool(tmp_path, "git", script if "garbage" not in script else "exit 1")
        found = collect()
        assert found.git_commit is None


def test_gpus_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = "NVIDIA H100 80GB HBM3, 81559, 550.54.15\\nOdd, Name, [N/A], 550.54.15\\n"
    tool(tmp_path, "nvidia-smi", f"printf '{lines}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = collect("cuda")
    assert found.device == "cuda"
    assert found.gpus == (
        Gpu(name="NVIDIA H100 80GB HBM3", memory_mib=81559),
        Gpu(name="Odd, Name", memory_mib=None),
    )
    assert found.gpu_driver == "550.54.15"
