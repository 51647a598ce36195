"""Publishing a prepared dataset: Parquet shards, a card and a manifest, visible at once or not at all."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import DatasetInfo, RepoFile
from huggingface_hub.utils.sha import git_hash

from datasets_builders import hub, prepared, registry, storage
from datasets_builders.errors import UserError
from datasets_builders.hub_card import hub_licence
from datasets_builders.hub_export import README, export
from datasets_builders.manifest import MANIFEST, DamagedError, Manifest, read_manifest
from datasets_builders.registry import DatasetCard
from datasets_builders.storage import file_sha256

logger = logging.getLogger(__name__)

# What a repository may hold that no push put there.
HARMLESS = frozenset({".gitattributes", README})


@dataclass(frozen=True)
class Plan:
    """What a push is about to do.

    Attributes:
        name: The dataset.
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
        name: The dataset.
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


def push(
    name: str,
    repo: str,
    private: bool = False,
    have_rights: bool = False,
    say: Callable[[str], None] = logger.warning,
) -> Pushed:
    """Publishes a dataset with its configs as one repository on the Hub.

    Files go up one by one and become visible with one commit at the end. Interrupted, the same call goes on: what
    is on the Hub already is not sent again.

    Args:
        name: Name of a dataset that is not derived.
        repo: `ORG/NAME` of the repository; it is created unless it is there.
        private: Create it for members only.
        have_rights: Publish although the catalogue knows no licence that allows it.
        say: Told the plan, in words, before anything is sent.

    Raises:
        UserError: The licence forbids it, nobody is logged in, the repository holds something else, or the Hub
            cannot be reached or refuses.
    """
    card = registry.card(name)
    command = f"python -m datasets_builders push {card.dataset} --repo {repo}" + " --private" * private
    if card.config:
        raise UserError(f"{name} is a config of {card.dataset} and published with it: {command}")
    hub.check_repo(repo)
    if hub_licence(card.licence) is None and not have_rights:
        raise UserError(
            f"{name} must not be published: its licence, {card.licence!r} ({card.homepage}), is not known to allow "
            f"that.\n  If you have the rights, say so: {command} --i-have-the-rights"
        )
    command += " --i-have-the-rights" * have_rights
    hub.require_login(command)
    built = prepared.prepare(name).manifest
    if built.partial:
        raise UserError(f"{name} is a partial build on this machine; only whole datasets are published.")
    folder = storage.home() / "hub" / "push" / f"{repo.replace('/', '--')}--{name}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        export(card, built, repo, folder)
        try:
            done = _Publication(card, repo, private, folder, say).publish()
        except UserError:
            raise
        except hub.ERRORS as error:
            again = f"  Nothing half is visible there. To go on, without sending anything twice: {command}"
            raise hub.explain(error, repo, f"publish {name}", again) from error
        shutil.rmtree(folder)
    return done


@dataclass(frozen=True)
class _Remote:
    """What a repository holds at its head."""

    info: DatasetInfo
    files: dict[str, RepoFile]
    manifest: Manifest | None


class _Publication:
    """One push of an exported folder."""

    def __init__(
        self, card: DatasetCard, repo: str, private: bool, folder: Path, say: Callable[[str], None]
    ) -> None:
        self.card, self.repo, self.private, self.folder, self.say = card, repo, private, folder, say
        self.api: HfApi = hub.client()
        manifest = read_manifest(folder)
        assert manifest is not None, "`export` wrote it"
        self.paths = [*manifest.files, MANIFEST]

    def publish(self) -> Pushed:
        hub.patiently(self.api.whoami, "Asking the Hub who you are")
        first = self._plan(self._remote())
        self.say(first.text())
        if first.new:
            hub.patiently(self._create, "Creating the repository")
        commit = self._upload_and_commit()
        return Pushed(
            name=self.card.name,
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
        foreign = manifest.name != self.card.name if manifest else bool(files.keys() - HARMLESS)
        if foreign:
            what = f"the dataset {manifest.name}" if manifest else "files that no push put there"
            raise UserError(f"{self.repo} holds {what}: nothing was sent. Choose another name with --repo.")
        return _Remote(info, files, manifest)

    def _remote_manifest(self, revision: str) -> Manifest | None:
        with (
            tempfile.TemporaryDirectory(dir=self.folder.parent) as scratch,
            contextlib.suppress(DamagedError),
        ):
            hub.patiently(
                lambda: self.api.hf_hub_download(
                    self.repo, MANIFEST, repo_type="dataset", revision=revision, local_dir=scratch
                ),
                f"Reading what {self.repo} holds",
            )
            return read_manifest(Path(scratch))
        return None

    def _plan(self, remote: _Remote | None) -> Plan:
        visible = remote.files if remote else {}
        upload = {
            path: (self.folder / path).stat().st_size
            for path in self.paths
            if path not in visible or not _same(self.folder / path, visible[path])
        }
        earlier = remote.manifest.files if remote and remote.manifest else {}
        return Plan(
            name=self.card.name,
            repo=self.repo,
            private=bool(remote.info.private) if remote else self.private,
            new=remote is None,
            licence=self.card.licence,
            upload=upload,
            bytes=sum({file_sha256(self.folder / path): size for path, size in upload.items()}.values()),
            unchanged=len(self.paths) - len(upload),
            delete=sorted((earlier.keys() - set(self.paths)) & visible.keys()),
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
            added = [CommitOperationAdd(path, self.folder / path) for path in plan.upload]
            for operation in added:
                # One at a time: of a push that is killed, only the file that it was at must be sent again.
                self.api.preupload_lfs_files(self.repo, [operation], repo_type="dataset", free_memory=False)
            try:
                return self.api.create_commit(
                    self.repo,
                    [*added, *(CommitOperationDelete(path) for path in plan.delete)],
                    commit_message=f"{self.card.name}: {self.card.title}",
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
                logger.warning("Publishing %s: %s. Looking again in %g s.", self.card.name, reason, wait)
                time.sleep(wait)


def _same(local: Path, remote: RepoFile) -> bool:
    if local.stat().st_size != remote.size:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == file_sha256(local))
    return bool(remote.blob_id == git_hash(local.read_bytes()))
