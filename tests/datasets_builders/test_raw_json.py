from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datasets_builders.raw_formats import FormatError, read_yolo
from datasets_builders.raw_json import read_coco, read_labelme

SHAPE = {"label": " Pitting ", "points": [[1, 2], [5, 2], [5, 6.5]], "shape_type": "polygon"}


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "x.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def labelme(**changes: Any) -> dict[str, Any]:
    return {"shapes": [SHAPE], "imageData": None, "imageWidth": 9, "imageHeight": 8} | changes


def test_labelme_is_read(tmp_path: Path) -> None:
    rectangle = {"label": "Pitting", "points": [[1, 2], [3, 5]], "shape_type": "rectangle"}
    data = labelme(shapes=[SHAPE, rectangle], imageData=base64.b64encode(b"\xff\x00pic").decode())
    found = read_labelme(write(tmp_path, data))
    assert (found.image, found.size) == (b"\xff\x00pic", (9, 8))
    assert [(o.label, o.points) for o in found.outlines] == [
        ("Pitting", ((1, 2), (5, 2), (5, 6.5))),
        ("Pitting", ((1, 2), (3, 2), (3, 5), (1, 5))),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not JSON"),
        ("[1, 2]", "not a labelme"),
        ("[" * 100_000, "nested|not JSON"),
        (labelme(shapes=[{**SHAPE, "shape_type": "circle"}]), "circle"),
        (labelme(shapes=[{**SHAPE, "points": [[1, 2]]}]), "1 points"),
        (labelme(shapes=[{**SHAPE, "points": [["a", 2]]}]), "not a labelme"),
        (labelme(shapes=None), "not a labelme"),
        (labelme(imageData="*no base64*"), "base64"),
        (labelme(imageWidth="wide"), "not a labelme"),
    ],
)
def test_broken_labelme_is_refused_with_a_reason(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        read_labelme(write(tmp_path, content))


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "b.jpg", "width": 4, "height": 3}, {"id": 2, "file_name": "a.jpg"}],
        "categories": [{"id": 5, "name": "hole"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "bbox": [0, 1, 2, 1.5], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0, 0, 4, 3], "iscrowd": 1},
        ],
    } | changes


def test_coco_is_read(tmp_path: Path) -> None:
    first, second = read_coco(write(tmp_path, coco()))
    assert (first.file_name, first.size, first.objects) == ("a.jpg", None, [])
    assert (second.file_name, second.size) == ("b.jpg", (4, 3))
    assert [(o.category, o.bbox) for o in second.objects] == [("hole", (0, 1, 2, 1.5))]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ({}, "not a COCO"),
        ("1" * 5000, "not JSON"),
        (coco(images=[]), "image 7"),
        (
            coco(images=[{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}]),
            "two of its images",
        ),
        (coco(categories=[{"id": 5, "name": "hole"}, {"id": 5, "name": "cut"}]), "two of its categories"),
        (coco(categories=[]), "category 5"),
        (coco(annotations=[{"image_id": 7, "category_id": 5, "bbox": [1, 2]}]), "not a COCO"),
    ],
)
def test_broken_coco_is_refused_with_a_reason(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        read_coco(write(tmp_path, content))


def test_oversized_json_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(FormatError, match="larger than"):
        read_labelme(path)


def test_yolo_is_read_as_fractions(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\ufeff1 0.5 0.5 0.2 0.4\r\n\n0 0.1 0.2 0.3 0.2 0.3 0.6\n9 .5 .5 1 1\n", encoding="utf-8")
    found = read_yolo(path, {0: "a", 1: "b"})
    assert [one.category for one in found] == ["b", "a", "9"]
    for one, expected in zip(found, [(0.4, 0.3, 0.2, 0.4), (0.1, 0.2, 0.2, 0.4), (0, 0, 1, 1)], strict=True):
        assert one.bbox == pytest.approx(expected)


def test_a_missing_or_empty_yolo_file_is_an_image_without_defects(tmp_path: Path) -> None:
    assert read_yolo(tmp_path / "missing.txt", {}) == []
    (tmp_path / "empty.txt").touch()
    assert read_yolo(tmp_path / "empty.txt", {}) == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"0 0.5 0.5 0.1\n", "line 1: 3 values"),
        (b"0 0.5 0.5 0.1 0.1 0.9\n", "line 1: 5 values"),
        (b"0 0.5 0.5 0.1 0.1\nhole 0.5 0.5 0.1 0.1\n", "line 2"),
        (b"0 0.5 x 0.1 0.1\n", "line 1"),
        (b"\xff\xfe0\x00", "utf-8"),
    ],
)
def test_broken_yolo_is_refused_with_a_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=reason):
        read_yolo(path, {0: "a"})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_of_any_shape_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Any value in any place: never another exception."""
    content = data.draw(st.sampled_from([labelme(), coco()]))
    content = json.loads(json.dumps(content))
    spot: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(spot) if isinstance(spot, dict) else range(len(spot))))
        if not isinstance(spot[key], dict | list) or not spot[key] or data.draw(st.booleans()):
            spot[key] = data.draw(anything)
            break
        spot = spot[key]
    path = write(tmp_path, content)
    for read in (read_labelme, read_coco):
        with contextlib.suppress(FormatError):
            assert read(path) is not None


@example(b"\xef")  # the first byte of a byte order mark alone, which Python's text files drop in silence
@given(st.binary(max_size=60) | st.text(alphabet="0123456789. -einf\n", max_size=60).map(str.encode))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_of_any_kind_is_read_or_refused_as_yolo(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(data)
    with contextlib.suppress(FormatError):
        found = read_yolo(path, {0: "a"})
        assert len(found) == sum(bool(line.strip()) for line in data.decode("utf-8-sig").splitlines())
