"""Which pairs are worth a look: nearest neighbours among the vectors of windows (faiss).

Three searches. A query as a whole among the windows of the references finds queries that were cut from a
reference; its windows among whole references find references that were cut from a query; windows among windows
find pictures that overlap, which costs 70 times the first search and is for a dataset against itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import faiss
import numpy as np

from datasets_builders.audit.descriptors import DIMENSIONS, ORIENTATIONS, WINDOWS, describe

MIN_SIMILARITY = 0.55
"""Cosine of two vectors; of a copy cut and re-encoded it is below this in less than 1 % of the cases."""
REFERENCES = 8
"""Most references that are looked at for a query."""
SECOND_START = 0.7
"""A second pair of windows of the same pictures is tried where it is at least this similar."""
_PROBES = 32
_FLAT_BELOW = 20_000
_BATCH = 128


class Candidate(NamedTuple):
    """Two pictures that may show the same, and how.

    Attributes:
        query: Row of the query.
        reference: Row of the reference.
        orientation: How the reference must be turned, index into `ORIENTATIONS`.
        query_window: Index into `WINDOWS`: window of the query.
        reference_window: Index into `WINDOWS`: window of the reference before it is turned.
        similarity: Cosine of their vectors.
    """

    query: int
    reference: int
    orientation: int
    query_window: int
    reference_window: int
    similarity: float


class _Index:
    """A faiss index of the vectors of reference pictures, exact while it is small."""

    def __init__(self, thumbs: np.ndarray, windows: bool) -> None:
        self._per_orientation = len(WINDOWS) if windows else 1
        self._per_image = self._per_orientation * len(ORIENTATIONS)
        total = len(thumbs) * self._per_image
        if total < _FLAT_BELOW:
            self._index: faiss.Index = faiss.IndexFlatIP(DIMENSIONS)
        else:
            cells = int(np.clip(4 * np.sqrt(total), 64, 2048))
            kind = f"IVF{cells},SQ8"
            self._index = faiss.index_factory(DIMENSIONS, kind, faiss.METRIC_INNER_PRODUCT)
            probes = min(_PROBES, max(8, cells // 8))
            faiss.ParameterSpace().set_index_parameter(self._index, "nprobe", probes)
            chosen = np.random.default_rng(0).permutation(len(thumbs))[: 40 * cells // self._per_image + 1]
            self._index.train(self._vectors(thumbs[np.sort(chosen)], windows))
        for start in range(0, len(thumbs), _BATCH):
            self._index.add(self._vectors(thumbs[start : start + _BATCH], windows))

    @staticmethod
    def _vectors(thumbs: np.ndarray, windows: bool) -> np.ndarray:
        return describe(thumbs, windows, orientations=True).reshape(-1, DIMENSIONS)

    def search(
        self, vectors: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns the nearest entries: similarity, reference, orientation, window; each (vectors, count)."""
        similarity, entry = self._index.search(vectors, count)
        similarity[entry < 0] = -1
        reference, rest = np.divmod(entry, self._per_image)
        return similarity, reference, *np.divmod(rest, self._per_orientation)


class CandidateSearch:
    """Finds candidates among reference pictures.

    Memory: 36 kB for each reference, whatever the number of queries.

    Args:
        thumbs: uint16 (references, THUMB, THUMB).
        overlaps: Also look for pictures of which each has a part that the other lacks.
        threads: Threads of the nearest-neighbour search.
    """

    def __init__(self, thumbs: np.ndarray, overlaps: bool, threads: int = 1) -> None:
        faiss.omp_set_num_threads(threads)
        self._overlaps = overlaps
        self._windows = _Index(thumbs, windows=True)
        self._wholes = None if overlaps else _Index(thumbs, windows=False)

    def search(self, thumbs: np.ndarray, first_row: int, itself: bool = False) -> Iterator[list[Candidate]]:
        """Yields, for each query, its candidates, most similar first.

        Args:
            thumbs: uint16 (queries, THUMB, THUMB).
            first_row: Row of the first query.
            itself: The references are the same collection: rows up to the query's own are passed over.
        """
        for start in range(0, len(thumbs), _BATCH):
            vectors = describe(thumbs[start : start + _BATCH], windows=True, orientations=False)[:, 0]
            for offset, found in enumerate(self._search(vectors)):
                row = first_row + start + offset
                yield self._choose(row, found, row + 1 if itself else 0)

    def _search(self, vectors: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the hits of each query: rows of similarity, reference, orientation and the two windows."""
        images, windows, _ = vectors.shape
        flat = vectors.reshape(-1, DIMENSIONS)
        if self._wholes is None:
            # A picture's own windows are among the nearest: room for others beside them.
            tables = [self._table(self._windows.search(flat, 32), np.tile(np.arange(windows), images))]
        else:
            whole = self._windows.search(np.ascontiguousarray(vectors[:, 0]), 64)
            parts = self._wholes.search(flat, 3)
            tables = [
                self._table(whole, np.zeros(images, int)),
                self._table(parts, np.tile(np.arange(windows), images)),
            ]
        for image in range(images):
            yield np.concatenate([table.reshape(images, -1, 5)[image] for table in tables])

    @staticmethod
    def _table(hits: tuple[np.ndarray, ...], query_window: np.ndarray) -> np.ndarray:
        similarity, reference, orientation, window = hits
        queried = np.broadcast_to(query_window[:, None], similarity.shape)
        return np.stack([similarity, reference, orientation, queried, window], axis=-1).astype(np.float64)

    @staticmethod
    def _choose(row: int, found: np.ndarray, from_reference: int) -> list[Candidate]:
        found = found[(found[:, 0] >= MIN_SIMILARITY) & (found[:, 1] >= from_reference)]
        # Ties go to the entry that comes first, so that threads do not decide.
        found = found[np.lexsort((*found.T[:0:-1], -found[:, 0]))]
        chosen: list[Candidate] = []
        starts: dict[int, int] = {}
        for similarity, *place in found:
            reference, orientation, query_window, window = (int(value) for value in place)
            begun = starts.get(reference, 0)
            first = begun == 0 and len(starts) < REFERENCES
            if first or (begun == 1 and similarity >= SECOND_START):
                starts[reference] = begun + 1
                chosen.append(Candidate(row, reference, orientation, query_window, window, float(similarity)))
        return chosen
