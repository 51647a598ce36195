"""The folder that a run of maps works in: its parts, and how they become the output at once."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agssp.map_inputs import Images
from agssp.map_store import METADATA, MapStore, open_maps, read_part, write_store
from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_file, atomic_folder, canonical_json, content_key


class Work:
    """The work folder of a run: what is made, `identity.json`, and `parts/`."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.folder = out.with_name(f".{out.name}.work")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lets one process at a time begin or end the run."""
        from filelock import FileLock

        self._out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._out.with_name(f".{self._out.name}.lock")):
            yield

    def identity(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Returns what the run that was begun here depends on; None where none has made anything.

        Raises:
            UserError: It was another run.
        """
        path = self.folder / "identity.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if found["request"] != request and not any(self.part(0).parent.glob("*.parquet")):
                return None  # It had not made anything yet.
            _require_same(found["request"], request, f"{self.folder} holds the unfinished run of other maps")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}). Remove {self.folder} and begin again.") from error
        return found

    def begin(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Notes what the run depends on."""
        with atomic_file(self.folder / "identity.json") as temporary:
            temporary.write_text(json.dumps(identity, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return identity

    def part(self, block: int) -> Path:
        """Returns where the maps of a block are, or will be."""
        return self.folder / "parts" / f"{block:06d}.parquet"

    def discard(self) -> None:
        """Removes the folder, where it is still there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def existing_maps(out: Path, request: dict[str, Any]) -> MapStore | None:
    """Returns the maps that are there already.

    Raises:
        UserError: Something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / METADATA).is_file():
        raise UserError(f"{out} exists and holds no anomaly maps. Choose another --out.")
    store = open_maps(out)
    _require_same(store.request, request, f"{out} holds other maps")
    return store


def join_parts(
    work: Work,
    out: Path,
    parts: Sequence[Path],
    images: Images,
    request: dict[str, Any],
    identity: dict[str, Any],
) -> MapStore | None:
    """Joins all parts into the output, where they are there; else returns None."""
    with work.locked():
        # Another process may have joined them.
        if (ready := existing_maps(out, request)) is None:
            if not all(part.is_file() for part in parts):
                return None
            _remove_leftovers(out)
            key = content_key(identity)
            if out.exists():
                out.rmdir()
            with atomic_folder(out) as folder:
                tables = (_required_part(part, key) for part in parts)
                write_store(folder, tables, len(images.ids), images.split, identity)
            ready = open_maps(out)
        work.discard()
    return ready


def _remove_leftovers(out: Path) -> None:
    """Removes what runs left that were killed while they joined; not those of a neighbour such as `NAME.v2`."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.\d+-[0-9a-f]+\.tmp")
    for path in out.parent.iterdir():
        if ours.fullmatch(path.name):
            shutil.rmtree(path)


def _required_part(path: Path, key: str) -> Any:
    table = read_part(path, key)
    if table is None:
        raise UserError(f"{path} is damaged, or of another run. Remove it and give the same command again.")
    return table


@contextmanager
def can_write(out: Path) -> Iterator[None]:
    """Says of an error while maps are made whether a file could not be read or the output not be written.

    Raises:
        UserError: Instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and not Path(error.filename).is_relative_to(out.parent):
            raise UserError(f"Cannot read {error.filename}: {error.strerror or error}.") from error
        raise UserError(
            f"Cannot write to {out.parent}: {error.strerror or error}. Choose another --out."
        ) from error


def _require_same(found: dict[str, Any], request: dict[str, Any], what: str) -> None:
    if canonical_json(found) == canonical_json(request):
        return
    there, here = _flat(found), _flat(request)
    keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    lines = [f"    {key}: {there.get(key, '-')} there, {here.get(key, '-')} now" for key in keys]
    raise UserError(f"{what}, which are never overwritten. They differ in\n" + "\n".join(lines) +
                    "\n  Choose another --out, or remove what is there.")  # fmt: skip


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {key: item for name in value for key, item in _flat(value[name], f"{prefix}{name}.").items()}
