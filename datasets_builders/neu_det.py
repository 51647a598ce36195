"""NEU-DET: 1800 pictures of hot-rolled steel strip, 200 x 200 pixels, six kinds of defects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import datasets

from datasets_builders.base import DetectionBuilder, RawExample
from datasets_builders.raw_formats import FormatError, read_voc

# Images folder, annotations folder, and whether it must be there. All of them form one pool, because the 30
# images that one re-upload sets aside are too few to tell two models apart.
FOLDERS = (("IMAGES", "ANNOTATIONS", True), ("Validation_Images", "Validation_Annotations", False))
MASKS_FOLDER = "sd900_masks"
MASK_PREFIXES = {"In": "inclusion", "Pa": "patches", "Sc": "scratches"}


# Pictures that show the same metal, to 30 % of their area or more, directly or from one to the next: one group
# stays in one split. How they were found, comparing every two pictures of a class: docs/audit.md.
GROUPS_FILE = Path(__file__).with_name("neu_det_groups.json")


class NeuDet(DetectionBuilder):
    """Reads NEU-DET, with the pixel masks of SD-saliency-900 where they lie in or beside the raw folder."""

    VERSION = datasets.Version("3.0.0")  # 2, 3: pictures of the same metal stay in one split

    def read(self, raw: Path) -> Iterator[RawExample]:
        """Lists images with their VOC files; see `DetectionBuilder.read`."""
        masks = self._masks(raw)
        groups = {
            stem: members[0]
            for members in json.loads(GROUPS_FILE.read_text(encoding="utf-8"))
            for stem in members
        }
        for images_folder, annotations_folder, required in FOLDERS:
            if not required and not (raw / images_folder).exists():
                continue
            images = self.files(raw / images_folder, ".jpg")
            annotations = self.files(raw / annotations_folder, ".xml")
            for stem in sorted(images.keys() - annotations.keys()):
                self.problems.add("image without annotation", f"{images_folder}/{images[stem].name}")
            for stem in sorted(annotations.keys() - images.keys()):
                self.problems.add(
                    "annotation without image", f"{annotations_folder}/{annotations[stem].name}"
                )
            for stem in sorted(images.keys() & annotations.keys()):
                try:
                    voc = read_voc(annotations[stem])
                except FormatError as error:
                    self.problems.add("unreadable annotation", f"{annotations_folder}/{stem}.xml: {error}")
                    continue
                if Path(voc.filename).stem != stem:
                    detail = f"{annotations_folder}/{stem}.xml is of {voc.filename!r}"
                    self.problems.add("annotation of another image", detail)
                yield RawExample(
                    stem, images[stem], voc.objects, masks.get(stem), voc.size, group=groups.get(stem)
                )

    def _masks(self, raw: Path) -> dict[str, Path]:
        """Finds the mask files: image id -> `In_N`, `Pa_N` or `Sc_N`."""
        folder = next((f for f in (raw / MASKS_FOLDER, raw.parent / MASKS_FOLDER) if f.is_dir()), None)
        found = {}
        for path in sorted(folder.rglob("*.png")) if folder else ():
            prefix, _, number = path.stem.partition("_")
            if prefix in MASK_PREFIXES:
                found[f"{MASK_PREFIXES[prefix]}_{number}"] = path
        return found
