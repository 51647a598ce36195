"""Fetching corpora, from a Hub on loopback with the real client."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_corpus_fixtures import NAME, REPO, encoded, quiet, start
from hub_server.server import HubServer
from hub_server.store import File

from datasets_builders import storage
from datasets_builders.corpus import catalogue, is_ready, load_corpus, prepare_corpus, store
from datasets_builders.errors import UserError
from datasets_builders.hub_corpus_push import push_corpus

Rows = list[dict[str, Any]]


@pytest.fixture
def commit(hub: HubServer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The corpus is published, this is another machine, and nobody is logged in; returns the commit."""
    done = push_corpus(NAME, REPO, have_rights=True, say=quiet)
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HF_TOKEN", "")
    hub.log.clear()
    return done.commit


def fetch(commit: str, **options: Any) -> Any:
    return prepare_corpus(NAME, hub=f"{REPO}@{commit}", workers=1, **options)


def nothing_is_ready() -> bool:
    """Neither a corpus that loads nor a part of one."""
    return not is_ready(NAME) and not store.corpus_folder(NAME).exists()


def downloads(hub: HubServer) -> list[str]:
    return [logged.path for logged in hub.requests("GET", "/cdn/") if logged.status in (200, 206)]


def test_what_is_fetched_is_what_was_built(
    hub: HubServer, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = fetch(commit)
    assert done.built
    assert done.manifest.hub == {"repo": REPO, "revision": commit, "commit": commit}
    assert not list((storage.home() / "hub" / "fetch").iterdir())
    assert not store.work_folder(NAME).exists()
    assert len(downloads(hub)) == len(set(downloads(hub))) == 5
    theirs = load_corpus(NAME)
    skipped = (done.folder / store.SKIPPED_LIST).read_text()
    assert "slag inclusion/broken.jpg" in skipped
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "home"))
    mine = prepare_corpus(NAME)
    for what in ("fingerprint", "categories", "images", "sources", "shards", "stamp", "version"):
        assert getattr(done.manifest, what) == getattr(mine.manifest, what)
    assert skipped == (mine.folder / store.SKIPPED_LIST).read_text()
    built = load_corpus(NAME)
    assert isinstance(theirs, datasets.Dataset)
    assert isinstance(built, datasets.Dataset)
    assert theirs.features == built.features
    assert encoded(theirs).to_list() == encoded(built).to_list()


def test_what_is_here_is_not_fetched_again(hub: HubServer, commit: str, corpus: Path) -> None:
    fetch(commit)
    hub.stop()
    assert not fetch(commit).built
    assert not prepare_corpus(NAME).built
    assert load_corpus(NAME).num_rows == 13


def test_a_local_build_of_the_same_content_stays(hub: HubServer, commit: str, corpus: Path) -> None:
    prepare_corpus(NAME, corpus, workers=1)
    assert not fetch(commit).built
    assert not downloads(hub)
    assert prepare_corpus(NAME).manifest.hub is None
    for path in (corpus / "x_sdd" / "red iron").glob("*"):
        path.unlink()
    prepare_corpus(NAME, corpus, workers=1)
    assert fetch(commit).built
    assert load_corpus(NAME).num_rows == 13


def test_raw_files_come_before_the_hub_and_the_hub_before_giving_up(
    hub: HubServer, commit: str, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=f"prepare {NAME} --raw DIR"):
        prepare_corpus(NAME)
    pinned = catalogue.entries()[NAME] | {"hub": {"repo": REPO, "revision": commit}}
    entries = catalogue.entries() | {NAME: pinned}
    monkeypatch.setattr(catalogue, "entries", lambda: entries)
    assert prepare_corpus(NAME, corpus, workers=1).built
    assert not hub.log
    shutil.rmtree(store.corpus_folder(NAME))
    fetched = prepare_corpus(NAME, workers=1)
    assert fetched.built
    assert fetched.manifest.hub == {"repo": REPO, "revision": commit, "commit": commit}
    assert load_corpus(NAME).num_rows == 13


def test_a_procedural_corpus_is_fetched_only_as_this_version_draws_it(
    hub: HubServer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: dict[str, Any] = {"images": 3, "categories": 2, "seed": 5, "workers": 1}
    built = prepare_corpus("corpus_synthetic", **numbers)
    done = push_corpus(built.name, REPO, say=quiet)
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "elsewhere"))
    fetched = prepare_corpus("corpus_synthetic", hub=f"{REPO}@{done.commit}", **numbers)
    assert fetched.manifest.fingerprint == built.manifest.fingerprint
    assert not prepare_corpus(built.name).built
    with pytest.raises(UserError, match=f"is a copy of {built.name}, not of corpus_synthetic/n4_k2_s5"):
        prepare_corpus("corpus_synthetic/n4_k2_s5", hub=f"{REPO}@{done.commit}")
    other = republish(hub, stamp="0" * 64)
    shutil.rmtree(store.corpus_folder(built.name))
    with pytest.raises(UserError, match="another version"):
        prepare_corpus(built.name, hub=f"{REPO}@{other}")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (REPO, "does not say which revision"),
        ("set@main", "write ORG/NAME"),
        (f"{REPO}@v9", "no such revision"),
        ("lab/nothing@main", "there is no dataset repository lab/nothing, or it is private"),
    ],
)
def test_what_is_not_there_is_said(commit: str, source: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        prepare_corpus(NAME, hub=source)
    assert nothing_is_ready()


def test_two_sources_are_too_many(commit: str, corpus: Path) -> None:
    with pytest.raises(UserError, match="give one of them"):
        prepare_corpus(NAME, corpus, hub=f"{REPO}@{commit}")


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(lambda hub: hub.answer("POST", "/paths-info/", 500, times=2), id="sizes-500"),
        pytest.param(lambda hub: hub.answer("GET", "/cdn/", 429, retry_after="7"), id="file-429"),
        pytest.param(lambda hub: hub.answer("GET", "/cdn/", 500, times=2), id="file-500"),
        pytest.param(lambda hub: hub.cut("GET", "/cdn/", after=1_000, times=2), id="file-cut"),
        pytest.param(lambda hub: hub.garble("GET", "/cdn/"), id="file-garbled"),
    ],
)
def test_trouble_that_passes_is_waited_for(
    hub: HubServer, commit: str, trouble: Callable[[HubServer], None], waits: list[float]
) -> None:
    trouble(hub)
    assert fetch(commit).built
    assert hub.faults.all_happened()
    assert load_corpus(NAME).num_rows == 13


def test_trouble_that_stays_leaves_nothing_half_and_keeps_what_has_arrived(
    hub: HubServer, commit: str, waits: list[float]
) -> None:
    last = hub.store.repos["dataset", REPO].commit("main").files["x_sdd/x_sdd-00001.parquet"]
    fault = hub.faults.plan("GET", f"/cdn/.*{last.sha256}", times=200, status=500)
    with pytest.raises(UserError, match=f"Could not download {NAME} from {REPO}@{commit}") as refusal:
        fetch(commit)
    assert f"prepare {NAME} --hub {REPO}@{commit}" in str(refusal.value)
    assert "docs/corpus.md" in str(refusal.value)
    assert nothing_is_ready()
    fault.times = 0
    hub.log.clear()
    assert fetch(commit).built
    assert len(downloads(hub)) == 1


def republish(hub: HubServer, replaced: dict[str, bytes] | None = None, **values: Any) -> str:
    """Commits the published files with some replaced and the manifest changed to fit, its own checksum right."""
    repo = hub.store.repos["dataset", REPO]
    folder = storage.home() / "forged"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_bytes(repo.commit("main").files["manifest.json"].content)
    manifest = store.parse_manifest(folder / "manifest.json")
    assert manifest is not None
    changes = []
    files = dict(manifest.files)
    for path, content in (replaced or {}).items():
        forged = File.large(content)
        hub.store.large[str(forged.sha256)] = content
        changes.append((path, forged))
        files[path] = {"bytes": forged.size, "sha256": forged.sha256}
    store.write_manifest(folder, replace(manifest, **({"files": files} | values)))
    changes.append(("manifest.json", File.regular((folder / "manifest.json").read_bytes())))
    done, _ = repo.apply("main", changes, "forged", "", "ann")
    return done.oid


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"name": "corpus"}, f"is a copy of corpus, not of {NAME}"),
        ({"version": 0}, "made by another version"),
        ({"fingerprint": "0" * 64}, "has not the fingerprint"),
        ({"images": 7}, "has not the images"),
        ({"shards": ["../../etc/passwd"]}, "names files that no push writes"),
        ({"shards": ["/etc/passwd"]}, "names files that no push writes"),
        ({"shards": ["README.md"]}, "names files that no push writes"),
        ({"shards": ["other/x.parquet"]}, "names files that no push writes"),
        ({"shards": []}, "names files that no push writes"),
        ({"shards": None}, "not what a push writes"),
        ({"sources": [{}]}, "not what a push writes"),
        ({"files": {}}, "not what a push writes"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    hub: HubServer, commit: str, values: dict[str, Any], reason: str
) -> None:
    forged = republish(hub, **values)
    with pytest.raises(UserError, match=re.escape(reason)):
        fetch(forged)
    assert nothing_is_ready()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"checksum": 1}', b"null"])
def test_a_broken_manifest_is_refused(hub: HubServer, commit: str, content: bytes) -> None:
    repo = hub.store.repos["dataset", REPO]
    done, _ = repo.apply("main", [("manifest.json", File.regular(content))], "x", "", "ann")
    with pytest.raises(UserError, match=r"manifest\.json"):
        fetch(done.oid)
    assert nothing_is_ready()


def at_first(column: str, value: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[0].__setitem__(column, value)


def another_place(rows: Rows) -> None:
    rows[0]["image_id"] = "gc10_cls224/crease/0.png"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (at_first("image", {"bytes": None, "path": "/etc/passwd"}), "the image is not embedded"),
        (at_first("image", {"bytes": b"x", "path": "http://127.0.0.1/x"}), "the image is not embedded"),
        (at_first("image", None), "the image is not embedded"),
        (at_first("image", {"bytes": b"no picture", "path": None}), "not a JPEG"),
        (at_first("image_id", None), "not the id of an image"),
        (at_first("image_id", "x_sdd/\x1b[2J"), "not the id of an image"),
        (another_place, "not the id of an image of x_sdd"),
        (at_first("category", 17), "there is no category 17"),
        (at_first("category", None), "there is no category None"),
        (at_first("source", "y"), "another source or licence"),
        (at_first("licence", "MIT"), "another source or licence"),
        (lambda rows: rows.pop(), "has not the images"),
        (lambda rows: rows.__setitem__(0, rows[1]), "has not the"),
    ],
)
def test_rows_that_no_builder_writes_are_refused(
    hub: HubServer, commit: str, change: Callable[[Rows], None], reason: str
) -> None:
    """Whoever publishes can make every checksum right; the rows must be right as well."""
    path = "x_sdd/x_sdd-00000.parquet"
    table = pq.read_table(io.BytesIO(hub.store.repos["dataset", REPO].commit("main").files[path].content))
    rows = table.to_pylist()
    change(rows)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), buffer)
    forged = republish(hub, {path: buffer.getvalue()})
    with pytest.raises(UserError, match=reason):
        fetch(forged)
    assert nothing_is_ready()


@pytest.mark.parametrize("content", [b"PAR1 but no Parquet", b""])
def test_files_that_are_no_parquet_are_refused(hub: HubServer, commit: str, content: bytes) -> None:
    forged = republish(hub, {"x_sdd/x_sdd-00000.parquet": content})
    with pytest.raises(UserError, match=r"x_sdd-00000.* is no Parquet file"):
        fetch(forged)
    assert nothing_is_ready()


@pytest.mark.filterwarnings("ignore:Not enough free disk")
def test_a_full_disk_is_said_before_the_download(
    hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="not enough room"):
        fetch(commit)
    assert not downloads(hub)


def test_the_catalogue_pins_commits() -> None:
    """What can move is no pin; none of the corpora is published yet."""
    for entry in catalogue.entries().values():
        assert "hub" not in entry or re.fullmatch(r"[0-9a-f]{40}", entry["hub"]["revision"])


@pytest.mark.slow
def test_killed_in_its_middle_it_goes_on(hub: HubServer, commit: str, tmp_path: Path) -> None:
    environment = hub.client_environment(None, tmp_path / "hf")
    home = tmp_path / "killed"
    gates = [hub.hold("GET", "/cdn/", after=1_000) for _ in range(3)]
    gates[0].open()
    gates[1].open()
    command = ["prepare", NAME, "--hub", f"{REPO}@{commit}", "--workers", "1"]
    process = start(command, environment, home)
    gates[2].wait_until_reached()
    process.send_signal(signal.SIGKILL)
    process.wait()
    gates[2].open()
    assert not (home / "corpora" / NAME).exists()
    listed = start(["list", "--json"], environment, home)
    ready = {fact["name"]: fact["ready"] for fact in json.loads(listed.communicate()[0])}
    assert not ready[NAME]
    first = [logged.path for logged in hub.requests("GET", "/cdn/")][:2]
    again = start(command, environment, home)
    output, errors = again.communicate()
    assert again.returncode == 0, errors
    assert f"{NAME}: fetched" in output
    assert "(2 files are here)" in " ".join(errors.split())
    for path in first:
        assert len([logged for logged in hub.requests("GET", "/cdn/") if logged.path == path]) == 1
    assert not list((home / "hub" / "fetch").iterdir())
