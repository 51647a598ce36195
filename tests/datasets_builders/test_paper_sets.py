"""Casting Billet, Steel Pipe, GC10-DET and FD, on files made after their published layouts."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_raw import voc_xml
from PIL import Image

from datasets_builders import building, content, registry
from datasets_builders.building import undecoded
from datasets_builders.errors import UserError
from datasets_builders.images import decode_image, decode_mask
from datasets_builders.manifest import Manifest

WIDTH, HEIGHT = 40, 20


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90) if path.suffix == ".jpg" else Image.fromarray(pixels).save(
        path
    )


def flat(path: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT)).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def build(
    tmp_path: Path, name: str, raw: Path, partial: bool = False, **changes: Any
) -> tuple[Manifest, dict[str, dict[str, Any]]]:
    """Builds without the owner's counts, unless `changes` has some; returns the manifest and rows by id."""
    card = replace(registry.card(name), **{"expected": None} | changes)
    folder = tmp_path / "built"
    manifest = building.build(card, raw, folder, partial)
    rows = {
        row["image_id"]: row | {"split": split}
        for split, shards in manifest.shards.items()
        for row in undecoded(building.read_split(folder, shards))
    }
    return manifest, rows


def billet(raw: Path, count: int = 9) -> Path:
    """Every third picture has no defect; names with spaces, accents and mixed case; masks of two kinds."""
    for number in range(count):
        stem = f"Çast Billet_{number}"
        picture(raw / "images" / f"{stem}.{'JPG' if number == 1 else 'jpg'}", number)
        if number % 3 == 0:
            continue
        text(raw / "labels" / f"{stem}.txt", f"{number % 6} 0.5 0.5 0.25 0.5\n")
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[5:15, 15:25] = 255 if number % 2 else number % 6 + 1
        (raw / "mask").mkdir(exist_ok=True)
        Image.fromarray(mask).save(raw / "mask" / f"{stem}.png")
    return raw


@pytest.mark.parametrize("name", ["casting_billet", "steel_pipe"])
def test_billet_and_pipe(tmp_path: Path, name: str) -> None:
    raw = billet(tmp_path / "raw")
    if name == "steel_pipe":
        for path in (raw / "labels").iterdir():
            path.write_text("3" + path.read_text()[1:])
    manifest, rows = build(tmp_path, name, raw)
    assert len(rows) == 9
    assert manifest.splits == {"train": 5, "validation": 4}
    assert manifest.parts == {"with defects": 6, "without defects": 3}
    row = rows["Çast Billet_4"]
    classes = registry.card(name).classes
    assert row["objects"]["bbox"] == [[15, 5, 10, 10]]
    assert classes[row["objects"]["category"][0]] == ("slag_skin" if name == "casting_billet" else "scratch")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[5:15, 15:25] = 255
    for number in (1, 2, 4, 5, 7, 8):
        np.testing.assert_array_equal(decode_mask(rows[f"Çast Billet_{number}"]["mask"]["bytes"]), expected)
    assert rows["Çast Billet_0"]["objects"]["bbox"] == []
    assert rows["Çast Billet_0"]["mask"] is None


def test_halves_are_exact_stable_and_independent_of_order() -> None:
    keys = [f"image {number}" for number in range(1227)]
    halves = content.exact_halves("steel_pipe", keys)
    assert list(halves.values()).count("train") == 614
    assert content.exact_halves("steel_pipe", reversed(keys)) == halves
    without_one = content.exact_halves("steel_pipe", keys[1:])
    assert sum(halves[key] != side for key, side in without_one.items()) <= 1


def test_mini50_is_part_of_the_training_half(tmp_path: Path) -> None:
    manifest, rows = build(tmp_path, "casting_billet", billet(tmp_path / "raw", 130))
    chosen = manifest.subsets["mini50"].train
    assert len(chosen) == 50
    assert all(rows[image_id]["split"] == "train" for image_id in chosen)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: text(raw / "labels" / "Çast Billet_1.txt", "9 .5 .5 .1 .1\n"), "unknown class"),
        (lambda raw: text(raw / "labels" / "Çast Billet_1.txt", "0 .5 .5\n"), "Çast Billet_1.txt: line 1"),
        (lambda raw: text(raw / "labels" / "Çast Billet_1.txt", "0 .9 .5 .9 .1\n"), "box outside"),
        (lambda raw: text(raw / "labels" / "other.txt", ""), "label without image: other.txt"),
        (lambda raw: picture(raw / "mask" / "other.png"), "mask without image: other.png"),
        (lambda raw: picture(raw / "mask" / "Çast Billet_1.png"), "unreadable mask"),
        (lambda raw: flat(raw / "mask" / "Çast Billet_1.png"), "mask without defect"),
        (lambda raw: picture(raw / "images" / "Çast Billet_1.jpeg"), "two files of one name"),
        (lambda raw: (raw / "images" / "Çast Billet_3.jpg").write_bytes(b"\xff\xd8\xff"), "unreadable image"),
    ],
)
def test_faults_are_named_and_nothing_is_built(tmp_path: Path, change: Any, said: str) -> None:
    raw = billet(tmp_path / "raw")
    change(raw)
    with pytest.raises(UserError, match="nothing was built") as caught:
        build(tmp_path, "casting_billet", raw)
    assert said in str(caught.value)
    assert not (tmp_path / "built").exists()


def test_counts_must_be_the_owners_unless_partial_is_allowed(tmp_path: Path) -> None:
    raw = billet(tmp_path / "raw")
    expected = registry.card("casting_billet").expected
    with pytest.raises(UserError) as caught:
        build(tmp_path, "casting_billet", raw, expected=expected)
    assert "images: published 1060, found 9" in str(caught.value)
    assert "images, with defects: published 780, found 6" in str(caught.value)
    assert "--partial" in str(caught.value)
    assert not (tmp_path / "built").exists()
    manifest, _ = build(tmp_path, "casting_billet", raw, partial=True, expected=expected)
    assert manifest.partial
    right = registry.Counts(images=9, boxes=6, parts={"with defects": 6, "without defects": 3})
    manifest, _ = build(tmp_path, "casting_billet", raw, partial=True, expected=right)
    assert not manifest.partial


@pytest.mark.parametrize("wrap", ["", "deep/casting_billet/"])
def test_an_archive_gives_what_the_folder_gives(tmp_path: Path, wrap: str) -> None:
    raw = billet(tmp_path / "raw")
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(raw.rglob("*")):
            file.write(path, wrap + path.relative_to(raw).as_posix())
    from_folder, _ = build(tmp_path, "casting_billet", raw)
    from_archive, _ = build(tmp_path, "casting_billet", archive)
    assert from_archive.fingerprint == from_folder.fingerprint
    assert from_archive.source == {"raw": str(archive)}
    assert {path.name for path in (tmp_path / "built").iterdir()} == {*from_archive.files, "manifest.json"}


def test_other_files_than_archives_are_to_be_unpacked_first(tmp_path: Path) -> None:
    (tmp_path / "FD_Dataset.7z").write_bytes(b"7z")
    with pytest.raises(UserError, match=r"FD_Dataset\.7z is neither a folder nor one of \.zip.*unpack it"):
        build(tmp_path, "fd", tmp_path / "FD_Dataset.7z")


def gc10(raw: Path) -> Path:
    boxes = {
        "img_01_111_00001": [("1_chongkong", (1, 2, 11, 12)), ("1_chongkong", (1, 2, 11, 12))],
        "img_02_111_00002": [
            ("10_yaozhed", (0, 0, 10, 10)),
            ("10_yaozhe", (20, 0, 30, 10)),
            ("d", (1, 1, 2, 2)),
        ],
        "img_03_222_00001": [("6_siban", (-5, 3, 50, 30)), ("6_siban", (45, 3, 50, 8))],
        "img_03_222_00002": [("9_zhehen", (30, 15, 20, 5)), ("9_zhehen", (7, 7, 7, 9))],
        "img_03_333_00001": [("d", (1, 1, 5, 5))],
        "strange name": [("2_hanfeng", (0, 0, 40, 20))],
    }
    for number, (stem, objects) in enumerate(boxes.items()):
        picture(raw / str(number + 1) / f"{stem}.jpg", number)
        size = (7, 7) if stem == "strange name" else (WIDTH, HEIGHT)
        text(raw / "lable" / f"{stem}.xml", voc_xml("wrong.jpg", objects, size))
    picture(raw / "7" / "img_03_333_00009.jpg", 7)  # no annotation
    picture(raw / "9" / "img_01_111_00001.jpg", 0)  # the same picture in a second class folder
    text(raw / "lable" / "img_09_999_00001.xml", voc_xml("lost.jpg", []))
    return raw


def test_gc10_faults_are_cleaned_by_rule_and_counted(tmp_path: Path) -> None:
    expected = registry.Counts(
        images=8 - 1,
        boxes=9,
        per_class={"punching_hole": 2, "waist_folding": 2, "silk_spot": 2, "crease": 2, "welding_line": 1},
    )
    manifest, rows = build(tmp_path, "gc10_det", gc10(tmp_path / "raw"), expected=expected)
    assert {rule: entry["count"] for rule, entry in manifest.cleaning.items()} == {
        "image in several class folders taken once": 1,
        "annotation without image passed over": 1,
        "object of a stray class left out": 2,
        "misspelt 10_yaozhed read as 10_yaozhe": 1,
        "stated size is wrong, the image's counts": 1,
        "object that is there twice counted once": 1,
        "swapped edges of a box put in order": 1,
        "box cut back to the image": 1,
        "box outside the image or empty left out": 2,
        "image without any usable box left out": 2,
    }
    assert manifest.left_out == {"images": 2, "boxes": {"punching_hole": 1, "silk_spot": 1, "crease": 1}}
    assert not manifest.partial
    classes = registry.card("gc10_det").classes
    found = {
        image_id: [
            (classes[c], b) for c, b in zip(row["objects"]["category"], row["objects"]["bbox"], strict=True)
        ]
        for image_id, row in rows.items()
    }
    assert found == {
        "img_01_111_00001": [("punching_hole", [1, 2, 10, 10])],
        "img_02_111_00002": [("waist_folding", [0, 0, 10, 10]), ("waist_folding", [20, 0, 10, 10])],
        "img_03_222_00001": [("silk_spot", [0, 3, 40, 17])],
        "img_03_222_00002": [("crease", [20, 5, 10, 10])],
        "strange name": [("welding_line", [0, 0, 40, 20])],
    }
    for a, b in (
        ("img_01_111_00001", "img_02_111_00002"),
        ("img_03_222_00001", "img_03_222_00002"),
    ):
        assert rows[a]["split"] == rows[b]["split"], "frames of one recording stay together"


def test_gc10_recordings_never_straddle(tmp_path: Path) -> None:
    for number in range(60):
        stem = f"img_0{number % 4}_{number // 6}_{number:05d}"
        picture(tmp_path / "raw" / "images" / "images" / "crease" / f"{stem}.jpg", number, (8, 8))
        xml = voc_xml(f"{stem}.jpg", [("9_zhehen", (1, 1, 5, 5))], (8, 8))
        text(tmp_path / "raw" / "label" / "label" / f"{stem}.xml", xml)
    manifest, rows = build(tmp_path, "gc10_det", tmp_path / "raw")
    assert min(manifest.splits.values()) > 0
    sides = {(image_id.split("_")[2], row["split"]) for image_id, row in rows.items()}
    assert len(sides) == 10


def test_gc10_different_pictures_of_one_name_are_a_problem(tmp_path: Path) -> None:
    raw = gc10(tmp_path / "raw")
    picture(raw / "10" / "img_01_111_00001.jpg", 99)
    with pytest.raises(UserError, match="different images of one name"):
        build(tmp_path, "gc10_det", raw)


def test_gc10_different_annotations_of_one_name_are_a_problem(tmp_path: Path) -> None:
    raw = gc10(tmp_path / "raw")
    lable = raw / "lable" / "strange name.xml"
    text(raw / "8" / "strange name.xml", lable.read_text())
    build(tmp_path, "gc10_det", raw)
    text(raw / "8" / "strange name.xml", voc_xml("wrong.jpg", [("6_siban", (0, 0, 4, 4))]))
    with pytest.raises(UserError, match="different annotations of one name"):
        build(tmp_path, "gc10_det", raw)


def test_gc10_folder_without_annotations_shows_the_layout(tmp_path: Path) -> None:
    picture(tmp_path / "raw" / "1" / "img_01_1_1.jpg")
    with pytest.raises(UserError, match=r"no folder .*lable(.|\n)*class folders at any depth"):
        build(tmp_path, "gc10_det", tmp_path / "raw")


DATA_YAML = "names: ['Tear Cuts', Holes, Cuts, Stains]\nnc: 4\n"


def fd(raw: Path, layout: str) -> Path:
    for split, count in (("train", 5), ("val", 2)):
        for number in range(count):
            stem = f"{split} {number}"
            folders = [split, "images"] if layout == "split first" else ["images", split]
            picture(raw.joinpath(*folders, f"{stem}.png"), number)
            if number:
                folders[folders.index("images")] = "labels"
                text(raw.joinpath(*folders, f"{stem}.txt"), f"{number % 4} 0.5 0.5 0.5 0.5\n")
    text(raw / "data.yaml", DATA_YAML)
    return raw


@pytest.mark.parametrize("layout", ["split first", "images first"])
def test_fd_keeps_the_owners_split_and_names(tmp_path: Path, layout: str) -> None:
    manifest, rows = build(tmp_path, "fd", fd(tmp_path / "raw", layout))
    assert manifest.splits == {"train": 5, "validation": 2} == manifest.parts
    classes = registry.card("fd").classes
    names = [[classes[c] for c in rows[f"train {n}"]["objects"]["category"]] for n in range(5)]
    assert names == [[], ["hole"], ["cut"], ["stain"], ["tear_cut"]]


def test_fd_reads_coco_too(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    picture(raw / "train" / "a b.jpg")
    picture(raw / "valid" / "c.jpg", 1)
    one = '{"images": [{"id": 0, "file_name": "%s", "width": 40, "height": 20}], "categories": [{"id": 3, "name": '
    one += '"Tear cut"}], "annotations": [{"id": 1, "image_id": 0, "category_id": 3, "bbox": [1, 2, 3, 4]}]}'
    text(raw / "train" / "_annotations.coco.json", one % "a b.jpg")
    text(raw / "valid" / "_annotations.coco.json", one % "c.jpg")
    manifest, rows = build(tmp_path, "fd", raw)
    assert manifest.splits == {"train": 1, "validation": 1}
    assert rows["c"]["objects"]["bbox"] == [[1, 2, 3, 4]]
    assert manifest.per_class["tear_cut"] == 2
    text(raw / "valid" / "_annotations.coco.json", one % "../train/a b.jpg")
    with pytest.raises(UserError, match="annotation without image"):
        build(tmp_path, "fd", raw)


YAML_BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(20)
)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "names: 3",
        "names: [a",
        "names: [[a]]",
        "!!python/object/apply:os.getcwd []",
        YAML_BOMB + "names: *t\n",
    ],
    ids=len,
)
def test_fd_without_class_names_is_refused(tmp_path: Path, content: str) -> None:
    raw = fd(tmp_path / "raw", "split first")
    text(raw / "data.yaml", content)
    with pytest.raises(UserError, match="no list of class names"):
        build(tmp_path, "fd", raw)


def kinds(folder: Path) -> dict[str, tuple[int, int]]:
    """One picture of every kind under the name of its kind; returns their sizes once decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    rgb = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "16 bit.png")
    Image.fromarray(rgb).quantize(7).save(folder / "palette.png")
    Image.fromarray(rgb).quantize(7).save(folder / "palette transparent.png", transparency=2)
    Image.fromarray(rgb).save(folder / "EXIF turned.jpg", exif=exif, quality=95)
    Image.fromarray(rgb[:, :, 0]).save(folder / "grey.jpg")
    Image.fromarray(rgb[:, :, 0] > 99).save(folder / "one bit.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(folder / "RGBA.png")
    Image.fromarray(np.dstack([rgb[:, :, :1], alpha])).save(folder / "grey with alpha.png")
    Image.fromarray(rgb).convert("CMYK").save(folder / "CMYK.jpg")
    Image.fromarray(rgb).save(folder / "图像 Ü.bmp")
    sizes = {path.stem: (WIDTH, HEIGHT) for path in folder.iterdir()}
    return sizes | {"EXIF turned": (HEIGHT, WIDTH)}


def test_every_kind_of_picture_is_read_by_its_rule(tmp_path: Path) -> None:
    """What Hugging Face's decoder makes of the stored bytes is what `decode_image` makes of the owner's file."""
    raw = tmp_path / "raw"
    sizes = kinds(raw / "images")
    for stem in sizes:
        text(raw / "labels" / f"{stem}.txt", "0 0.5 0.25 1.0 0.5\n")
    manifest, stored = build(tmp_path, "casting_billet", raw)
    assert {image_id: (row["width"], row["height"]) for image_id, row in stored.items()} == sizes
    for split, shards in manifest.shards.items():
        for row in building.read_split(tmp_path / "built", shards):
            (path,) = (raw / "images").glob(f"{row['image_id']}.*")
            expected = decode_image(path.read_bytes())
            assert row["image"].mode == "RGB"
            np.testing.assert_array_equal(np.asarray(row["image"]), expected, err_msg=f"{split} {path.name}")
            width, height = sizes[path.stem]
            assert expected.shape == (height, width, 3)
            assert row["objects"]["bbox"] == [[0, 0, width, height / 2]]


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says to be `side` x `side` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("place", ["images", "mask"])
@pytest.mark.parametrize(
    "data", [bomb(60_000), bomb(9_000), b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 40], ids=len
)
def test_hostile_pictures_are_named(tmp_path: Path, place: str, data: bytes) -> None:
    raw = billet(tmp_path / "raw")
    (raw / "images" / "Çast Billet_2.jpg").rename(raw / "images" / "Çast Billet_2.png")
    (raw / place / "Çast Billet_2.png").write_bytes(data)
    with pytest.raises(UserError, match=r"unreadable (image|mask): Çast Billet_2"):
        build(tmp_path, "casting_billet", raw)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_links_out_of_the_raw_folder_are_only_read(tmp_path: Path) -> None:
    """A folder of the user's own may hold links to pictures; nothing is ever written through them."""
    raw = billet(tmp_path / "raw")
    outside = tmp_path / "outside.jpg"
    (raw / "images" / "Çast Billet_4.jpg").rename(outside)
    (raw / "images" / "Çast Billet_4.jpg").symlink_to(outside)
    before = outside.read_bytes()
    _, rows = build(tmp_path, "casting_billet", raw)
    assert rows["Çast Billet_4"]["image"]["bytes"] == before == outside.read_bytes()
