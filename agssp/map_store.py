"""Anomaly maps on disk: a Parquet dataset that `datasets.load_dataset(folder)` opens, and its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_file, canonical_json, content_key, file_sha256

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
"""Raised when the same request gives other files."""
METADATA = "metadata.json"
DATA = "data"
ROWS_PER_FILE = 16384
MAX_SIDE = 4096
_COLUMNS = ["image_id", "category", "width", "height", "image_score"]
"""And `map`."""


@dataclass(frozen=True)
class MapRow:
    """The anomaly map of one image.

    Attributes:
        image_id: Id of the image in its dataset.
        category: Category of the image.
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        image_score: How anomalous the whole image is; its range is the source's.
        map: float32 (grid rows, grid columns), rounded to float16; it covers the whole image.
    """

    image_id: str
    category: str
    width: int
    height: int
    image_score: float
    map: NDArray[np.float32]


@dataclass(frozen=True)
class MapStore:
    """A finished set of maps; rows in the order of the dataset.

    Attributes:
        folder: Where it lies.
        identity: All that the maps depend on: `request` (dataset, source, shots, seed, rule) and `normals`.
        grid: (rows, columns) of every map.
        rows: Number of maps.
        categories: Category -> number of maps.
        fingerprint: sha256 of the content: every row, in order; not of files, shards, or times.
        files: File -> `rows`, `bytes`, `sha256`, in the order of the rows.
    """

    folder: Path
    identity: dict[str, Any]
    grid: tuple[int, int]
    rows: int
    categories: dict[str, int]
    fingerprint: str
    files: dict[str, dict[str, Any]]

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for."""
        return dict(self.identity["request"])

    @property
    def normals(self) -> dict[str, list[str]]:
        """Category -> ids of the images that served as normal samples; empty where the source takes none."""
        return dict(self.identity["normals"])

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[MapRow]:
        """Reads the maps from start to end, a few at a time; each file's sha256 is checked first.

        Raises:
            UserError: A file is not what was written.
        """
        import pyarrow.parquet as pq

        for name, facts in self.files.items():
            path = self.folder / name
            try:
                if path.stat().st_size != facts["bytes"] or file_sha256(path) != facts["sha256"]:
                    raise _damaged(path, "its content has changed (sha256)")
                with pq.ParquetFile(path) as parquet:
                    for batch in parquet.iter_batches(batch_size=256):
                        yield from _read_rows(batch, self.grid, path)
            except FileNotFoundError:
                raise _damaged(path, "missing") from None

    def load(self) -> dict[str, MapRow]:
        """Returns every map by image id."""
        return {row.image_id: row for row in self}


def open_maps(folder: Path) -> MapStore:
    """Opens a set of maps.

    Args:
        folder: What `python -m agssp maps ... --out` wrote.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = folder / METADATA
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop("checksum")
        if content["format"] != FORMAT:
            raise UserError(
                f"{folder} holds maps of format {content['format']}, this version reads {FORMAT}.\n"
                f"  Make them again: python -m agssp maps ... --out {folder}"
            )
        if checksum != content_key(content):
            raise _damaged(path, "its checksum does not match")
        found = _Metadata.model_validate(content)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} holds no anomaly maps (no {METADATA}).\n"
            f"  Make some: python -m agssp maps DATASET --out {folder}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"not the metadata of maps ({error})") from error
    return MapStore(
        folder=folder,
        identity=found.identity.model_dump(),
        grid=found.grid,
        rows=found.rows,
        categories=found.categories,
        fingerprint=found.fingerprint,
        files={name: facts.model_dump() for name, facts in found.files.items()},
    )


_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_Count = Annotated[int, Field(ge=0)]


class _Identity(BaseModel):
    request: dict[str, Any]
    normals: dict[str, list[str]]


class _File(BaseModel):
    rows: _Count
    bytes: _Count
    sha256: str


class _Metadata(BaseModel):
    """What `write_store` writes; the file may be a stranger's."""

    model_config = ConfigDict(extra="forbid")
    format: int
    fingerprint: str
    rows: _Count
    grid: tuple[_Side, _Side]
    categories: dict[str, int]
    identity: _Identity
    files: dict[Annotated[str, Field(pattern=rf"^{DATA}/[\w-]+\.parquet$")], _File]


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: {reason}.\n  Remove {path.parent} and make the maps again with python -m agssp maps."
    )


def _read_rows(batch: pa.RecordBatch, grid: tuple[int, int], path: Path) -> list[MapRow]:
    try:
        maps = _map_values(batch).reshape(batch.num_rows, *grid).astype(np.float32)
        others = batch.select(_COLUMNS).to_pylist()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"not a file of maps ({error})") from error
    return [MapRow(**other, map=values) for other, values in zip(others, maps, strict=True)]


def _map_values(batch: pa.RecordBatch) -> NDArray[np.float16]:
    """Returns all values of the map column, flat."""
    import pyarrow as pa

    column = batch.column("map")
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    return storage.flatten().flatten().to_numpy(zero_copy_only=False)


# Writing


def write_part(path: Path, rows: Sequence[MapRow], key: str) -> None:
    """Writes the maps of a block of images as one Parquet file that appears whole.

    Args:
        path: Where.
        rows: At least one; their maps have one shape.
        key: Kept in the file: what the maps depend on, see `read_part`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    maps = np.stack([row.map for row in rows])
    _, height, width = maps.shape
    schema = _schema((height, width))
    nested = pa.array(maps.astype(np.float16).reshape(-1))
    for size in (width, height):
        offsets = np.arange(0, len(nested) + 1, size, dtype=np.int32)
        nested = pa.ListArray.from_arrays(pa.array(offsets), nested)
    columns = {
        name: pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in _COLUMNS
    }
    columns["map"] = pa.ExtensionArray.from_storage(schema.field("map").type, nested)
    table = pa.table(columns, schema=schema.with_metadata({**schema.metadata, b"key": key.encode()}))
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, **_COMPRESSION)


def read_part(path: Path, key: str) -> pa.Table | None:
    """Reads a part; None where there is none, or it was made from something else.

    Args:
        path: Where `write_part` wrote it.
        key: What the maps must depend on.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _schema((1, 1))  # makes the map column's type known to pyarrow
    try:
        table = pq.read_table(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    return table if (table.schema.metadata or {}).get(b"key") == key.encode() else None


# Neighbouring values of float16 share their high bytes: stored apart, maps take a third less room.
_COMPRESSION: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["category"],
    "use_byte_stream_split": ["map.list.element.list.element"],
    "write_statistics": False,
}


def _schema(grid: tuple[int, int]) -> pa.Schema:
    from datasets import Array2D, Features, Value

    features = Features(
        {
            "image_id": Value("string"),
            "category": Value("string"),
            "width": Value("int32"),
            "height": Value("int32"),
            "image_score": Value("float32"),
            "map": Array2D(grid, "float16"),
        }
    )
    return features.arrow_schema


def write_store(folder: Path, parts: Iterable[pa.Table], total: int, split: str, identity: Any) -> None:
    """Writes parts, in order, as the files of a store, and its metadata; needs the memory of one part.

    The bytes depend on the rows and the identity alone, given one version of pyarrow.

    Args:
        folder: An empty folder.
        parts: Tables of `read_part`.
        total: Number of rows in all of them.
        split: Name of the dataset's split.
        identity: Goes into the metadata.
    """
    import pyarrow.parquet as pq

    count = -(-total // ROWS_PER_FILE)
    grid: list[int] = []
    files: dict[str, dict[str, Any]] = {}
    categories: dict[str, int] = {}
    content = hashlib.sha256()
    rows = 0
    writer: pq.ParquetWriter | None = None
    (folder / DATA).mkdir()
    try:
        for table in parts:
            schema = table.schema.with_metadata({b"huggingface": table.schema.metadata[b"huggingface"]})
            name = f"{DATA}/{split}-{rows // ROWS_PER_FILE:05d}-of-{count:05d}.parquet"
            if name not in files:
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(folder / name, schema, **_COMPRESSION)
                files[name] = {"rows": 0}
            assert writer is not None
            writer.write_table(table.replace_schema_metadata(schema.metadata))
            grid = list(table.schema.field("map").type.shape)
            _digest(content, table, categories)
            files[name]["rows"] += table.num_rows
            rows += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    assert rows == total, "every part is there"
    for name, facts in files.items():
        facts |= {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
    metadata = {
        "format": FORMAT,
        "fingerprint": content.hexdigest(),
        "rows": rows,
        "grid": grid,
        "categories": categories,
        "identity": identity,
        "files": files,
    }
    text = json.dumps(metadata | {"checksum": content_key(metadata)}, indent=1, ensure_ascii=False)
    (folder / METADATA).write_text(text + "\n", encoding="utf-8")


def _digest(content: Any, table: pa.Table, categories: dict[str, int]) -> None:
    """Adds rows to the fingerprint, and to the counts of their categories."""
    for batch in table.to_batches():
        maps = _map_values(batch).astype("<f2").reshape(batch.num_rows, -1)
        scores = np.asarray(batch.column("image_score")).astype("<f4")
        for place, row in enumerate(batch.select(["image_id", "category", "width", "height"]).to_pylist()):
            content.update(canonical_json(list(row.values())).encode())
            content.update(scores[place].tobytes() + maps[place].tobytes())
            categories[row["category"]] = categories.get(row["category"], 0) + 1
