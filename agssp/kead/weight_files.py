"""Downloads of the weights that open_clip knows, quick to say so where they cannot be had."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from datasets_builders import hub as hub_client
from datasets_builders.errors import UserError

_ON_THE_HUB = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_URL_CACHE = Path("~/.cache/clip")
_SECONDS = 20


def download(name: str, trained: dict[str, Any], *, hub: bool) -> Path:
    """Returns the local file of some weights, downloaded now or before.

    Args:
        name: `MODEL/TAG`, for messages.
        trained: open_clip's entry for it.
        hub: Whether to prefer the Hub's copy where there is one; else the file of the address alone is taken, and
            checked against the sha256 in its name or address.

    Raises:
        UserError: Neither here nor to be had; says what to get by hand.
    """
    from_hub = bool(trained.get("hf_hub")) and (hub or not trained.get("url"))
    try:
        return _from_hub(trained["hf_hub"]) if from_hub else _from_url(trained["url"])
    except hub_client.ERRORS as error:
        where = f"{constants.ENDPOINT}/{trained['hf_hub'].rstrip('/')}" if from_hub else trained["url"]
        raise UserError(
            f"The weights of {name} are not on this machine and could not be downloaded: {hub_client.brief(error)}.\n"
            f"  Without the network: get the file from {where} on another machine and give it with "
            "--encoder-weights FILE\n"
            "  or use the encoder that comes with the package: tiny"
        ) from None


def _from_hub(place: str) -> Path:
    """Takes one of the repository's files, safetensors first; one that is here already needs no network."""
    repo, _, file = place.rpartition("/")
    wanted = [file] if file else list(_ON_THE_HUB)
    for candidate in wanted:
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(repo, candidate, local_files_only=True))
    there = {entry.path for entry in hub_client.client().get_paths_info(repo, wanted)}
    for candidate in wanted:
        if candidate in there:
            return Path(hf_hub_download(repo, candidate))
    raise ValueError(f"{repo} has none of {', '.join(wanted)}")


def _from_url(url: str) -> Path:
    from open_clip.pretrained import download_pretrained_from_url

    folder = _URL_CACHE.expanduser()
    if constants.HF_HUB_OFFLINE and not (folder / url.rpartition("/")[2]).is_file():
        raise OSError("the network is switched off (HF_HUB_OFFLINE=1; unset it to use it)")
    with _timeout(_SECONDS):
        return Path(download_pretrained_from_url(url, cache_dir=str(folder)))


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Bounds how long a silent connection is waited for; open_clip sets no bound."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
