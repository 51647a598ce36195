"""The Hub's HTTP API over a store, as far as `huggingface_hub` and `datasets` use it for files.

Written from the requests that those clients send and the answers that they read. Xet storage is not spoken:
clients run with `HF_HUB_DISABLE_XET=1` and use git-LFS.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

from hub_server.discussions import Discussions
from hub_server.messages import Reply, Request, failure
from hub_server.reading import Reading
from hub_server.store import HubError
from hub_server.writing import Writing


class Api(Reading, Writing, Discussions):
    """Answers requests."""

    def handle(self, request: Request) -> Reply:
        try:
            return self._route(request)
        except HubError as error:
            return failure(error)
        except Exception as error:  # A mistake in this server must not look like a fault that clients retry.
            return failure(HubError(501, f"{type(error).__name__} in the test server: {error}"))

    def _route(self, request: Request) -> Reply:
        method, path = request.method, request.path
        for routes_method, pattern, action in ROUTES:
            if method in routes_method.split("|") and (match := re.fullmatch(pattern, path)):
                return action(
                    self, request, *(unquote(group) if group else group for group in match.groups())
                )
        raise HubError(404, f"Sorry, we can't find the page: {method} {path}")


_REPO = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Reply]]] = [
    ("GET", r"/api/whoami-v2", Api.whoami),
    ("POST", r"/api/repos/create", Api.create_repo),
    ("POST", r"/api/validate-yaml", Api.validate_yaml),
    ("GET", _REPO + r"(?:/revision/([^/]+))?", Api.repo_info),
    ("GET", _REPO + r"/refs", Api.refs),
    ("GET", _REPO + r"/commits/([^/]+)", Api.commits),
    ("GET", _REPO + r"/tree/([^/]+)(?:/(.+))?", Api.tree),
    ("POST", _REPO + r"/paths-info/([^/]+)", Api.paths_info),
    ("POST", _REPO + r"/preupload/([^/]+)", Api.preupload),
    ("POST", _REPO + r"/commit/([^/]+)", Api.commit),
    ("POST|DELETE", _REPO + r"/branch/([^/]+)", Api.branch),
    ("POST|DELETE", _REPO + r"/tag/([^/]+)", Api.tag),
    ("GET|POST", _REPO + r"/discussions", Api.discussions),
    ("GET", _REPO + r"/discussions/(\d+)", Api.discussion),
    ("POST", _REPO + r"/discussions/(\d+)/(comment|status|title|merge)", Api.discussion),
    (
        "GET|HEAD",
        r"/api/resolve-cache/(models|datasets|spaces)/([^/]+/[^/]+)/([^/]+)/(.+)",
        Api.resolve_cache,
    ),
    ("GET|HEAD", r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Api.resolve),
    ("POST", r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", Api.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", Api.lfs_put),
    ("PUT", r"/lfs/([0-9a-f]{64})/part/(\d+)", Api.lfs_part),
    ("POST", r"/lfs/([0-9a-f]{64})/complete", Api.lfs_complete),
    ("POST", r"/lfs/([0-9a-f]{64})/verify", Api.lfs_verify),
    ("GET|HEAD", r"/cdn/([0-9a-f]{64})", Api.cdn),
]
