"""Sends a submission: weights to a model repository, records to a pull request on the results repository."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from benchmark.record_schema import to_json
from benchmark.submit.folder import list_files
from benchmark.submit.schema import (
    ADDRESS_FILE,
    CARD_FILE,
    SUBMISSION_FILE,
    SUBMISSIONS_FOLDER,
    WEIGHTS_FILE,
    Submission,
    WeightsAddress,
)
from benchmark.submit.validate import validate
from datasets_builders import hub, storage
from datasets_builders.errors import UserError
from datasets_builders.hub_publish import is_same, local_file
from datasets_builders.storage import atomic_file

_log = logging.getLogger(__name__)

_HARMLESS = frozenset({".gitattributes", CARD_FILE})


@dataclass(frozen=True)
class _Place:
    """A repository of one kind."""

    name: str
    kind: str

    @property
    def url(self) -> str:
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"


def push(
    folder: Path, repo: str, weights_repo: str | None = None, say: Callable[[str], None] = _log.warning
) -> dict[str, str]:
    """Sends a submission; called again after an interruption, it goes on and sends nothing twice.

    Args:
        folder: A valid submission with its weights.
        repo: `ORG/NAME` of the results, a dataset repository.
        weights_repo: `ORG/NAME` of a model repository for the weights, made where it is not there; by default the
            user's own, named like the submission.
        say: Told in words what is about to be sent.

    Returns:
        `weights` (`hub://...` address at a commit) and `pull_request` (its page).

    Raises:
        UserError: The submission is not valid, or on the board already; nobody is logged in; a repository is missing or
            holds something else; the Hub cannot be reached or refuses.
    """
    command = f"python -m benchmark submit push {folder} --repo {repo}"
    hub.check_repo(repo)
    if weights_repo is not None:
        hub.check_repo(weights_repo)
    hub.require_login(command)
    if WEIGHTS_FILE not in list_files(folder):
        raise UserError(
            f"{folder} holds no {WEIGHTS_FILE}. Prepare it again: python -m benchmark submit prepare ..."
        )
    report = validate(folder, f"hub://{repo}")
    if not report.valid or report.submission is None:
        raise UserError("It is not valid; nothing was sent:\n  " + "\n  ".join(report.complaints))
    submission = report.submission
    lock = storage.home() / "submissions" / f"{submission.slug}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    again = f"  To go on, without sending anything twice: {command}"
    with FileLock(lock):
        try:
            return _Push(folder, submission, _Place(repo, "dataset"), weights_repo, say).send()
        except UserError:
            raise
        except hub.ERRORS as error:
            raise hub.explain(error, repo, f"push {submission.slug}", again) from error


class _Push:
    """One submission on its way."""

    def __init__(
        self,
        folder: Path,
        submission: Submission,
        results: _Place,
        weights_repo: str | None,
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.submission, self.results, self.say = folder, submission, results, say
        self.api: HfApi = hub.client()
        self.user = str(hub.patiently(self.api.whoami, "Asking the Hub who you are")["name"])
        self.weights = _Place(weights_repo or f"{self.user}/{submission.slug}", "model")
        digest = hashlib.sha256((folder / SUBMISSION_FILE).read_bytes()).hexdigest()
        # By its title a pull request is found again, whoever lost its answer.
        self.title = f"Submission: {submission.name} ({digest[:12]})"

    def send(self) -> dict[str, str]:
        """Weights first, so that whoever sees the pull request can load them."""
        size = self.submission.weights.bytes
        self.say(f"Weights ({size:,} bytes, {self.submission.licence}, public) to {self.weights.url}")
        commit = self._send_weights()
        address = f"hub://{self.weights.name}@{commit}/{WEIGHTS_FILE}"
        files = self._files(address)
        self.say(
            f"{len(files)} files, {sum(p.stat().st_size for p in files.values()):,} bytes, to a pull request on"
            f" {self.results.url}"
        )
        return {"weights": address, "pull_request": self._propose(files)}

    def _send_weights(self) -> str:
        """Returns a commit of the model repository that holds the weights."""
        files = {name: self.folder / name for name in (WEIGHTS_FILE, CARD_FILE, SUBMISSION_FILE)}
        hub.patiently(
            lambda: self.api.create_repo(self.weights.name, repo_type="model", exist_ok=True),
            f"Creating {self.weights.name}",
        )

        def commit() -> str:
            present = self._present(self.weights, "main")
            head = str(self.api.model_info(self.weights.name).sha)
            held = present.get(WEIGHTS_FILE)
            if held is not None and is_same(local_file(files[WEIGHTS_FILE]), held):
                return head
            if present.keys() - _HARMLESS:
                raise UserError(
                    f"{self.weights.name} holds other files: nothing was sent. Choose another repository:"
                    " --weights-repo YOU/NAME"
                )
            return self._commit(self.weights, files, parent_commit=head).oid

        return str(self._until_it_holds(commit))

    def _files(self, address: str) -> dict[str, Path]:
        """Path in the results repository -> file here."""
        scratch = storage.home() / "submissions" / f"{self.submission.slug}-{ADDRESS_FILE}"
        with atomic_file(scratch) as temporary:
            place = WeightsAddress(address=address, sha256=self.submission.weights.sha256)
            temporary.write_text(to_json(place), encoding="utf-8")
        inside = {path: self.folder / path for path in list_files(self.folder) if path != WEIGHTS_FILE}
        root = f"{SUBMISSIONS_FOLDER}/{self.submission.slug}"
        return {f"{root}/{path}": file for path, file in (inside | {ADDRESS_FILE: scratch}).items()}

    def _propose(self, files: dict[str, Path]) -> str:
        """Returns the page of the pull request that brings the files; the one that is open already, if one is."""

        def commit() -> str:
            found = self._open_request()
            if found is not None:
                present = self._present(self.results, f"refs/pr/{found}")
                lacking = {
                    path: file
                    for path, file in files.items()
                    if path not in present or not is_same(local_file(file), present[path])
                }
                if lacking:
                    self._commit(self.results, lacking, revision=f"refs/pr/{found}")
                return f"{self.results.url}/discussions/{found}"
            return str(self._commit(self.results, files, create_pr=True).pr_url)

        return str(self._until_it_holds(commit))

    def _open_request(self) -> int | None:
        """Returns the number of this submission's own pull request, open or merged."""
        listed = self.api.get_repo_discussions(
            self.results.name, repo_type="dataset", author=self.user, discussion_type="pull_request"
        )
        numbers = [entry.num for entry in listed if entry.title == self.title and entry.status != "closed"]
        return min(numbers, default=None)

    def _present(self, place: _Place, revision: str) -> dict[str, RepoFile]:
        listed = self.api.list_repo_tree(place.name, repo_type=place.kind, recursive=True, revision=revision)
        return {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}

    def _commit(self, place: _Place, files: dict[str, Path], **how: Any) -> CommitInfo:
        added = [CommitOperationAdd(path, file) for path, file in files.items()]
        for operation in added:
            # One at a time: of a push that is killed, only the file that it was at must be sent again.
            self.api.preupload_lfs_files(
                place.name,
                [operation],
                repo_type=place.kind,
                free_memory=False,
                **{name: value for name, value in how.items() if name in ("create_pr", "revision")},
            )
        return self.api.create_commit(
            place.name, added, commit_message=self.title, repo_type=place.kind, **how
        )

    def _until_it_holds(self, commit: Callable[[], str]) -> str:
        """Commits; after an error that passes, looks first what arrived, since only the answer may be lost."""
        for wait in hub.WAITS:
            try:
                return commit()
            except RepositoryNotFoundError:
                raise
            except hub.ERRORS as error:
                moved = hub.status_of(error) in hub.CONFLICT_STATUS
                if not (moved or hub.passes(error)):
                    raise
                seconds = max(wait, hub.asked_wait(error))
                _log.warning(
                    "Pushing %s: %s. Looking again in %g s.", self.submission.slug, hub.brief(error), seconds
                )
                time.sleep(seconds)
        return commit()
