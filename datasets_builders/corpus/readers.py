"""The layouts in which owners publish their images; one reader each, told by `sources.yaml` what to expect.

A corpus is unlabelled: a reader says which files are images (rather than masks or annotations) and which
category each belongs to. Annotations are looked at only to notice files that belong to nothing.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets_builders.corpus.files import (
    LINKED_FOLDER,
    ImageFile,
    Skipped,
    find_root,
    image_file,
    images_below,
    is_image_name,
    key,
    listing,
    shown,
    subfolder,
    unwrapped,
)
from datasets_builders.corpus.sources import LayoutKind, Source
from datasets_builders.errors import UserError

ANNOTATION_SUFFIXES = frozenset({".xml", ".txt", ".json"})
MVTEC_PARTS = ("train", "test")
MASK_FOLDER = "ground_truth"

Found = Iterator[tuple[ImageFile, str] | Skipped]


def read(source: Source, folder: Path) -> Found:
    """Yields the images of a source with their categories, and what is not taken, in one fixed order.

    Args:
        source: What to expect.
        folder: The source's folder; the layout may begin up to three levels below it.

    Raises:
        UserError: Nothing in the folder has the expected layout.
    """
    reader = READERS[source.layout.kind]
    return reader(source, folder)


def _root(source: Source, folder: Path, fits: Callable[[Path], bool], expected: str) -> Path:
    root = find_root(folder, fits)
    if root is None:
        raise UserError(
            f"{source.name}: {folder} does not have the layout of {source.title}.\n"
            f"  Expected in it: {expected}\n"
            f"  How to get it: {source.obtain}"
        )
    return root


def _skip(source: Source, *more: str) -> frozenset[str]:
    return frozenset(key(name) for name in (*source.layout.skip, *more))


def _one_category(source: Source) -> str:
    assert source.category is not None, "checked by `Source`"
    return source.category


def _category_of(source: Source, folder_name: str) -> str | None:
    """Returns the category of a class folder: a name in full wins over one with * or ?."""
    name = key(folder_name)
    exact = {key(pattern): category for pattern, category in source.categories.items()}
    if name in exact:
        return exact[name]
    return next((c for pattern, c in exact.items() if fnmatch.fnmatchcase(name, pattern)), None)


def _images(source: Source, folder: Path) -> Found:
    wanted = source.layout.within
    parts: list[Path | None]
    if wanted:
        names = " and ".join(wanted)
        root = _root(source, folder, lambda f: any(subfolder(f, name) for name in wanted), names)
        parts = [subfolder(root, name) for name in wanted]
    else:
        root = unwrapped(folder)
        parts = [root]
    for part in parts:
        if part is not None:
            yield from _with_category(images_below(part, root, _skip(source)), _one_category(source))


def _with_category(found: Iterator[ImageFile | Skipped], category: str) -> Found:
    for item in found:
        yield item if isinstance(item, Skipped) else (item, category)


def _class_folders(source: Source, folder: Path) -> Found:
    names = ", ".join(source.categories)
    root = _root(source, folder, lambda f: bool(_folders_with_category(source, f)), f"folders {names}")
    yield from _by_folder(source, root, lambda path: images_below(path, root, _skip(source)))


def _mvtec(source: Source, folder: Path) -> Found:
    def objects(candidate: Path) -> bool:
        found = _folders_with_category(source, candidate)
        return any(subfolder(path, part) for path in found for part in MVTEC_PARTS)

    names = ", ".join(source.categories)
    root = _root(source, folder, objects, f"folders {names}, each with train/ and test/")

    def images(path: Path) -> Iterator[ImageFile | Skipped]:
        for part in sorted(MVTEC_PARTS):
            inside = subfolder(path, part)
            if inside is not None:
                yield from images_below(inside, root, _skip(source, MASK_FOLDER))

    yield from _by_folder(source, root, images)


def _folders_with_category(source: Source, folder: Path) -> list[Path]:
    return [
        Path(entry.path)
        for entry in listing(folder)
        if entry.is_dir(follow_symlinks=False) and _category_of(source, entry.name)
    ]


def _by_folder(source: Source, root: Path, images: Callable[[Path], Iterator[ImageFile | Skipped]]) -> Found:
    """Reads each folder of `root` that has a category; says which ones have none."""
    passed_over = _skip(source)
    for entry in listing(root):
        if not entry.is_dir(follow_symlinks=False) or key(entry.name) in passed_over:
            continue
        category = _category_of(source, entry.name)
        if category is None:
            yield Skipped(f"{shown(entry.name)}/", "no category is known for this folder")
        else:
            yield from _with_category(images(Path(entry.path)), category)


def _mask_beside(source: Source, folder: Path) -> Found:
    """Takes every image that is not the mask of another one in its folder.

    A file is a mask if it has a mask's name for an image beside it. A mask may have the image's own stem and
    another suffix (`1.jpg`, `1.png`); the image is then the file with the other suffix.
    """

    def walk(inside: Path, prefix: str) -> Found:
        entries = listing(inside)
        names = {key(entry.name): entry for entry in entries if not entry.is_dir(follow_symlinks=False)}
        masks = {
            mask
            for name in names
            if is_image_name(name)
            for pattern in source.layout.masks
            if (mask := key(pattern.replace("{stem}", Path(name).stem))) != name
        }
        for entry in entries:
            name = f"{prefix}{shown(entry.name)}"
            if entry.is_dir(follow_symlinks=False):
                if key(entry.name) not in _skip(source):
                    yield from walk(Path(entry.path), f"{name}/")
            elif entry.is_symlink() and entry.is_dir():
                yield Skipped(name, LINKED_FOLDER)
            elif is_image_name(entry.name) and key(entry.name) not in masks:
                if any(fnmatch.fnmatchcase(key(entry.name), pattern) for pattern in mask_patterns):
                    yield Skipped(name, "a mask without its image")
                    continue
                item = image_file(entry, name, root)
                yield item if isinstance(item, Skipped) else (item, _one_category(source))

    root = unwrapped(folder)
    mask_patterns = [key(pattern.replace("{stem}", "*")) for pattern in source.layout.masks]
    yield from walk(root, "")


def _annotated(source: Source, folder: Path) -> Found:
    pairs = source.layout.pairs
    expected = " or ".join(f"{pair.images}/ with {pair.annotations}/" for pair in pairs)
    root = _root(source, folder, lambda f: any(subfolder(f, pair.images) for pair in pairs), expected)
    for pair in pairs:
        images = subfolder(root, pair.images)
        if images is None:
            continue
        stems: set[str] = set()
        for item in images_below(images, root, _skip(source)):
            if isinstance(item, Skipped):
                yield item
            else:
                stems.add(_stem(item.name))
                yield item, _one_category(source)
        annotations = subfolder(root, pair.annotations)
        yield from _orphans(annotations, root, stems) if annotations else ()


def _stem(name: str) -> str:
    return Path(name).stem


def _orphans(annotations: Path, root: Path, stems: set[str]) -> Iterator[Skipped]:
    for entry in listing(annotations):
        suffix = Path(entry.name).suffix.lower()
        known = suffix in ANNOTATION_SUFFIXES or is_image_name(entry.name)
        if known and entry.is_file(follow_symlinks=False) and _stem(shown(entry.name)) not in stems:
            inside = "/".join(shown(part) for part in annotations.relative_to(root).parts)
            yield Skipped(f"{inside}/{shown(entry.name)}", "an annotation without its image")


READERS: dict[LayoutKind, Callable[[Source, Path], Found]] = {
    "images": _images,
    "class_folders": _class_folders,
    "mvtec": _mvtec,
    "mask_beside": _mask_beside,
    "annotated": _annotated,
}
