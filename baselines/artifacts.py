"""The store of what pretraining leaves: each stage's result under a key of all that its content depends on.

An artifact is a folder, `<cache>/artifacts/<kind>/<key>/`, with the stage's files and `artifact.json`. It appears
whole, by one rename. What an interrupted stage has done so far lies in `<cache>/unfinished/<kind>/<key>/`; it goes on
there when it is asked for again.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue, ValidationError

from datasets_builders import storage
from datasets_builders.errors import UserError

logger = logging.getLogger(__name__)

MANIFEST = "artifact.json"
_KIND = re.compile(r"[a-z][a-z0-9_]{0,30}")
_KEY = re.compile(r"[0-9a-f]{64}")


class File(BaseModel):
    """A file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact says of itself.

    Attributes:
        kind: Stage, such as `maps` or `backbone`.
        key: sha256 of `inputs`.
        inputs: All that the content depends on: versions, settings, keys of earlier stages, fingerprints, seed.
        summary: What the stage reports, for people and for records.
        seconds: Wall time over all interruptions.
        peak_ram_mib: Highest resident memory, in MiB.
        peak_gpu_mib: Highest GPU memory, in MiB; None where no GPU worked.
        created: When it was finished, UTC.
        files: Path below the folder -> size and hash.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    key: str
    inputs: dict[str, JsonValue]
    summary: dict[str, JsonValue]
    seconds: float
    peak_ram_mib: float
    peak_gpu_mib: float | None
    created: AwareDatetime
    files: dict[str, File]


@dataclass(frozen=True)
class Artifact:
    """A finished stage on this machine."""

    folder: Path
    manifest: Manifest

    @property
    def key(self) -> str:
        """sha256 of its inputs."""
        return self.manifest.key

    def file(self, name: str) -> Path:
        """Returns one of its files.

        Raises:
            UserError: Its content is not what was written.
        """
        expected = self.manifest.files[name]
        path = self.folder / name
        if not path.is_file() or storage.file_sha256(path) != expected.sha256:
            raise UserError(
                f"{path} is damaged. Remove the folder {self.folder}; the same command makes it again."
            )
        return path


@dataclass(frozen=True)
class Made:
    """What making an artifact tells.

    Attributes:
        summary: For people and for records; JSON values.
        seconds: Wall time over all interruptions; None to take that of this call.
    """

    summary: dict[str, Any]
    seconds: float | None = None


def artifact_folder(kind: str, key: str) -> Path:
    """Returns where an artifact lies, or will lie.

    Raises:
        ValueError: Kind or key could name another place.
    """
    if not _KIND.fullmatch(kind) or not _KEY.fullmatch(key):
        raise ValueError(f"no artifact is named {kind}/{key}")
    return storage.home() / "artifacts" / kind / key


def find(kind: str, key: str) -> Artifact | None:
    """Returns a finished artifact, or None; one with missing or cut files counts as not there, which is said."""
    folder = artifact_folder(kind, key)
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError:
        logger.warning("%s is damaged; the stage is made again.", path)
        return None
    cut = [
        name
        for name, file in manifest.files.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != file.bytes
    ]
    if cut or manifest.key != key or storage.content_key(manifest.inputs) != key:
        logger.warning(
            "%s is damaged (%s); the stage is made again.", folder, ", ".join(cut[:3]) or "its key"
        )
        return None
    return Artifact(folder, manifest)


def find_by_key(key: str) -> Artifact:
    """Returns the artifact whose key begins with the given digits (at least 8).

    Raises:
        UserError: There is none, or there are several.
    """
    if not re.fullmatch(r"[0-9a-f]{8,64}", key):
        raise UserError(f"{key!r} is no key of an artifact: give 8 to 64 hexadecimal digits.")
    places = sorted((storage.home() / "artifacts").glob(f"*/{key}*"))
    found = [
        artifact
        for place in places
        if _KEY.fullmatch(place.name) and (artifact := find(place.parent.name, place.name))
    ]
    if len(found) != 1:
        raise UserError(
            f"{len(found) or 'No'} artifacts have a key that begins with {key}."
            " Finished stages and their keys: python -m benchmark run ... --dry-run --json"
        )
    return found[0]


def obtain(
    kind: str,
    inputs: dict[str, Any],
    make: Callable[[Path], Made],
    on_wait: Callable[[str], None] = logger.warning,
) -> Artifact:
    """Returns the artifact of these inputs, made now unless it is there.

    Two processes never make one artifact at once: the second waits, and takes the first one's. A dead process's claim
    ends with it.

    Args:
        kind: Stage.
        inputs: All that the content depends on; its hash is the key.
        make: Given the work folder, which may hold the state of an interrupted call, leaves there what the artifact
            shall hold, and nothing else. Its names may not begin with a dot.
        on_wait: Told when another process is at it.

    Raises:
        UserError: The cache cannot be written.
    """
    from baselines.training.resources import PeakMemory

    key = storage.content_key(inputs)
    if found := find(kind, key):
        return found
    final = artifact_folder(kind, key)
    work = storage.home() / "unfinished" / kind / key
    with _claimed(work, on_wait):
        if found := find(kind, key):
            return found
        started = time.perf_counter()
        with PeakMemory() as memory:
            made = make(work)
        _remove_leftovers(work)
        manifest = Manifest(
            kind=kind,
            key=key,
            inputs=inputs,
            summary=made.summary,
            seconds=made.seconds if made.seconds is not None else time.perf_counter() - started,
            peak_ram_mib=memory.peak.ram_mib,
            peak_gpu_mib=memory.peak.gpu_mib,
            created=datetime.now(UTC).replace(microsecond=0),
            files=dict(_files(work)),
        )
        try:
            with storage.atomic_file(work / MANIFEST) as temporary:
                temporary.write_text(json.dumps(manifest.model_dump(mode="json"), indent=2), encoding="utf-8")
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():  # damaged, or `find` would have taken it
                shutil.rmtree(final)
            work.rename(final)
        except OSError as error:
            raise UserError(
                f"The cache {storage.home()} cannot be written ({error.strerror}). What was made so far lies in {work};"
                " make room, and the same command goes on."
            ) from error
    return Artifact(final, manifest)


def _remove_leftovers(folder: Path) -> None:
    """Removes locks, and the temporary files of interrupted calls; what belongs to an artifact has no such name."""
    for path in folder.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _files(folder: Path) -> Iterator[tuple[str, File]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            name = path.relative_to(folder).as_posix()
            yield name, File(bytes=path.stat().st_size, sha256=storage.file_sha256(path))


@contextmanager
def _claimed(work: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Holds the right to make an artifact; the lock lies beside the work folder, which is renamed at the end."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work.with_name(f".{work.name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            on_wait(f"waiting for another process that is making {work.parent.name} {work.name[:12]}")
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"The cache {storage.home()} cannot be written ({error.strerror})."
            f" Choose another: {storage.HOME_VARIABLE}=DIR python -m ..."
        ) from error
    try:
        work.mkdir(exist_ok=True)  # whoever was first has renamed it
        yield
    finally:
        try:
            # Before the lock goes: the next one makes the folder as soon as it has the lock.
            if work.is_dir() and not any(work.iterdir()):
                work.rmdir()
        finally:
            lock.release()
