from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_fixtures import REPO, TOKEN
from hub_server.server import HubServer
from hub_server.store import File
from hub_sets import PIN_VARIABLE, SHARD_VARIABLE, start

from datasets_builders import hub as hub_client
from datasets_builders import prepared, registry
from datasets_builders.building import undecoded
from datasets_builders.errors import UserError
from datasets_builders.hub_download import RowError, parquet_rows
from datasets_builders.hub_push import push
from datasets_builders.manifest import read_manifest, write_manifest

Trouble = Callable[[HubServer], None]


@pytest.fixture
def commit(hub: HubServer, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The small dataset is published, this is another machine, and nobody is logged in; returns the commit."""
    done = push("neu_det", REPO, say=lambda plan: None)
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HF_TOKEN", "")
    hub.log.clear()
    return done.commit


def pin(monkeypatch: pytest.MonkeyPatch, revision: str, repo: str = REPO) -> None:
    source = registry.HubSource(repo, revision)
    cards = {
        name: replace(card, hub=source) if card.dataset == "neu_det" else card
        for name, card in registry.cards().items()
    }
    monkeypatch.setattr(registry, "cards", lambda: cards)


def nothing_is_ready() -> bool:
    """Neither a dataset that loads nor a part of one."""
    folder = prepared.dataset_folder(registry.card("neu_det"))
    return not prepared.is_ready("neu_det") and not folder.exists()


def downloads(hub: HubServer) -> list[str]:
    return [logged.path for logged in hub.requests("GET", "/cdn/") if logged.status in (200, 206)]


def test_what_is_fetched_is_what_was_built(
    hub: HubServer, commit: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = prepared.prepare("neu_det", hub=f"{REPO}@{commit}")
    assert fetched.built
    assert fetched.manifest.source == {"hub": {"repo": REPO, "revision": commit, "commit": commit}}
    assert not list((prepared.storage.home() / "hub" / "fetch").iterdir())
    names = ("neu_det", "neu_det/mini50", "neu_det/mini100")
    theirs = {name: prepared.fingerprint(name) for name in names}
    rows = {split: prepared.load("neu_det", split) for split in ("train", "validation")}
    assert len(prepared.load("neu_det/mini50", "train")) == 8
    # Only the whole dataset was downloaded; its configs are chosen here.
    assert len(downloads(hub)) == len(set(downloads(hub))) == len(fetched.manifest.shards["train"]) + 1
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(local))
    mine = prepared.prepare("neu_det").manifest
    assert theirs == {name: prepared.fingerprint(name) for name in names}
    for what in ("identity", "splits", "per_class", "subsets", "cleaning", "parts", "masks"):
        assert getattr(fetched.manifest, what) == getattr(mine, what)
    for split, data in rows.items():
        built = prepared.load("neu_det", split)
        assert data.features == built.features
        assert undecoded(data).to_list() == undecoded(built).to_list()


def test_what_is_here_is_not_fetched_again(hub: HubServer, commit: str) -> None:
    prepared.prepare("neu_det", hub=f"{REPO}@{commit}")
    hub.stop()
    assert not prepared.prepare("neu_det", hub=f"{REPO}@{commit}").built
    assert not prepared.prepare("neu_det").built
    assert len(prepared.load("neu_det", "train"))


def test_raw_files_come_before_the_hub_and_the_hub_before_giving_up(
    hub: HubServer, commit: str, make_raw_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="prepare neu_det --raw DIR"):
        prepared.prepare("neu_det")
    pin(monkeypatch, commit)
    raw = make_raw_folder(per_class=5)
    built = prepared.prepare("neu_det", raw)
    assert built.manifest.images == 30
    assert not hub.log
    assert not prepared.prepare("neu_det").built
    shutil.rmtree(raw)
    shutil.rmtree(built.folder)
    # Also for whoever just loads it, or one of its configs.
    assert len(prepared.load("neu_det/mini50", "train")) == 8
    assert prepared.prepare("neu_det").manifest.source["hub"]["commit"] == commit


def test_a_damaged_copy_is_fetched_again_from_the_same_commit(hub: HubServer, commit: str) -> None:
    done = prepared.prepare("neu_det", hub=f"{REPO}@{commit}")
    shard = done.folder / done.manifest.shards["train"][0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    prepared._checked.clear()
    again = prepared.prepare("neu_det")
    assert again.built
    assert again.manifest.source["hub"]["commit"] == commit
    assert again.manifest.fingerprint == done.manifest.fingerprint


def test_tags_and_branches_stand_for_commits(hub: HubServer, commit: str) -> None:
    repo = hub.store.repos["dataset", REPO]
    repo.refs["refs/tags/v1"] = commit
    done = prepared.prepare("neu_det", hub=f"{REPO}@v1")
    assert done.manifest.source["hub"] == {"repo": REPO, "revision": "v1", "commit": commit}
    moved, _ = repo.apply("main", [("notes.md", File.regular(b"x"))], "later", "", "ann")
    assert not prepared.prepare("neu_det", hub=f"{REPO}@v1").built
    latest = prepared.prepare("neu_det", hub=f"{REPO}@main")
    assert latest.built
    assert latest.manifest.source["hub"]["commit"] == moved.oid


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (REPO, "does not say which revision"),
        ("@main", "does not say which revision"),
        ("set@main", "write ORG/NAME"),
        ("a b/c@main", "cannot be the name"),
        (f"{REPO}@v9", "no such revision"),
        (f"{REPO}@{'0' * 40}", "no such revision"),
        ("lab/nothing@main", "there is no dataset repository lab/nothing, or it is private"),
    ],
)
def test_what_is_not_there_is_said(commit: str, source: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        prepared.prepare("neu_det", hub=source)
    assert nothing_is_ready()


def test_two_sources_are_too_many(commit: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give one of them"):
        prepared.prepare("neu_det", raw=tmp_path, hub=f"{REPO}@{commit}")


def test_a_private_copy_needs_a_login(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.store.repos["dataset", REPO].private = True
    for token in ("", "hf_bob"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match="log in: hf auth login"):
            prepared.prepare("neu_det", hub=f"{REPO}@{commit}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert prepared.prepare("neu_det", hub=f"{REPO}@{commit}").built


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(lambda hub: hub.answer("GET", "/revision/", 429, retry_after="7"), id="info-429"),
        pytest.param(lambda hub: hub.answer("POST", "/paths-info/", 500, times=2), id="sizes-500"),
        pytest.param(lambda hub: hub.answer("HEAD", "/resolve/", 503, times=2), id="head-503"),
        pytest.param(
            lambda hub: hub.answer("HEAD", "/resolve/", 429, times=2, retry_after="7"), id="head-429"
        ),
        pytest.param(lambda hub: hub.lose_answer("HEAD", "/resolve/", times=2), id="head-lost"),
        pytest.param(lambda hub: hub.answer("GET", "/cdn/", 500, times=2), id="file-500"),
        pytest.param(lambda hub: hub.answer("GET", "/cdn/", 429, retry_after="7"), id="file-429"),
        pytest.param(lambda hub: hub.cut("GET", "/cdn/", after=9_000, times=2), id="file-cut"),
        pytest.param(lambda hub: hub.lose_answer("GET", "/cdn/"), id="file-lost"),
        pytest.param(lambda hub: hub.cut("GET", "/resolve-cache/", after=100), id="manifest-cut"),
    ],
)
def test_trouble_that_passes_is_waited_for(
    hub: HubServer, commit: str, trouble: Trouble, waits: list[float]
) -> None:
    trouble(hub)
    hub.store.repos["dataset", REPO].refs["refs/tags/v1"] = commit
    done = prepared.prepare("neu_det", hub=f"{REPO}@v1")
    assert hub.faults.all_happened()
    assert waits
    assert done.manifest.fingerprint == prepared.fingerprint("neu_det")


def test_after_a_cut_only_the_rest_is_downloaded(
    hub: HubServer, commit: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client keeps what it has in whole pieces of this size, 10 MB unless changed.
    monkeypatch.setattr(hub_client.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut("GET", "/cdn/", after=9_000)
    prepared.prepare("neu_det", hub=f"{REPO}@{commit}")
    ranges = [logged.range for logged in hub.requests("GET", "/cdn/") if logged.range]
    assert ranges == ["bytes=9000-"]


def test_garbled_bytes_are_noticed(
    hub: HubServer, commit: str, caplog: pytest.LogCaptureFixture, waits: list[float]
) -> None:
    hub.garble("GET", "/cdn/")
    assert prepared.prepare("neu_det", hub=f"{REPO}@{commit}").built
    assert "arrived damaged" in caplog.text


def test_garbled_bytes_that_stay_are_not_used(hub: HubServer, commit: str) -> None:
    hub.garble("GET", "/cdn/", times=100)
    with pytest.raises(UserError, match=r"has not the content that manifest\.json says"):
        prepared.prepare("neu_det", hub=f"{REPO}@{commit}")
    assert nothing_is_ready()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/cdn/", 500), ("HEAD", "/resolve/", 503), ("POST", "/paths-info/", 429)],
)
def test_trouble_that_stays_leaves_nothing_half(
    hub: HubServer, commit: str, waits: list[float], method: str, path: str, status: int
) -> None:
    hub.answer(method, path, status, times=200)
    with pytest.raises(UserError, match=f"Could not download neu_det from {REPO}@{commit}") as refusal:
        prepared.prepare("neu_det", hub=f"{REPO}@{commit}")
    assert "prepare neu_det --raw DIR" in str(refusal.value)
    assert "faculty.neu.edu.cn" in str(refusal.value)
    assert f"--hub {REPO}@{commit}" in str(refusal.value)
    assert nothing_is_ready()


def test_without_a_network_it_says_what_to_do(
    hub: HubServer, commit: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, commit)
    hub.stop()
    for action in (lambda: prepared.prepare("neu_det"), lambda: prepared.load("neu_det", "train")):
        with pytest.raises(UserError, match="cannot reach http://127") as refusal:
            action()
        assert "prepare neu_det --raw DIR" in str(refusal.value)
    assert nothing_is_ready()
    monkeypatch.setattr(hub_client.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=1"):
        prepared.prepare("neu_det")


def republish(hub: HubServer, commit: str, change: Callable[[dict[str, Any]], None]) -> str:
    """Commits the published files with the manifest changed, its own checksum right."""
    repo = hub.store.repos["dataset", REPO]
    folder = Path(prepared.storage.home()) / "forged"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_bytes(repo.commit(commit).files["manifest.json"].content)
    manifest = read_manifest(folder)
    assert manifest is not None
    values: dict[str, Any] = {}
    change({"manifest": manifest, "values": values})
    write_manifest(folder, replace(manifest, **values))
    forged = File.regular((folder / "manifest.json").read_bytes())
    done, _ = repo.apply("main", [("manifest.json", forged)], "forged", "", "ann")
    return done.oid


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"name": "other"}, "is a copy of other, not of neu_det"),
        ({"identity": "0" * 64}, "made by another version"),
        ({"fingerprint": "0" * 64}, "has not the fingerprint"),
        ({"boxes": 7}, "has not the boxes"),
        ({"shards": {"train": ["../../etc/passwd"], "validation": []}}, "names files that no push writes"),
        ({"shards": {"train": ["/etc/passwd"], "validation": []}}, "names files that no push writes"),
        ({"shards": {"train": ["README.md"], "validation": []}}, "names files that no push writes"),
        ({"shards": {}}, "has not the splits train, validation"),
        ({"shards": []}, "has not the splits train, validation"),
        ({"shards": {"train": 1, "validation": 2}}, "is not what a push writes"),
        ({"files": {}}, "names files that no push writes"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    hub: HubServer, commit: str, values: dict[str, Any], reason: str
) -> None:
    forged = republish(hub, commit, lambda into: into["values"].update(values))
    with pytest.raises(UserError, match=re.escape(reason)):
        prepared.prepare("neu_det", hub=f"{REPO}@{forged}")
    assert nothing_is_ready()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"checksum": 1}', b"null"])
def test_a_broken_manifest_is_refused(hub: HubServer, commit: str, content: bytes) -> None:
    broken = File.regular(content)
    done, _ = hub.store.repos["dataset", REPO].apply("main", [("manifest.json", broken)], "x", "", "ann")
    with pytest.raises(UserError, match=r"manifest\.json"):
        prepared.prepare("neu_det", hub=f"{REPO}@{done.oid}")
    assert nothing_is_ready()


def test_a_repository_that_no_push_made_is_refused(hub: HubServer, commit: str) -> None:
    other = hub.store.create("dataset", "lab/other", False, "ann")
    with pytest.raises(UserError, match="no copy made by"):
        prepared.prepare("neu_det", hub=f"lab/other@{other.commit('main').oid}")


def at_first(column: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[0].__setitem__(column, value)


def in_objects(field: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[0]["objects"].__setitem__(field, value(rows[0]["objects"][field]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (at_first("image", {"bytes": None, "path": "/etc/passwd"}), "image is not embedded"),
        (at_first("image", {"bytes": b"x", "path": "http://127.0.0.1/x"}), "image is not embedded"),
        (at_first("mask", {"bytes": None, "path": "/etc/passwd"}), "mask is not embedded"),
        (at_first("image", None), "there is no image"),
        (at_first("image", {"bytes": b"no picture", "path": None}), "not a JPEG"),
        (at_first("width", 10_000), "the image has another size"),
        (lambda rows: rows.append(rows[0]), "is there twice"),
        (in_objects("category", lambda old: [77] * len(old)), "there is no class 77"),
        (in_objects("category", lambda old: old[1:]), "differ in length"),
        (in_objects("id", lambda old: [None] * len(old)), "has no id, or no area"),
        (in_objects("area", lambda old: [None] * len(old)), "has no id, or no area"),
        (in_objects("bbox", lambda old: [[30.0, 0.0, 100.0, 1.0]] * len(old)), "is not inside the image"),
        (in_objects("bbox", lambda old: [[float("nan")] * 4] * len(old)), "is not inside the image"),
        (in_objects("bbox", lambda old: [[0.0, 0.0, -1.0, 1.0]] * len(old)), "is not inside the image"),
        (lambda rows: rows.pop(), "has not the splits"),
    ],
)
def test_rows_that_no_builder_writes_are_refused(
    hub: HubServer, commit: str, change: Callable[[list[dict[str, Any]]], None], reason: str
) -> None:
    """Whoever publishes can make every checksum right; the rows must be right as well."""
    repo = hub.store.repos["dataset", REPO]
    path = next(p for p in repo.commit(commit).files if p.startswith("default/validation"))
    table = pq.read_table(io.BytesIO(repo.commit(commit).files[path].content))
    rows = table.to_pylist()
    change(rows)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), buffer)
    forged = File.large(buffer.getvalue())
    hub.store.large[str(forged.sha256)] = forged.content
    repo.apply("main", [(path, forged)], "forged", "", "ann")

    def describe(into: dict[str, Any]) -> None:
        described = {"bytes": forged.size, "sha256": forged.sha256}
        into["values"]["files"] = into["manifest"].files | {path: described}

    oid = republish(hub, "main", describe)
    with pytest.raises(UserError, match=reason):
        prepared.prepare("neu_det", hub=f"{REPO}@{oid}")
    assert nothing_is_ready()


@pytest.mark.parametrize("content", [b"PAR1 but no Parquet", b""])
def test_files_that_are_no_parquet_are_refused(hub: HubServer, commit: str, content: bytes) -> None:
    repo = hub.store.repos["dataset", REPO]
    path = next(p for p in repo.commit(commit).files if p.startswith("default/validation"))
    hub.store.large[hashlib.sha256(content).hexdigest()] = content
    repo.apply("main", [(path, File.large(content))], "forged", "", "ann")

    def describe(into: dict[str, Any]) -> None:
        described = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        into["values"]["files"] = into["manifest"].files | {path: described}

    oid = republish(hub, "main", describe)
    with pytest.raises(UserError, match="holds no neu_det"):
        prepared.prepare("neu_det", hub=f"{REPO}@{oid}")
    assert nothing_is_ready()


def test_damaged_pages_of_a_parquet_file_are_named(tmp_path: Path) -> None:
    """Whoever publishes can make every checksum right over a file whose end alone is whole."""
    path = tmp_path / "x.parquet"
    table = pa.table({"text": ["word " * 20] * 500})
    pq.write_table(table, path, compression="gzip", use_dictionary=False, write_statistics=False)
    assert len(list(parquet_rows(path, table.schema, 64, 10**9))) == 500
    whole = path.read_bytes()
    for place in (12, 200):  # the head of the page, and what is compressed in it
        path.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
        with pytest.raises(RowError):
            list(parquet_rows(path, table.schema, 64, 10**9))
    binary = pa.table({"text": pa.array([b"\xff\xfe"], pa.binary())})
    pq.write_table(binary, path)
    with pytest.raises(RowError):
        list(parquet_rows(path, table.schema, 64, 10**9))


@pytest.mark.filterwarnings("ignore:Not enough free disk")
def test_a_full_disk_is_said_before_the_download(
    hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="not enough room"):
        prepared.prepare("neu_det", hub=f"{REPO}@{commit}")
    assert not downloads(hub)


def test_the_catalogue_pins_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can move is no pin; none of the datasets is published yet."""
    for card in registry.cards().values():
        assert card.hub is None or hub_client.COMMIT_HASH.fullmatch(card.hub.revision)
    entry = yaml.safe_load(registry.CATALOGUE.read_text(encoding="utf-8"))["neu_det"]
    pinned = entry | {"hub": {"repo": "lab/steel", "revision": "a" * 40}}
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(yaml.safe_dump({"neu_det": pinned}), encoding="utf-8")
    monkeypatch.setattr(registry, "CATALOGUE", catalogue)
    cards = registry._catalogue.__wrapped__()
    assert {str(card.hub) for card in cards.values()} == {f"lab/steel@{'a' * 40}"}
    assert "neu_det/mini50" in cards


@pytest.mark.slow
def test_killed_in_its_middle_it_goes_on(hub: HubServer, local: Path, tmp_path: Path, commit: str) -> None:
    environment = hub.client_environment(None, tmp_path / "hf") | {PIN_VARIABLE: f"{REPO}@{commit}"}
    home = tmp_path / "killed"
    gates = [hub.hold("GET", "/cdn/", after=9_000) for _ in range(2)]
    gates[0].open()
    process = start(["prepare", "neu_det"], environment, home)
    gates[1].wait_until_reached()
    process.send_signal(signal.SIGKILL)
    process.wait()
    gates[1].open()
    assert not (home / "datasets" / "neu_det").exists()
    listed = start(["list", "--json"], environment, home)
    ready = {fact["name"]: fact["ready"] for fact in json.loads(listed.communicate()[0])}
    assert not ready["neu_det"]
    first = hub.requests("GET", "/cdn/")[0].path
    again = start(["prepare", "neu_det"], environment, home)
    output, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "(1 files are here)" in " ".join(errors.split())
    assert len([logged for logged in hub.requests("GET", "/cdn/") if logged.path == first]) == 1
    assert not list((home / "hub" / "fetch").iterdir())
    manifest = read_manifest(home / "datasets" / "neu_det")
    assert manifest is not None
    assert manifest.fingerprint in output
    mine = read_manifest(local / "datasets" / "neu_det")
    assert mine is not None
    assert manifest.fingerprint == mine.fingerprint


@pytest.mark.slow
def test_the_command_line_without_a_network(hub: HubServer, commit: str, tmp_path: Path) -> None:
    environment = hub.client_environment(None, tmp_path / "hf") | {SHARD_VARIABLE: "30000"}
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    refused = start(["prepare", "neu_det", "--hub", f"{REPO}@{commit}"], offline, tmp_path / "none")
    output, errors = refused.communicate()
    assert refused.returncode == 2
    assert "prepare neu_det --raw DIR" in errors
    assert "Traceback" not in errors
    assert "fingerprint" not in output
