"""From candidates to matches: every pair is looked at twice, cheaply and then in full resolution."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from datasets_builders.audit.alignment import Thumb, first_look, prepare_thumb, second_look
from datasets_builders.audit.candidates import Candidate, CandidateSearch
from datasets_builders.audit.descriptors import WHOLE, WINDOWS, Window, even_thumb, orient, orient_window
from datasets_builders.audit.pictures import Collection, grey
from datasets_builders.audit.signatures import Signatures, signatures

FIRST_SCORE = 0.15
"""Score of the first look from which on a pair is looked at in full resolution."""
MIN_SCORE = 0.35
"""Score of a match. Of unrelated pictures that look alike 99.9 % stay under 0.3."""
SAME_FRAMING = 0.96
"""Two pictures show the same cut when each covers at least this share of the other."""
MIN_DETAIL = 0.15
"""Root mean square of the evened squashed picture under which there is nothing to compare."""
_CHUNK, _BATCH = 512, 64

KINDS = {
    "exact": "the same decoded pixels",
    "copy": "the same picture: other encoding or size",
    "turned": "the same picture mirrored or turned",
    "crop": "one is cut from the other",
    "overlap": "each shows a part of the other",
}


@dataclass(frozen=True)
class Match:
    """Two images that show the same.

    Attributes:
        query: Row in the first collection.
        reference: Row in the second.
        kind: A key of `KINDS`.
        score: Median correlation of texture over the tiles of the common part, up to 1; 1 for `exact`.
        orientation: How the reference must be turned to look like the query, index into `ORIENTATIONS`.
        window: Where the query lies in the turned reference, as fractions of it; may reach beyond it.
    """

    query: int
    reference: int
    kind: str
    score: float
    orientation: int
    window: Window

    @property
    def covers_reference(self) -> float:
        """Share of the reference's area that the query shows."""
        return _inner(self.window)

    @property
    def covers_query(self) -> float:
        """Share of the query's area that the reference shows."""
        return _inner(self.window) / (self.window.width * self.window.height)


def _inner(window: Window) -> float:
    """Returns the area of a window's part inside the unit square."""
    sides = (
        max(0.0, min(1.0, start + length) - max(0.0, start))
        for start, length in ((window.x, window.width), (window.y, window.height))
    )
    return float(np.prod(list(sides)))


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        matches: Matches, by query and reference.
        blank: Rows of queries and of references without detail, which only an exact copy could match.
        compared: Number of pairs that were aligned.
    """

    matches: list[Match]
    blank: tuple[list[int], list[int]]
    compared: int


class Verifier:
    """Looks at candidates.

    Args:
        queries: First collection, with its signatures.
        references: Second collection, with its signatures.
    """

    def __init__(
        self, queries: tuple[Collection, Signatures], references: tuple[Collection, Signatures]
    ) -> None:
        self._queries, self._query_signatures = queries
        self._references, self._reference_signatures = references
        self._reference = lru_cache(4096)(self._prepare_reference)
        self._query_pixels = lru_cache(4)(lambda row: grey(self._queries.pixels(row)))
        self._reference_pixels = lru_cache(64)(lambda row: grey(self._references.pixels(row)))

    def _prepare_reference(self, row: int, orientation: int) -> Thumb:
        return prepare_thumb(orient(np.asarray(self._reference_signatures.thumbs[row]), orientation))

    def verify(self, candidates: list[Candidate]) -> list[Match]:
        """Returns the matches among the candidates of one query: the best of each reference."""
        if not candidates:
            return []
        query = prepare_thumb(np.asarray(self._query_signatures.thumbs[candidates[0].query]))
        best: dict[int, Match] = {}
        for candidate in candidates:
            known = best.get(candidate.reference)
            if known is None:
                match = self._verify(query, candidate)
                if match is not None:
                    best[candidate.reference] = match
        return [best[reference] for reference in sorted(best)]

    def _verify(self, query: Thumb, candidate: Candidate) -> Match | None:
        reference = self._reference(candidate.reference, candidate.orientation)
        ours = WINDOWS[candidate.query_window]
        theirs = orient_window(WINDOWS[candidate.reference_window], candidate.orientation)
        first = first_look(query, reference, ours, theirs)
        if first.score < FIRST_SCORE:
            return None
        turned = orient(self._reference_pixels(candidate.reference), candidate.orientation)
        second = second_look(self._query_pixels(candidate.query), turned, ours, first.window)
        if second.score < MIN_SCORE:
            return None
        # The frame is a window of the query: the whole query is that much larger.
        width, height = second.window.width / ours.width, second.window.height / ours.height
        window = Window(second.window.x - ours.x * width, second.window.y - ours.y * height, width, height)
        match = Match(candidate.query, candidate.reference, "", second.score, candidate.orientation, window)
        return replace(match, kind=_kind(match))


def _kind(match: Match) -> str:
    smaller, larger = sorted((match.covers_query, match.covers_reference))
    if smaller >= SAME_FRAMING:
        return "turned" if match.orientation else "copy"
    return "crop" if larger >= SAME_FRAMING else "overlap"


def blank_rows(prints: Signatures) -> list[int]:
    """Returns the rows of pictures without detail."""
    return [row for row, thumb in enumerate(prints.thumbs) if even_thumb(thumb).std() < MIN_DETAIL]


def _exact(queries: Signatures, references: Signatures, itself: bool) -> list[Match]:
    rows = defaultdict(list)
    for row, digest in enumerate(references.hashes):
        rows[digest.tobytes()].append(row)
    return [
        Match(query, reference, "exact", 1.0, 0, WHOLE)
        for query, digest in enumerate(queries.hashes)
        for reference in rows.get(digest.tobytes(), ())
        if not itself or reference > query
    ]


def find_matches(
    queries: Collection, references: Collection, workers: int = 1, overlaps: bool = False
) -> Found:
    """Finds images of one collection that show the same as images of another, or of itself.

    Args:
        queries: First collection, of any size.
        references: Second collection; the memory needed grows with it. The same object: every pair of it is
            looked for once.
        workers: Processes.
        overlaps: Also look for pictures of which each has a part that the other lacks; slower. Without it
            such pairs are found by chance only.
    """
    itself = queries is references
    ours = signatures(queries, workers)
    theirs = ours if itself else signatures(references, workers)
    blank = blank_rows(ours), blank_rows(theirs)
    exact = _exact(ours, theirs, itself)
    known = {(match.query, match.reference) for match in exact}
    skip_queries, skip_references = set(blank[0]), set(blank[1])
    search = CandidateSearch(theirs.thumbs, overlaps=overlaps, threads=workers)

    def candidates() -> Iterator[list[Candidate]]:
        for start in range(0, len(queries), _CHUNK):
            for found in search.search(ours.thumbs[start : start + _CHUNK], start, itself):
                yield [
                    candidate
                    for candidate in found
                    if candidate.query not in skip_queries
                    and candidate.reference not in skip_references
                    and (candidate.query, candidate.reference) not in known
                ]

    matches, compared = list(exact), 0
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"Comparing with {references.name}", total=len(queries))
        for checked in _checked((queries, ours), (references, theirs), candidates(), workers):
            matches += checked.matches
            compared += checked.pairs
            bar.advance(task, checked.queries)
    matches.sort(key=lambda match: (match.query, match.reference))
    return Found(matches, blank, compared)


class _Checked(NamedTuple):
    """What became of a batch: its matches, and its numbers of queries and of pairs."""

    matches: list[Match]
    queries: int
    pairs: int


_verifier: Verifier | None = None


def _open(queries: Collection, references: Collection) -> None:
    """Makes a worker's verifier; the signatures are on disk by now."""
    global _verifier
    _verifier = Verifier((queries, signatures(queries)), (references, signatures(references)))


def _in_worker(batch: list[list[Candidate]]) -> _Checked:
    assert _verifier is not None
    return _check(_verifier, batch)


def _check(verifier: Verifier, batch: list[list[Candidate]]) -> _Checked:
    matches = [match for candidates in batch for match in verifier.verify(candidates)]
    return _Checked(matches, len(batch), sum(len(candidates) for candidates in batch))


def _batches(candidates: Iterator[list[Candidate]]) -> Iterator[list[list[Candidate]]]:
    while batch := list(islice(candidates, _BATCH)):
        yield batch


def _checked(
    queries: tuple[Collection, Signatures],
    references: tuple[Collection, Signatures],
    candidates: Iterator[list[Candidate]],
    workers: int,
) -> Iterator[_Checked]:
    """Looks at the candidates of every query, batch by batch, while the next ones are being searched."""
    batches = _batches(candidates)
    if workers == 1 or len(queries[0]) <= _CHUNK:
        verifier = Verifier(queries, references)
        for batch in batches:
            yield _check(verifier, batch)
        return
    # Fresh interpreters, as for the signatures.
    with ProcessPoolExecutor(workers, get_context("spawn"), _open, (queries[0], references[0])) as pool:
        waiting = [pool.submit(_in_worker, batch) for batch in islice(batches, 4 * workers)]
        while waiting:
            done = waiting.pop(0)
            waiting += [pool.submit(_in_worker, batch) for batch in islice(batches, 1)]
            yield done.result()
