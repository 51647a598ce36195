"""Weights files, which may come from anyone: read within bounds, and without running what is in them."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_file, canonical_json

if TYPE_CHECKING:
    from torch import Tensor

HEADER_KEY = "agssp_bench"
LARGEST_FILE = 8_000_000_000
LARGEST_HEADER = 16_000_000
MOST_TENSORS = 20_000
LONGEST_NAME = 200

# What trainings of OpenMMLab leave in their checkpoints beside the tensors. It is not needed: each of these names
# is given an object that holds nothing and does nothing. Any other name that torch does not know is refused.
_LEFT_OUT = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "builtins.getattr",
)


class _Nothing:
    """Stands in for an object that is not needed, whatever it is made from."""

    def __new__(cls, *args: Any) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Reads the tensors of a weights file: safetensors, or a pickle of torch.

    Pickles are read with `weights_only=True`; there is no other way around.

    Returns:
        The tensors by name, float32 where they are of floating point, and our header (None: the file is not ours).

    Raises:
        UserError: It is no such file, is damaged, holds what would have to be executed, or a tensor in it is
            not a dense one or has values that are no numbers.
    """
    start = _start(path)
    if start[8:9] == b"{":
        _check_header_size(path, start)
        tensors, header = _read_safetensors(path)
    elif start.startswith((b"PK\x03\x04", b"\x80")):
        tensors, header = _read_pickle(path), None
    else:
        raise UserError(
            f"{path}: no weights file. Known are safetensors and what torch.save writes (.pth, .pt)."
        )
    return {name: _checked(path, name, tensor) for name, tensor in tensors.items()}, header


def save(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes weights as safetensors; the same tensors and metadata give the same bytes.

    Args:
        path: Its former content is replaced.
        state: Tensors under the names of our detectors' state (`backbone.*`, or the whole detector).
        metadata: JSON values for the header `agssp_bench`, such as `scope`, `backbone` and `key`.
    """
    from safetensors.torch import save_file

    plain = {name: state[name].detach().cpu().contiguous().clone() for name in sorted(state)}
    with atomic_file(path) as temporary:
        save_file(plain, temporary, metadata={HEADER_KEY: canonical_json(dict(metadata))})


def read_header(path: Path) -> dict[str, Any] | None:
    """Returns our header of a weights file, None where it has none; reads no tensor and imports no torch.

    Raises:
        UserError: It cannot be read, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    start = _start(path)
    if start[8:9] != b"{":
        return None
    _check_header_size(path, start)
    try:
        with safe_open(path, framework="numpy") as file:
            return _header(path, file.metadata())
    except SafetensorError as error:
        raise UserError(f"{path}: damaged, or cut short ({error}).") from error


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path}: more than {LARGEST_FILE:,} bytes are too many for weights.")
    return start


def _check_header_size(path: Path, start: bytes) -> None:
    claimed = int.from_bytes(start[:8], "little")
    if claimed > min(path.stat().st_size, LARGEST_HEADER):
        raise UserError(f"{path}: its header claims {claimed:,} bytes; the file is damaged or cut short.")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            _check_count(path, len(names))
            return {name: file.get_tensor(name) for name in names}, _header(path, file.metadata())
    except SafetensorError as error:
        raise UserError(f"{path}: damaged, or cut short ({error}).") from error


def _header(path: Path, metadata: dict[str, str] | None) -> dict[str, Any] | None:
    if HEADER_KEY not in (metadata or {}):
        return None
    try:
        content = json.loads((metadata or {})[HEADER_KEY])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its header {HEADER_KEY!r} is no JSON.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: its header {HEADER_KEY!r} is no JSON object.")
    return content


def _read_pickle(path: Path) -> dict[str, Tensor]:
    import torch

    _check_zip(path)
    try:
        with torch.serialization.safe_globals([(_Nothing, name) for name in _LEFT_OUT]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not read, since it holds more than tensors and plain values: {_refused(error)}.\n"
            "  Where you trust it, save its state_dict alone, on the machine it comes from: "
            'safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
        ) from error
    except Exception as error:  # torch raises many kinds for damaged bytes; all mean the same here
        raise UserError(f"{path}: damaged, or no weights file ({type(error).__name__}).") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: it holds no state_dict.")
    _check_count(path, len(content))
    wrong = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise UserError(f"{path}: its state_dict holds values that are no tensors, such as {wrong[0]!r}.")
    return {str(name): value for name, value in content.items()}


def _refused(error: pickle.UnpicklingError) -> str:
    """Names what torch refused, without its advice to load the file unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if "nsupported" in line or "GLOBAL" in line]
    text = lines[0] if lines else "an operation that is not allowed"
    return text.split(" was not an allowed")[0].replace("WeightsUnpickler error:", "").strip()


def _check_zip(path: Path) -> None:
    """Refuses a compressed archive: torch writes none, and one could unfold into more than memory holds."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}).") from error
    if (
        any(e.compress_type != zipfile.ZIP_STORED for e in entries)
        or sum(e.file_size for e in entries) > LARGEST_FILE
    ):
        raise UserError(f"{path}: a compressed or oversized archive, not what torch.save writes.")


def _check_count(path: Path, count: int) -> None:
    if count > MOST_TENSORS:
        raise UserError(f"{path}: {count:,} tensors are too many for weights (at most {MOST_TENSORS:,}).")


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Returns a dense tensor of finite numbers, in float32 where it is of floating point."""
    import torch

    if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise UserError(f"{path}: {name[:80]!r} is no name of a tensor.")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
        raise UserError(f"{path}: {name!r} is no plain tensor ({tensor.dtype}, {tensor.layout}).")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{path}: {name!r} claims more values than the file holds.")
    tensor = tensor.detach()
    if tensor.is_floating_point():
        tensor = tensor.float()
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{path}: {name!r} holds values that are no numbers; a training that diverged wrote it."
            )
    return tensor.contiguous()
