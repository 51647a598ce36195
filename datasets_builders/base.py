"""What every builder of a detection dataset shares: checks, ids, splits, and the Arrow rows."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich.console import Console
from rich.progress import track

from datasets_builders.content import hash_split
from datasets_builders.errors import UserError
from datasets_builders.findings import Cleaning, Problems
from datasets_builders.images import ImageError, decode_mask, encode_png, plain_bytes
from datasets_builders.registry import DatasetCard
from datasets_builders.schema import SPLITS, detection_features

# Boxes written as rounded fractions of the image's size may stick out by this much; they are cut back.
ROUNDING_PIXELS = 0.05
# For streaming, `datasets` replaces `open`, `pathlib.Path`, `numpy.load` and others in the module of every
# builder that is instantiated, for good. These builders read local files; this mark, its own, says that a
# module is done.
_patched_for_streaming = True


@dataclass(frozen=True)
class RawObject:
    """One annotated defect: class name, `[x, y, width, height]` in pixels, and mask pixels where known."""

    category: str
    bbox: tuple[float, float, float, float]
    area: float | None = None


@dataclass(frozen=True)
class RawExample:
    """One image as its owner publishes it, not yet checked.

    Attributes:
        image_id: Unique in the dataset; usually the file's stem.
        image: The image file, or its bytes.
        objects: Its defects, in the order of the annotation.
        mask: Mask file, its bytes, or uint8 pixels (height, width); None where there is none.
        size: (width, height) that the annotation states, to be compared with the image; None to skip that.
        split: The owner's split; None lets the hash of the image id decide.
        group: Images of one group stay in one split; None for the image alone.
        fractions: The boxes are fractions of the image's width and height instead of pixels.
        part: The owner's part of the dataset that it belongs to, to be counted (`Counts.parts`).
    """

    image_id: str
    image: Path | bytes
    objects: Sequence[RawObject] = ()
    mask: Path | bytes | np.ndarray | None = None
    size: tuple[int, int] | None = None
    split: str | None = None
    group: str | None = None
    fractions: bool = False
    part: str | None = None


def _in_pixels(item: RawObject, size: tuple[int, int]) -> RawObject:
    x, y, width, height = item.bbox
    return replace(item, bbox=(x * size[0], y * size[1], width * size[0], height * size[1]))


def _content(source: Path | bytes) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else source


class DetectionBuilder(datasets.GeneratorBasedBuilder):
    """Base of all builders. A concrete one says in `read` how to read the owner's layout, and nothing else.

    Attributes:
        card: The dataset's card.
        raw: The raw folder.
        problems: What is wrong with it; filled while reading and while the rows are made.
        cleaning: What stated rules changed; filled likewise.
        parts: Number of images in each of the owner's parts, before anything is left out by `row`.
    """

    VERSION = datasets.Version("1.0.0")
    # Rows held in memory before they are written; images are large.
    DEFAULT_WRITER_BATCH_SIZE = 64

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        sys.modules[cls.__module__]._patched_for_streaming = True  # type: ignore[attr-defined]

    def __init__(self, card: DatasetCard, raw: Path | None, cache_dir: Path) -> None:
        self.card = card
        self.raw = raw
        self.problems = Problems()
        self.cleaning = Cleaning()
        self.parts: Counter[str] = Counter()
        self._category = {name: index for index, name in enumerate(card.classes)}
        super().__init__(cache_dir=str(cache_dir), dataset_name=card.name)

    def read(self, raw: Path) -> Iterable[RawExample]:
        """Lists the raw folder's images with their annotations, in any order, without decoding images.

        What cannot be read goes to `self.problems`; a folder that is not the expected layout at all raises,
        see `expect_folder`.
        """
        raise NotImplementedError

    def mend(self, image_id: str, example: RawExample, size: tuple[int, int]) -> RawExample | None:
        """Applies the dataset's own cleaning rules to an example, its boxes in pixels; None leaves it out.

        Everything done here is noted in `self.cleaning`. Most datasets need nothing.
        """
        return example

    def cut_back(self, image_id: str, item: RawObject, size: tuple[int, int]) -> RawObject | None:
        """Returns an object with its box, in pixels, put in order and cut back to the image; None if nothing remains.

        For `mend`; what it does is noted in `self.cleaning`.
        """
        x, y, width, height = item.bbox
        left, right = sorted((x, x + width))
        top, bottom = sorted((y, y + height))
        if width < 0 or height < 0:
            self.cleaning.note("swapped edges of a box put in order", image_id)
        cut = max(left, 0.0), max(top, 0.0), min(right, float(size[0])), min(bottom, float(size[1]))
        if not (cut[0] < cut[2] and cut[1] < cut[3]):
            return None
        if cut != (left, top, right, bottom):
            self.cleaning.note("box cut back to the image", image_id)
        return replace(item, bbox=(cut[0], cut[1], cut[2] - cut[0], cut[3] - cut[1]))

    @classmethod
    def revision(cls, card: DatasetCard) -> str:
        """Returns the version of the reading rules; a prepared dataset of another one is built again."""
        return str(cls.VERSION)

    def locate(self, raw: Path, *entries: str) -> Path:
        """Returns the folder that holds all of `entries`: `raw`, or one that wraps the data in it.

        Archives often hold one or two folders around the data. Of several candidates the one nearest to `raw`
        counts, then the first by name.

        Raises:
            UserError: There is none; see `expect_folder`.
        """
        level = [raw]
        for _ in range(3):
            for folder in level:
                if all((folder / entry).exists() for entry in entries):
                    return folder
            level = [child for folder in level for child in sorted(folder.iterdir()) if child.is_dir()]
        for entry in entries:
            self.expect_folder(raw / entry)
        return raw

    def files(self, folder: Path, *suffixes: str) -> dict[str, Path]:
        """Returns the files of a folder that have one of the suffixes (any case), by stem, in sorted order.

        Hidden files, which operating systems leave behind, are passed over. Two files of one stem are noted as
        a problem.

        Raises:
            UserError: There is no such folder; see `expect_folder`.
        """
        found: dict[str, Path] = {}
        for path in sorted(self.expect_folder(folder).iterdir()):
            if path.suffix.lower() not in suffixes or path.name.startswith(".") or not path.is_file():
                continue
            if path.stem in found:
                detail = f"{folder.name}/{found[path.stem].name} and {path.name}"
                self.problems.add("two files of one name", detail)
            found[path.stem] = path
        return found

    def expect_folder(self, folder: Path) -> Path:
        """Returns `folder` if it is one.

        Raises:
            UserError: It is not there; the message shows the layout and where to get the data.
        """
        if folder.is_dir():
            return folder
        layout = "\n".join(f"    {line}" for line in self.card.layout.splitlines())
        raise UserError(
            f"{self.card.name}: there is no folder {folder}.\n  Expected in the raw folder:\n{layout}\n"
            f"  Get the data from {self.card.homepage}\n"
            f"  then: python -m datasets_builders prepare {self.card.name} --raw DIR"
        )

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=self.card.title,
            features=detection_features(self.card.classes),
            homepage=self.card.homepage,
            license=self.card.licence,
            citation=self.card.citation,
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        by_split: dict[str, dict[str, RawExample]] = {split: {} for split in SPLITS}
        seen: set[str] = set()
        for example in self._read():
            # One spelling of accented names on every file system, or the hash would move images between
            # splits.
            image_id = unicodedata.normalize("NFC", example.image_id)
            if not image_id.isprintable():
                self.problems.add("file name that is not text", repr(image_id))
                continue
            if image_id in seen:
                self.problems.add("duplicate image id", image_id)
                continue
            seen.add(image_id)
            if example.part is not None:
                self.parts[example.part] += 1
            group = unicodedata.normalize("NFC", example.group) if example.group else image_id
            split = example.split or hash_split(self.card.name, group, self.card.train_share)
            by_split[split][image_id] = example
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"examples": sorted(examples.items())})
            for split, examples in by_split.items()
        ]

    def _read(self) -> Iterator[RawExample]:
        assert self.raw is not None, "`prepared.prepare` asks for the raw folder"
        try:
            yield from self.read(self.expect_folder(self.raw))
        except OSError as error:
            raise UserError(f"{self.card.name}: cannot read {error.filename}: {error.strerror}.") from error

    def _generate_examples(
        self, examples: Iterable[tuple[str, RawExample]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        next_id = 1
        quiet = not sys.stderr.isatty()
        title, console = f"Building {self.card.name}", Console(stderr=True)
        for image_id, example in track(examples, title, console=console, transient=True, disable=quiet):
            row = self.row(image_id, example, next_id)
            if row is not None:
                next_id += len(row["objects"]["id"])
                yield image_id, row

    def row(self, image_id: str, example: RawExample, first_id: int) -> dict[str, Any] | None:
        """Checks one example and turns it into a row.

        Args:
            image_id: The normalised image id.
            example: The example as read.
            first_id: Id of its first object; the others follow. 0 would mean "no match" to pycocotools.

        Returns:
            The row, or None when the image itself is unusable; every problem found is in `self.problems`.
        """
        try:
            data, size = plain_bytes(_content(example.image))
        except (ImageError, OSError) as error:
            self.problems.add("unreadable image", f"{image_id}: {error}")
            return None
        if example.size is not None and example.size != size:
            self.problems.add("wrong image size", f"{image_id}: annotated {example.size}, image {size}")
        if example.fractions:
            example = replace(example, objects=[_in_pixels(item, size) for item in example.objects])
        mended = self.mend(image_id, example, size)
        if mended is None:
            return None
        example = mended
        boxes, categories, areas = [], [], []
        for number, item in enumerate(example.objects, start=1):
            where = f"{image_id}, object {number}"
            if item.category not in self._category:
                self.problems.add("unknown class", f"{where}: {item.category!r}")
                continue
            box = self._inside(item.bbox, size, where)
            if box is None:
                continue
            boxes.append(box)
            categories.append(self._category[item.category])
            areas.append(item.area if item.area is not None else box[2] * box[3])
        return {
            "image": {"bytes": data, "path": None},
            "image_id": image_id,
            "width": size[0],
            "height": size[1],
            "objects": {
                "id": list(range(first_id, first_id + len(boxes))),
                "bbox": boxes,
                "area": areas,
                "category": categories,
            },
            "mask": self._mask(image_id, example.mask, size, len(example.objects)),
        }

    def _inside(
        self, bbox: tuple[float, float, float, float], size: tuple[int, int], where: str
    ) -> list[float] | None:
        """Returns the box cut back by rounding errors only; notes a problem where it is not inside."""
        x, y, width, height = bbox
        right, bottom = x + width, y + height
        if not (width > 0 and height > 0):
            self.problems.add("empty box", f"{where}: {list(bbox)}")
            return None
        excesses = (-x, -y, right - size[0], bottom - size[1])
        reaches_in = x < size[0] and y < size[1] and right > 0 and bottom > 0
        # Written so that NaN does not pass.
        if not (reaches_in and all(excess <= ROUNDING_PIXELS for excess in excesses)):
            self.problems.add("box outside the image", f"{where}: {list(bbox)} in {size[0]} x {size[1]}")
            return None
        if max(excesses) > 0:
            x, y, right, bottom = max(x, 0.0), max(y, 0.0), min(right, size[0]), min(bottom, size[1])
        return [x, y, right - x, bottom - y]

    def _mask(
        self, image_id: str, mask: Path | bytes | np.ndarray | None, size: tuple[int, int], objects: int
    ) -> dict[str, Any] | None:
        """Returns the mask as stored; notes a problem where it does not fit the image or its objects."""
        if mask is None:
            return None
        try:
            pixels = mask if isinstance(mask, np.ndarray) else decode_mask(_content(mask))
        except (ImageError, OSError) as error:
            self.problems.add("unreadable mask", f"{image_id}: {error}")
            return None
        if pixels.shape[::-1] != size:
            self.problems.add("wrong mask size", f"{image_id}: mask {pixels.shape[::-1]}, image {size}")
        if self.card.masks == "binary":
            pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
        elif self.card.masks == "instance" and np.setdiff1d(pixels, 0).tolist() != list(
            range(1, objects + 1)
        ):
            self.problems.add("wrong mask values", f"{image_id}: not one value for each of {objects} objects")
        return {"bytes": encode_png(pixels), "path": None}
