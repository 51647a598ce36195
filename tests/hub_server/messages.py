"""Requests, answers, and who may ask for what: what every part of the API stands on."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from hub_server.store import HubError, Repo, Store

TREE_PAGE = 1000
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclasses.dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"Not JSON: {error}") from error

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")


@dataclasses.dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


def answer(value: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


def failure(error: HubError) -> Reply:
    # Headers are Latin-1.
    headers = {"X-Error-Message": error.message.encode("ascii", "replace").decode()}
    if error.code:
        headers["X-Error-Code"] = error.code
    return answer({"error": error.message}, error.status, **headers)


def slice_of(content: bytes, wanted: str | None) -> tuple[int, bytes, dict[str, str]]:
    """Applies a Range header: (status, bytes, headers)."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if not match or match.groups() == ("", ""):
        return 200, content, {"Accept-Ranges": "bytes"}
    first, last = match.groups()
    start = int(first) if first else max(0, len(content) - int(last))
    stop = min(int(last) + 1, len(content)) if first and last else len(content)
    if start >= len(content) or stop <= start:
        return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
    return 206, content[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}


class Access:
    """Users and their rights; base of the parts of the API.

    Attributes:
        store: What the Hub keeps.
        host: Its address.
        other_host: Another name of this server, as the Hub keeps large files on another host.
        tree_page: Entries on one page of a tree.
        part_bytes: Large files above this many bytes are uploaded in parts of as many; None for never.
    """

    def __init__(self, store: Store, host: str, other_host: str) -> None:
        self.store, self.host, self.other_host = store, host, other_host
        self.tree_page = TREE_PAGE
        self.part_bytes: int | None = None

    def user(self, request: Request) -> dict[str, Any] | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        if scheme != "Bearer" or token not in self.store.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.store.tokens[token]

    def known_user(self, request: Request) -> dict[str, Any]:
        user = self.user(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        return user

    def may_write(self, user: Mapping[str, Any], name: str) -> bool:
        return user["write"] and name.split("/")[0] in (user["name"], *user["orgs"])

    def is_proposal(self, request: Request, revision: str) -> bool:
        """Tells whether a change is for a pull request, which everybody may open."""
        return request.flag("create_pr") or revision.startswith("refs/pr/")

    def repo(self, request: Request, kinds: str, name: str, write: bool = False) -> Repo:
        user = self.user(request)
        found = self.store.repos.get((KINDS[kinds], name))
        if found is None or (found.private and not (user and self.may_write(user | {"write": True}, name))):
            # As on the Hub: who is not logged in does not learn whether the repository exists.
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise HubError(401, "Invalid username or password.")
        if write and user is not None and not self.may_write(user, name):
            raise HubError(403, f"You do not have the rights to write to {name}")
        return found
