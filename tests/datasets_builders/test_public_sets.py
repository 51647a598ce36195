"""Magnetic-Tile, BSData and CR7-DET, on made files and on samples of the owners' own."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from test_paper_sets import build, text

from datasets_builders import registry
from datasets_builders.bsdata import draw, group
from datasets_builders.content import hash_split
from datasets_builders.cr7_det import original_part
from datasets_builders.errors import UserError
from datasets_builders.images import decode_image, decode_mask
from datasets_builders.near_duplicates import join_groups, near_duplicate_groups, thumbnail
from datasets_builders.raw_formats import FormatError
from datasets_builders.raw_json import Outline

FOLDERS = {
    "MT_Blowhole": "blowhole",
    "MT_Break": "break",
    "MT_Crack": "crack",
    "MT_Fray": "fray",
    "MT_Uneven": "uneven",
}


def texture(seed: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    grain = np.random.default_rng(seed).integers(0, 256, (size[1] // 2, size[0] // 2), dtype=np.uint8)
    return np.repeat(cv2.resize(grain, size, interpolation=cv2.INTER_CUBIC)[:, :, None], 3, axis=2)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def tiles(raw: Path) -> Path:
    for number, folder in enumerate([*FOLDERS, "MT_Free"]):
        for exposure in (0, 1):
            stem = f"exp{exposure}_num_{100 + number}"
            save(raw / folder / "Imgs" / f"{stem}.jpg", texture(10 * number + exposure)[:, :, 0])
            mask = np.zeros((48, 64), np.uint8)
            if folder != "MT_Free":
                mask[2:10, 3:15] = 200
                mask[10, 2] = 128  # touches by a corner
                mask[30:34, 40:44] = 255
                mask[20, 20:24] = 255  # too small
                mask[40:45, 40:60] = 127  # a blurred edge
            save(raw / folder / "Imgs" / f"{stem}.png", mask)
    return raw


def test_magnetic_tile_regions_become_objects(tmp_path: Path) -> None:
    manifest, rows = build(tmp_path, "magnetic_tile", tiles(tmp_path / "raw"))
    assert manifest.per_class == dict.fromkeys(FOLDERS.values(), 4)
    assert manifest.parts == dict.fromkeys([*FOLDERS, "MT_Free"], 2)
    assert manifest.cleaning["region of fewer than 10 pixels left out"]["count"] == 10
    row = rows["exp0_num_102"]
    assert row["objects"]["bbox"] == [[2, 2, 13, 9], [40, 30, 4, 4]]
    assert row["objects"]["area"] == [97, 16]
    mask = decode_mask(row["mask"]["bytes"])
    assert [int((mask == value).sum()) for value in (0, 1, 2)] == [48 * 64 - 97 - 16, 97, 16]
    free = rows["exp1_num_105"]
    assert free["objects"]["bbox"] == []
    assert not decode_mask(free["mask"]["bytes"]).any()
    for number in range(100, 106):
        assert rows[f"exp0_num_{number}"]["split"] == rows[f"exp1_num_{number}"]["split"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda imgs: save(imgs / "MT_Free/Imgs/exp0_num_105.png", np.full((48, 64), 255, np.uint8)),
            "of those without",
        ),
        (
            lambda imgs: save(imgs / "MT_Crack/Imgs/exp0_num_102.png", np.zeros((48, 64), np.uint8)),
            "mask without defect",
        ),
        (lambda imgs: (imgs / "MT_Crack/Imgs/exp0_num_102.png").unlink(), "image without mask"),
        (lambda imgs: (imgs / "MT_Crack/Imgs/exp0_num_102.jpg").unlink(), "mask without image"),
        (
            lambda imgs: save(imgs / "MT_Crack/Imgs/exp0_num_102.png", np.full((9, 9), 255, np.uint8)),
            "wrong mask size",
        ),
        (lambda imgs: (imgs / "MT_Crack/Imgs/exp0_num_102.png").write_bytes(b"\x89PNG"), "unreadable mask"),
    ],
)
def test_magnetic_tile_faults_are_named(tmp_path: Path, change: Any, said: str) -> None:
    raw = tiles(tmp_path / "raw")
    change(raw)
    with pytest.raises(UserError, match=said):
        build(tmp_path, "magnetic_tile", raw)


SQUARE = [[10.0, 10.0], [19.5, 10.0], [19.5, 15.5], [10.0, 15.5]]


def ball_screw(raw: Path) -> Path:
    entries = []

    def add(stem: str, shapes: list[dict[str, Any]] | None, split: str | None) -> None:
        save(raw / "data" / f"{stem}.jpg", texture(len(entries)))
        buffer = io.BytesIO()
        Image.fromarray(texture(len(entries))).save(buffer, format="JPEG")
        if shapes is not None:
            content = {
                "shapes": shapes,
                "imageData": base64.b64encode(buffer.getvalue()).decode(),
                "imageWidth": 64,
                "imageHeight": 48,
            }
            text(raw / "label" / f"{stem}.json", json.dumps(content))
        annotations = None if shapes is None else f"{stem}.json"
        entries.append({"filename": f"{stem}.jpg", "train_test_split": split, "annotations": annotations})

    pit = {"label": "Pitting", "points": SQUARE, "shape_type": "polygon"}
    for place in range(8):
        for day, shapes in enumerate((None, [pit], None, [pit, pit])):
            split = None if shapes is None else ("train", "test")[(place + day) % 2]
            add(f"01_20090{day + 1}053521_{place}00000_090_crop_2", shapes, split)
    add("KGT1-S-060-A02_crop_0", [pit], "test")
    add("KGT1-S-061-A02_crop_0", [pit], "train")
    text(raw / "image_data.json", json.dumps({"images": entries}))
    return raw


def test_bsdata_keeps_places_together_and_leaves_out_the_unlabelled(tmp_path: Path) -> None:
    raw = ball_screw(tmp_path / "raw")
    expected = registry.Counts(images=34, parts={"with outlines": 18, "without outlines": 16})
    manifest, rows = build(tmp_path, "bsdata", raw, expected=expected)
    assert manifest.left_out == {"images": 8, "boxes": {}}
    assert {rule: entry["count"] for rule, entry in manifest.cleaning.items()} == {
        "unlabelled image after the first pitting left out": 8,
        "outline that is there twice counted once": 8,
    }
    assert len(rows) == 26
    assert rows["01_200901053521_000000_090_crop_2"]["objects"]["bbox"] == []
    assert rows["01_200901053521_000000_090_crop_2"]["mask"] is None
    row = rows["01_200902053521_000000_090_crop_2"]
    assert row["objects"]["bbox"] == [[10, 10, 9.5, 5.5]]
    assert row["objects"]["area"] == [60]  # columns 10 to 19, rows 10 to 15
    sides = {(image_id[16:], row["split"]) for image_id, row in rows.items() if image_id.startswith("01_")}
    assert len(sides) == 8
    assert {side for _, side in sides} == {"train", "validation"}
    assert rows["KGT1-S-060-A02_crop_0"]["split"] == rows["KGT1-S-061-A02_crop_0"]["split"]


def test_bsdata_official_is_the_owners_split(tmp_path: Path) -> None:
    manifest, rows = build(tmp_path, "bsdata_official", ball_screw(tmp_path / "raw"))
    assert len(rows) == 18
    assert rows["KGT1-S-060-A02_crop_0"]["split"] == "validation"
    assert rows["KGT1-S-061-A02_crop_0"]["split"] == "train"
    assert manifest.left_out["images"] == 0


def test_bsdata_takes_the_embedded_picture_where_there_is_no_file(tmp_path: Path) -> None:
    raw = ball_screw(tmp_path / "raw")
    stem = "01_200902053521_000000_090_crop_2"
    (raw / "data" / f"{stem}.jpg").unlink()
    _, rows = build(tmp_path, "bsdata", raw)
    embedded = json.loads((raw / "label" / f"{stem}.json").read_text())["imageData"]
    assert rows[stem]["image"]["bytes"] == base64.b64decode(embedded)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"imageWidth": 65}, "wrong image size"),
        ({"imageWidth": 10**6, "imageHeight": 10**6}, "imageWidth and imageHeight"),
        ({"imageWidth": None}, "imageWidth and imageHeight"),
        ({"shapes": [{"label": "Rust", "points": SQUARE}]}, "unknown class"),
        ({"shapes": [{"label": "Pitting", "points": [[99, 99]] * 3}]}, "empty box"),
        ({"shapes": [{"label": "Pitting", "points": [[1, float("nan")]] * 3}]}, "no numbers"),
    ],
)
def test_bsdata_faults_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    raw = ball_screw(tmp_path / "raw")
    path = raw / "label" / "01_200902053521_000000_090_crop_2.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        build(tmp_path, "bsdata", raw)


def test_overlapping_outlines_all_stay_visible() -> None:
    large = Outline("Pitting", ((0, 0), (30, 0), (30, 30), (0, 30)))
    small = Outline("Pitting", ((5, 5), (8, 5), (8, 8), (5, 8)))
    mask, objects = draw([small, large], (40, 40))
    assert [o.area for o in objects] == [16, 31 * 31]
    assert [int((mask == value).sum()) for value in (1, 2)] == [16, 31 * 31 - 16]
    with pytest.raises(FormatError, match="more than 255"):
        draw([small] * 256, (40, 40))


def squared(middle: np.ndarray) -> np.ndarray:
    """A picture as CR7-DET has most: a strip of 128 rows, mirrored again and again to 400."""
    return np.pad(middle, ((136, 136), (0, 0), (0, 0)), mode="symmetric")


def test_the_original_part_of_a_mirrored_picture_is_found() -> None:
    middle = texture(3, (400, 128))
    np.testing.assert_array_equal(original_part(squared(middle)), middle)
    plain = texture(4, (400, 400))
    assert original_part(plain) is plain
    other = texture(4, (300, 200))
    assert original_part(other) is other


def cold_rolled(raw: Path) -> Path:
    for number in range(12):
        middle = texture(number, (400, 128))
        # The same strip turned, brighter and at another place of its period is the same strip.
        twin = np.clip(middle[::-1, ::-1].astype(int) // 2 + 60, 0, 255).astype(np.uint8)
        save(raw / "lengzha" / "image" / f"oil spots{number}.jpg", squared(middle))
        save(raw / "lengzha" / "image" / f"oil spots{number + 50}.jpg", squared(twin))
        if number:
            text(
                raw / "lengzha" / "label" / f"oil spots{number}.txt",
                "2 0.5 0.5 0.1 1.0\n6 0.0154 0.5 0.0308 0.2",
            )
    return raw


def test_cr7_near_duplicates_stay_together(tmp_path: Path) -> None:
    manifest, rows = build(tmp_path, "cr7_det", cold_rolled(tmp_path / "raw"))
    assert len(rows) == 24
    assert min(manifest.splits.values()) >= 2
    for number in range(12):
        assert rows[f"oil spots{number}"]["split"] == rows[f"oil spots{number + 50}"]["split"]
    assert rows["oil spots0"]["objects"]["bbox"] == []
    found = rows["oil spots3"]["objects"]
    assert found["category"] == [2, 6]
    np.testing.assert_allclose(found["bbox"], [[180, 0, 40, 400], [0, 160, 12.32, 80]], atol=1e-4)


def test_unrelated_textures_are_no_near_duplicates() -> None:
    thumbnails = [thumbnail(texture(seed, (200, 200))) for seed in range(60)]
    ids = [str(seed) for seed in range(60)]
    assert near_duplicate_groups(ids, thumbnails) == {i: i for i in ids}
    flat = [thumbnail(np.full((50, 50, 3), value, np.uint8)) for value in (0, 90)]
    assert near_duplicate_groups(["a", "b"], flat) == {"a": "a", "b": "b"}
    assert near_duplicate_groups([], []) == {}


@pytest.mark.parametrize("block", [1, 7, 512])
def test_mirrored_copies_are_found_wherever_they_stand(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("datasets_builders.near_duplicates._BLOCK", block)
    pictures = [texture(seed, (200, 160)) for seed in range(12)]
    copies = [p[::-1] for p in pictures[:4]] + [p[:, ::-1] for p in pictures[4:8]] + pictures[8:]
    ids = [f"{place:02d}" for place in range(24)]
    thumbnails = [thumbnail(np.ascontiguousarray(p)) for p in [*pictures, *copies]]
    expected = {image_id: f"{place % 12:02d}" for place, image_id in enumerate(ids)}
    assert near_duplicate_groups(ids, thumbnails) == expected
    backwards = near_duplicate_groups(ids[::-1], thumbnails[::-1])
    assert backwards == expected


def test_groups_are_joined_through_others() -> None:
    labels = {"d": ["x"], "a": ["y", "z"], "b": ["x", "y"], "c": ["w"]}
    assert join_groups(labels) == {"a": "a", "b": "a", "d": "a", "c": "c"}


@pytest.mark.real_data
def test_magnetic_tile_samples(tmp_path: Path, raw_data: Path) -> None:
    raw = raw_data / "raw" / "samples" / "magnetic_tile"
    manifest, rows = build(tmp_path, "magnetic_tile", raw)
    assert (len(rows), manifest.masks) == (24, 24)
    assert manifest.parts == dict.fromkeys([*FOLDERS, "MT_Free"], 4)
    assert manifest.per_class == {"blowhole": 4, "break": 5, "crack": 6, "fray": 4, "uneven": 4}
    assert manifest.cleaning["region of fewer than 10 pixels left out"]["examples"] == ["exp1_num_135544"]
    for path in raw.rglob("*.png"):
        defect = np.asarray(Image.open(path)) > 127
        row = rows[path.stem]
        mask = decode_mask(row["mask"]["bytes"])
        assert not (mask[~defect] > 0).any()
        assert sum(row["objects"]["area"]) == (mask > 0).sum() >= defect.sum() - 10
        for number, (x, y, width, height) in enumerate(row["objects"]["bbox"], start=1):
            ys, xs = np.nonzero(mask == number)
            assert (x, y, x + width, y + height) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    # One tile, photographed twice.
    assert rows["exp1_num_108719"]["split"] == rows["exp1_num_108889"]["split"]


@pytest.mark.real_data
def test_bsdata_samples_and_the_whole_index(tmp_path: Path, raw_data: Path) -> None:
    raw = raw_data / "raw" / "samples" / "bsdata"
    manifest, rows = build(tmp_path, "bsdata", raw)
    assert manifest.parts == {"with outlines": 8, "without outlines": 8}
    assert manifest.per_class == {"pitting": 8}
    for path in (raw / "label").iterdir():
        content = json.loads(path.read_text())
        (shape,) = content["shapes"]
        (box,) = rows[path.stem]["objects"]["bbox"]
        xs, ys = zip(*shape["points"], strict=True)
        np.testing.assert_allclose(box, (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)), rtol=1e-6)
        polygon = cv2.contourArea(np.array(shape["points"], np.float32))
        around = cv2.arcLength(np.array(shape["points"], np.float32), True)
        assert polygon <= rows[path.stem]["objects"]["area"][0] <= polygon + around
        embedded = decode_image(base64.b64decode(content["imageData"])).astype(int)
        stored = decode_image(rows[path.stem]["image"]["bytes"])
        assert np.abs(embedded - stored).mean() < 2
    entries = json.loads((raw / "image_data.json").read_text())["images"]
    expected = registry.card("bsdata").expected
    assert expected is not None
    assert len(entries) == expected.images
    assert sum(entry["annotations"] is not None for entry in entries) == expected.parts["with outlines"]
    # Every image that the index names, placed by its own name alone.
    placed: Counter[tuple[str, bool]] = Counter()
    left_out = 0
    for entry in entries:
        stem, annotated = Path(entry["filename"]).stem, entry["annotations"] is not None
        place, time = stem[16:26], stem[3:15]
        pitted = [e["filename"][3:15] for e in entries if e["annotations"] and e["filename"][16:26] == place]
        if stem.startswith("01_") and not annotated and pitted and time > min(pitted):
            left_out += 1
        else:
            placed[hash_split("bsdata", group(stem), 0.8), annotated] += 1
    assert left_out == 28
    assert placed == {
        ("train", False): 553,
        ("train", True): 288,
        ("validation", False): 129,
        ("validation", True): 106,
    }
    official = [entry for entry in entries if entry["train_test_split"]]
    assert len(official) == registry.card("bsdata_official").expected.images  # type: ignore[union-attr]


@pytest.mark.real_data
def test_cr7_samples(tmp_path: Path, raw_data: Path) -> None:
    raw = raw_data / "raw" / "samples" / "cr7_det"
    manifest, rows = build(tmp_path, "cr7_det", raw)
    lines = [line.split() for path in raw.rglob("*.txt") for line in path.read_text().splitlines()]
    assert (len(rows), manifest.boxes) == (24, len(lines))
    classes = registry.card("cr7_det").classes
    for index, name in enumerate(classes):
        assert manifest.per_class[name] == sum(int(line[0]) == index for line in lines)
    # The owner's file names say what is in them.
    for image_id, row in rows.items():
        names = {classes[category].rstrip("s") for category in row["objects"]["category"]}
        assert names <= {
            "".join(c for c in image_id if not c.isdigit()).rstrip("s").replace(" ", "_"),
            "pit",
            "punching",
        }
    mirrored = [
        row for row in rows.values() if original_part(decode_image(row["image"]["bytes"])).shape[0] == 128
    ]
    assert len(mirrored) == 23
    # The same hole, at either edge.
    assert rows["punching197"]["split"] == rows["punching227"]["split"]
