"""Where records come from: a folder of this machine, or a dataset repository on the Hub at one commit."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmark.anomaly_records import OUTPUTS_FILE
from benchmark.anomaly_records import RECORD_FILE as ANOMALY_FILE
from benchmark.attestations import ATTESTATION_FILE
from benchmark.records import MAX_RECORD_BYTES, RECORD_FILE, read_record
from benchmark.submit.schema import ADDRESS_FILE, SUBMISSION_FILE
from datasets_builders import storage
from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_file

_ADDRESS = re.compile(r"hub://([^/@]+/[^/@]+)(?:@(.+))?")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,150}")
_TEXTS = frozenset({RECORD_FILE, ANOMALY_FILE, SUBMISSION_FILE, ATTESTATION_FILE, ADDRESS_FILE})
_LARGEST_ARRAYS = 256 * 2**20
_MOST_FILES = 200_000
_DEEPEST = 10
_AT_ONCE = 8
_LISTING = "listing.json"


@dataclass(frozen=True)
class Source:
    """Records on this machine.

    Attributes:
        name: As the user gave it.
        root: The folder that holds them.
        commit: Commit of the repository that they were fetched from; None where it is a plain folder.
        repo: That repository.
    """

    name: str
    root: Path
    commit: str | None = None
    repo: str | None = None

    def beside(self, record: Path) -> Path:
        """Returns a record's file once all that belongs beside it is on this machine.

        Raises:
            UserError: It cannot be fetched, or the record is damaged.
        """
        if self.repo is not None:
            assert self.commit is not None
            names = (OUTPUTS_FILE,) if record.name == ANOMALY_FILE else read_record(record).detections_files
            missing = [name for name in dict.fromkeys(names) if not (record.parent / name).is_file()]
            if missing:  # what is here needs no network
                _fetch_arrays(self.repo, self.commit, self.root, record.parent, missing)
        return record


def open_source(source: str | Path, revision: str | None = None) -> Source:
    """Gets the records of a source onto this machine.

    Args:
        source: A folder, or `hub://ORG/NAME@REVISION`: a dataset repository. Its texts are fetched at once, detections
            when they are asked for; what did not change since another commit is not fetched again.
        revision: Of the repository, where the address names none; a branch's head by default.

    Raises:
        UserError: No such folder or repository, or it cannot be reached.
    """
    text = str(source)
    if not text.startswith("hub://"):
        if revision is not None:
            raise UserError(f"A revision has no meaning for the folder {text}: leave it out.")
        return Source(text, Path(text))
    parts = _ADDRESS.fullmatch(text)
    if parts is None or (parts[2] and revision):
        raise UserError(f"{text!r} names no repository: write hub://ORG/NAME@REVISION.")
    return _from_hub(text, parts[1], parts[2] or revision or "main")


def _from_hub(text: str, repo: str, revision: str) -> Source:
    from huggingface_hub.hf_api import RepoFile

    from datasets_builders import hub
    from datasets_builders.hub_download import commit_of, explained
    from datasets_builders.registry import HubSource

    hub.check_repo(repo)
    place = HubSource(repo, revision)
    instead = "  Show a folder of this machine instead: python -m leaderboard results"
    with explained("records", place, instead):
        commit = commit_of(place)
        root = _folder(repo, commit)
        if not (root / _LISTING).is_file():
            listed = hub.client().list_repo_tree(repo, repo_type="dataset", recursive=True, revision=commit)
            # One more than is allowed is enough to know.
            some = itertools.islice((e for e in listed if isinstance(e, RepoFile)), _MOST_FILES + 1)
            files = {entry.path: entry for entry in some}
            if len(files) > _MOST_FILES:
                raise UserError(
                    f"{place} holds more than {_MOST_FILES:,} files: that is no results repository."
                )
            wanted = {
                path: str(entry.blob_id)
                for path, entry in files.items()
                if is_safe(path) and Path(path).name in _TEXTS and entry.size <= MAX_RECORD_BYTES
            }
            _fetch_texts(repo, commit, root, wanted)
    return Source(text, root, commit, repo)


def is_safe(path: str) -> bool:
    """Tells whether a path of a repository stays below its folder on every system, and is no hidden file."""
    parts = path.split("/")
    return len(parts) <= _DEEPEST and all(_PART.fullmatch(part) and not part.endswith(".") for part in parts)


def _folder(repo: str, commit: str) -> Path:
    return storage.home() / "hub" / "results" / f"{repo.replace('/', '--')}@{commit}"


def _fetch_texts(repo: str, commit: str, root: Path, wanted: Mapping[str, str]) -> None:
    """Fetches files by path and git hash; those that an earlier commit has are taken from there."""
    from huggingface_hub.utils.sha import git_hash

    earlier = _earlier(root)
    root.mkdir(parents=True, exist_ok=True)

    def bring(path: str) -> None:
        target = root / path
        if target.is_file() and git_hash(target.read_bytes()) == wanted[path]:
            return  # of an interrupted call
        target.unlink(missing_ok=True)
        old = earlier.get((path, wanted[path]))
        if old is not None and old.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                os.link(old, target)
                return
        _download(repo, commit, path, root)
        if git_hash(target.read_bytes()) != wanted[path]:
            target.unlink()
            raise UserError(
                f"{repo}: {path} arrived with another content than the repository lists. Try again."
            )

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(bring, wanted))
    with atomic_file(root / _LISTING) as temporary:
        temporary.write_text(json.dumps(dict(wanted)), encoding="utf-8")
    shutil.rmtree(root / ".cache", ignore_errors=True)  # the client library's notes, one a file


def _earlier(root: Path) -> dict[tuple[str, str], Path]:
    """Finds what is here of other commits of the repository: by path and git hash."""
    pattern = root.name.partition("@")[0] + "@*"
    listings = sorted(root.parent.glob(f"{pattern}/{_LISTING}"), key=lambda path: path.stat().st_mtime)
    return {
        (path, oid): listing.parent / path
        for listing in listings
        for path, oid in json.loads(listing.read_text(encoding="utf-8")).items()
    }


def _fetch_arrays(repo: str, commit: str, root: Path, folder: Path, names: Sequence[str]) -> None:
    """Fetches arrays of one record."""
    from huggingface_hub.hf_api import RepoFile

    from datasets_builders import hub
    from datasets_builders.hub_download import explained
    from datasets_builders.registry import HubSource

    place = folder.relative_to(root).as_posix()
    with explained("detections", HubSource(repo, commit), "  Try again, or copy the repository to a folder."):
        missing = [f"{place}/{name}" for name in names]
        listed = hub.patiently(
            lambda: hub.client().get_paths_info(repo, missing, revision=commit, repo_type="dataset"),
            f"Looking at {repo}",
        )
        for entry in listed:
            if isinstance(entry, RepoFile) and entry.size <= _LARGEST_ARRAYS:
                _download(repo, commit, entry.path, root)


def _download(repo: str, commit: str, path: str, root: Path) -> None:
    from datasets_builders import hub

    hub.patiently(
        lambda: hub.client().hf_hub_download(
            repo, path, repo_type="dataset", revision=commit, local_dir=root
        ),
        f"Downloading {path}",
    )
