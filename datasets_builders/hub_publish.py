"""Publishing files as one repository on the Hub: visible at once or not at all, and nothing sent twice."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import DatasetInfo, RepoFile
from huggingface_hub.utils.sha import git_hash

from datasets_builders import hub
from datasets_builders.errors import UserError
from datasets_builders.hub_export import README
from datasets_builders.manifest import MANIFEST, DamagedError, read_checked
from datasets_builders.storage import file_sha256

logger = logging.getLogger(__name__)

# What a repository may hold that no push put there.
HARMLESS = frozenset({".gitattributes", README})


@dataclass(frozen=True)
class LocalFile:
    """A file to be published: where it lies, its size, and its sha256 in hexadecimal digits."""

    path: Path
    bytes: int
    sha256: str


def local_file(path: Path) -> LocalFile:
    """Returns the description of a file, read once."""
    return LocalFile(path, path.stat().st_size, file_sha256(path))


@dataclass(frozen=True)
class Parcel:
    """What is to be published.

    Attributes:
        name: Name of the dataset or corpus; a repository holds one.
        title: What it is, in words.
        licence: As stated, in words.
        files: Path in the repository -> file here. One of them is the manifest, which names the others.
        scratch: Folder on this machine for small passing files.
    """

    name: str
    title: str
    licence: str
    files: dict[str, LocalFile]
    scratch: Path


@dataclass(frozen=True)
class Plan:
    """What a push is about to do.

    Attributes:
        name: The dataset or corpus.
        repo: The repository.
        private: Whether only members see it.
        new: Whether the repository must be created.
        licence: The licence as stated.
        upload: Path in the repository -> bytes, of what is not visible there yet.
        bytes: Their size; files with the same content count, and are sent, once.
        unchanged: Number of files that are there already.
        delete: Paths of an earlier version that are removed.
    """

    name: str
    repo: str
    private: bool
    new: bool
    licence: str
    upload: dict[str, int]
    bytes: int
    unchanged: int
    delete: list[str]

    def text(self) -> str:
        """Returns the plan in words."""
        state = "private" if self.private else "public"
        place = f"{constants.ENDPOINT}/datasets/{self.repo} ({state}{', new' if self.new else ''})"
        lines = [f"Publishing {self.name}, licence: {self.licence}, to {place}"]
        lines += [f"  upload {path}, {size:,} bytes" for path, size in self.upload.items()]
        lines += [f"  delete {path}" for path in self.delete]
        lines.append(
            f"  together {len(self.upload)} files, {self.bytes:,} bytes; {self.unchanged} are there already"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Pushed:
    """A published dataset.

    Attributes:
        name: The dataset or corpus.
        repo: The repository.
        url: Its page.
        commit: The commit that holds it, to be pinned.
        changed: Whether there was anything to do.
        files: Number of files that were not visible there before.
        bytes: Their size.
    """

    name: str
    repo: str
    url: str
    commit: str
    changed: bool
    files: int
    bytes: int


@dataclass(frozen=True)
class _Remote:
    """What a repository holds at its head."""

    info: DatasetInfo
    files: dict[str, RepoFile]
    manifest: dict[str, Any] | None


class Publication:
    """One push of a parcel.

    Args:
        parcel: What to publish.
        repo: The repository.
        private: Create it for members only.
        say: Told the plan, in words, before anything is sent.
    """

    def __init__(self, parcel: Parcel, repo: str, private: bool, say: Callable[[str], None]) -> None:
        self.parcel, self.repo, self.private, self.say = parcel, repo, private, say
        self.api: HfApi = hub.client()

    def publish(self) -> Pushed:
        """Sends what is not there yet and makes it visible in one commit.

        Raises:
            UserError: The repository must not be written to, or a file has changed on this machine.
            Exception: One of `hub.ERRORS` where the Hub cannot be reached or refuses.
        """
        hub.patiently(self.api.whoami, "Asking the Hub who you are")
        first = self._plan(self._remote())
        self.say(first.text())
        if first.new:
            hub.patiently(self._create, "Creating the repository")
        commit = self._upload_and_commit()
        return Pushed(
            name=self.parcel.name,
            repo=self.repo,
            url=f"{constants.ENDPOINT}/datasets/{self.repo}",
            commit=commit,
            changed=bool(first.upload or first.delete),
            files=len(first.upload),
            bytes=first.bytes,
        )

    def _create(self) -> None:
        self.api.create_repo(self.repo, repo_type="dataset", private=self.private or None, exist_ok=True)

    def _remote(self) -> _Remote | None:
        """Looks at the repository; None where there is none.

        Raises:
            UserError: It must not be written to.
        """
        try:
            info = hub.patiently(lambda: self.api.dataset_info(self.repo), f"Looking at {self.repo}")
        except RepositoryNotFoundError:
            return None
        if self.private and not info.private:
            raise UserError(
                f"{self.repo} is there already and public: nothing was sent.\n"
                "  Make it private in its settings, choose another name with --repo, or leave out --private."
            )
        listed = self.api.list_repo_tree(self.repo, repo_type="dataset", recursive=True, revision=info.sha)
        files = {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}
        manifest = self._remote_manifest(str(info.sha)) if MANIFEST in files else None
        foreign = manifest["name"] != self.parcel.name if manifest else bool(files.keys() - HARMLESS)
        if foreign:
            what = f"{manifest['name']}" if manifest else "files that no push put there"
            raise UserError(f"{self.repo} holds {what}: nothing was sent. Choose another name with --repo.")
        return _Remote(info, files, manifest)

    def _remote_manifest(self, revision: str) -> dict[str, Any] | None:
        with (
            tempfile.TemporaryDirectory(dir=self.parcel.scratch) as scratch,
            contextlib.suppress(DamagedError),
        ):
            hub.patiently(
                lambda: self.api.hf_hub_download(
                    self.repo, MANIFEST, repo_type="dataset", revision=revision, local_dir=scratch
                ),
                f"Reading what {self.repo} holds",
            )
            return read_checked(Path(scratch) / MANIFEST)
        return None

    def _plan(self, remote: _Remote | None) -> Plan:
        visible = remote.files if remote else {}
        upload = {
            path: file.bytes
            for path, file in self.parcel.files.items()
            if path not in visible or not is_same(file, visible[path])
        }
        earlier = remote.manifest["files"] if remote and remote.manifest else {}
        return Plan(
            name=self.parcel.name,
            repo=self.repo,
            private=bool(remote.info.private) if remote else self.private,
            new=remote is None,
            licence=self.parcel.licence,
            upload=upload,
            bytes=sum({self.parcel.files[path].sha256: size for path, size in upload.items()}.values()),
            unchanged=len(self.parcel.files) - len(upload),
            delete=sorted((earlier.keys() - self.parcel.files.keys()) & visible.keys()),
        )

    def _upload_and_commit(self) -> str:
        """Sends what is missing, then makes all of it visible in one commit; returns the commit."""
        waits = iter(hub.WAITS)
        while True:
            remote = self._remote()
            if remote is None:
                raise UserError(f"{self.repo} was deleted meanwhile: nothing was published.")
            plan = self._plan(remote)
            if not plan.upload and not plan.delete:
                # Nothing to do, or done by a commit whose answer was lost, or by another push of the same.
                return str(remote.info.sha)
            added = [self._addition(path) for path in plan.upload]
            for operation in added:
                # One at a time: of a push that is killed, only the file that it was at must be sent again.
                self.api.preupload_lfs_files(self.repo, [operation], repo_type="dataset", free_memory=False)
            try:
                return self.api.create_commit(
                    self.repo,
                    [*added, *(CommitOperationDelete(path) for path in plan.delete)],
                    commit_message=f"{self.parcel.name}: {self.parcel.title}",
                    repo_type="dataset",
                    parent_commit=remote.info.sha,
                ).oid
            except hub.ERRORS as error:
                moved = hub.status_of(error) in hub.CONFLICT_STATUS
                wait = next(waits, None)
                if wait is None or not (moved or hub.passes(error)):
                    raise
                wait = max(wait, hub.asked_wait(error))
                reason = "someone else changed the repository" if moved else hub.brief(error)
                logger.warning("Publishing %s: %s. Looking again in %g s.", self.parcel.name, reason, wait)
                time.sleep(wait)

    def _addition(self, path: str) -> CommitOperationAdd:
        """Returns the operation that adds a file; the client library reads it for its sha256.

        Raises:
            UserError: It is not the file that the manifest names.
        """
        file = self.parcel.files[path]
        operation = CommitOperationAdd(path, file.path)
        if operation.upload_info.sha256.hex() != file.sha256:
            raise UserError(
                f"{file.path} has changed on this machine (sha256): nothing was published.\n"
                f"  Build it again: python -m datasets_builders prepare {self.parcel.name} --force ..."
            )
        return operation


def is_same(local: LocalFile, remote: RepoFile) -> bool:
    """Tells whether a file of a repository has the content of one here."""
    if local.bytes != remote.size:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == local.sha256)
    return bool(remote.blob_id == git_hash(local.path.read_bytes()))
