"""Finds all pictures of NEU-DET that share metal, and writes the groups that its split keeps together.

    python tests/performance/group_neu_det.py --out datasets_builders/neu_det_groups.json

Every two pictures of a class are compared, in all orientations and at every whole-pixel shift of the squashed
pictures that leaves `MIN_SHARE` of them in common; the audit's second look then decides. The scale is fixed, since
NEU-DET's pictures were all cut from larger ones at the same scale. Takes about ten minutes of one core. The
dataset must be prepared; how it is split does not matter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.fft

from datasets_builders.audit.alignment import _texture, second_look
from datasets_builders.audit.descriptors import ORIENTATIONS, THUMB, Window, even_thumb, orient
from datasets_builders.audit.matching import MIN_SCORE
from datasets_builders.audit.pictures import grey, open_dataset
from datasets_builders.audit.signatures import signatures
from datasets_builders.storage import atomic_file

MIN_SHARE = 0.3
MIN_PEAK = 12
"""Correlation times the root of the common pixels: unrelated pictures stay under it, see docs/audit.md."""
SIDE = 96
"""Side of the transforms: shifts of up to half of it are told apart."""
AT_ONCE = 10


class Peak(NamedTuple):
    """The best shift of two pictures in one orientation; rows of the dataset, shifts in pixels of the thumbs."""

    first: int
    second: int
    orientation: int
    right: int
    down: int


def texture(thumb: np.ndarray) -> np.ndarray:
    """Returns a squashed picture's texture, of mean 0 and deviation 1, float32 (THUMB, THUMB)."""
    picture = _texture(even_thumb(thumb) * THUMB)
    picture = picture - picture.mean()
    return (picture / (picture.std() + 1e-6)).astype(np.float32)


def peaks(textures: np.ndarray, rows: np.ndarray) -> Iterator[Peak]:
    """Yields the peaks of every two pictures of a class, those of the best two orientations."""
    shift = np.abs(np.fft.fftfreq(SIDE, 1 / SIDE)) * np.where(np.arange(SIDE) <= SIDE // 2, 1, -1)
    common = np.outer(*2 * [np.clip(THUMB - np.abs(shift), 0, None)])
    enough = common >= MIN_SHARE * THUMB**2
    weight = np.where(enough, 1 / np.sqrt(np.maximum(common, 1)), 0).astype(np.float32)
    first = np.conj(scipy.fft.rfft2(textures, s=(SIDE, SIDE)))
    turned = [np.stack([orient(picture, o) for picture in textures]) for o in range(len(ORIENTATIONS))]
    second = np.stack([scipy.fft.rfft2(pictures, s=(SIDE, SIDE)) for pictures in turned], axis=1)
    for a in range(len(rows)):
        for start in range(a + 1, len(rows), AT_ONCE):
            product = first[a] * second[start : start + AT_ONCE]
            correlation = scipy.fft.irfft2(product, s=(SIDE, SIDE)) * weight
            flat = correlation.reshape(*correlation.shape[:2], -1)
            places, heights = flat.argmax(-1), flat.max(-1)
            for b, height in enumerate(heights):
                for orientation in np.argsort(-height)[:2]:
                    if height[orientation] >= MIN_PEAK:
                        down, right = (int(shift[k]) for k in divmod(places[b, orientation], SIDE))
                        yield Peak(rows[a], rows[start + b], int(orientation), right, down)


def windows(peak: Peak) -> tuple[Window, Window]:
    """Returns the common part in the first and in the turned second picture."""
    width, height = (THUMB - abs(peak.right)) / THUMB, (THUMB - abs(peak.down)) / THUMB
    ours = Window(max(0, -peak.right) / THUMB, max(0, -peak.down) / THUMB, width, height)
    theirs = Window(max(0, peak.right) / THUMB, max(0, peak.down) / THUMB, width, height)
    return ours, theirs


def groups(pairs: list[tuple[str, str]]) -> list[list[str]]:
    """Returns the images that hang together by pairs, in the order of their numbers."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for first, second in pairs:
        parent[root(first)] = root(second)
    members = defaultdict(list)
    for name in parent:
        members[root(name)].append(name)

    def by_number(name: str) -> tuple[str, int]:
        kind, _, number = name.rpartition("_")
        return kind, int(number)

    found = [sorted(names, key=by_number) for names in members.values()]
    return sorted(found, key=lambda names: by_number(names[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    collection = open_dataset("neu_det")
    thumbs = signatures(collection).thumbs
    names = [collection.image_id(row) for row in range(len(collection))]
    kinds = np.array([name.rpartition("_")[0] for name in names])
    pictures = [grey(collection.pixels(row)) for row in range(len(names))]
    pairs: dict[tuple[str, str], float] = {}
    for kind in sorted(set(kinds)):
        rows = np.flatnonzero(kinds == kind)
        for peak in peaks(np.stack([texture(thumbs[row]) for row in rows]), rows):
            ours, theirs = windows(peak)
            if min(ours.width, ours.height) < MIN_SHARE:
                continue  # too narrow to be aligned
            turned = orient(pictures[peak.second], peak.orientation)
            score = second_look(pictures[peak.first], turned, ours, theirs).score
            if score >= MIN_SCORE:
                pair = names[peak.first], names[peak.second]
                pairs[pair] = max(score, pairs.get(pair, -1.0))
        sys.stderr.write(f"{kind}: {len(pairs)} pairs so far\n")
    found = groups(list(pairs))
    with atomic_file(arguments.out) as temporary:
        lines = ",\n".join(json.dumps(group) for group in found)
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    sys.stdout.write(f"{len(pairs)} pairs, {len(found)} groups of {sum(map(len, found))} pictures\n")


if __name__ == "__main__":
    main()
