"""Where weights come from: files, the Hub, artifacts, public names; and what is said where they cannot be had."""

from __future__ import annotations

import hashlib
import http.server
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server.client import use_hub
from hub_server.server import HubServer
from huggingface_hub import HfApi
from huggingface_hub.utils import close_session

from baselines import artifacts, backbones, weights
from baselines.weights import inputs, layouts, sources
from datasets_builders import storage
from datasets_builders.errors import UserError

CONTENT = b"weights, as far as this test goes" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _own_home(fresh_home: Path) -> None:
    """Nothing that another test left is found."""


def test_a_file_is_named_by_its_name_alone(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(CONTENT)
    local = weights.resolve(tmp_path / "w.pth", input="caffe")
    assert (local.source, local.sha256, local.input, local.layout) == ("w.pth", SHA256, "caffe", None)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("none.pth", r"no weights file none\.pth"),
        ("folder/none", "no weights file folder/none"),
        (".", "it is a folder"),
        ("imagenet-resnet5", "Did you mean 'imagenet-resnet50'"),
        ("hub://org/repo/w.pth", "hub://ORG/REPO@REVISION/FILE"),
        ("hub://org/repo@main/w.pth", "not a branch"),
        ("hub://org/repo@v1/../../w.pth", "names no fixed file"),
        ("hub://org/repo@v1//etc/hostname", "names no fixed file"),
        ("artifact:../../etc", "no key of an artifact"),
        ("artifact:abcdef012345", "No artifacts have a key that begins with abcdef012345"),
    ],
)
def test_what_is_not_there_is_said(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        weights.resolve(spec)


def test_artifacts_are_found_by_the_beginning_of_their_key() -> None:
    def make(folder: Path) -> artifacts.Made:
        (folder / "weights.safetensors").write_bytes(CONTENT)
        return artifacts.Made({})

    made = artifacts.obtain("backbone", {"seed": 1}, make)
    local = weights.resolve(f"artifact:{made.key[:8]}")
    assert (local.sha256, local.source) == (SHA256, f"artifact:{made.key}")
    local.path.write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match="is damaged"):
        weights.resolve(f"artifact:{made.key}")

    def make_none(folder: Path) -> artifacts.Made:
        (folder / "boxes.parquet").write_bytes(CONTENT)
        return artifacts.Made({})

    with pytest.raises(UserError, match="'boxes', which leaves no weights"):
        weights.resolve(f"artifact:{artifacts.obtain('boxes', {'seed': 2}, make_none).key}")


def test_a_public_name_is_no_file_that_happens_to_lie_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet-lite0").write_bytes(CONTENT)
    assert weights.resolve("imagenet-lite0").sha256.startswith("57934424")


# --- the Hub --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.store.add_user("hf_ann", "ann", orgs=["lab"])
        use_hub(server, "hf_ann", tmp_path / "hf", monkeypatch)
        yield server


@pytest.fixture
def commit(hub: HubServer) -> str:
    api = HfApi(endpoint=hub.url, token="hf_ann")
    api.create_repo("lab/steel")
    api.upload_file(path_or_fileobj=CONTENT, path_in_repo="n/w.safetensors", repo_id="lab/steel")
    api.create_tag("lab/steel", tag="v1")
    return str(api.model_info("lab/steel").sha)


def test_the_hub_gives_a_file_of_one_commit_once(hub: HubServer, commit: str) -> None:
    local = weights.resolve(f"hub://lab/steel@{commit}/n/w.safetensors")
    assert (local.path.read_bytes(), local.sha256) == (CONTENT, SHA256)
    assert local.source == f"hub://lab/steel@{commit}/n/w.safetensors"
    hub.stop()
    assert weights.resolve(f"hub://lab/steel@{commit}/n/w.safetensors") == local


def test_a_tag_is_recorded_as_its_commit(hub: HubServer, commit: str) -> None:
    assert (
        weights.resolve("hub://lab/steel@v1/n/w.safetensors").source
        == f"hub://lab/steel@{commit}/n/w.safetensors"
    )
    with pytest.raises(UserError, match="no tag 'v2'"):
        weights.resolve("hub://lab/steel@v2/n/w.safetensors")
    with pytest.raises(UserError, match="no file gone"):
        weights.resolve(f"hub://lab/steel@{commit}/gone")


def test_an_unreachable_hub_names_the_file_and_the_way_around(hub: HubServer, commit: str) -> None:
    hub.stop()
    close_session()
    with pytest.raises(UserError, match=r"Could not get hub://lab/steel@v1/w\.pth") as refused:
        weights.resolve("hub://lab/steel@v1/w.pth")
    assert "--weights FILE" in str(refused.value)


# --- public names ---------------------------------------------------------------------------------------------


class Site(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `/short` stops in the middle, `/gone` is not there."""

    def do_GET(self) -> None:
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100] if self.path == "/short" else CONTENT)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def publish(monkeypatch: pytest.MonkeyPatch, url: str, sha256: str | None) -> None:
    entry = replace(weights.public("imagenet-resnet50"), name="made", file="made.pth", url=url, sha256=sha256)
    monkeypatch.setattr(sources, "public", lambda name: entry)


@pytest.mark.parametrize("pinned", [SHA256, SHA256[:8], None])
def test_a_public_file_is_downloaded_once(
    pinned: str | None, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, f"{site}/made.pth", pinned)
    local = weights.resolve("made")
    assert (local.path.read_bytes(), local.sha256, local.source) == (CONTENT, SHA256, "made")
    assert (local.layout, local.scope, local.input) == ("torchvision", "backbone", "imagenet")
    publish(monkeypatch, f"{site}/gone", pinned)
    assert weights.resolve("made") == local


@pytest.mark.parametrize(
    ("path", "pinned", "says"),
    [
        ("/made.pth", "0" * 8, r"what arrived from .* has sha256 .*, not 00000000\.\.\.; it is not used"),
        ("/made.pth", "0" * 64, "it is not used"),
        ("/gone", None, r"could not download made\.pth from http://127.*404"),
        ("/short", None, "could not download"),
    ],
)
def test_what_arrives_wrong_is_not_kept(
    path: str, pinned: str | None, says: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, site + path, pinned)
    with pytest.raises(UserError, match=says):
        weights.resolve("made")
    assert [found for found in storage.home().rglob("*") if found.is_file()] == []


def test_a_file_that_changed_later_is_not_used(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, f"{site}/made.pth", SHA256)
    path = weights.resolve("made").path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="it is not used"):
        weights.resolve("made")


def test_downloads_are_bounded(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LARGEST_FILE", 1000)
    publish(monkeypatch, f"{site}/made.pth", None)
    with pytest.raises(UserError, match="more than 1,000 bytes"):
        weights.resolve("made")


def test_without_a_network_one_error_names_file_source_and_option(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        publish(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}/made.pth", None)
        with pytest.raises(UserError, match=r"could not download made\.pth from http://127") as refused:
            weights.resolve("made")
    assert "--weights made.pth" in str(refused.value)


def test_what_no_program_can_download_is_told_by_hand_and_taken_from_its_place() -> None:
    with pytest.raises(UserError, match=r"drive\.google\.com/file/d/1zZSqGy5") as refused:
        weights.resolve("agssp-csp_darknet_s")
    assert "--weights FILE" in str(refused.value)
    path = Path(str(refused.value).rsplit("put it at ", 1)[1])
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert weights.resolve("agssp-csp_darknet_s").sha256 == SHA256


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(weights.public("imagenet-lite0"), package="no_such_package_here")
    monkeypatch.setattr(sources, "public", lambda name: entry)
    with pytest.raises(UserError, match="pip install no-such-package-here"):
        weights.resolve("imagenet-lite0")


@pytest.mark.parametrize("name", weights.public_names())
def test_the_catalogue_agrees_with_the_rest(name: str) -> None:
    entry = weights.public(name)
    backbones.get(*entry.backbone.split(":"))
    inputs.convention(entry.input)
    assert entry.layout is None or entry.layout in layouts.LAYOUTS
    assert entry.scope in ("backbone", "detector")
    assert [entry.url, entry.package, entry.by_hand].count(None) == 2
    assert entry.url is None or (entry.url.startswith("https://") and entry.url.endswith(f"/{entry.file}"))
    # The digits in the names of torchvision's and OpenMMLab's files.
    if entry.url is not None:
        assert entry.sha256 == Path(entry.file).stem.rpartition("-")[2]


def test_asking_for_names_imports_no_torch(python: str) -> None:
    code = (
        "import sys; from baselines import weights; weights.public_names(); assert 'torch' not in sys.modules"
    )
    subprocess.run([python, "-c", code], check=True)
