"""Which images serve as normal samples: a list, labels, or an automatic choice; always exactly k of each category.

Every choice depends on the image ids, the seed, and (automatic) what the source says of the images; never on the
order of the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agssp.map_inputs import Images, MapInput
from agssp.map_sources import ChoosesNormals, MapSource
from datasets_builders.content import hash_rank
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

POOL = 64
"""Images of a category that the automatic choice looks at, drawn by the seed."""
TYPICAL = 4
"""Of these, so many for each sample wanted are short-listed: the least anomalous ones."""
NEIGHBOURS = 8
"""A source that cannot tell defects without samples takes the images that are closest to so many others."""
MAX_LIST_BYTES = 2**26

Decode = Callable[[Sequence[int]], list[MapInput]]


class Rule:
    """How normal samples are chosen.

    Attributes:
        name: `auto`, `labelled` or `list`.
        listed: Image ids of a `list`.
    """

    def __init__(self, text: str) -> None:
        """Takes what `--normals` says.

        Args:
            text: `auto`, `labelled`, or the path of a text file with one image id a line.

        Raises:
            UserError: The file cannot be read.
        """
        self.name = text if text in ("auto", "labelled") else "list"
        self.listed = _read_list(Path(text)) if self.name == "list" else []

    def identity(self) -> dict[str, str]:
        """Returns what of the rule changes the choice."""
        found = {"rule": self.name}
        if self.name == "list":
            found["ids"] = content_key(sorted(self.listed))
        return found


def _read_list(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise UserError(
                f"--normals {path}: larger than {MAX_LIST_BYTES} bytes; it should list image ids."
            )
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--normals {path}: cannot be read ({error}). Give auto, labelled, or a text file with one image id a line."
        ) from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def choose(
    rule: Rule, shots: int, seed: int, images: Images, source: MapSource, decode: Decode
) -> dict[str, list[str]]:
    """Chooses the normal samples of every category.

    Args:
        rule: How.
        shots: How many of each category.
        seed: Decides between images that are equally good.
        images: All images.
        source: Its opinion counts in the automatic choice.
        decode: Reads and decodes images by their rows.

    Returns:
        Category -> `shots` image ids.

    Raises:
        UserError: There are not enough, or a listed image is not there.
    """
    names = sorted(set(images.categories))
    if shots == 0:
        return {name: [] for name in names}
    rows = _ranked_rows(images, seed)
    if rule.name == "auto":
        if not isinstance(source, ChoosesNormals):
            raise UserError(f"{source.name} cannot choose normal images. Give --normals labelled or a file.")
        return {name: _automatic(name, rows[name], shots, images, source, decode) for name in names}
    if rule.name == "labelled":
        allowed, origin = set(images.labelled_normals()), "without objects"
    else:
        allowed, origin = set(rule.listed), "in the list"
        if unknown := sorted(allowed - set(images.ids)):
            raise UserError(
                f"--normals lists {len(unknown)} images that {images.name} ({images.split}) does not have, such as "
                f"{', '.join(unknown[:3])}."
            )
    chosen = {}
    for name in names:
        fitting = [images.ids[row] for row in rows[name] if images.ids[row] in allowed]
        if len(fitting) < shots:
            raise UserError(
                f"{images.name} ({images.split}): category {name} has {len(fitting)} images {origin}, "
                f"{shots} are wanted. Give fewer --shots, or other --normals."
            )
        chosen[name] = fitting[:shots]
    return chosen


def _ranked_rows(images: Images, seed: int) -> dict[str, list[int]]:
    """Returns the rows of each category in an order that the seed and the image ids decide."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(images.categories):
        rows.setdefault(name, []).append(row)
    return {
        name: sorted(places, key=lambda row: hash_rank(f"normals {seed}", images.ids[row]))
        for name, places in rows.items()
    }


def _automatic(
    category: str, ranked: list[int], shots: int, images: Images, source: ChoosesNormals, decode: Decode
) -> list[str]:
    """Chooses among the first `POOL` rows: the least anomalous are short-listed, the most different of these taken."""
    pool = ranked[:POOL]
    if len(pool) < shots:
        raise UserError(
            f"{images.name} ({images.split}): category {category} has {len(pool)} images, "
            f"{shots} normal ones are wanted. Give fewer --shots."
        )
    scores = _ratings(category, pool, source, decode)
    if scores is not None:
        order = np.argsort(scores, kind="stable")[: TYPICAL * shots]
        features = np.concatenate(
            [source.embed(batch) for batch in _batches([pool[i] for i in order], decode)]
        )
    else:
        every = np.concatenate([source.embed(batch) for batch in _batches(pool, decode)])
        order = np.argsort(loneliness(every), kind="stable")[: TYPICAL * shots]
        features = every[order]
    return [images.ids[pool[order[place]]] for place in most_different(features, shots)]


def _ratings(
    category: str, rows: list[int], source: ChoosesNormals, decode: Decode
) -> NDArray[np.float32] | None:
    """Returns how anomalous the source finds each image, (N,); None where it cannot tell, asked once."""
    parts = []
    for batch in _batches(rows, decode):
        part = source.rate(category, batch)
        if part is None:
            return None
        parts.append(part)
    return np.concatenate(parts)


def _batches(rows: list[int], decode: Decode) -> Iterator[list[MapInput]]:
    for start in range(0, len(rows), 8):
        yield decode(rows[start : start + 8])


def loneliness(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns each image's mean cosine distance to the `NEIGHBOURS` images closest to it.

    Args:
        features: (N, D) normalised.

    Returns:
        (N,), in [0, 2]; lowest where many images are alike.
    """
    distances = 1 - features @ features.T
    np.fill_diagonal(distances, np.inf)
    nearest = min(NEIGHBOURS, len(features) - 1)
    return (
        np.sort(distances, axis=1)[:, :nearest].mean(axis=1)
        if nearest
        else np.zeros(len(features), np.float32)
    )


def most_different(features: NDArray[np.float32], count: int) -> list[int]:
    """Chooses images that differ: the first one, then always the one farthest from all chosen.

    Args:
        features: (N, D) normalised, N >= count.
        count: How many.

    Returns:
        Their places; of equally far ones the first.
    """
    chosen = [0]
    nearest = 1 - features @ features[0]
    while len(chosen) < count:
        nearest[chosen] = -np.inf
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, 1 - features @ features[chosen[-1]])
    return chosen
