"""FD-Dataset: 647 pictures of fabric with holes, stains, cuts and tears, in the owner's split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from datasets_builders.base import DetectionBuilder, RawExample
from datasets_builders.errors import UserError
from datasets_builders.raw_formats import FormatError, read_yolo, read_yolo_names
from datasets_builders.raw_json import read_coco

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
COCO_FILE = "_annotations.coco.json"
# However the owner's list spells them.
NAMES = {
    "hole": "hole",
    "holes": "hole",
    "stain": "stain",
    "stains": "stain",
    "cut": "cut",
    "cuts": "cut",
    "tearcut": "tear_cut",
    "tearcuts": "tear_cut",
}


class Fd(DetectionBuilder):
    """Reads `data.yaml` and for each split `SPLIT/{images,labels}` or `{images,labels}/SPLIT` (YOLO).

    The names in `data.yaml` say what the class numbers mean; their order is not taken for granted. A split that
    holds `_annotations.coco.json` beside its images is read from that instead.
    """

    def read(self, raw: Path) -> Iterator[RawExample]:
        """Lists images with their label files; see `DetectionBuilder.read`."""
        root = self._root(raw)
        for part, split in SPLITS.items():
            coco = root / part / COCO_FILE
            if coco.is_file():
                yield from self._coco(coco, split)
            elif (root / part / "images").is_dir():
                yield from self._yolo(root, root / part / "images", root / part / "labels", split)
            elif (root / "images" / part).is_dir():
                yield from self._yolo(root, root / "images" / part, root / "labels" / part, split)

    def _root(self, raw: Path) -> Path:
        # In this order, because `images` itself is a folder that holds a `train`.
        for entry in ("images/train", "train"):
            try:
                return self.locate(raw, entry)
            except UserError as error:
                missing = error
        raise missing

    def _class_names(self, root: Path) -> dict[int, str]:
        """Reads which class number means what; what cannot be understood is a problem."""
        path = next(iter(sorted(root.glob("*.y*ml"))), root / "data.yaml")
        try:
            return {index: self._canonical(name) for index, name in read_yolo_names(path).items()}
        except FormatError as error:
            self.problems.add("no list of class names", f"{path.name}: {error}")
            return {}

    def _canonical(self, name: str) -> str:
        return NAMES.get("".join(letter for letter in name.lower() if letter.isalpha()), name)

    def _yolo(self, root: Path, images: Path, labels: Path, split: str) -> Iterator[RawExample]:
        names = self._class_names(root)
        pictures, files = self.files(images, *IMAGE_SUFFIXES), self.files(labels, ".txt")
        for stem in sorted(files.keys() - pictures.keys() - {"classes"}):
            self.problems.add("label without image", files[stem].name)
        for stem, picture in pictures.items():
            try:
                objects = read_yolo(files[stem], names) if stem in files else []
            except FormatError as error:
                self.problems.add("unreadable annotation", f"{files[stem].name}: {error}")
                continue
            yield RawExample(stem, picture, objects, split=split, fractions=True, part=split)

    def _coco(self, path: Path, split: str) -> Iterator[RawExample]:
        try:
            found = read_coco(path)
        except FormatError as error:
            self.problems.add("unreadable annotation", f"{path.parent.name}/{path.name}: {error}")
            return
        files = {file.name: file for file in self.files(path.parent, *IMAGE_SUFFIXES).values()}
        for item in found:
            # Only names of this folder are looked up, so that no name leads out of it.
            if item.file_name not in files:
                self.problems.add("annotation without image", item.file_name)
                continue
            objects = [replace(one, category=self._canonical(one.category)) for one in item.objects]
            picture = files.pop(item.file_name)
            yield RawExample(picture.stem, picture, objects, None, item.size, split, part=split)
        for name in sorted(files):
            self.problems.add("image without annotation", name)
