"""The documents: every command in them runs or is refused a reason in a table below, every link leads somewhere.

A command runs at toy size, in this process: `replaced` says how its words are changed (protocol mock, toy datasets,
stand-ins for placeholders such as RECORD). All documents share one cache, each has a folder of its own.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import typer
from PIL import Image

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
sys.path += [str(ROOT / "tests" / "datasets_builders"), str(ROOT / "tests" / "benchmark" / "submit")]

PROGRAMS = ("python", "make", "git", "pip", "ray", "hf", "mkdir", "cp", "export", ".venv/bin/python")
"""A line of a code block that begins so (after VAR=... and `.venv/bin/`) is a command."""

WHOLE_DOCUMENTS = {
    "extending.md": "its commands need the files of its blocks: tests/benchmark/test_extending.py runs both",
}

# What is not run here: pattern of the command -> why. Commands of this project among them are parsed all the same.
NOT_RUN = {
    r"^git clone|^pip install|^ray start|^hf auth|^export": "sets up a machine",
    r"^make (demo|test|setup|leaderboard)": "the Makefile has it (checked); demo and test take minutes",
    r"^python docs/examples/": "a minute of training: tests/benchmark/submit/test_end_to_end.py",
    r"^python -c .*ultralytics": "needs a package under the AGPL; run once by hand",
    r"^(mkdir|cp) .*(AGSSP_BENCH_HOME|yolov8s-cls)": "follows from the line before",
    r"^python -m leaderboard": "serves until it is stopped: tests/leaderboard/test_main.py",
    r"--hub | push | hub://|submit review": "needs a Hub: tests/datasets_builders, tests/benchmark/submit, on loopback",
    r"--engine ray": "needs a cluster: tests/benchmark/matrix; the same matrix without it is planned here",
    r"--encoder(-weights)? (base|FILE|huge)": "needs CLIP's weights: tests/agssp/test_kead_full_size.py",
    r"prepare (bsdata|casting_billet|steel_pipe|gc10_det|fd) --raw": "layouts of owners: tests/datasets_builders",
    r"verify --rerun": "trains again: tests/benchmark/test_rerun.py",
}

# Words of a command, or parts of one, and what stands in for them.
STAND_INS = {
    "DATASET": "steel_pipe_toy",
    "raw/corpus": "made",
    "swin:tiny": "swin:nano",
    "FILE": "weights.safetensors",
    "FOLDER": "submissions/mine",
    "IMAGE": "new.jpg",
    "A": "mode=industrial",
    "B": "mode=scratch",
    "mode=agssp": "mode=industrial",
    "backbone=swin,mode=agssp": "mode=industrial",
    "backbone=swin,mode=imagenet": "mode=scratch",
    "imagenet": "scratch",
    "corpus_synthetic": "corpus_synthetic/n24_k3_s0",
    "casting_billet": "casting_billet_toy",
    "steel_pipe": "steel_pipe_toy",
    "gc10_det": "gc10_toy",
    "fd": "gc10_toy/mini",
}
RECORDS = re.compile(r"(?:/shared/)?results(-plant)?/(?!anomaly)\S+|RECORD(_[AB])?$|OTHER$")


def without_dots(words: list[str]) -> list[str]:
    """Leaves out the dots of `IMAGE ...`; as the value of an option they stay."""
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word != "..." or before.startswith("--")
    ]


@dataclass(frozen=True)
class Command:
    """A command of a document."""

    document: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        return without_dots(shlex.split(self.text, comments=True))


def lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yields number and text of each line, joined over backslashes, and whether it stands in a code block."""
    fence, held, start = None, "", 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        opened = re.match(r"\s*```(.*)", line)
        if opened:
            fence = None if fence is not None else opened[1].split(" ")[0]
            continue
        start = start if held else number
        held += line.strip() if held else line
        if held.endswith("\\"):
            held = held[:-1]
            continue
        in_code = fence in ("", "sh", "bash") if fence is not None else held.startswith("    ")
        yield start, held, in_code
        held = ""


def commands(path: Path) -> list[Command]:
    """Returns the commands in the code blocks of a document."""
    found = []
    for number, line, in_code in lines(path):
        for text in line.strip().split(" && ") if in_code else ():
            plain = re.sub(r"^([A-Z_]+=\S+ )*(\.venv/bin/(?=python ))?", "", text)
            if plain.split(" ")[0] in PROGRAMS and not re.match(r"\w+ *=", plain):
                found.append(Command(path.name, number, plain))
    return found


def inline_commands(path: Path) -> list[Command]:
    """Returns the commands of this project inside sentences, `python -m ...`."""
    return [
        Command(path.name, number, text)
        for number, line, in_code in lines(path)
        if not in_code
        for text in re.findall(r"`(python -m (?:agssp|benchmark|datasets_builders) [^`]+)`", line)
    ]


ALL = {path.name: commands(path) for path in DOCUMENTS}


def reason_not_to_run(command: Command) -> str | None:
    plain = " ".join(command.words)
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, plain)), None)


def application(program: str) -> typer.Typer:
    if program == "benchmark":
        from benchmark.cli import app
    elif program == "agssp":
        from agssp.cli import app
    else:
        from datasets_builders.cli import app
    return app


def parse(words: list[str]) -> None:
    """Parses a command of this project without running it; raises what its command line says."""
    from benchmark.__main__ import spread

    command: Any = typer.main.get_command(application(words[2]))
    rest = spread(words[3:])
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    # Numbers may be placeholders too: --shard I.
    rest = ["1" if re.fullmatch("[A-Z]", word) else word for word in rest]
    command.make_context(words[2], rest)


def is_ours(words: list[str]) -> bool:
    return words[:2] == ["python", "-m"] and words[2] in ("agssp", "benchmark", "datasets_builders")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_options_are_those_of_the_command_lines(path: Path) -> None:
    wrong = []
    for command in commands(path) + inline_commands(path):
        text = re.sub(r"\s*\[[^\]]*\]|…", "", command.text)
        words = without_dots(shlex.split(text, comments=True))
        if is_ours(words) and len(words) > 3:
            try:
                parse(words)
            except Exception as error:
                # Sentences name commands without what they need.
                if "Missing" not in str(error) or command in commands(path):
                    wrong.append(f"{path.name}:{command.line}: {command.text}\n    {error}")
    assert not wrong, "\n".join(wrong)


def test_the_table_of_what_is_not_run_is_short_and_needed() -> None:
    everything = [command for found in ALL.values() for command in found]
    assert len(everything) > 100
    for pattern in NOT_RUN:
        assert any(re.search(pattern, " ".join(command.words)) for command in everything), pattern
    run = [c for c in everything if reason_not_to_run(c) is None and c.document not in WHOLE_DOCUMENTS]
    assert len(run) > 0.6 * len(everything)


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for found in ALL.values():
        for command in found:
            if command.words[0] == "make":
                assert re.search(rf"^{command.words[1]}:", makefile, re.MULTILINE), command


# Making the stand-ins.


def draw(path: Path, seed: int, size: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(90, 120, (size, size, 3), dtype=np.uint8)
    pixels[10:26, 10 + seed % 20 : 34 + seed % 20] = 230
    Image.fromarray(pixels).save(path)


def make_plant(folder: Path) -> None:
    for number in range(24):
        draw(folder / "plant" / f"{number}.png", number)
        x = (22 + number % 20) / 64
        (folder / "plant" / f"{number}.txt").write_text(
            "" if number % 4 == 0 else f"0 {x} {18 / 64} 0.375 0.25"
        )
    (folder / "plant" / "classes.txt").write_text("dent\n")
    for number in range(24):
        draw(
            folder / "unlabelled" / ("strip" if number % 2 else "pipe") / f"{number}.png",
            100 + number,
            48 + number,
        )
    draw(folder / "new.jpg", 999)
    draw(folder / "unlabelled" / "pipe" / "copy.png", 1)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the stand-ins of all documents, and the cache that they share."""
    from made_raw import make_raw
    from made_sources import make_source

    from baselines.weights import files
    from benchmark.cli import run_app
    from datasets_builders import load, prepare
    from datasets_builders.corpus import prepare_corpus

    folder = tmp_path_factory.mktemp("documents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGSSP_BENCH_HOME", str(folder / "home"))
        patch.setenv("OMP_NUM_THREADS", "1")
        stand_ins = folder / "stand-ins"
        make_plant(stand_ins)
        make_raw(stand_ins / "made", per_class=4)
        make_source(stand_ins / "made", "aitex")
        for number in range(4):
            draw(stand_ins / "made" / "x_sdd" / "red iron" / f"{number}.png", 200 + number)
            draw(stand_ins / "made" / "gc10_cls224" / "inclusion" / f"{number}.png", 300 + number)
        prepare("neu_det", stand_ins / "made", partial=True)
        prepare_corpus("corpus_x_sdd_gc10", stand_ins / "made", workers=1)
        prepare_corpus("corpus", stand_ins / "made", workers=1)
        (stand_ins / "ids.txt").write_text("\n".join(load("neu_det", "train")["image_id"][:5]))
        for mode in (["scratch"], ["industrial", "--corpus", "corpus_synthetic/n24_k3_s0"]):
            words = [
                "run",
                "--backbone",
                "csp_darknet",
                "--mode",
                *mode,
                "--protocol",
                "mock-v1",
                "--device",
                "cpu",
            ]
            assert run_app([*words, "--results", str(stand_ins / "results")]) == 0
        words = ["anomaly", "--detector", "random", "--dataset", "steel_pipe_toy", "--device", "cpu"]
        assert run_app([*words, "--results", str(stand_ins / "results")]) == 0
        weights = next((folder / "home").rglob("artifacts/**/weights.safetensors"))
        shutil.copy(weights, stand_ins / "weights.safetensors")
        state, header = files.read(weights)
        other = {name: 1.01 * value if value.is_floating_point() else value for name, value in state.items()}
        files.save(stand_ins / "autoencoder.safetensors", other, header or {})
        shutil.copy(next((stand_ins / "results").rglob("last.parquet")), stand_ins)
        yield folder


def replaced(words: list[str], folder: Path) -> list[str]:
    """Returns the words of a command at toy size, its placeholders replaced."""
    records = sorted(str(path.relative_to(folder)) for path in folder.glob("results/mock-v1/*/*seed0*"))
    program, rest = words[2], []
    words = words[: words.index(">")] if ">" in words else words
    own_records = "results-plant" in words
    for word in words[3:]:
        if rest[-1:] == ["--protocol"]:
            word = re.sub("^(mini|paper)(-v1)?$", "mock-v1", word)
        word = re.sub(r"/shared/results", "results", word).replace("mini-v1", "mock-v1")
        word = re.sub(r"^(casting_billet|steel_pipe|gc10)_synthetic$", r"\1_toy", word)
        word = re.sub(r"^(magnetic_tile|neu_det/mini50)$", "steel_pipe_toy", word)
        word = "4" if rest[-1:] == ["--images"] and program == "datasets_builders" else word
        word = "3" if rest[-1:] in (["--categories"],) else word
        if word == "DIR":
            own = next((name for name in rest if "own_" in name), "")
            raw = {"corpus_own": "unlabelled", "own": "plant"}.get(own.rpartition("_")[0], "made")
            word = raw if rest[-1:] == ["--raw"] else "made-out"
        if word == "IMAGE" and rest[0] == "explain":
            word = "validation-000000"
        if not (own_records and word.startswith("mode=")):
            word = STAND_INS.get(word, word).replace("own_NAME", "own_name")
        while rest[-1:] == ["--out"] and (folder / word).exists():
            word = f"{word.rstrip('/')}-again"  # the document shows alternatives
        if RECORDS.search(word):
            if "results-plant" in word:
                (word,) = (str(path) for path in folder.glob(word))
            else:
                word = records[-1] if word.endswith(("OTHER", "_B")) else records[0]
        rest.append(word)
    command = rest[0]
    if command == "anomaly":
        rest = ["steel_pipe_toy" if word == "neu_det" else word for word in rest]
    for word in rest[1:]:
        if word.startswith("maps-") and (folder / "maps").is_dir() and not (folder / word).exists():
            shutil.copytree(folder / "maps", folder / word)  # maps of another source
    if command in ("run", "matrix") and "--protocol" not in rest:
        rest += ["--protocol", "mock-v1"]
    if command == "matrix":
        rest += [] if "--dry-run" in rest else ["--dry-run"]
    if command in (
        "run",
        "anomaly",
        "maps",
        "predict",
        "efficiency",
        "pretrain-backbone",
        "pretrain-detector",
    ):
        rest += [] if "--device" in rest else ["--device", "cpu"]
    if command.startswith("pretrain"):
        rest += ["--recipes", "mock-v1"]
    if command == "run" and "--seeds" not in rest:
        rest += ["--seeds", "0"]
    if command == "prepare" and program == "datasets_builders" and "neu_det" in rest:
        rest.append("--partial")
    if command == "efficiency" and "--backbone" in rest:
        rest[rest.index("--image-size") + 1 : rest.index("--image-size") + 2] = (
            ["64"] if "--image-size" in rest else []
        )
    if command == "submit" and rest[1] == "prepare" and "--protocol" not in rest:
        rest += ["--protocol", "mock-v1", "--device", "cpu"]
    return ["python", "-m", program, *rest]


def run_one(words: list[str]) -> int:
    """Runs a command of this project in this process; returns its exit code."""
    from benchmark.__main__ import spread
    from datasets_builders import cli

    program, rest = words[2], spread(words[3:])
    if program == "benchmark":
        from benchmark.cli import run_app
    elif program == "agssp":
        from agssp.cli import run_app
    else:
        with mock.patch.object(sys, "argv", ["datasets_builders", *words[3:]]):
            try:
                cli.main()
            except SystemExit as leaving:
                return int(leaving.code or 0)
        return 0
    return run_app(rest)


SNIPPETS_NOT_RUN = {"load_dataset(": "needs a Hub: tests/datasets_builders/test_hub_push.py, on loopback"}


def snippets(path: Path) -> list[str]:
    """Returns the Python of a document: fenced blocks, and indented ones that begin with an import."""
    text = path.read_text(encoding="utf-8")
    fenced = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^    (?:from|import) .*\n)(?:^    .*\n|\n(?=    ))*", plain, re.MULTILINE)
    return fenced + [textwrap.dedent(block) for block in indented]


def names_for(text: str, folder: Path) -> dict[str, Any]:
    """Returns what a snippet takes for granted."""
    pixels = [np.random.default_rng(n).integers(0, 255, (64, 80, 3), dtype=np.uint8) for n in range(4)]
    names: dict[str, Any] = {"Path": Path, "normals": pixels, "images": pixels[:2], "work": folder / "work"}
    if "corpus=corpus" in text or "MapSource" in text:
        from agssp.map_sources import AnomalyMaps, MapSource
        from datasets_builders.corpus import load_corpus

        corpus = "corpus_synthetic/n24_k3_s0"
        if not (folder / "maps").exists():
            assert (
                run_one(["python", "-m", "agssp", "maps", corpus, "--maps", "random", "--out", "maps"]) == 0
            )
        (folder / "work").mkdir(exist_ok=True)
        names |= {"corpus": load_corpus(corpus), "folder": folder / "maps"}
        names |= {"AnomalyMaps": AnomalyMaps, "MapSource": MapSource}
    if "load(detector" in text:
        from baselines import backbones
        from baselines.training.detector import new_detector
        from benchmark.protocol import load

        recipe = load("mock-v1").recipe("lite0", "yolov8")
        names["detector"] = new_detector("yolov8", backbones.get("lite0", "std"), 2, recipe)
    return names


def at_toy_size(text: str) -> str:
    """Returns a snippet with toy sizes in place of its own."""
    text = (
        text.replace("mini-v1", "mock-v1")
        .replace("n500_k9_s0", "n24_k3_s0")
        .replace("n2000_k9_s0", "n24_k3_s0")
    )
    return re.sub(r'"corpus_synthetic"', '"corpus_synthetic/n24_k3_s0"', text)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_run(
    path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if path.name in WHOLE_DOCUMENTS:
        pytest.skip(WHOLE_DOCUMENTS[path.name])
    found = [c for c in commands(path) if reason_not_to_run(c) is None]
    texts = [text for text in snippets(path) if not any(word in text for word in SNIPPETS_NOT_RUN)]
    if not found and not texts:
        pytest.skip("nothing to run")
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(work / "home"))
    folder = work / path.name
    shutil.copytree(work / "stand-ins", folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("benchmark.efficiency.BATCHES", (1, 2))
    monkeypatch.setattr("benchmark.efficiency.LEAST_SECONDS", 0.01)
    failed = []
    for command in found:
        words = command.words
        if words[0] in ("mkdir", "cp"):
            subprocess.run(words, check=True)
            continue
        if not is_ours(words):
            failed.append(f"{path.name}:{command.line}: {command.text}\n    neither run nor in NOT_RUN")
            continue
        toy = replaced(words, folder)
        code = run_one(toy)
        output = capfd.readouterr()
        if code != 0:
            said = "\n    ".join((output.err + output.out).strip().splitlines()[-6:])
            failed.append(f"{path.name}:{command.line}: {command.text}\n    as {' '.join(toy)}\n    {said}")
    for text in map(at_toy_size, texts):
        try:
            exec(compile(text, path.name, "exec"), names_for(text, folder))
        except Exception:
            failed.append(f"{path.name}: {text}\n{traceback.format_exc(limit=-3)}")
    assert not failed, "\n\n".join(failed)


def links(path: Path) -> Iterator[tuple[str, str]]:
    """Yields target and anchor of the relative links and images of a document."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target.partition("#")[0], target.partition("#")[2]


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in links(path):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path.name}: {target}"
        assert file.is_relative_to(ROOT), f"{path.name}: {target} leaves the repository"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{path.name}: {target}#{anchor}"


def test_every_document_is_reached_from_the_readme() -> None:
    waiting, seen = [ROOT / "README.md"], set()
    while waiting:
        path = waiting.pop()
        if path not in seen and path.suffix == ".md":
            seen.add(path)
            waiting += [(path.parent / target).resolve() for target, _ in links(path) if target]
    assert {path.name for path in DOCUMENTS} <= {path.name for path in seen}
