"""A folder of one's own images with labels, as VOC, YOLO or COCO write them, without a builder of its own.

An image's id is its path in the folder, without suffix and without folders such as `images`; a label file belongs to
the image whose id it has: `images/train/1.jpg` and `labels/train/1.txt` are both `train/1`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import datasets

from datasets_builders.base import DetectionBuilder, RawExample, RawObject
from datasets_builders.corpus.files import (
    LINKED_FOLDER,
    SPLIT_FOLDERS,
    TEST_FOLDER,
    TRANSPARENT_FOLDERS,
    ImageFile,
    Skipped,
    image_file,
    is_image_name,
    listing,
    shown,
)
from datasets_builders.errors import UserError
from datasets_builders.findings import Cleaning, Problems
from datasets_builders.raw_formats import FormatError, read_voc, read_yolo, read_yolo_names
from datasets_builders.raw_json import read_coco
from datasets_builders.registry import DatasetCard

NAME_FILES = ("classes.txt", "obj.names")
MAX_CLASSES = 1000
MAX_NAME_LENGTH = 100
MAX_ID_LENGTH = 256
_LABEL_SUFFIXES = frozenset({".xml", ".txt", ".json", ".yaml", ".yml", ".names"})


@dataclass(frozen=True)
class Label:
    """What is known of one image: its objects, their boxes fractions or pixels, and its size as stated."""

    objects: Sequence[RawObject]
    size: tuple[int, int] | None = None
    fractions: bool = False


@dataclass
class Folder:
    """What lies in a folder, before any label is read.

    Attributes:
        images: Image by id.
        labels: Suffix -> label files by the id of their image.
        names: Files that could list YOLO's class names, in order.
        json: JSON files, with their names inside the folder.
    """

    images: dict[str, ImageFile] = field(default_factory=dict)
    labels: dict[str, dict[str, ImageFile]] = field(default_factory=lambda: {".xml": {}, ".txt": {}})
    names: list[ImageFile] = field(default_factory=list)
    json: list[ImageFile] = field(default_factory=list)


def image_id(name: str) -> str:
    """Returns the id of an image, or of the image that a label file belongs to, from its name in the folder."""
    *folders, file = PurePosixPath(name).parts
    return "/".join(
        [*(part for part in folders if part.casefold() not in TRANSPARENT_FOLDERS), Path(file).stem]
    )


def look_through(raw: Path, problems: Problems) -> Folder:
    """Lists a folder's images and label files.

    Links that leave it, links to folders and two label files of one image are problems.
    """
    found = Folder()
    twins: list[tuple[str, ImageFile, ImageFile]] = []
    for item in _files(raw, raw, ""):
        if isinstance(item, Skipped):
            problems.add(item.reason, item.name)
            continue
        suffix = Path(item.name).suffix.lower()
        own_id = image_id(item.name)
        if is_image_name(item.name):
            if own_id in found.images:
                problems.add("two images of one id", f"{found.images[own_id].name} and {item.name}")
            elif len(own_id) > MAX_ID_LENGTH:
                problems.add(f"name of more than {MAX_ID_LENGTH} characters", item.name)
            else:
                found.images[own_id] = item
        elif Path(item.name).name in NAME_FILES or suffix in (".yaml", ".yml"):
            found.names.append(item)
        elif suffix == ".json":
            found.json.append(item)
        elif suffix in found.labels:
            first = found.labels[suffix].setdefault(own_id, item)
            if first is not item:
                twins.append((own_id, first, item))
    for own_id, first, second in twins:
        # Text files that belong to no image may be there as often as they like.
        if own_id in found.images:
            problems.add("two label files of one image", f"{first.name} and {second.name}")
    return found


def _files(folder: Path, root: Path, prefix: str) -> Iterator[ImageFile | Skipped]:
    for entry in listing(folder):
        name = f"{prefix}{shown(entry.name)}"
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), root, f"{name}/")
        elif entry.is_symlink() and entry.is_dir():
            yield Skipped(name, LINKED_FOLDER)
        elif is_image_name(entry.name) or Path(entry.name).suffix.lower() in _LABEL_SUFFIXES:
            yield image_file(entry, name, root)


def read_labels(found: Folder, problems: Problems, cleaning: Cleaning) -> dict[str, Label]:
    """Reads the labels of a folder, whichever of the three kinds they are.

    Returns:
        Label by image id; images that have none are not in it.

    Raises:
        UserError: There are no labels, or those of two kinds.
    """
    of_images = {
        suffix: {key: file for key, file in files.items() if key in found.images}
        for suffix, files in found.labels.items()
    }
    kinds: dict[str, tuple[Sequence[ImageFile], Callable[[], dict[str, Label]]]] = {
        "VOC": (list(of_images[".xml"].values()), lambda: _voc(of_images[".xml"], problems)),
        "YOLO": (list(of_images[".txt"].values()), lambda: _yolo(of_images[".txt"], found.names, problems)),
        "COCO": (found.json, lambda: _coco(found, problems, cleaning)),
    }
    present = {kind: read for kind, (files, read) in kinds.items() if files}
    if len(present) > 1:
        examples = ", ".join(f"{kind} ({kinds[kind][0][0].name})" for kind in present)
        raise UserError(
            f"There are labels of several kinds: {examples}. Keep one, and move the others out of the folder."
        )
    if not present:
        raise UserError(
            f"There are {len(found.images)} images, and not one label that belongs to any of them.\n"
            "  A label has its image's name, NAME.xml (VOC) or NAME.txt (YOLO), or it is in a COCO file (.json);"
            " folders such as images and labels do not matter."
        )
    for suffix, kind in ((".xml", "VOC"), (".txt", "YOLO")):
        for key, file in found.labels[suffix].items() if kind in present else ():
            if key not in found.images:
                cleaning.note("label file without an image passed over", file.name)
    return next(iter(present.values()))()


def _voc(files: Mapping[str, ImageFile], problems: Problems) -> dict[str, Label]:
    labels = {}
    for key, file in files.items():
        try:
            voc = read_voc(file.path)
        except FormatError as error:
            problems.add("unreadable annotation", f"{file.name}: {error}")
            continue
        labels[key] = Label(voc.objects, voc.size if voc.size and all(voc.size) else None)
    return labels


def _yolo(
    files: Mapping[str, ImageFile], name_files: Sequence[ImageFile], problems: Problems
) -> dict[str, Label]:
    lists = {}
    for file in name_files:
        try:
            lists[file.name] = read_yolo_names(file.path)
        except FormatError as error:
            problems.add("no list of class names", f"{file.name}: {error}")
    if len({tuple(sorted(names.items())) for names in lists.values()}) > 1:
        raise UserError(f"{', '.join(lists)} name the classes differently. Keep one of them.")
    if not lists and not problems.found:
        raise UserError(
            "YOLO labels hold numbers only. Write classes.txt into the folder: one name a line, that of class 0 first."
        )
    names = next(iter(lists.values()), {})
    labels = {}
    for key, file in files.items():
        try:
            labels[key] = Label(read_yolo(file.path, names), fractions=True)
        except FormatError as error:
            problems.add("unreadable annotation", f"{file.name}: {error}")
            continue
        for item in labels[key].objects:
            if item.category not in names.values():
                problems.add("class without a name", f"{file.name}: {item.category}")
    return labels


def _coco(found: Folder, problems: Problems, cleaning: Cleaning) -> dict[str, Label]:
    """Reads COCO files; the images that they name are looked up among those of the folder, so none leads out of it."""
    by_stem: dict[str, list[str]] = {}
    for key in found.images:
        by_stem.setdefault(key.rpartition("/")[2], []).append(key)
    labels: dict[str, Label] = {}
    for file in found.json:
        try:
            pictures = read_coco(file.path)
        except FormatError as error:
            problems.add("unreadable annotation", f"{file.name}: {error}")
            continue
        beside = PurePosixPath(file.name).parent
        for picture in pictures:
            stated = picture.file_name.replace("\\", "/").strip("/") or "?"
            candidates = [image_id(str(beside / stated)), image_id(stated)]
            same_stem = by_stem.get(Path(stated).stem, [])
            candidates += same_stem if len(same_stem) == 1 else []
            known = next((candidate for candidate in candidates if candidate in found.images), None)
            if known is None:
                cleaning.note("annotation without an image passed over", f"{file.name}: {stated}")
            elif known in labels:
                problems.add("image that is annotated twice", f"{file.name}: {stated}")
            else:
                labels[known] = Label(picture.objects, picture.size)
    return labels


def class_names(labels: Mapping[str, Label]) -> tuple[str, ...]:
    """Returns the classes that occur, in alphabetical order.

    Raises:
        UserError: There is no box at all, or a name that cannot be shown.
    """
    names = sorted({item.category for label in labels.values() for item in label.objects})
    wrong = [n for n in names if not 0 < len(n) <= MAX_NAME_LENGTH or not n.isprintable()]
    if wrong:
        raise UserError(f"{wrong[0][:80]!r} is no name of a class: 1 to {MAX_NAME_LENGTH} printable signs.")
    if len(names) > MAX_CLASSES:
        raise UserError(
            f"There are {len(names)} classes, and at most {MAX_CLASSES} are possible. Are they numbers of images?"
        )
    if not names:
        raise UserError("There is not one box in the labels: nothing can be learnt or measured from them.")
    return tuple(names)


class OwnFolder(DetectionBuilder):
    """Reads images with VOC, YOLO or COCO labels from a folder of any layout."""

    VERSION = datasets.Version("1.0.0")

    def __init__(self, card: DatasetCard, raw: Path | None, cache_dir: Path) -> None:
        if raw is None or not raw.is_dir():
            raise UserError(
                f"{card.name}: there is no folder {raw}.\n"
                "  It should hold your images and their labels:"
                f" python -m datasets_builders prepare {card.name} --raw DIR"
            )
        problems, cleaning = Problems(), Cleaning()
        try:
            self._folder = look_through(raw, problems)
            # What was not taken may be just the labels or images that would then be missed.
            problems.raise_if_any(card.name, str(raw))
            self._labels = read_labels(self._folder, problems, cleaning)
            problems.raise_if_any(card.name, str(raw))
            classes = class_names(self._labels)
        except OSError as error:
            raise UserError(f"{card.name}: cannot read {error.filename}: {error.strerror}.") from error
        super().__init__(replace(card, classes=classes), raw, cache_dir)
        self.problems, self.cleaning = problems, cleaning

    def read(self, raw: Path) -> Iterator[RawExample]:
        """Lists images with their labels; see `DetectionBuilder.read`."""
        named = {key: self._named_split(file) for key, file in self._folder.images.items()}
        # One folder of that name alone, as exports of a single part have, says nothing.
        split_by_folder = {"train", "validation"} <= {named[key] for key in self._labels}
        for key, file in self._folder.images.items():
            label = self._labels.get(key)
            if label is None:
                self.cleaning.note("image without a label left out as unlabelled", key, images=1)
            elif split_by_folder and named[key] == TEST_FOLDER:
                self.cleaning.note("image of the folder test left out, for a last look", key, images=1)
            else:
                split = named[key] if split_by_folder else None
                yield RawExample(
                    key, file.path, label.objects, None, label.size, split, None, label.fractions
                )

    def _named_split(self, file: ImageFile) -> str | None:
        folders = [part.casefold() for part in PurePosixPath(file.name).parts[:-1]]
        known = SPLIT_FOLDERS | {TEST_FOLDER: TEST_FOLDER}
        return next((known[part] for part in folders if part in known), None)

    def mend(self, image_id: str, example: RawExample, size: tuple[int, int]) -> RawExample:
        """Cuts boxes back to the image, which labelling tools let reach out; leaves out what is outside or empty."""
        kept = []
        for item in example.objects:
            mended = self.cut_back(image_id, item, size)
            if mended is None:
                self.cleaning.note("box outside the image or empty left out", image_id, boxes=[item.category])
            else:
                kept.append(mended)
        return replace(example, objects=kept)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        generators = super()._split_generators(dl_manager)
        self.problems.raise_if_any(self.card.name, str(self.raw))
        for generator in generators:
            examples = [example for _, example in generator.gen_kwargs["examples"]]
            boxes = Counter(item.category for example in examples for item in example.objects)
            if not boxes:
                raise UserError(
                    f"{self.card.name}: {len(self._labels)} labelled images, and none with a box is in its"
                    f" {generator.name} split, which a hash of their names decides.\n"
                    "  Label some more, or split them yourself: folders train and val."
                )
        return generators
