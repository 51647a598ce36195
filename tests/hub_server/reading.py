"""Reading: repositories, trees, history, and files with redirects and ranges."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from hub_server.messages import Access, Reply, Request, answer, failure, slice_of
from hub_server.store import Commit, HubError, git_oid

EXPANDED_PAGE, COMMITS_PAGE = 50, 10


class Reading(Access):
    """Everything that changes nothing."""

    def repo_info(self, request: Request, kinds: str, name: str, revision: str | None) -> Reply:
        repo = self.repo(request, kinds, name)
        commit = repo.commit(revision or "main")
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if request.flag("blobs"):
            for sibling in siblings:
                file = commit.files[sibling["rfilename"]]
                sibling |= {"size": file.size, "blobId": file.oid}
                if file.sha256:
                    sibling["lfs"] = {"size": file.size, "sha256": file.sha256, "pointerSize": 130}
        info = {
            "id": repo.name,
            "author": repo.name.split("/")[0],
            "sha": commit.oid,
            "private": repo.private,
        }
        dates = {"createdAt": repo.created, "lastModified": commit.date}
        return answer(info | dates | {"gated": False, "disabled": False, "tags": [], "siblings": siblings})

    def refs(self, request: Request, kinds: str, name: str) -> Reply:
        repo = self.repo(request, kinds, name)
        found: dict[str, list[dict[str, str]]] = {"heads": [], "tags": [], "pr": []}
        for ref, oid in sorted(repo.refs.items()):
            _, group, short = ref.split("/", 2)
            found[group].append({"name": short, "ref": ref, "targetCommit": oid})
        listed = {"branches": found["heads"], "converts": [], "tags": found["tags"]}
        return answer(listed | ({"pullRequests": found["pr"]} if request.flag("include_prs") else {}))

    def commits(self, request: Request, kinds: str, name: str, revision: str) -> Reply:
        history = self.repo(request, kinds, name).history(revision)
        items = [
            {
                "id": c.oid,
                "title": c.title,
                "message": c.message,
                "authors": [{"user": c.author}],
                "date": c.date,
            }
            for c in history
        ]
        return self._page(request, items, COMMITS_PAGE, "p")

    def _page(self, request: Request, items: list[Any], size: int, key: str) -> Reply:
        start = int(request.query.get(key, ["0"])[0])
        headers = {}
        if start + size < len(items):
            query = {name: values[0] for name, values in request.query.items()} | {key: start + size}
            headers["Link"] = f'<{self.host}{request.path}?{urlencode(query)}>; rel="next"'
        reply = answer(items[start : start + size])
        reply.headers |= headers
        return reply

    def _described(self, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
        file = commit.files.get(path)
        last = {"id": commit.oid, "title": commit.title, "date": commit.date}
        more: dict[str, Any] = {"lastCommit": last} if expand else {}
        if file is None:
            return {
                "type": "directory",
                "path": path,
                "oid": git_oid("tree", path.encode()),
                "size": 0,
            } | more
        if file.sha256:
            more["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
        return {"type": "file", "path": path, "oid": file.oid, "size": file.size} | more

    def tree(self, request: Request, kinds: str, name: str, revision: str, folder: str | None) -> Reply:
        commit = self.repo(request, kinds, name).commit(revision)
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in commit.files if path.startswith(prefix)]
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        listed = set()
        for path in inside:
            parts = path[len(prefix) :].split("/")
            depth = len(parts) if request.flag("recursive") else 1
            listed |= {prefix + "/".join(parts[:n]) for n in range(1, depth + 1)}
        expand = request.flag("expand")
        items = [self._described(commit, path, expand) for path in sorted(listed)]
        return self._page(request, items, EXPANDED_PAGE if expand else self.tree_page, "cursor")

    def paths_info(self, request: Request, kinds: str, name: str, revision: str) -> Reply:
        commit = self.repo(request, kinds, name).commit(revision)
        if request.headers.get("Content-Type", "").startswith("application/json"):
            asked, expand = request.json["paths"], bool(request.json.get("expand"))
        else:
            form = parse_qs(request.body.decode())
            asked, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() == "true"
        folders = {"/".join(p.split("/")[:n]) for p in commit.files for n in range(1, p.count("/") + 1)}
        found = [path for path in asked if path in commit.files or path in folders]
        return answer([self._described(commit, path, expand) for path in found])

    def resolve(self, request: Request, kinds: str | None, name: str, revision: str, path: str) -> Reply:
        kinds = kinds.rstrip("/") if kinds else "models"
        repo = self.repo(request, kinds, name)
        try:
            commit, file = repo.file(revision, path)
        except HubError as error:
            reply = failure(error)
            if error.code == "EntryNotFound":
                reply.headers["X-Repo-Commit"] = repo.commit(revision).oid
            return reply
        headers = {
            "X-Repo-Commit": commit.oid,
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": f'"{file.etag}"',
        }
        if file.sha256:
            # Signed addresses of another host, which is shown no credentials.
            return Reply(302, b"", headers | {"Location": f"{self.other_host}/cdn/{file.sha256}"})
        place = f"/api/resolve-cache/{kinds}/{name}/{commit.oid}/{quote(path)}"
        return Reply(307, b"", headers | {"Location": place})

    def resolve_cache(self, request: Request, kinds: str, name: str, oid: str, path: str) -> Reply:
        commit, file = self.repo(request, kinds, name).file(oid, path)
        status, content, headers = slice_of(file.content, request.headers.get("Range"))
        return Reply(status, content, headers | {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.oid})

    def cdn(self, request: Request, sha256: str) -> Reply:
        if "Authorization" in request.headers:
            raise HubError(400, "Only one auth mechanism allowed: credentials were sent to the storage host")
        if sha256 not in self.store.large:
            raise HubError(404, "NoSuchKey")
        status, content, headers = slice_of(self.store.large[sha256], request.headers.get("Range"))
        return Reply(status, content, headers | {"ETag": f'"{sha256}"'})
