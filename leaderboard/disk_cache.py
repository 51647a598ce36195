"""Files that the board computes once: so many of a kind are kept, and those unused for longest leave first."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from datasets_builders import storage


@dataclass(frozen=True)
class DiskCache:
    """One kind of file, in the cache's folder `leaderboard`.

    Attributes:
        kind: Begins the files' names.
        suffix: Ends them.
        most: So many are kept; visitors choose what is computed, and must not be able to fill the disk.
    """

    kind: str
    suffix: str
    most: int

    def path(self, key: str) -> Path:
        """Returns where the file of a key is or would be, and notes that it is used."""
        found = storage.home() / "leaderboard" / f"{self.kind}-{key}{self.suffix}"
        with contextlib.suppress(OSError):  # it is not there, or the folder is read-only
            os.utime(found)
        return found

    def trim(self) -> None:
        """Deletes what is beyond the number; to be called after a file was made."""
        used: list[tuple[int, Path]] = []
        for path in (storage.home() / "leaderboard").glob(f"{self.kind}-*{self.suffix}"):
            with contextlib.suppress(FileNotFoundError):  # another visitor's page has deleted it
                used.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(used)[: -self.most]:
            path.unlink(missing_ok=True)
