from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from map_cases import files_of

from agssp import map_store
from agssp.map_store import MapRow, open_maps, read_part, write_part, write_store
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

IDENTITY = {
    "request": {"source": {"method": "test"}, "shots": 2},
    "normals": {"cast": ["image 0", "image 1"]},
}


def made_rows(count: int = 10, grid: tuple[int, int] = (5, 7)) -> list[MapRow]:
    rng = np.random.default_rng(0)
    return [
        MapRow(f"image {i}/ä", ("cast", "rolled")[i % 2], 64 + i, 48, i / 3, rng.random(grid, np.float32) * 2)
        for i in range(count)
    ]


def made_store(folder: Path, rows: list[MapRow], part: int = 4) -> Path:
    tables = []
    for start in range(0, len(rows), part):
        write_part(folder / "parts" / f"{start}", rows[start : start + part], "key")
        tables.append(read_part(folder / "parts" / f"{start}", "key"))
    (folder / "maps").mkdir()
    write_store(folder / "maps", tables, len(rows), "train", IDENTITY)
    return folder / "maps"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = made_rows()
    store = open_maps(made_store(tmp_path, rows))
    assert (len(store), store.grid) == (10, (5, 7))
    assert store.categories == {"cast": 5, "rolled": 5}
    assert store.normals == IDENTITY["normals"]
    assert store.request["shots"] == 2
    assert list(store.load()) == [row.image_id for row in rows]
    for row, written in zip(store, rows, strict=True):
        assert (row.image_id, row.category, row.width, row.height) == (
            written.image_id,
            written.category,
            written.width,
            written.height,
        )
        assert row.image_score == np.float32(written.image_score)
        assert row.map.dtype == np.float32
        np.testing.assert_array_equal(row.map, written.map.astype(np.float16).astype(np.float32))


def test_the_datasets_library_opens_it(tmp_path: Path) -> None:
    rows = made_rows()
    folder = made_store(tmp_path, rows)
    opened = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened.features["map"] == datasets.Array2D((5, 7), "float16")
    assert opened["image_id"][:] == [row.image_id for row in rows]
    files = [str(path) for path in (folder / "data").iterdir()]
    other = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache2"))
    np.testing.assert_array_equal(
        other.with_format("numpy")[3]["map"], rows[3].map.astype(np.float16).astype(np.float32)
    )


def test_files_are_bounded_and_the_fingerprint_does_not_depend_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = open_maps(made_store(tmp_path / "one", made_rows()))
    monkeypatch.setattr(map_store, "ROWS_PER_FILE", 4)
    three = open_maps(made_store(tmp_path / "three", made_rows(), part=2))
    assert [facts["rows"] for facts in three.files.values()] == [4, 4, 2]
    assert list(three.files)[1] == "data/train-00001-of-00003.parquet"
    assert one.fingerprint == three.fingerprint
    assert list(three.load()) == list(one.load())
    changed = made_rows()
    changed[7].map[0, 0] += 0.01
    assert open_maps(made_store(tmp_path / "changed", changed)).fingerprint != one.fingerprint


def test_the_bytes_depend_on_the_rows_alone(tmp_path: Path) -> None:
    assert files_of(made_store(tmp_path / "a", made_rows())) == files_of(
        made_store(tmp_path / "b", made_rows())
    )


def test_a_part_of_something_else_is_none(tmp_path: Path) -> None:
    write_part(tmp_path / "part", made_rows(), "key")
    assert read_part(tmp_path / "part", "other") is None
    assert read_part(tmp_path / "none", "key") is None
    (tmp_path / "part").write_bytes((tmp_path / "part").read_bytes()[:-40])
    assert read_part(tmp_path / "part", "key") is None
    (tmp_path / "part").write_bytes(b"")
    assert read_part(tmp_path / "part", "key") is None


def test_damage_is_said(tmp_path: Path) -> None:
    folder = made_store(tmp_path, made_rows())
    path = folder / "data" / "train-00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="its content has changed"):
        open_maps(folder).load()
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        open_maps(folder).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"data/../../secret": {"rows": 1, "bytes": 1, "sha256": ""}}}, "string_pattern_mismatch"),
        ({"files": {"/etc/passwd": {"rows": 1, "bytes": 1, "sha256": ""}}}, "string_pattern_mismatch"),
        ({"files": {"data/..": {"rows": 1, "bytes": 1, "sha256": ""}}}, "string_pattern_mismatch"),
        ({"grid": [0, 4]}, "grid"),
        ({"grid": [10**9, 10**9]}, "grid"),
        ({"grid": "no"}, "not the metadata"),
        ({"files": []}, "not the metadata"),
        ({"rows": None}, "not the metadata"),
        ({"format": 99}, "format 99"),
    ],
)
def test_hostile_metadata_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    folder = made_store(tmp_path, made_rows())
    content = json.loads((folder / "metadata.json").read_text()) | change
    content.pop("checksum")
    (folder / "metadata.json").write_text(json.dumps(content | {"checksum": content_key(content)}))
    with pytest.raises(UserError, match=message):
        open_maps(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"format": 1}', "\udcff", '{"checksum": 3, "format": 1}']
)
def test_metadata_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "metadata.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"Remove .* and make the maps again"):
        open_maps(tmp_path)


def test_no_maps(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="python -m agssp maps DATASET --out"):
            open_maps(folder)
