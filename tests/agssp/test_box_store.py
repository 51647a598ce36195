"""Stored boxes: round trips, refusals, and the join with images."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_maps import map_row, store_maps

from agssp import box_dataset
from agssp.box_settings import BoxSettings
from agssp.box_store import BoxRow, BoxStore, CategoryFacts, open_boxes, write_boxes
from agssp.pseudo_boxes import make_boxes
from datasets_builders.errors import UserError
from datasets_builders.images import encode_png
from datasets_builders.schema import detection_features
from datasets_builders.storage import content_key


def box_row(
    image_id: str,
    boxes: list[tuple[int, int, int, int]],
    category: str = "plate",
    size: tuple[int, int] = (60, 50),
) -> BoxRow:
    values = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.linspace(1, 0.5, len(boxes)).astype(np.float32)
    return BoxRow(image_id, category, *size, values, scores, values[:, 2] * values[:, 3] / 2)


ROWS = [
    box_row("a", [(0, 0, 60, 50), (3, 4, 5, 6)]),
    box_row("b", [], "rail", (10, 20)),
    box_row("c", [(1, 2, 3, 4)], "rail", (10, 20)),
]


@pytest.fixture
def store(tmp_path: Path) -> BoxStore:
    return write_boxes(
        tmp_path / "boxes", {"settings": 1}, {"plate": 0.5, "rail": 0.75}, ROWS, {"source": "made"}
    )


def test_what_was_written_is_read(store: BoxStore, tmp_path: Path) -> None:
    again = open_boxes(tmp_path / "boxes")
    assert (again.identity, again.origin) == ({"settings": 1}, {"source": "made"})
    assert again.fingerprint == store.fingerprint
    assert len(again) == 3
    for read, written in zip(again, ROWS, strict=True):
        assert read[:4] == written[:4]
        for a, b in zip(read[4:], written[4:], strict=True):
            assert (a.dtype, a.shape) == (np.float32, b.shape)
            assert a.tolist() == b.tolist()
    facts = again.categories
    assert facts == {"plate": CategoryFacts(0.5, 1, 0, 2, 0), "rail": CategoryFacts(0.75, 2, 1, 1, 0)}


def test_the_fingerprint_is_of_the_content_alone(store: BoxStore, tmp_path: Path) -> None:
    other = write_boxes(tmp_path / "other", {"settings": 2}, {"plate": 0.1, "rail": 0.2}, iter(ROWS), {})
    assert other.fingerprint == store.fingerprint
    moved = [box_row("a", [(0, 0, 60, 50), (3, 4, 5, 7)]), *ROWS[1:]]
    assert (
        write_boxes(tmp_path / "moved", {}, {"plate": 0.5, "rail": 0.75}, moved, {}).fingerprint
        != store.fingerprint
    )


def test_boxes_of_no_image_at_all_have_no_boxes(tmp_path: Path) -> None:
    empty = write_boxes(tmp_path / "none", {}, {"rail": 1.0}, [ROWS[1]], {})
    assert [row.boxes.shape for row in empty] == [(0, 4)]


def test_the_same_boxes_are_found_and_others_refused(tmp_path: Path) -> None:
    maps = store_maps(tmp_path / "maps", [map_row("a", np.ones((3, 3)), (30, 30))])
    first = make_boxes(maps, tmp_path / "boxes")
    before = (tmp_path / "boxes" / "metadata.json").stat().st_mtime_ns
    assert make_boxes(maps, tmp_path / "boxes").fingerprint == first.fingerprint
    assert (tmp_path / "boxes" / "metadata.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"other maps or settings.*choose another folder"):
        make_boxes(maps, tmp_path / "boxes", BoxSettings(margin=0.2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds no boxes"):
        make_boxes(maps, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_folders_without_boxes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="python -m agssp boxes"):
        open_boxes(tmp_path / "nowhere")


def rewrite(folder: Path, **changes: object) -> None:
    """Changes metadata and its checksum with it, as an attacker would."""
    path = folder / "metadata.json"
    content = json.loads(path.read_text())
    content.pop("checksum")
    content |= changes
    path.write_text(json.dumps(content | {"checksum": content_key(content)}))


@pytest.mark.parametrize("place", [4, 200, -20])
def test_damaged_rows_are_refused(store: BoxStore, place: int) -> None:
    path = store.folder / "boxes.parquet"
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot be used"):
        open_boxes(store.folder)


def test_missing_truncated_and_edited_files_are_refused(store: BoxStore) -> None:
    rows, metadata = store.folder / "boxes.parquet", store.folder / "metadata.json"
    good_rows, good_metadata = rows.read_bytes(), metadata.read_text()
    for bad in (None, b"", good_rows[:100]):
        rows.unlink()
        if bad is not None:
            rows.write_bytes(bad)
        with pytest.raises(UserError, match="cannot be used"):
            open_boxes(store.folder)
        rows.write_bytes(good_rows)
    for text in ("", "[]", "{}", good_metadata.replace("0.75", "0.70"), good_metadata[:-10]):
        metadata.write_text(text)
        with pytest.raises(UserError, match="cannot be used"):
            open_boxes(store.folder)
    for changes in (
        {"format": "agssp-bench/boxes/9"},
        {"categories": {}},
        {"categories": []},
        {"categories": {"plate": 1, "rail": 2}},
        {"fingerprint": "0" * 64},
    ):
        metadata.write_text(good_metadata)
        rewrite(store.folder, **changes)
        with pytest.raises(UserError, match="cannot be used"):
            open_boxes(store.folder)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("image_id", ["a", "a", "c"]),
        ("image_id", ["a", None, "c"]),
        ("width", [60, 0, 10]),
        ("bbox", [[0, 0, 60, 50, 3, 4, 5, 6], [], [8, 2, 3, 4]]),
        ("bbox", [[0, 0, 60, 50, 3, 4, 5, 6], [], [1, 2, float("nan"), 4]]),
        ("bbox", [[0, 0, 60, 50, 3, 4, 5, 6], [], [1, 2, 0, 4]]),
        ("bbox", [[0, 0, 60, 50, 3, 4, 5, 6], [], [1, 2, None, 4]]),
        ("bbox", [[0, 0, 60, 50, 3, 4, 5], [], [1, 2, 3, 4]]),
        ("score", [[1, 0.5], [], [float("inf")]]),
        ("score", [[1, 0.5], [2], [1]]),
        ("area", [[1, 1], [], [1e9]]),
        ("area", [[1, 1], None, [1]]),
    ],
)  # fmt: skip
def test_values_that_are_none_of_boxes_are_refused(
    store: BoxStore, column: str, values: list[object]
) -> None:
    path = store.folder / "boxes.parquet"
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(
        table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type)),
        path,
    )
    with pytest.raises(UserError, match="cannot be used"):
        open_boxes(store.folder)


def test_other_columns_are_refused(store: BoxStore) -> None:
    path = store.folder / "boxes.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["area"]), path)
    with pytest.raises(UserError, match="other columns"):
        open_boxes(store.folder)


def corpus(folder: Path, ids: list[str], sizes: bool = False) -> datasets.Dataset:
    """A memory-mapped dataset of images, whose first pixel tells its number."""
    features = {
        "image": datasets.Image(mode="RGB"),
        "image_id": datasets.Value("string"),
        "source": datasets.Value("string"),
    }
    rows: dict[str, list[object]] = {"image": [], "image_id": list(ids), "source": ["x"] * len(ids)}
    for number in range(len(ids)):
        pixels = np.full((50, 60, 3), number, np.uint8)
        rows["image"].append({"bytes": encode_png(pixels), "path": None})
    if sizes:
        features |= {"width": datasets.Value("int32"), "height": datasets.Value("int32")}
        rows |= {"width": [60] * len(ids), "height": [50] * len(ids)}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(folder)
    return datasets.load_from_disk(folder)


@pytest.fixture
def five(tmp_path: Path) -> BoxStore:
    rows = [box_row(name, [(0, k, 10 + k, 10)] * (k % 3)) for k, name in enumerate("abcde")]
    return write_boxes(tmp_path / "five", {}, {"plate": 0.5}, rows, {})


def check_joined(joined: datasets.Dataset, five: BoxStore, images: datasets.Dataset) -> None:
    rows = {row.image_id: row for row in five}
    assert joined.features == box_dataset.features()
    plain = {name: value for name, value in joined.features["objects"].items() if name != "score"}
    assert plain == detection_features(["defect"])["objects"]
    assert joined.column_names == list(detection_features(["defect"]))
    assert joined["image_id"][:] == images["image_id"][:]
    seen: list[int] = []
    for example, image in zip(joined, images, strict=True):
        row = rows[example["image_id"]]
        np.testing.assert_array_equal(np.asarray(example["image"]), np.asarray(image["image"]))
        assert (example["width"], example["height"], example["mask"]) == (row.width, row.height, None)
        objects = example["objects"]
        assert objects["bbox"] == row.boxes.tolist()
        assert objects["score"] == row.scores.tolist()
        assert objects["area"] == row.areas.tolist()
        assert objects["category"] == [0] * len(row.boxes)
        seen += objects["id"]
    assert len(set(seen)) == len(seen)
    assert 0 not in seen


@pytest.mark.parametrize("order", [list("abcde"), list("ecadb"), ["d"], ["x", "e", "y", "a"]])
@pytest.mark.parametrize("sizes", [False, True])
def test_images_and_their_boxes_are_joined_in_the_order_of_the_images(
    five: BoxStore, tmp_path: Path, order: list[str], sizes: bool
) -> None:
    images = corpus(tmp_path / "corpus", order, sizes)
    # Images that are not in the store, but not selected either, do not matter.
    images = images.select([place for place, name in enumerate(order) if name in "abcde"])
    check_joined(five.as_detection_dataset(images), five, images)
    turned = images.select(range(len(images))[::-1]) if len(images) > 1 else images
    check_joined(five.as_detection_dataset(turned), five, turned)


def test_images_are_not_copied(five: BoxStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = corpus(tmp_path / "corpus", list("ecadb")).select([3, 0, 1])
    files = sorted(path.name for path in (tmp_path / "corpus").iterdir())
    for method in ("map", "flatten_indices", "cast"):
        monkeypatch.setattr(datasets.Dataset, method, lambda *_, **__: pytest.fail("copies all rows"))
    joined = five.as_detection_dataset(images)
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == files
    stored = joined.data.column("image").chunks[0].field("bytes").buffers()[2]
    assert stored.address == images.data.column("image").chunks[0].field("bytes").buffers()[2].address


def test_images_that_do_not_match_are_refused(five: BoxStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 2 images are not among the boxes.*'x'"):
        five.as_detection_dataset(corpus(tmp_path / "other", ["a", "x"]))
    with pytest.raises(UserError, match="occur more than once"):
        five.as_detection_dataset(corpus(tmp_path / "twice", ["a", "a"]))
    with pytest.raises(UserError, match="columns image and image_id"):
        five.as_detection_dataset(corpus(tmp_path / "plain", ["a"]).remove_columns("image_id"))
    small = write_boxes(tmp_path / "small", {}, {"plate": 0.5}, [box_row("a", [], size=(6, 5))], {})
    with pytest.raises(UserError, match=r"another size.*'a', then 6 x 5"):
        small.as_detection_dataset(corpus(tmp_path / "sized", ["a"], sizes=True))


def test_detection_datasets_are_joined_without_their_own_objects(five: BoxStore, tmp_path: Path) -> None:
    png = {"bytes": encode_png(np.zeros((50, 60), np.uint8)), "path": None}
    objects = {"id": [7], "bbox": [[1, 2, 3, 4]], "area": [12], "category": [1]}
    rows = {"image": [png] * 3, "image_id": list("cab"), "width": [60] * 3, "height": [50] * 3}
    features = detection_features(["scratch", "dent"])
    whole = datasets.Dataset.from_dict(
        rows | {"objects": [objects] * 3, "mask": [png] * 3}, features=features
    )
    whole.save_to_disk(tmp_path / "labelled")
    images = datasets.load_from_disk(tmp_path / "labelled").select([2, 0])
    check_joined(five.as_detection_dataset(images), five, images)
