"""What a maintainer's machine does with the pull requests of a results repository: validates, and says so."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.community import DiscussionComment
from huggingface_hub.hf_api import RepoFile

from benchmark import index
from benchmark.records import Record
from benchmark.rows import standard_error
from benchmark.sources import is_safe, open_source
from benchmark.submit.folder import check_amount, check_size
from benchmark.submit.schema import SUBMISSIONS_FOLDER
from benchmark.submit.validate import Report, validate
from datasets_builders import hub, storage
from datasets_builders.errors import UserError

_BASELINES = ("imagenet", "scratch")


@dataclass
class Reviewed:
    """One pull request.

    Attributes:
        number: Its number.
        commit: Its newest commit.
        complaints: Why it is refused; empty where it is valid.
        notes: What a maintainer should look at.
        lines: Its rows, as Markdown, with the difference to what the board has.
    """

    number: int
    commit: str
    complaints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.complaints

    @property
    def marker(self) -> str:
        """Tells its comment from those on other commits."""
        return f"Reviewed commit {self.commit}."

    def text(self) -> str:
        """Returns the comment, as Markdown; strangers' words in it are quoted as code."""
        lines = [f"**{'Valid' if self.valid else 'Refused'}** (pull request {self.number})", ""]
        lines += [f"- {_code(complaint)}" for complaint in self.complaints]
        lines += [f"- note: {_code(note)}" for note in self.notes]
        return "\n".join([*lines, *self.lines, "", self.marker])

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "pull_request": self.number,
            "commit": self.commit,
            "valid": self.valid,
            "complaints": self.complaints,
            "notes": self.notes,
        }


def _code(text: str) -> str:
    plain = text.replace("`", "'").replace("\n", " ")
    return f"`{plain[:500]}`"


def review(repo: str, number: int | None, comment: bool) -> list[Reviewed]:
    """Validates pull requests of a results repository.

    Args:
        repo: `ORG/NAME`, a dataset repository.
        number: Of one pull request; None for all that are open.
        comment: Write what was found under each, once a commit.

    Raises:
        UserError: The repository cannot be reached.
    """
    hub.check_repo(repo)
    if comment:
        hub.require_login(f"python -m benchmark submit review --repo {repo} --comment")
    api = hub.client()
    try:
        listed = list(
            api.get_repo_discussions(
                repo, repo_type="dataset", discussion_type="pull_request", discussion_status="open"
            )
        )
        numbers = sorted(entry.num for entry in listed if number in (None, entry.num))
        found = [_review(api, repo, num) for num in numbers]
        for entry in found if comment else ():
            _comment(api, repo, entry)
    except hub.ERRORS as error:
        raise hub.explain(error, repo, f"review {repo}", "  Try again later.") from error
    return found


def _review(api: HfApi, repo: str, number: int) -> Reviewed:
    revision = f"refs/pr/{number}"
    commits = [c.commit_id for c in api.list_repo_commits(repo, repo_type="dataset", revision=revision)]
    entry = Reviewed(number, commits[0])
    ahead = {c.commit_id for c in api.list_repo_commits(repo, repo_type="dataset", revision="main")}
    fork = next((commit for commit in commits if commit in ahead), None)
    root = storage.home() / "submissions" / "review" / f"{repo.replace('/', '--')}@{entry.commit}"
    try:
        if fork is None:  # main was rewritten since
            raise UserError("It has no commit in common with main: open it again.")
        changed = _changed(api, repo, fork, entry.commit)
        folder = _folder_of(changed)
        _fetch(api, repo, entry.commit, changed, root)
        report = validate(root / folder, f"hub://{repo}@main")
        entry.complaints, entry.notes = report.complaints, report.notes
        if report.submission and folder != f"{SUBMISSIONS_FOLDER}/{report.submission.slug}":
            entry.complaints.append(f"It belongs into {SUBMISSIONS_FOLDER}/{report.submission.slug}.")
        if entry.valid:
            entry.lines = list(_results(report, repo))
    except UserError as error:
        entry.complaints.append(str(error))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return entry


def _changed(api: HfApi, repo: str, fork: str, commit: str) -> dict[str, int]:
    """Returns the files that a pull request adds, with their sizes.

    Raises:
        UserError: It changes or removes what is there.
    """
    trees = []
    for revision in (fork, commit):
        listed = api.list_repo_tree(repo, repo_type="dataset", recursive=True, revision=revision)
        trees.append({entry.path: entry for entry in listed if isinstance(entry, RepoFile)})
    before, after = trees
    lost = [path for path in before if path not in after or after[path].blob_id != before[path].blob_id]
    if lost:
        raise UserError(f"It changes or removes {lost[0]!a}: results are added, never changed.")
    return {path: entry.size for path, entry in after.items() if path not in before}


def _folder_of(changed: dict[str, int]) -> str:
    """Returns the one submission that a pull request is about."""
    folders = {"/".join(path.split("/")[:2]) for path in changed}
    if len(folders) != 1 or any(not path.startswith(f"{SUBMISSIONS_FOLDER}/") for path in changed):
        raise UserError(f"It must add one folder {SUBMISSIONS_FOLDER}/NAME and nothing else.")
    return folders.pop()


def _fetch(api: HfApi, repo: str, commit: str, changed: dict[str, int], root: Path) -> None:
    check_amount(changed)
    for path, size in changed.items():
        if not is_safe(path):
            raise UserError(f"{path!a} is no name of a file of a submission.")
        check_size(path.rpartition("/")[2], size)
    for path in changed:
        hub.patiently(
            lambda path=path: api.hf_hub_download(  # type: ignore[misc]
                repo, path, repo_type="dataset", revision=commit, local_dir=root
            ),
            f"Downloading {path}",
        )


def _results(report: Report, repo: str) -> Iterator[str]:
    """Yields the rows as a Markdown table, each beside the board's baseline of the same backbone."""
    root = open_source(f"hub://{repo}@main").root
    known = index.refresh(root, index.RECORDS)
    sent = known["path"].str.startswith(f"{SUBMISSIONS_FOLDER}/")
    known = known[known["reason"].isna() & ~sent]  # what somebody sent is nobody's baseline
    rows: dict[str, list[Record]] = {}
    for record in report.records:
        rows.setdefault(record.row_key, []).append(record)
    yield "| protocol | dataset | detector | seeds | mAP@.5 | difference |"
    yield "|---|---|---|---|---|---|"
    for records in rows.values():
        cell, first = records[0].cell, records[0]
        values = [record.last.metrics.map50 for record in records]
        error = standard_error(values)
        mean = statistics.fmean(values)
        shown = f"{mean:.2f}" if error is None else f"{mean:.2f} ± {error:.2f}"
        same = known[
            (known["protocol"] == first.protocol.id)
            & (known["fingerprint"] == first.dataset.fingerprint)
            & (known["detector"] == cell.detector)
            & (known["backbone"] == cell.backbone)
            & (known["variant"] == cell.variant)
        ]
        baseline = next((mode for mode in _BASELINES if (same["mode"] == mode).any()), None)
        difference = "no baseline on the board"
        if baseline is not None:
            kin = same[same["mode"] == baseline].drop_duplicates(["row_key", "seed"])
            difference = f"several rows of {baseline} on the board"
            if kin["row_key"].nunique() == 1:
                difference = f"{mean - kin['map50'].mean():+.2f} to {baseline}"
        cells = (first.protocol.id, cell.dataset, cell.detector, str(len(records)), shown, difference)
        yield "| " + " | ".join(cells) + " |"


def _comment(api: HfApi, repo: str, entry: Reviewed) -> None:
    details = api.get_discussion_details(repo, entry.number, repo_type="dataset")
    user = hub.patiently(api.whoami, "Asking the Hub who you are")["name"]
    comments = [event for event in details.events if isinstance(event, DiscussionComment)]
    if not any(event.author == user and entry.marker in event.content for event in comments):
        api.comment_discussion(repo, entry.number, entry.text(), repo_type="dataset")
