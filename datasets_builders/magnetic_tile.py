"""Magnetic-Tile: 1344 pictures of magnetic tiles in class folders, with a pixel mask each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets_builders.base import DetectionBuilder, RawExample, RawObject
from datasets_builders.components import MIN_PIXELS, connected_components
from datasets_builders.images import ImageError, decode_image, decode_mask
from datasets_builders.near_duplicates import join_groups, near_duplicate_groups, thumbnail

FREE = "MT_Free"
FOLDERS = {
    "MT_Blowhole": "blowhole",
    "MT_Break": "break",
    "MT_Crack": "crack",
    "MT_Fray": "fray",
    "MT_Uneven": "uneven",
    FREE: None,
}
# exp1_num_108719: the tile's number, under one of several exposures.
_TILE = re.compile(r"exp\d+_(num_\d+)$")


class MagneticTile(DetectionBuilder):
    """Reads `MT_X/Imgs/*.jpg` with masks of the same stem; every connected region is an object of class X.

    Mask values over 127 are defect. Regions of fewer than `MIN_PIXELS` pixels are left out, counted. Pictures
    of one tile and near duplicates stay in one split.
    """

    def read(self, raw: Path) -> Iterator[RawExample]:
        """Lists images with their masks; see `DetectionBuilder.read`."""
        root = self.locate(raw, *FOLDERS)
        found = []
        for folder_name, category in FOLDERS.items():
            folder = root / folder_name / "Imgs"
            images, masks = self.files(folder, ".jpg"), self.files(folder, ".png")
            for stem in sorted(images.keys() ^ masks.keys()):
                kind = "image without mask" if stem in images else "mask without image"
                self.problems.add(kind, f"{folder_name}/Imgs/{stem}")
            objects = [RawObject(category, (0, 0, 1, 1))] if category else []
            found += [
                RawExample(stem, images[stem], objects, masks[stem], part=folder_name)
                for stem in sorted(images.keys() & masks.keys())
            ]
        groups = self._groups(found)
        for example in found:
            yield replace(example, group=groups.get(example.image_id))

    def _groups(self, examples: list[RawExample]) -> dict[str, str]:
        """Groups by tile; tiles that share a near duplicate become one."""
        ids, thumbnails = [], []
        for example in examples:
            assert isinstance(example.image, Path), "read lists files"
            try:
                thumbnails.append(thumbnail(decode_image(example.image.read_bytes())))
            except ImageError:
                continue  # `row` names it
            ids.append(example.image_id)
        similar = near_duplicate_groups(ids, thumbnails)
        return join_groups({i: [similar[i], _tile(i)] for i in ids})

    def mend(self, image_id: str, example: RawExample, size: tuple[int, int]) -> RawExample | None:
        """Derives objects and the mask by instance from the owner's mask."""
        assert isinstance(example.mask, Path), "read lists files"
        try:
            found = connected_components(decode_mask(example.mask.read_bytes()) > 127)
        except (ImageError, OSError, ValueError) as error:
            self.problems.add("unreadable mask", f"{image_id}: {error}")
            return None
        for _ in range(found.specks):
            self.cleaning.note(f"region of fewer than {MIN_PIXELS} pixels left out", image_id)
        if not example.objects:
            if found.regions:
                self.problems.add("mask with defects in the folder of those without", image_id)
            return replace(example, mask=np.zeros_like(found.mask))
        if not found.regions:
            self.problems.add("mask without defect in the folder of a class", image_id)
        category = example.objects[0].category
        objects = [RawObject(category, region.bbox, region.area) for region in found.regions]
        return replace(example, objects=objects, mask=found.mask)


def _tile(image_id: str) -> str:
    match = _TILE.match(image_id)
    return match[1] if match else image_id
