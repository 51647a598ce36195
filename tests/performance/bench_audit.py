"""Measures the overlap audit on made truth: recall by kind of copy, false pairs, and CPU time at scale.

    python tests/performance/bench_audit.py [--references 2000] [--queries 100] [--seed 1] [--sheet FILE]

References are procedural surfaces and, where the public raw data is at hand ($AGSSP_BENCH_TEST_DATA), NEU-DET,
X-SDD and GC10 in equal parts. Queries are copies of references (and originals of which a reference was cut),
and pictures that are not among the references but of the same classes: of these any match is a false one, or
a real overlap that the sheet shows. CPU seconds are of one core; they hold on a loaded machine too.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets_builders.audit.matching import Match
    from datasets_builders.audit.pictures import Collection

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "datasets_builders"))
DATA = Path(os.environ.get("AGSSP_BENCH_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
RAW = {"neu_det": "neu_det", "x_sdd": "x_sdd", "gc10": "gc10_cls224"}
CORPUS, DATASET, CORES = 120_000, 2_000, 2


def pools(count: int, rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Returns `count` pictures of every source, by name, in random order."""
    from datasets_builders.corpus import load_corpus
    from datasets_builders.images import decode_image

    found = {}
    for name, folder in RAW.items():
        files = sorted(p for p in (DATA / "raw" / folder).rglob("*") if p.suffix in (".jpg", ".jpeg"))
        if files:
            chosen = rng.permutation(len(files))[:count]
            found[name] = {f"{name}/{files[i].stem}": decode_image(files[i].read_bytes()) for i in chosen}
    corpus = load_corpus(f"corpus_synthetic/n{min(count, 800)}_k9_s{int(rng.integers(1000))}")
    order = rng.permutation(len(corpus))
    found["procedural"] = {f"procedural/{i}": np.asarray(corpus[int(i)]["image"]) for i in order}
    return found


def main() -> None:
    """Runs the measurement and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--references", type=int, default=DATASET)
    parser.add_argument("--queries", type=int, default=100, help="of each kind of copy, and source")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="PNG of the matches of unrelated pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["AGSSP_BENCH_HOME"] = home
        measure(options.references, options.queries, options.seed, options.sheet)


def measure(total: int, per_kind: int, seed: int, sheet_file: Path | None) -> None:
    """Builds references and queries, searches, and prints recall, false pairs and times."""
    import cv2
    from made_copies import COPIERS, collection, cropped

    from datasets_builders.audit.matching import Found
    from datasets_builders.audit.report import Audit
    from datasets_builders.audit.sheet import sheet

    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    sources = pools(2 * total // (len(RAW) + 1) + 400, rng)
    references: dict[str, np.ndarray] = {}
    queries: dict[str, np.ndarray] = {}
    truth: dict[str, tuple[str, str, str | None]] = {}
    share = total // len(sources)
    for source, images in sources.items():
        names = list(images)
        kept = min(share, len(names) * 2 // 3)
        used, outside = names[:kept], names[kept:]
        originals, unrelated = outside[: min(per_kind, len(outside) // 3)], outside[len(outside) // 3 :]
        references |= {name: images[name] for name in used[: kept - len(originals)]}
        for kind, copier in COPIERS.items():
            for name in rng.permutation(used[: kept - len(originals)])[:per_kind]:
                key = f"{kind} of {name}"
                queries[key] = copier(images[name], rng)
                truth[key] = (kind, source, f"{name}")
        for name in originals:
            references[f"cut of {name}"] = cropped(images[name], rng)
            queries[name] = images[name]
            truth[name] = ("reference is cropped", source, f"cut of {name}")
        for name in unrelated[: 4 * per_kind]:
            queries[name] = images[name]
            truth[name] = ("unrelated", source, None)
    first, second = collection("queries", queries), collection("references", references)
    cost, matches, aligned = timed(first, second)
    by_query = defaultdict(list)
    for match in matches:
        by_query[first.image_id(match.query)].append(second.image_id(match.reference))

    kinds = list(dict.fromkeys(kind for kind, _, _ in truth.values()))
    say(f"{len(references)} references, {len(queries)} queries, {aligned} pairs aligned")
    say(f"{'':22}" + "".join(f"{source:>20}" for source in [*sources, "all"]))
    for kind in kinds:
        line = f"{kind:22}"
        for source in [*sources, None]:
            hits = [
                (bool(by_query[key]) if wanted is None else wanted in by_query[key])
                for key, (is_kind, is_source, wanted) in truth.items()
                if is_kind == kind and source in (None, is_source)
            ]
            line += f"{f'{np.mean(hits):.1%} of {len(hits)}' if hits else '-':>20}"
        say(line + ("   any match: false, or a real overlap" if kind == "unrelated" else ""))
    suspects = [m for m in matches if truth[first.image_id(m.query)][2] is None]
    for match in suspects:
        say(
            f"  unrelated? {first.image_id(match.query)} ~ {second.image_id(match.reference)}: {match.kind}, "
            f"score {match.score:.2f}"
        )
    if sheet_file and suspects:
        sheet(Audit(first, second, Found(suspects, ([], []), 0)), 40).save(sheet_file)
    say_cost(cost, len(queries), len(references))


def timed(first: Collection, second: Collection) -> tuple[dict[str, float], list[Match], int]:
    """Searches on one core; returns the CPU seconds of each stage, the matches, and the pairs aligned."""
    from datasets_builders.audit.candidates import CandidateSearch
    from datasets_builders.audit.matching import Verifier
    from datasets_builders.audit.signatures import signatures

    cost: dict[str, float] = {}

    def lap(name: str) -> None:
        cost[name] = time.process_time() - sum(cost.values()) - started

    started = time.process_time()
    theirs = signatures(second)
    lap("reading references")
    ours = signatures(first)
    lap("reading queries")
    search = CandidateSearch(theirs.thumbs, overlaps=False)
    lap("index")
    candidates = list(search.search(ours.thumbs, 0))
    lap("search")
    verifier = Verifier((first, ours), (second, theirs))
    matches = [match for found in candidates for match in verifier.verify(found)]
    lap("alignment")
    return cost, matches, sum(len(found) for found in candidates)


def say_cost(cost: dict[str, float], queries: int, references: int) -> None:
    """Prints the CPU time of a query, and what it makes at full scale."""
    say("CPU seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in cost.items()))
    per_query = {name: cost[name] / queries for name in ("reading queries", "search", "alignment")}
    say("ms a query: " + ", ".join(f"{name} {value * 1e3:.2f}" for name, value in per_query.items()))
    once = cost["reading references"] + cost["index"]
    total = sum(per_query.values()) * CORPUS + once * DATASET / references
    say(
        f"{CORPUS} x {DATASET}: {total:.0f} CPU seconds, {total / CORES / 60:.1f} minutes on {CORES} cores; "
        f"peak memory here {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )


def say(line: str) -> None:
    """Prints a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
