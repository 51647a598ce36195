"""Discussions and pull requests."""

from __future__ import annotations

from typing import Any

from hub_server.messages import Access, Reply, Request, answer
from hub_server.store import Discussion, HubError, Repo

PAGE = 10


class Discussions(Access):
    """Opening, listing, commenting and merging."""

    def _discussion(self, repo: Repo, found: Discussion, whole: bool) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "num": found.num,
            "title": found.title,
            "author": {"name": found.author},
            "createdAt": found.date,
            "status": found.status,
            "repo": {"name": repo.name, "type": repo.kind},
            "isPullRequest": found.is_pull_request,
        }
        if whole:
            shown["events"] = found.events
        if whole and found.is_pull_request:
            changed, conflicts = repo.changes_of(found) if found.status in ("open", "draft") else ({}, [])
            shown["changes"] = {"base": found.base, "mergeCommitId": found.merge_commit}
            shown["filesWithConflicts"] = conflicts
            shown["diff"] = "".join(f"diff --git a/{path} b/{path}\n" for path in changed)
        return shown

    def discussions(self, request: Request, kinds: str, name: str) -> Reply:
        repo = self.repo(request, kinds, name)
        if request.method == "POST":
            asked, user = request.json, self.known_user(request)
            if not 3 <= len(asked["title"]) <= 200:
                raise HubError(400, "title must have 3 to 200 characters")
            pull = bool(asked.get("pullRequest"))
            found = repo.discuss(asked["title"], asked["description"], user["name"], pull)
            return answer({"num": found.num, "pullRequest": pull})
        kind, status = request.query.get("type", ["all"])[0], request.query.get("status", ["all"])[0]
        author = request.query.get("author", [None])[0]
        chosen = [
            found
            for found in reversed(repo.discussions)
            if kind in ("all", "pull_request" if found.is_pull_request else "discussion")
            and status in ("all", "open" if found.status in ("open", "draft") else "closed")
            and author in (None, found.author)
        ]
        start = int(request.query.get("p", ["0"])[0]) * PAGE
        page = [self._discussion(repo, d, whole=False) for d in chosen[start : start + PAGE]]
        return answer({"count": len(chosen), "start": start, "discussions": page})

    def discussion(
        self, request: Request, kinds: str, name: str, number: str, action: str | None = None
    ) -> Reply:
        user_may_write = action in ("status", "merge", "title")
        repo = self.repo(request, kinds, name)
        found = repo.discussion(int(number))
        if action is None:
            return answer(self._discussion(repo, found, whole=True))
        user, asked = self.known_user(request), request.json or {}
        if user_may_write and not (
            self.may_write(user, name) or (user["name"] == found.author and action != "merge")
        ):
            raise HubError(403, f"You do not have the rights to change {name}")
        if action == "merge":
            repo.merge(found, user["name"])
            return answer({})
        if action == "comment":
            return answer({"newMessage": found.comment(user["name"], asked["comment"])})
        if action == "title":
            change = {"from": found.title, "to": asked["title"]}
            found.title = asked["title"]
            return answer({"newTitle": found.note("title-change", user["name"], change)})
        found.status = asked["status"]
        return answer({"newStatus": found.note("status-change", user["name"], {"status": asked["status"]})})
