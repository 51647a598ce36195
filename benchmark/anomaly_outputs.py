"""What an anomaly detector answered on a whole split: in memory and as one compressed file.

Metrics are always computed from these float32 arrays, and the file holds exactly the same values, so that anyone who
has the file computes the same metrics.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_file, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

MAX_IMAGES = 50_000
MAX_SIDE = 1024
MAX_VALUES = 2**26
MAX_FILE_BYTES = 256 * 2**20
MAX_NAME_LENGTH = 256

_FORMAT = "agssp-bench/anomaly-outputs/1"
_METADATA_KEY = b"agssp_bench"


@dataclass(frozen=True, eq=False)
class Outputs:
    """Maps and scores of every image of a split.

    Attributes:
        image_ids: In the order of the split; each once.
        scores: (N,) float32, of whole images; finite.
        maps: (N, h, w) float32, on the detector's own grid; finite.

    Raises:
        UserError: The arrays do not fit together, or hold values that are not finite.
    """

    image_ids: tuple[str, ...]
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]

    def __post_init__(self) -> None:
        shapes = self.scores.shape, self.maps.shape
        if self.maps.ndim != 3 or {len(self.scores), len(self.maps)} != {len(self.image_ids)}:
            raise UserError(f"{len(self.image_ids)} images do not have scores and maps of shapes {shapes}.")
        _check_size(len(self.image_ids), self.maps.shape[1:])
        for name in self.image_ids:
            if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
                raise UserError(f"An image id is not 1 to {MAX_NAME_LENGTH} printable characters.")
        if len(set(self.image_ids)) != len(self.image_ids):
            raise UserError("An image is there twice.")
        for array, what in ((self.scores, "image score"), (self.maps, "map")):
            finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
            if not finite.all():
                raise UserError(f"The {what} of {self.image_ids[int(finite.argmin())]!r} is not finite.")
            array.setflags(write=False)

    def sha256(self) -> str:
        """Returns the content's hash (64 hexadecimal digits), whatever the compression or library version."""
        digest = hashlib.sha256(canonical_json([_FORMAT, self.image_ids, self.maps.shape]).encode())
        for array in (self.scores, self.maps):
            digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Writes them as Parquet, whole or not at all: image_id, image_score, map (a list of h * w values)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        grid = self.maps.shape[1:]
        maps = pa.FixedSizeListArray.from_arrays(pa.array(self.maps.reshape(-1)), grid[0] * grid[1])
        columns = [pa.array(self.image_ids, pa.string()), pa.array(self.scores), maps]
        metadata = {_METADATA_KEY: canonical_json({"format": _FORMAT, "grid": list(grid)}).encode()}
        table = pa.Table.from_arrays(columns, schema=_schema(grid).with_metadata(metadata))
        with atomic_file(path) as temporary:
            pq.write_table(
                table,
                temporary,
                row_group_size=MAX_IMAGES,
                compression="zstd",
                use_dictionary=False,
                use_byte_stream_split=["image_score", "map.list.element"],
            )

    @classmethod
    def load(cls, path: Path) -> Outputs:
        """Reads a file written by `save`; anyone may have written it, so nothing in it is trusted.

        Raises:
            UserError: No such file, too large, or not this format; names the file.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.is_file():
            raise UserError(f"No file {path}. It belongs beside its record: copy both.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: larger than the limit of {MAX_FILE_BYTES // 2**20} MiB.")
        try:
            file = pq.ParquetFile(pa.BufferReader(path.read_bytes()))
            grid = _checked_grid(file)
            table = file.read(use_threads=False).combine_chunks()
            if any(column.null_count for column in table.columns):
                raise UserError("holds missing values.")
            return cls(
                image_ids=tuple(table.column("image_id").to_pylist()),
                scores=table.column("image_score").to_numpy().copy(),
                maps=table.column("map").combine_chunks().flatten().to_numpy().reshape(-1, *grid).copy(),
            )
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not readable ({ascii(str(error))[1:200]}).") from None


def _schema(grid: tuple[int, ...]) -> pa.Schema:
    import pyarrow as pa

    # Fields of plain Parquet, so that the file's own description cannot differ.
    element = pa.field("element", pa.float32())
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("image_score", pa.float32(), nullable=False),
            pa.field("map", pa.list_(element, grid[0] * grid[1]), nullable=False),
        ]
    )


def _check_size(images: int, grid: tuple[int, ...]) -> None:
    if not 1 <= images <= MAX_IMAGES:
        raise UserError(f"{images} images are not in 1..{MAX_IMAGES}.")
    if not all(1 <= side <= MAX_SIDE for side in grid) or images * grid[0] * grid[1] > MAX_VALUES:
        raise UserError(
            f"{images} maps of {grid[0]} x {grid[1]} are more than the limit of {MAX_VALUES} values."
        )


def _checked_grid(file: Any) -> tuple[int, int]:
    """Refuses by the footer alone, before anything of its claimed size is read; returns the grid."""
    footer = file.metadata
    header = json.loads((footer.metadata or {}).get(_METADATA_KEY, b"null"))
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise UserError(f"not of the format {_FORMAT}; a newer version of the project may read it.")
    grid = header.get("grid")
    if not isinstance(grid, list) or len(grid) != 2 or not all(type(side) is int for side in grid):
        raise UserError("its description has no grid.")
    _check_size(footer.num_rows, tuple(grid))
    if footer.num_row_groups != 1:
        raise UserError("more than one row group.")
    if not _schema(tuple(grid)).equals(file.schema_arrow):
        raise UserError("its columns are not those of this format.")
    if not 0 <= footer.row_group(0).total_byte_size <= 2 * MAX_FILE_BYTES:
        raise UserError("claims more content than the limit.")
    return grid[0], grid[1]
