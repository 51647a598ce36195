"""GC10-DET: 2300 pictures of steel sheet, 2048 x 1000 pixels, ten kinds of defects; its known faults cleaned."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets_builders.base import DetectionBuilder, RawExample, RawObject
from datasets_builders.images import ImageError, decode_image
from datasets_builders.raw_formats import FormatError, VocAnnotation, read_voc

# The owner's names are numbered pinyin; two spellings of the last one occur.
CLASS_NAMES = {
    "1_chongkong": "punching_hole",
    "2_hanfeng": "welding_line",
    "3_yueyawan": "crescent_gap",
    "4_shuiban": "water_spot",
    "5_youban": "oil_spot",
    "6_siban": "silk_spot",
    "7_yiwu": "inclusion",
    "8_yahen": "rolled_pit",
    "9_zhehen": "crease",
    "10_yaozhe": "waist_folding",
    "10_yaozhed": "waist_folding",
}
MISSPELT = "10_yaozhed"
# Names tell camera, recording and frame: img_01_425382900_00002.
_RECORDING = re.compile(r"img_\d+_(\d+)_\d+$")


class Gc10Det(DetectionBuilder):
    """Reads images of any folder with the VOC file of the same stem, and cleans what is known to be wrong.

    The rules, each counted: `10_yaozhed` is `10_yaozhe`; objects of any other name than the ten are left out;
    an image that lies in several class folders is taken once; an image without any usable box is left out,
    because all pictures of this set show defects, so that it is unlabelled rather than free of them;
    annotations without image are passed over; where a stated size is not the image's, the image's counts;
    swapped edges are put in order; boxes that reach out of the image are cut back, and left out if nothing
    remains; an object that is there twice counts once.

    Images of one recording are frames of the same strip and stay in one split.
    """

    def read(self, raw: Path) -> Iterator[RawExample]:
        """Lists images with their VOC files; see `DetectionBuilder.read`."""
        images = self._images(raw)
        annotations = self._annotations(raw)
        if not images or not annotations:
            self.expect_folder(raw / "lable")
        for stem in sorted(annotations.keys() - images.keys()):
            self.cleaning.note("annotation without image passed over", f"{stem}.xml")
        self._stated: dict[str, tuple[int, int] | None] = {}
        for stem, image in sorted(images.items()):
            try:
                voc = read_voc(annotations[stem]) if stem in annotations else VocAnnotation("", None, [])
            except FormatError as error:
                self.problems.add("unreadable annotation", f"{stem}.xml: {error}")
                continue
            recording = _RECORDING.match(stem)
            self._stated[stem] = voc.size
            yield RawExample(
                stem, image, self._named(stem, voc.objects), group=recording[1] if recording else None
            )

    def _annotations(self, raw: Path) -> dict[str, Path]:
        """Finds the VOC files by stem; copies in several folders must say the same."""
        found: dict[str, Path] = {}
        for path in sorted(raw.rglob("*.xml")):
            if path.name[0] == ".":
                continue
            first = found.setdefault(path.stem, path)
            if first is not path and first.read_bytes() != path.read_bytes():
                self.problems.add("different annotations of one name", f"{first} and {path}")
        return found

    def _images(self, raw: Path) -> dict[str, Path]:
        """Finds the images by stem; copies in several class folders must show the same."""
        copies: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(raw.rglob("*")):
            if path.suffix.lower() in (".jpg", ".jpeg") and path.name[0] != "." and path.is_file():
                copies[path.stem].append(path)
        for stem, (first, *others) in copies.items():
            for other in others:
                try:
                    same = np.array_equal(decode_image(first.read_bytes()), decode_image(other.read_bytes()))
                except ImageError as error:
                    self.problems.add("unreadable image", f"{stem}: {error}")
                    continue
                if same:
                    self.cleaning.note("image in several class folders taken once", stem)
                else:
                    self.problems.add("different images of one name", f"{first} and {other}")
        return {stem: paths[0] for stem, paths in copies.items()}

    def _named(self, stem: str, objects: list[RawObject]) -> list[RawObject]:
        named = []
        for item in objects:
            if item.category not in CLASS_NAMES:
                # Not among the boxes that the owner counts, so not among those that are missed.
                self.cleaning.note("object of a stray class left out", f"{stem}: {item.category!r}")
                continue
            if item.category == MISSPELT:
                self.cleaning.note("misspelt 10_yaozhed read as 10_yaozhe", stem)
            named.append(replace(item, category=CLASS_NAMES[item.category]))
        return named

    def mend(self, image_id: str, example: RawExample, size: tuple[int, int]) -> RawExample | None:
        """Brings boxes into the image; leaves out what cannot be used."""
        if self._stated.get(image_id) not in (None, size):
            self.cleaning.note("stated size is wrong, the image's counts", image_id)
        kept: list[RawObject] = []
        for item in example.objects:
            mended = self.cut_back(image_id, item, size)
            if mended is None:
                self.cleaning.note("box outside the image or empty left out", image_id, boxes=[item.category])
            elif mended in kept:
                self.cleaning.note("object that is there twice counted once", image_id, boxes=[item.category])
            else:
                kept.append(mended)
        if not kept:
            self.cleaning.note("image without any usable box left out", image_id, images=1)
            return None
        return replace(example, objects=kept)
