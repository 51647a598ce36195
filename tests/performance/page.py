"""Runs every script of this folder named `bench_*.py` and writes what they print as `docs/performance.md`.

    python tests/performance/page.py [--only kead evaluate]

On a machine with nothing else to do this takes most of an hour. With `--only`, the sections of the other scripts stay
as the page has them. A script that fails ends the run and keeps its former section.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil

from baselines.training import precision
from benchmark.environment import collect
from datasets_builders.storage import atomic_file

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "performance.md"
# What a script is asked for here, where its own defaults are for a closer look.
ARGUMENTS = {
    "audit": ["--references", "400", "--queries", "20"],
    "corpus": ["--images", "2000"],
    "ray": ["--limit", "4"],
}
INTRODUCTION = """# Performance

Written by `make performance` (`tests/performance/page.py`): under each heading stands what one script printed, word
for word. Ratios are of contestants that ran in turns, on the same data, in one run; they move less from machine to
machine than seconds do. CPU seconds are of all processes together.
"""


def names() -> list[str]:
    """Returns the scripts' names, without `bench_`."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def section(name: str) -> str:
    """Runs a script and returns its section; what it prints also appears on the terminal."""
    path = HERE / f"bench_{name}.py"
    title = path.read_text(encoding="utf-8").split('"""')[1].splitlines()[0].removesuffix(".")
    command = ["python", f"tests/performance/{path.name}", *ARGUMENTS.get(name, [])]
    print(f"== {shlex.join(command)}", flush=True)
    ran = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(path), *ARGUMENTS.get(name, [])],
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE.parents[1],
    )
    assert ran.stdout is not None
    lines = []
    for line in ran.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    if ran.wait():
        sys.exit(f"{path.name} failed with exit code {ran.returncode}; its section of {PAGE} is as it was.")
    text = "\n".join(lines).strip("\n")
    return f"## {title}\n\n    {shlex.join(command)}\n\n{machine()}\n\n```text\n{text}\n```\n"


def machine() -> str:
    """Says on what, and on which state of the project, a figure was measured."""
    here = collect()
    packages = ", ".join(f"{name} {here.packages[name]}" for name in ("torch", "numpy"))
    commit = (here.git_commit or "no commit")[:12] + (" with changes" if here.git_dirty else "")
    fast = "bfloat16" if precision.resolve(True) == "bf16" else "no fast bfloat16"
    cores = f"{here.cpu}, {here.cores} cores, {fast}"
    load = f"load average {psutil.getloadavg()[0]:.1f} afterwards"
    return f"*{datetime.now(UTC):%Y-%m-%d}, {cores}, {packages}, {commit}, {load}.*"


def main() -> None:
    """Measures, and replaces the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=names(), metavar="NAME", help=", ".join(names()))
    wanted = parser.parse_args().only or names()
    there = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    sections = {
        name: match.group()
        for name in names()
        if (
            match := re.search(
                rf"^## .*\n\n    python tests/performance/bench_{name}\.py.*?\n```\n", there, re.S | re.M
            )
        )
    }
    for name in wanted:
        sections[name] = section(name)
        with atomic_file(PAGE) as temporary:
            temporary.write_text(
                "\n".join([INTRODUCTION, *(sections[key] for key in sorted(sections))]), encoding="utf-8"
            )


if __name__ == "__main__":
    main()
