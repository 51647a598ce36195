"""A folder of one's own images becomes a dataset, and a corpus, whichever tool wrote its labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from made_raw import voc_xml
from PIL import Image

import datasets_builders
from datasets_builders import registry
from datasets_builders.content import hash_split
from datasets_builders.corpus import catalogue, load_corpus, prepare_corpus
from datasets_builders.errors import UserError
from datasets_builders.hub_push import push
from datasets_builders.own import image_id

SIZE = (64, 48)
CLASSES = ("dent", "stain")
Box = tuple[str, tuple[float, float, float, float]]


@dataclass(frozen=True)
class Picture:
    """One picture of a made folder: its name without folder, and its boxes (class, corners)."""

    name: str
    boxes: tuple[Box, ...]

    @property
    def stem(self) -> str:
        return Path(self.name).stem


def pictures(count: int = 24) -> list[Picture]:
    return [
        Picture(
            f"part {index}.png" if index % 2 else f"part {index}.jpg",
            (("dent", (4, 8, 20, 24)), ("stain", (32, 6, 60, 40)))[: index % 3],
        )
        for index in range(count)
    ]


def draw(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, len(path.stem), *path.stem.encode()])
    Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def yolo_text(boxes: Sequence[Box]) -> str:
    lines = []
    for name, (left, top, right, bottom) in boxes:
        values = (
            (left + right) / 2 / SIZE[0],
            (top + bottom) / 2 / SIZE[1],
            (right - left) / SIZE[0],
            (bottom - top) / SIZE[1],
        )
        lines.append(" ".join(map(str, (CLASSES.index(name), *values))))
    return "\n".join(lines)


def coco_text(listed: Sequence[Picture], name_of: Callable[[Picture], str]) -> str:
    annotations = [
        {"id": 10 * number + place, "image_id": number, "category_id": CLASSES.index(name) + 1, "bbox": box}
        for number, picture in enumerate(listed)
        for place, (name, (x, y, right, bottom)) in enumerate(picture.boxes)
        for box in [[x, y, right - x, bottom - y]]
    ]
    images = [
        {"id": number, "file_name": name_of(picture), "width": SIZE[0], "height": SIZE[1]}
        for number, picture in enumerate(listed)
    ]
    categories = [{"id": 0, "name": "defects"}, {"id": 1, "name": "dent"}, {"id": 2, "name": "stain"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def voc_beside(folder: Path, listed: Sequence[Picture]) -> None:
    for picture in listed:
        draw(folder / picture.name)
        write(folder / f"{picture.stem}.xml", voc_xml(picture.name, picture.boxes, SIZE))


def voc_of_cvat(folder: Path, listed: Sequence[Picture]) -> None:
    for picture in listed:
        draw(folder / "JPEGImages" / picture.name)
        write(folder / "Annotations" / f"{picture.stem}.xml", voc_xml(picture.name, picture.boxes, SIZE))
    write(folder / "ImageSets" / "Main" / "default.txt", "\n".join(picture.stem for picture in listed))
    write(folder / "labelmap.txt", "# label:color_rgb:parts:actions\n")


def yolo_of_labelimg(folder: Path, listed: Sequence[Picture]) -> None:
    for picture in listed:
        draw(folder / picture.name)
        write(folder / f"{picture.stem}.txt", yolo_text(picture.boxes))
    write(folder / "classes.txt", "dent\nstain\n")


def yolo_folders(folder: Path, listed: Sequence[Picture]) -> None:
    for picture in listed:
        draw(folder / "images" / picture.name)
        write(folder / "labels" / f"{picture.stem}.txt", yolo_text(picture.boxes))
    write(folder / "data.yaml", "names: {0: dent, 1: stain}\nnc: 2\n")


def coco_beside(folder: Path, listed: Sequence[Picture]) -> None:
    for picture in listed:
        draw(folder / picture.name)
    write(folder / "_annotations.coco.json", coco_text(listed, lambda picture: picture.name))


def coco_of_cvat(folder: Path, listed: Sequence[Picture]) -> None:
    for picture in listed:
        draw(folder / "images" / "default" / picture.name)
    write(
        folder / "annotations" / "instances_default.json",
        coco_text(listed, lambda picture: f"default/{picture.name}"),
    )


LAYOUTS = (voc_beside, voc_of_cvat, yolo_of_labelimg, yolo_folders, coco_beside, coco_of_cvat)


def rows(name: str) -> dict[str, tuple[str, list[Box]]]:
    """Image id -> split and boxes as (class, corners)."""
    found = {}
    classes = registry.card(name).classes
    for split in ("train", "validation"):
        for row in datasets_builders.load(name, split):
            objects = row["objects"]
            found[row["image_id"]] = (
                split,
                [
                    (classes[category], (x, y, x + width, y + height))
                    for category, (x, y, width, height) in zip(
                        objects["category"], objects["bbox"], strict=True
                    )
                ],
            )
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_the_layouts_of_usual_tools(layout, tmp_path: Path, fresh_home: Path) -> None:
    listed = pictures()
    layout(tmp_path / "plant", listed)
    done = datasets_builders.prepare("own_plant", tmp_path / "plant")
    assert (done.manifest.images, done.manifest.boxes) == (24, 24)
    card = registry.card("own_plant")
    assert (card.classes, card.origin, card.masks) == (CLASSES, "own", "none")
    found = rows("own_plant")
    for picture in listed:
        prefix = "default/" if layout is coco_of_cvat else ""
        split, boxes = found[prefix + picture.stem]
        assert split == hash_split("own_plant", prefix + picture.stem, 0.7)
        assert [name for name, _ in boxes] == [name for name, _ in picture.boxes]
        for (_, box), (_, expected) in zip(boxes, picture.boxes, strict=True):
            assert box == pytest.approx(expected, abs=1e-4)


def test_images_without_a_label_are_unlabelled_not_free_of_defects(tmp_path: Path, fresh_home: Path) -> None:
    folder = tmp_path / "plant"
    yolo_folders(folder, pictures())
    for index in range(3):
        draw(folder / "images" / f"new {index}.png")
    write(folder / "labels" / "gone.txt", "0 0.5 0.5 0.1 0.1")
    manifest = datasets_builders.prepare("own_plant", folder).manifest
    assert manifest.images == 24
    rules = {rule: applied["count"] for rule, applied in manifest.cleaning.items()}
    assert rules == {
        "image without a label left out as unlabelled": 3,
        "label file without an image passed over": 1,
    }


def test_no_image_ever_changes_sides(tmp_path: Path, fresh_home: Path) -> None:
    folder = tmp_path / "plant"
    yolo_folders(folder, pictures(24))
    datasets_builders.prepare("own_plant", folder)
    before = {key: split for key, (split, _) in rows("own_plant").items()}
    first = datasets_builders.fingerprint("own_plant")
    yolo_folders(folder, pictures(40))  # asked for again, the folder is read again
    datasets_builders.prepare("own_plant", folder)
    after = {key: split for key, (split, _) in rows("own_plant").items()}
    assert len(after) == 40
    assert before.items() <= after.items()
    assert datasets_builders.fingerprint("own_plant") != first
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert datasets_builders.prepare(
        "own_plant", moved
    ).manifest.fingerprint == datasets_builders.fingerprint("own_plant")


def test_folders_train_and_val_are_the_users_own_split(tmp_path: Path, fresh_home: Path) -> None:
    folder, listed = tmp_path / "plant", pictures(12)
    for part, some in (("train", listed[:6]), ("valid", listed[6:9]), ("test", listed[9:])):
        yolo_folders(folder / part, some)
    (folder / "valid" / "data.yaml").unlink()
    manifest = datasets_builders.prepare("own_plant", folder).manifest
    assert manifest.splits == {"train": 6, "validation": 3}
    assert {key for key, (split, _) in rows("own_plant").items() if split == "validation"} == {
        f"valid/{picture.stem}" for picture in listed[6:9]
    }
    assert manifest.cleaning["image of the folder test left out, for a last look"]["count"] == 3
    shutil.rmtree(folder / "valid")  # one folder alone splits nothing
    splits = datasets_builders.prepare("own_plant", folder).manifest.splits
    assert sum(splits.values()) == 9
    assert all(splits.values())


def test_boxes_that_reach_out_are_cut_back_and_counted(tmp_path: Path, fresh_home: Path) -> None:
    folder = tmp_path / "plant"
    voc_beside(folder, pictures())
    write(
        folder / "part 1.xml",
        voc_xml("part 1.png", [("dent", (-3, 8, 70, 24)), ("dent", (80, 1, 90, 9))], SIZE),
    )
    manifest = datasets_builders.prepare("own_plant", folder).manifest
    assert rows("own_plant")["part 1"][1] == [("dent", (0, 8, 64, 24))]
    assert manifest.cleaning["box cut back to the image"]["count"] == 1
    assert manifest.cleaning["box outside the image or empty left out"]["count"] == 1


def test_from_an_archive(tmp_path: Path, fresh_home: Path) -> None:
    yolo_folders(tmp_path / "plant", pictures())
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "plant"))
    from_archive = datasets_builders.prepare("own_plant", packed).manifest.fingerprint
    assert datasets_builders.prepare("own_plant", tmp_path / "plant").manifest.fingerprint == from_archive


def no_names(folder: Path) -> None:
    (folder / "data.yaml").unlink()


def other_names(folder: Path) -> None:
    write(folder / "classes.txt", "stain\ndent\n")


def unnamed_class(folder: Path) -> None:
    write(folder / "labels" / "part 1.txt", "7 0.5 0.5 0.1 0.1")


def two_kinds(folder: Path) -> None:
    write(folder / "labels" / "part 1.xml", voc_xml("part 1.png", [("dent", (1, 1, 9, 9))], SIZE))


def no_labels(folder: Path) -> None:
    shutil.rmtree(folder / "labels")


def no_boxes(folder: Path) -> None:
    for path in (folder / "labels").iterdir():
        path.write_text("")


def one_label(folder: Path) -> None:
    for path in (folder / "labels").iterdir():
        if path.stem != "part 1":
            path.unlink()


def no_number(folder: Path) -> None:
    write(folder / "labels" / "part 1.txt", "0 half 0.5 0.1 0.1")


def two_images(folder: Path) -> None:
    draw(folder / "labels" / "part 1.jpg")


def two_labels(folder: Path) -> None:
    write(folder / "annotations" / "part 1.txt", "1 0.5 0.5 0.1 0.1")


def linked_folder(folder: Path) -> None:
    (folder / "labels").rename(folder.parent / "elsewhere")
    (folder / "labels").symlink_to(folder.parent / "elsewhere")


def gap_in_the_names(folder: Path) -> None:
    (folder / "data.yaml").unlink()
    write(folder / "classes.txt", "dent\n\nstain\n\n")


def link_outside(folder: Path) -> None:
    draw(folder.parent / "secret.png")
    (folder / "images" / "link.png").symlink_to(folder.parent / "secret.png")


def label_outside(folder: Path) -> None:
    write(folder.parent / "secret.txt", "0 0.5 0.5 0.1 0.1")
    (folder / "labels" / "part 1.txt").unlink()
    (folder / "labels" / "part 1.txt").symlink_to(folder.parent / "secret.txt")


def no_image(folder: Path) -> None:
    (folder / "images" / "part 1.png").write_bytes(b"GIF89a")


def bad_class_name(folder: Path) -> None:
    write(folder / "data.yaml", 'names: ["dent\\u202e", stain]')


def yaml_object(folder: Path) -> None:
    write(folder / "data.yaml", "names: !!python/object/apply:os.system ['true']")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_names, "Write classes.txt"),
        (other_names, "name the classes differently"),
        (unnamed_class, "class without a name: labels/part 1.txt: 7"),
        (two_kinds, "labels of several kinds: VOC .* YOLO"),
        (no_labels, "24 images, and not one label"),
        (no_boxes, "not one box"),
        (one_label, "1 labelled images, and none with a box is in its"),
        (no_number, "unreadable annotation: labels/part 1.txt: line 1"),
        (two_images, "two images of one id: images/part 1.png and labels/part 1.jpg"),
        (two_labels, "two label files of one image: annotations/part 1.txt and labels/part 1.txt"),
        (linked_folder, "a link to a folder; links to folders are not followed: labels"),
        (gap_in_the_names, "no list of class names: classes.txt: line 2 is empty"),
        (link_outside, "a link that leaves the source's folder: images/link.png"),
        (label_outside, "a link that leaves the source's folder: labels/part 1.txt"),
        (no_image, "unreadable image: part 1: not a JPEG"),
        (bad_class_name, "is no name of a class"),
        (yaml_object, "no list of class names: data.yaml"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_is_said_and_nothing_is_built(spoil, reason, tmp_path: Path, fresh_home: Path) -> None:
    yolo_folders(tmp_path / "plant", pictures())
    spoil(tmp_path / "plant")
    with pytest.raises(UserError, match=reason):
        datasets_builders.prepare("own_plant", tmp_path / "plant")
    assert "own_plant" not in registry.names()


@pytest.mark.parametrize("name", ["../../secret.png", "", "/", "a\0b.png", "C:\\secret.png"])
def test_a_coco_file_names_only_images_of_the_folder(name: str, tmp_path: Path, fresh_home: Path) -> None:
    draw(tmp_path / "secret.png")
    folder, listed = tmp_path / "plant", pictures()
    coco_beside(folder, listed)
    content = json.loads((folder / "_annotations.coco.json").read_text())
    content["images"].append({"id": 999, "file_name": name})
    write(folder / "_annotations.coco.json", json.dumps(content))
    manifest = datasets_builders.prepare("own_plant", folder).manifest
    assert manifest.images == 24
    assert manifest.cleaning["annotation without an image passed over"]["count"] == 1


def test_ids_leave_out_folders_that_say_nothing() -> None:
    assert image_id("images/train/1.jpg") == image_id("labels/train/1.txt") == "train/1"
    assert image_id("JPEGImages/a.b.jpg") == image_id("Annotations/a.b.xml") == "a.b"
    assert image_id("camera 2/images/1.jpg") == "camera 2/1"


def test_names_are_reserved_and_safe(tmp_path: Path, fresh_home: Path) -> None:
    assert not any(map(registry.is_own, registry.names()))
    assert not any(map(catalogue.is_own, catalogue.names()))
    for name in ("own_", "own_../x", "own_Plant", "own_a/b", "own_" + "a" * 41):
        with pytest.raises(UserError, match="cannot be the name"):
            datasets_builders.prepare(name, tmp_path)
    with pytest.raises(UserError, match=r"own_plant is not ready .*\n.*prepare own_plant --raw DIR"):
        datasets_builders.load("own_plant", "train")
    with pytest.raises(UserError, match="there is no folder"):
        datasets_builders.prepare("own_plant", tmp_path / "nowhere")


def test_they_stay_on_this_machine(tmp_path: Path, fresh_home: Path) -> None:
    voc_beside(tmp_path / "plant", pictures())
    datasets_builders.prepare("own_plant", tmp_path / "plant")
    with pytest.raises(UserError, match="stays on this machine"):
        push("own_plant", "someone/plant", have_rights=True)


def test_a_damaged_set_is_built_again_or_says_how(tmp_path: Path, fresh_home: Path) -> None:
    voc_beside(tmp_path / "plant", pictures())
    folder = datasets_builders.prepare("own_plant", tmp_path / "plant").folder
    (folder / "train-00000.arrow").write_bytes(b"")
    assert len(datasets_builders.load("own_plant", "train")) + len(
        datasets_builders.load("own_plant", "validation")
    ) == len(pictures())
    shutil.rmtree(tmp_path / "plant")
    (folder / "train-00000.arrow").write_bytes(b"")
    with pytest.raises(UserError, match="the folder of its images is gone"):
        datasets_builders.load("own_plant", "train")


def images(folder: Path, *names: str) -> Path:
    for name in names:
        draw(folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "categories"),
    [
        (("a.png", "b.png"), ("plant",)),
        (("strip/a.png", "sheet/b.png", "sheet/deep/c.png"), ("sheet", "strip")),
        (("strip/a.png", "b.png"), ("plant",)),
        (("strip/a.png",), ("plant",)),
        (("images/a.png", "masks/a.png"), ("plant",)),
        (("train/a.png", "val/b.png"), ("plant",)),
    ],
)
def test_folders_of_a_corpus_are_categories_where_they_can_be(
    names: tuple[str, ...], categories: tuple[str, ...], tmp_path: Path, fresh_home: Path
) -> None:
    folder = images(tmp_path / "raw", *names)
    write(folder / "notes" / "read me.txt", "nothing")
    manifest = prepare_corpus("corpus_own_plant", folder, workers=1).manifest
    assert (manifest.images, tuple(manifest.categories)) == (len(names), categories)
    rows = load_corpus("corpus_own_plant")
    shown = {row["image_id"]: rows.features["category"].int2str(row["category"]) for row in rows}
    if len(categories) > 1:
        assert shown == {f"plant/{name}": name.split("/")[0] for name in names}
    assert set(shown.values()) == set(categories)


def test_a_corpus_follows_its_folder(tmp_path: Path, fresh_home: Path) -> None:
    folder = images(tmp_path / "raw", "strip/a.png", "sheet/b.png")
    first = prepare_corpus("corpus_own_plant", folder, workers=1)
    assert not prepare_corpus("corpus_own_plant", folder, workers=1).built
    images(folder, "strip/c.png")
    again = prepare_corpus("corpus_own_plant", folder, workers=1)
    assert again.built
    assert again.manifest.fingerprint != first.manifest.fingerprint
    for name in ("corpus_own_", "corpus_own_../x", "corpus_own_Plant"):
        with pytest.raises(UserError, match="cannot be the name"):
            prepare_corpus(name, folder)
    with pytest.raises(UserError, match="there is no folder"):
        prepare_corpus("corpus_own_other", tmp_path / "nowhere")
    with pytest.raises(UserError, match="not ready"):
        load_corpus("corpus_own_other")
