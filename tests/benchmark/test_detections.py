from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark import detections as module
from benchmark.detections import Detections
from datasets_builders.errors import UserError

CLASSES = ["scratch", "inclusion", "crazing"]


def sample(seed: int = 0, images: int = 6, most: int = 8) -> Detections:
    """Random detections; about every third image has none."""
    rng = np.random.default_rng(seed)
    counts = [int(rng.integers(0, most)) * int(rng.random() < 0.7) for _ in range(images)]
    corners = [np.sort(rng.uniform(-5, 640, (n, 2, 2)), axis=1).reshape(n, 4) for n in counts]
    return Detections.from_images(
        CLASSES,
        [f"plate/{i:03d}" for i in range(images)],
        corners,
        [rng.random(n) for n in counts],
        [rng.integers(0, len(CLASSES), n) for n in counts],
    )


def assert_same(a: Detections, b: Detections) -> None:
    assert (a.classes, a.image_ids) == (b.classes, b.image_ids)
    for name in ("offsets", "boxes", "scores", "labels"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes(), name


def rewrite(
    path: Path,
    table: Callable[[pa.Table], pa.Table] = lambda table: table,
    header: Callable[[dict[str, Any]], Any] = lambda header: header,
    **options: Any,
) -> None:
    """Writes a file again with a changed table or description, as a forger would."""
    stored = pq.ParquetFile(path)
    description = json.loads(stored.metadata.metadata[b"agssp_bench"])
    changed = table(stored.read())
    with pq.ParquetWriter(path, changed.schema, store_schema=False, **options) as writer:
        writer.write_table(changed)
        writer.add_key_value_metadata({"agssp_bench": json.dumps(header(description))})


@given(st.integers(0, 10_000), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, seed: int, images: int) -> None:
    path = tmp_path_factory.mktemp("detections") / "d.parquet"
    before = sample(seed, images)
    digest = before.save(path)
    after = Detections.load(path)
    assert_same(before, after)
    assert digest == before.sha256() == after.sha256()


def test_extreme_float32_values_survive(tmp_path: Path) -> None:
    tiny = np.float32(1e-45)
    boxes = np.array(
        [[0.0, -0.0, tiny, 0.1], [1 / 3, 1 / 3, np.nextafter(np.float32(640), np.float32(0)), 1e6]]
    )
    before = Detections.from_images(["a"], ["x"], [boxes], [[tiny, 1.0]], [[0, 0]])
    before.save(tmp_path / "d.parquet")
    assert_same(before, Detections.load(tmp_path / "d.parquet"))


def test_no_detections_at_all_and_no_images(tmp_path: Path) -> None:
    for ids in (["b", "a"], []):
        empty = Detections.from_images(CLASSES, ids, [[]] * len(ids), [[]] * len(ids), [[]] * len(ids))
        empty.save(tmp_path / "d.parquet")
        loaded = Detections.load(tmp_path / "d.parquet")
        assert_same(empty, loaded)
        assert loaded.image_ids == tuple(sorted(ids))
        assert len(loaded) == 0


def test_images_are_sorted_and_keep_their_own_rows() -> None:
    detections = Detections.from_images(
        ["a", "b"],
        ["z", "m", "b"],
        [[[0, 0, 1, 1], [0, 0, 2, 2]], [], [[0, 0, 3, 3]]],
        [[0.1, 0.2], [], [0.3]],
        [[0, 1], [], [1]],
    )
    assert detections.image_ids == ("b", "m", "z")
    assert detections.of_image(0).boxes.tolist() == [[0, 0, 3, 3]]
    assert len(detections.of_image(1).scores) == 0
    assert detections.of_image(2).labels.tolist() == [0, 1]
    assert detections.image_index.tolist() == [0, 2, 2]


def test_torch_tensors_are_taken() -> None:
    import torch

    boxes = torch.tensor([[0.0, 0.0, 1.5, 2.5]])
    detections = Detections.from_images(["a"], ["x"], [boxes], [torch.tensor([0.25])], [torch.tensor([0])])
    assert detections.boxes.tolist() == [[0.0, 0.0, 1.5, 2.5]]


def test_equal_detections_give_equal_bytes(tmp_path: Path) -> None:
    sample(3).save(tmp_path / "a.parquet")
    sample(3).save(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_saving_over_a_file_is_whole_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.parquet"
    sample(1).save(path)
    good = path.read_bytes()

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full_disk)
        with pytest.raises(OSError, match="No space"):
            sample(2).save(path)
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]


def test_hash_is_of_the_content_not_of_the_compression(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    digest = sample(4).save(path)
    small = path.read_bytes()
    rewrite(path, compression="none")
    assert path.read_bytes() != small
    assert Detections.load(path).sha256() == digest


def test_hash_changes_with_every_part() -> None:
    base: dict[str, Any] = {
        "classes": ["a", "b"],
        "image_ids": ["x", "y"],
        "boxes": [[[0, 0, 1, 1]], []],
        "scores": [[0.5], []],
        "labels": [[0], []],
    }
    variants = [
        base,
        base | {"classes": ["a", "c"]},
        base | {"image_ids": ["x", "z"]},
        base | {"image_ids": ["y", "x"]},
        base | {"boxes": [[[0, 0, 1, np.nextafter(np.float32(1), np.float32(2))]], []]},
        base | {"scores": [[np.nextafter(np.float32(0.5), np.float32(1))], []]},
        base | {"labels": [[1], []]},
    ]
    digests = [Detections.from_images(**variant).sha256() for variant in variants]
    assert len(set(digests)) == len(digests)


def test_arrays_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        sample().scores[0] = 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"boxes": [[[0, 0, np.nan, 1]]]}, "not finite"),
        ({"boxes": [[[0, 0, np.inf, 1]]]}, "not finite"),
        ({"boxes": [[[0, 0, 1e7, 1]]]}, "absurdly far"),
        ({"boxes": [[[2, 0, 1, 1]]]}, "negative width"),
        ({"boxes": [[[0, 2, 1, 1]]]}, "negative width or height"),
        ({"boxes": [[[0, 0, 1, 1]] * 2]}, "differ in number"),
        ({"scores": [[np.nan]]}, "score"),
        ({"scores": [[1.5]]}, "score"),
        ({"scores": [[-0.1]]}, "score"),
        ({"labels": [[2]]}, "label outside 0..1"),
        ({"labels": [[-1]]}, "label outside"),
        ({"labels": [[65536]]}, "label outside"),
        ({"image_ids": ["x", "y"]}, "as many"),
        ({"image_ids": [""]}, "image id"),
        ({"image_ids": ["a\x00b"]}, "printable"),
        ({"image_ids": ["\ud800"]}, "printable"),
        ({"image_ids": ["x" * 300]}, "printable"),
        ({"classes": ["a", "a"]}, "twice"),
        ({"classes": ["a", 7]}, "class"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, Any], reason: str) -> None:
    good: dict[str, Any] = {
        "classes": ["a", "b"],
        "image_ids": ["x"],
        "boxes": [[[0, 0, 1, 1]]],
        "scores": [[0.5]],
        "labels": [[0]],
    }
    Detections.from_images(**good)
    with pytest.raises(UserError, match=reason):
        Detections.from_images(**good | change)


def test_error_names_the_image() -> None:
    with pytest.raises(UserError, match="'third'"):
        Detections.from_images(
            ["a"], ["first", "second", "third"], [[], [], [[0, 0, np.nan, 1]]], [[], [], [0.5]], [[], [], [0]]
        )


def set_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index(name)
        field = table.schema.field(position)
        new = pa.array(np.resize(values, table.num_rows), field.type)
        return table.set_column(position, field, new)

    return change


def nullable(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_column("score", [np.nan]), "score"),
        (set_column("score", [2.0]), "score"),
        (set_column("x2", [np.inf]), "not finite"),
        (set_column("x1", [700.0]), "negative width"),
        (set_column("category", [3]), "label"),
        (set_column("category", [-1]), "label"),
        (set_column("image", [6]), "not in the file's own list"),
        (set_column("image", [-1]), "not in the file's own list"),
        (set_column("image", [1, 0]), "order"),
        (nullable, "columns"),
        (lambda table: table.drop_columns(["x1"]), "columns"),
        (lambda table: table.append_column("extra", pa.array(["<script>"] * table.num_rows)), "columns"),
        (
            lambda table: table.cast(
                pa.schema([table.schema[0].with_type(pa.int64()), *list(table.schema)[1:]])
            ),
            "col",
        ),
    ],
)
def test_forged_tables_are_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], reason: str
) -> None:
    path = tmp_path / "d.parquet"
    sample(5).save(path)
    rewrite(path, table=change)
    with pytest.raises(UserError, match=reason) as error:
        Detections.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda header: header | {"format": "agssp-bench/detections/99"}, "format"),
        (lambda header: [header], "format"),
        (lambda header: {"format": header["format"]}, "lists no classes"),
        (lambda header: header | {"image_ids": header["image_ids"][::-1]}, "not sorted"),
        (lambda header: header | {"image_ids": header["image_ids"] * 2}, "twice"),
        (lambda header: header | {"image_ids": [["a"]] * 6}, "image id"),
        (lambda header: header | {"image_ids": ["\ud800"]}, "printable"),
        (lambda header: header | {"classes": []}, "label"),
    ],
)
def test_forged_descriptions_are_refused(tmp_path: Path, change: Callable[[Any], Any], reason: str) -> None:
    path = tmp_path / "d.parquet"
    sample(5).save(path)
    rewrite(path, header=change)
    with pytest.raises(UserError, match=reason):
        Detections.load(path)


def test_deeply_nested_description_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    sample(5).save(path)
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"agssp_bench": "[" * 200_000})
    with pytest.raises(UserError):
        Detections.load(path)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.parquet"
    sample(5).save(path)
    for name, reason in (
        ("MAX_DETECTIONS", "detections, more than"),
        ("MAX_IMAGES", "image id entries, more than"),
        ("MAX_CLASSES", "class entries, more than"),
        ("MAX_FILE_BYTES", "larger than"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, 2)
            with pytest.raises(UserError, match=reason):
                Detections.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    with pytest.raises(UserError, match="No detections file"):
        Detections.load(path)
    with pytest.raises(UserError, match="No detections file"):
        Detections.load(tmp_path)
    for content in (b"", b"PAR1", b"PAR1PAR1", b"\x80\x04K\x01.", b'{"a": 1}'):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a readable detections file"):
            Detections.load(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="columns"):
        Detections.load(path)


def test_damaged_files_never_pass_for_the_original(tmp_path: Path) -> None:
    """Flipped and cut files: refused, or read with another hash; no other error, no crash of the process."""
    path, damaged = tmp_path / "d.parquet", tmp_path / "damaged.parquet"
    original = sample(6, images=10)
    digest = original.save(path)
    content = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(600):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 5])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        if rng.random() < 0.1:
            del changed[rng.randrange(len(changed)) :]
        damaged.write_bytes(changed)
        try:
            loaded = Detections.load(damaged)
        except UserError:
            refused += 1
        else:
            if loaded.sha256() == digest:
                assert_same(loaded, original)
    assert refused > 100
