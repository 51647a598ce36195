"""What a number was measured with: code, packages, processor, GPU.

Collecting it is quick, imports nothing heavy, and never fails: what cannot be found out is None or left out.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from datasets_builders.machine import cores

PACKAGES = (
    "torch",
    "torchvision",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmdetection",
    "onedl-mmpretrain",
    "mmyolo",
    "timm",
    "open_clip_torch",
    "datasets",
    "hotcoco",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "safetensors",
)
"""Packages whose version can change a number."""

_DISTRIBUTION = "agssp-bench"
_CHECKOUT = Path(__file__).resolve().parents[1]
_TOOL_SECONDS = 5
_COMMIT = r"^[0-9a-f]{40,64}$"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be printable characters")
    return text


Text = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_printable)]
"""A line of text for people: printable, at most 300 characters."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Gpu(_Facts):
    """One graphics processor."""

    name: Text
    """As its driver calls it."""
    memory_mib: Annotated[int, Field(ge=0)] | None
    """Its memory in MiB."""


class Environment(_Facts):
    """The software and the machine of a measurement."""

    project_version: Text
    """Version of this project, such as `0.1.0`."""
    git_commit: Annotated[str, Field(pattern=_COMMIT)] | None
    """Commit of the project's checkout; None where it is installed as a package."""
    git_dirty: bool | None
    """Whether tracked files differ from that commit; None without a commit."""
    python: Text
    """Version, such as `3.11.7`."""
    platform: Text
    """Operating system and architecture."""
    device: Text
    """Where it computed: `cpu` or `cuda`."""
    cpu: Text | None
    """Model of the processor."""
    cores: Annotated[int, Field(ge=1)]
    """Processor cores that the process might use."""
    threads: Annotated[int, Field(ge=1)] | None
    """Threads that torch computed with; None where torch took no part."""
    memory_mib: Annotated[int, Field(ge=1)]
    """The machine's memory in MiB."""
    gpus: Annotated[tuple[Gpu, ...], Field(max_length=64)]
    """All that the driver lists."""
    gpu_driver: Text | None
    """Version of the NVIDIA driver."""
    cuda: Text | None
    """CUDA version that torch was built for; None for a CPU build or without torch."""
    packages: Annotated[dict[Text, Text], Field(max_length=200)]
    """Versions of the installed packages in `PACKAGES`."""


def collect(device: str = "cpu") -> Environment:
    """Describes this process's environment.

    Args:
        device: Where the measurement computes, `cpu` or `cuda`.
    """
    commit, dirty = _git()
    gpus, driver = _nvidia()
    torch = sys.modules.get("torch")  # it takes seconds to import, and what did not import it did not use it
    return Environment(
        project_version=project_version(),
        git_commit=commit,
        git_dirty=dirty,
        python=platform.python_version(),
        platform=_line(platform.platform()),
        device=device,
        cpu=_cpu_model(),
        cores=cores(),
        threads=torch.get_num_threads() if torch else None,
        memory_mib=psutil.virtual_memory().total // 2**20,
        gpus=gpus,
        gpu_driver=driver,
        cuda=torch.version.cuda if torch else None,
        packages=_packages(*PACKAGES),
    )


def project_version() -> str:
    """Returns this project's version: of the checkout that runs, else as installed, else `unknown`."""
    if _is_checkout():
        return str(
            tomllib.loads((_CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
        )
    return _packages(_DISTRIBUTION).get(_DISTRIBUTION, "unknown")


def _is_checkout() -> bool:
    """Tells this project's source tree from installed packages inside somebody else's repository."""
    file = _CHECKOUT / "pyproject.toml"
    return file.is_file() and f'name = "{_DISTRIBUTION}"' in file.read_text(
        encoding="utf-8", errors="replace"
    )


def _packages(*names: str) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> tuple[str | None, bool | None]:
    if not (_is_checkout() and (_CHECKOUT / ".git").exists()):
        return None, None
    commit = _output("git", "-C", str(_CHECKOUT), "rev-parse", "HEAD")
    # Untracked files do not count: a results folder in the checkout is one.
    changes = _output("git", "-C", str(_CHECKOUT), "status", "--porcelain", "--untracked-files=no")
    if changes is None or not re.fullmatch(_COMMIT, commit or ""):
        return None, None
    return commit, bool(changes)


def _nvidia() -> tuple[tuple[Gpu, ...], str | None]:
    query = "--query-gpu=name,memory.total,driver_version"
    lines = (_output("nvidia-smi", query, "--format=csv,noheader,nounits") or "").splitlines()
    rows = [[_line(part) for part in line.rsplit(",", 2)] for line in lines[:64]]
    rows = [row for row in rows if len(row) == 3 and row[0]]
    gpus = tuple(Gpu(name=name, memory_mib=int(mib) if mib.isdecimal() else None) for name, mib, _ in rows)
    return gpus, rows[0][2] or None if rows else None


def _cpu_model() -> str | None:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    else:
        models = [_output("sysctl", "-n", "machdep.cpu.brand_string") or ""]
    return next(filter(None, map(_line, [*models, platform.processor(), platform.machine()])), None)


def _line(text: str) -> str:
    """Makes whatever a tool printed a `Text`, or nothing."""
    return "".join(filter(str.isprintable, text)).strip()[:300]


def _output(*command: str) -> str | None:
    """Returns what a tool prints, or None where it is missing, fails or takes too long."""
    # Git's own variables could point it at another repository.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_SECONDS,
            stdin=subprocess.DEVNULL,
            env=variables | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
