"""Corpora: unlabelled images for pretraining, from many owners or generated, as one dataset each.

Importing this package is cheap; `datasets`, PyArrow and NumPy are imported when first needed.

Example:
    >>> from datasets_builders.corpus import load_corpus
    >>> corpus = load_corpus("corpus_x_sdd_gc10")  # doctest: +SKIP
"""

from __future__ import annotations

from datasets_builders.corpus.catalogue import is_corpus, names
from datasets_builders.corpus.prepared import (
    PreparedCorpus,
    fingerprint,
    full_name,
    is_ready,
    load_corpus,
    prepare_corpus,
)

__all__ = [
    "PreparedCorpus",
    "fingerprint",
    "full_name",
    "is_corpus",
    "is_ready",
    "load_corpus",
    "names",
    "prepare_corpus",
]
