"""Points the client library in this process, already imported and switched offline, at a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server.server import HubServer
from huggingface_hub import constants
from huggingface_hub.utils import close_session


def use_hub(hub: HubServer, token: str | None, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does to this process what `HubServer.client_environment` does to a subprocess.

    `huggingface_hub` reads its environment variables when it is imported, so its constants are replaced.
    """
    for name, value in hub.client_environment(token, home).items():
        monkeypatch.setenv(name, value)
    changes = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }
    for name, value in changes.items():
        assert hasattr(constants, name), f"huggingface_hub no longer has the constant {name}"
        monkeypatch.setattr(constants, name, value)
    close_session()
