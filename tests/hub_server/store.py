"""What the Hub keeps: repositories with their history and pull requests, and large files by sha256.

Everything is in memory. Files are immutable, a commit is a whole tree, every change of a repository happens
under one lock, so a reader sees a commit whole or not at all, as on the Hub.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

MAIN = "refs/heads/main"
LARGE_SUFFIXES = (".parquet", ".png", ".jpg", ".safetensors", ".arrow", ".bin", ".zst", ".npz", ".gz", ".zip")
LARGE_BYTES = 10_000_000


class HubError(Exception):
    """An answer of the Hub that is no success: HTTP status, message, and its error code where it has one."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_oid(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


@dataclasses.dataclass(frozen=True)
class File:
    """One version of a file: git's object id, and the sha256 where it is a large file."""

    size: int
    oid: str
    sha256: str | None
    content: bytes = dataclasses.field(repr=False)

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    @classmethod
    def regular(cls, content: bytes) -> File:
        return cls(len(content), git_oid("blob", content), None, content)

    @classmethod
    def large(cls, content: bytes) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
        return cls(len(content), git_oid("blob", pointer.encode()), sha256, content)


@dataclasses.dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    files: Mapping[str, File]
    title: str
    message: str
    author: str
    date: str


@dataclasses.dataclass
class Discussion:
    num: int
    title: str
    author: str
    is_pull_request: bool
    base: str
    date: str
    status: str
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    merge_commit: str | None = None

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"

    def note(self, kind: str, author: str, data: dict[str, Any]) -> dict[str, Any]:
        event = {"id": f"{self.num:08x}{len(self.events):08x}", "type": kind, "createdAt": now()}
        self.events.append(event | {"author": {"name": author}, "data": data})
        return self.events[-1]

    def comment(self, author: str, text: str) -> dict[str, Any]:
        latest = {"raw": text, "html": f"<p>{text}</p>", "updatedAt": now(), "author": {"name": author}}
        return self.note(
            "comment", author, {"edited": False, "hidden": False, "latest": latest, "history": []}
        )


def safe_path(path: str) -> str:
    parts = path.split("/")
    if not path or any(part in ("", ".", "..", ".git") for part in parts):
        raise HubError(400, f"Invalid path: {path}")
    return path


class Repo:
    """One repository; `lock` guards everything in it."""

    def __init__(self, kind: str, name: str, private: bool, author: str) -> None:
        self.kind, self.name, self.private, self.author = kind, name, private, author
        self.created = now()
        self.lock = threading.RLock()
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.discussions: list[Discussion] = []
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
        first = {".gitattributes": File.regular(attributes.encode())}
        self.refs[MAIN] = self._store(None, first, "initial commit", "", author).oid

    def _store(
        self, parent: str | None, files: Mapping[str, File], title: str, text: str, author: str
    ) -> Commit:
        date = now()
        identity = [
            parent,
            sorted((path, file.etag) for path, file in files.items()),
            title,
            text,
            author,
            date,
        ]
        oid = hashlib.sha1(json.dumps([identity, time.monotonic_ns()]).encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, dict(files), title, text, author, date)
        return self.commits[oid]

    def ref_of(self, revision: str) -> str | None:
        """Full name of the branch, tag or pull request that a revision names."""
        candidates = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((ref for ref in candidates if ref in self.refs), None)

    def commit(self, revision: str) -> Commit:
        ref = self.ref_of(revision)
        oid = self.refs[ref] if ref else revision
        if oid in self.commits:
            return self.commits[oid]
        if re.fullmatch(r"[0-9a-f]{7,39}", revision):
            found = [commit for key, commit in self.commits.items() if key.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def file(self, revision: str, path: str) -> tuple[Commit, File]:
        commit = self.commit(revision)
        if path not in commit.files:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        return commit, commit.files[path]

    def history(self, revision: str) -> list[Commit]:
        commits = [self.commit(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def apply(
        self,
        revision: str,
        changes: Iterable[tuple[str, File | None]],
        title: str,
        text: str,
        author: str,
        parent: str | None = None,
        create_pr: bool = False,
    ) -> tuple[Commit, Discussion | None]:
        """Commits changed and deleted (None) files; a path that ends in `/` deletes a folder."""
        with self.lock:
            head = self.commit(revision)
            ref = self.ref_of(revision)
            if parent is not None and not head.oid.startswith(parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            if ref is None and not create_pr:
                raise HubError(400, f"Not a branch: {revision}")
            if ref and ref.startswith("refs/tags/"):
                raise HubError(400, f"Cannot commit to a tag: {revision}")
            files = dict(head.files)
            for path, file in changes:
                if file is not None:
                    files[safe_path(path)] = file
                    continue
                gone = [p for p in files if p.startswith(path)] if path.endswith("/") else [path]
                if not gone or any(p not in files for p in gone):
                    raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                for p in gone:
                    del files[p]
            commit = self._store(head.oid, files, title, text, author)
            discussion = None
            if create_pr:
                discussion = self.discuss(
                    title, text, author, pull_request=True, base=ref or MAIN, status="open"
                )
                ref = discussion.ref
            assert ref is not None
            self.refs[ref] = commit.oid
            for found in self.discussions:
                if found.is_pull_request and found.ref == ref:
                    found.note("commit", author, {"subject": title, "oid": commit.oid})
            return commit, discussion

    def discuss(
        self,
        title: str,
        text: str,
        author: str,
        pull_request: bool,
        base: str = MAIN,
        status: str | None = None,
    ) -> Discussion:
        with self.lock:
            status = status or ("draft" if pull_request else "open")
            number = len(self.discussions) + 1
            found = Discussion(number, title, author, pull_request, base, now(), status)
            found.comment(author, text)
            self.discussions.append(found)
            if pull_request:
                self.refs[found.ref] = self.refs[base]
            return found

    def discussion(self, number: int) -> Discussion:
        if not 1 <= number <= len(self.discussions):
            raise HubError(404, f"Discussion not found: {number}")
        return self.discussions[number - 1]

    def changes_of(self, found: Discussion) -> tuple[dict[str, File | None], list[str]]:
        """What a pull request changes against where it branched off, and the paths also changed since."""
        mine = self.commits[self.refs[found.ref]]
        ahead = {commit.oid for commit in self.history(found.base.removeprefix("refs/heads/"))}
        fork = next(commit for commit in self.history(found.ref) if commit.oid in ahead)
        theirs = self.commits[self.refs[found.base]]
        paths = fork.files.keys() | mine.files.keys()
        changed = {p: mine.files.get(p) for p in sorted(paths) if mine.files.get(p) != fork.files.get(p)}
        conflicts = [p for p, file in changed.items() if theirs.files.get(p) not in (fork.files.get(p), file)]
        return changed, conflicts

    def merge(self, found: Discussion, author: str) -> Commit:
        with self.lock:
            if found.status not in ("open", "draft"):
                raise HubError(409, f"This pull request is {found.status}")
            changed, conflicts = self.changes_of(found)
            if conflicts:
                raise HubError(409, f"This pull request has conflicts in {', '.join(conflicts)}")
            head = self.commits[self.refs[found.base]]
            kept = {p: file for p, file in changed.items() if head.files.get(p) != file}
            title = f"{found.title} (#{found.num})"
            commit, _ = self.apply(found.base.removeprefix("refs/heads/"), kept.items(), title, "", author)
            found.status, found.merge_commit = "merged", commit.oid
            found.note("status-change", author, {"status": "merged"})
            return commit


class Store:
    """All repositories, all large files, and who may do what."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        # Token -> user, the organisations it may write to, and whether it may write at all.
        self.tokens: dict[str, dict[str, Any]] = {}

    def add_user(self, token: str, name: str, orgs: Iterable[str] = (), write: bool = True) -> None:
        self.tokens[token] = {"name": name, "orgs": list(orgs), "write": write}

    def create(self, kind: str, name: str, private: bool, author: str) -> Repo:
        with self.lock:
            if (kind, name) in self.repos:
                raise HubError(409, f"You already created this {kind} repo: {name}")
            self.repos[kind, name] = Repo(kind, name, private, author)
            return self.repos[kind, name]
