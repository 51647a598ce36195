"""Writing: repositories, commits, branches, tags, and git-LFS uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from typing import Any

import yaml
from hub_server.messages import Access, Reply, Request, answer
from hub_server.store import LARGE_BYTES, LARGE_SUFFIXES, File, HubError


class Writing(Access):
    """Everything that changes files or references."""

    def whoami(self, request: Request) -> Reply:
        user = self.known_user(request)
        orgs = [{"name": org, "type": "org"} for org in user["orgs"]]
        role = "write" if user["write"] else "read"
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return answer({"type": "user", "name": user["name"], "orgs": orgs, "auth": auth})

    def create_repo(self, request: Request) -> Reply:
        user, asked = self.known_user(request), request.json
        name = f"{asked.get('organization') or user['name']}/{asked['name']}"
        if not self.may_write(user, name):
            raise HubError(403, f"You don't have the rights to create a repo under {name.split('/')[0]}")
        kind = asked.get("type") or "model"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        url = f"{self.host}/{'' if kind == 'model' else kind + 's/'}{name}"
        try:
            self.store.create(kind, name, private, user["name"])
        except HubError as error:
            return answer({"error": error.message, "url": url}, error.status)
        return answer({"url": url, "name": name})

    def validate_yaml(self, request: Request) -> Reply:
        content = request.json["content"]
        match = re.match(r"---\r?\n(.*?)\r?\n---(?:\r?\n|$)", content, re.DOTALL)
        try:
            data = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError as error:
            return answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
        if data is None:
            return answer(
                {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
            )
        if not isinstance(data, dict):
            return answer({"errors": [{"message": "metadata must be a mapping"}], "warnings": []}, 400)
        licence = data.get("license")
        if licence is not None and not isinstance(licence, str | list):
            return answer(
                {"errors": [{"message": '"license" must be a string or a list'}], "warnings": []}, 400
            )
        return answer({"errors": [], "warnings": []})

    def preupload(self, request: Request, kinds: str, name: str, revision: str) -> Reply:
        repo = self.repo(request, kinds, name, write=not self.is_proposal(request, revision))
        self.known_user(request)
        commit = repo.commit(revision)
        files = []
        for asked in request.json["files"]:
            present = commit.files.get(asked["path"])
            is_large = asked["path"].endswith(LARGE_SUFFIXES) or asked["size"] > LARGE_BYTES
            files.append({"path": asked["path"], "uploadMode": "lfs" if is_large else "regular"})
            files[-1] |= {"shouldIgnore": False, "oid": present.etag if present else None}
        return answer({"files": files, "commitOid": commit.oid})

    def lfs_batch(self, request: Request, kinds: str | None, name: str) -> Reply:
        self.repo(request, kinds.rstrip("/") if kinds else "models", name)
        self.known_user(request)
        objects = []
        for asked in request.json["objects"]:
            sha256, size = asked["oid"], asked["size"]
            objects.append({"oid": sha256, "size": size})
            if sha256 in self.store.large:
                continue
            verify = {"href": f"{self.host}/lfs/{sha256}/verify"}
            upload: dict[str, Any] = {"href": f"{self.host}/lfs/{sha256}"}
            if self.part_bytes is not None and size > self.part_bytes:
                parts = math.ceil(size / self.part_bytes)
                header = {str(n): f"{self.host}/lfs/{sha256}/part/{n}" for n in range(1, parts + 1)}
                href = f"{self.host}/lfs/{sha256}/complete"
                upload = {"href": href, "header": header | {"chunk_size": str(self.part_bytes)}}
            objects[-1]["actions"] = {"upload": upload, "verify": verify}
        return answer({"transfer": "basic", "objects": objects})

    def _keep(self, sha256: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise HubError(400, "The content does not have the announced sha256")
        self.store.large[sha256] = content

    def lfs_put(self, request: Request, sha256: str) -> Reply:
        self._keep(sha256, request.body)
        return Reply(200, b"", {"ETag": f'"{sha256}"'})

    def lfs_part(self, request: Request, sha256: str, number: str) -> Reply:
        self.store.parts[sha256, int(number)] = request.body
        return Reply(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    def lfs_complete(self, request: Request, sha256: str) -> Reply:
        numbers = [part["partNumber"] for part in request.json["parts"]]
        self._keep(sha256, b"".join(self.store.parts.pop((sha256, number)) for number in numbers))
        return answer({})

    def lfs_verify(self, request: Request, sha256: str) -> Reply:
        size = request.json["size"]
        if len(self.store.large.get(sha256, b"")) != size:
            raise HubError(404, f"No such object of {size} bytes")
        return answer({})

    def commit(self, request: Request, kinds: str, name: str, revision: str) -> Reply:
        create_pr = request.flag("create_pr")
        repo = self.repo(request, kinds, name, write=not self.is_proposal(request, revision))
        user = self.known_user(request)
        header: dict[str, Any] = {}
        changes: list[tuple[str, File | None]] = []
        for line in request.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                changes.append(
                    (value["path"], File.regular(base64.b64decode(value["content"], validate=True)))
                )
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.store.large:
                    raise HubError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                changes.append((value["path"], File.large(self.store.large[value["oid"]])))
            elif item["key"] in ("deletedFile", "deletedFolder"):
                folder = item["key"] == "deletedFolder"
                changes.append((value["path"].rstrip("/") + ("/" if folder else ""), None))
            else:
                raise HubError(400, f"Unknown operation: {item['key']}")
        parent = header.get("parentCommit")
        title, text = header["summary"], header.get("description", "")
        commit, pull = repo.apply(revision, changes, title, text, user["name"], parent, create_pr)
        page = f"{self.host}/{'' if kinds == 'models' else kinds + '/'}{name}"
        done = {"success": True, "commitOid": commit.oid, "commitUrl": f"{page}/commit/{commit.oid}"}
        return answer(done | ({"pullRequestUrl": f"{page}/discussions/{pull.num}"} if pull else {}))

    def branch(self, request: Request, kinds: str, name: str, branch: str) -> Reply:
        return self._ref(
            request, kinds, name, f"refs/heads/{branch}", request.json.get("startingPoint", "main")
        )

    def tag(self, request: Request, kinds: str, name: str, revision: str) -> Reply:
        if request.method == "DELETE":
            return self._ref(request, kinds, name, f"refs/tags/{revision}", None)
        return self._ref(request, kinds, name, f"refs/tags/{request.json['tag']}", revision)

    def _ref(self, request: Request, kinds: str, name: str, ref: str, start: str | None) -> Reply:
        repo = self.repo(request, kinds, name, write=True)
        with repo.lock:
            if request.method == "DELETE":
                if ref == "refs/heads/main" or ref not in repo.refs:
                    raise HubError(403 if ref in repo.refs else 404, f"Cannot delete {ref}")
                del repo.refs[ref]
            elif ref in repo.refs:
                raise HubError(409, f"Reference already exists: {ref}")
            else:
                repo.refs[ref] = repo.commit(start or "main").oid
        return answer({})
