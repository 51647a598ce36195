from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hub_fixtures import REPO, TOKEN
from hub_server.server import HubServer
from hub_server.store import Commit, File
from hub_sets import SHARD_VARIABLE, start
from huggingface_hub import DatasetCard

from datasets_builders import hub_card, hub_export, hub_push, prepared, registry
from datasets_builders.errors import UserError
from datasets_builders.hub_push import push

pytestmark = pytest.mark.usefixtures("hub", "local")


def head(hub: HubServer, repo: str = REPO) -> Commit:
    return hub.store.repos["dataset", repo].commit("main")


def history(hub: HubServer) -> list[str]:
    return [commit.title for commit in hub.store.repos["dataset", REPO].history("main")]


def quiet(plan: str) -> None:
    """Listens and says nothing."""


def published_whole(hub: HubServer) -> bool:
    files = head(hub).files
    manifest = json.loads(files["manifest.json"].content)
    return all(files[path].size == known["bytes"] for path, known in manifest["files"].items())


def sent_once(hub: HubServer) -> bool:
    return set(hub.uploaded().values()) == {1}


def test_a_dataset_is_published_with_all_that_belongs_to_it(hub: HubServer, local: Path) -> None:
    said: list[str] = []

    def say(plan: str) -> None:
        # Before anything is sent, and before the repository is created.
        assert not hub.requests("PUT", "")
        assert not hub.requests("POST", "")
        said.append(plan)

    done = push("neu_det", REPO, say=say)
    assert done.changed
    assert done.commit == head(hub).oid
    files = head(hub).files
    shards = [path for path in files if path.endswith(".parquet")]
    assert {path.split("/")[0] for path in shards} == {"default", "mini50", "mini100"}
    assert len([path for path in shards if path.startswith("default/train")]) > 1
    assert set(files) - set(shards) == {".gitattributes", "README.md", "manifest.json", "sample.png"}
    assert len(said) == 1
    for path in files.keys() - {".gitattributes"}:
        assert f"upload {path}, {files[path].size:,} bytes" in said[0]
    assert "CC BY 4.0" in said[0]
    assert "public, new" in said[0]
    assert REPO in said[0]
    assert done.bytes == sum({f.etag: f.size for p, f in files.items() if p != ".gitattributes"}.values())
    assert f"{done.bytes:,} bytes; 0 are there already" in said[0]
    # One commit, and each content was sent once (the validation shards of the configs are the same files).
    assert len(history(hub)) == 2
    assert sent_once(hub)
    assert published_whole(hub)
    # Nothing tells where the files lay on this machine.
    assert not [path for path, file in files.items() if str(local.parent).encode() in file.content]
    assert not list((local / "hub" / "push").glob("[!.]*"))


def test_the_card_says_what_one_must_know(hub: HubServer) -> None:
    push("neu_det", REPO, say=quiet)
    card = DatasetCard(head(hub).files["README.md"].content.decode())
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert [config["config_name"] for config in data["configs"]] == ["default", "mini50", "mini100"]
    assert data["configs"][0]["default"]
    info = {entry["config_name"]: entry for entry in data["dataset_info"]}
    manifest = prepared.prepare("neu_det").manifest
    assert {s["name"]: s["num_examples"] for s in info["default"]["splits"]} == manifest.splits
    assert info["mini50"]["splits"][0]["num_examples"] == 8
    assert "He, K. Song" in data["citation"]
    assert "He, K. Song" in card.text
    for index, (name, boxes) in enumerate(manifest.per_class.items()):
        row = next(line for line in card.text.splitlines() if line.startswith(f"| {index} | `{name}` |"))
        train, validation, total = (int(cell) for cell in row.split("|")[3:6])
        assert train + validation == total == boxes
    assert manifest.fingerprint in card.text
    assert "sample.png" in card.text
    assert head(hub).files["sample.png"].content.startswith(b"\x89PNG")


def test_known_faults_are_on_the_card() -> None:
    manifest = replace(
        prepared.prepare("neu_det").manifest,
        cleaning={"box cut at the image's edge": {"count": 17, "examples": ["a", "b"]}},
        left_out={"images": 2, "boxes": {"patches": 3}},
    )
    text = hub_card._faults(manifest)
    assert "box cut at the image's edge: 17 (such as `a`, `b`)" in text
    assert "2 images and 3 boxes" in text


@pytest.mark.slow
def test_the_plain_client_reads_what_was_built(hub: HubServer, local: Path, tmp_path: Path) -> None:
    push("neu_det", REPO, say=quiet)
    script = """
import datasets, sys
for config in ("default", "mini50"):
    data = datasets.load_dataset("lab/set", config)
    raw = {s: d.cast_column("image", datasets.Image(decode=False)) for s, d in data.items()}
    for split, rows in raw.items():
        rows = rows.cast_column("mask", datasets.Image(decode=False))
        rows.save_to_disk(f"{sys.argv[1]}/{config}-{split}")
    print(config, data["train"].features)
    data["train"][0]["image"].load()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")],
        env=os.environ | hub.client_environment(None, tmp_path / "fresh"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    import datasets

    from datasets_builders.building import undecoded

    for config, name in (("default", "neu_det"), ("mini50", "neu_det/mini50")):
        for split in ("train", "validation"):
            mine = prepared.load(name, split)
            assert f"{config} {mine.features}" in done.stdout
            theirs = datasets.load_from_disk(str(tmp_path / "out" / f"{config}-{split}"))
            assert theirs.to_list() == undecoded(mine).to_list()


def test_again_there_is_nothing_to_do(hub: HubServer) -> None:
    first = push("neu_det", REPO, say=quiet)
    before = len(hub.requests("PUT", ""))
    again = push("neu_det", REPO, say=quiet)
    assert (again.changed, again.files, again.commit) == (False, 0, first.commit)
    assert len(hub.requests("PUT", "")) == before
    assert len(history(hub)) == 2


def test_a_new_version_replaces_the_old_one_at_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    push("neu_det", REPO, say=quiet)
    old = head(hub)
    monkeypatch.setattr(hub_export, "SHARD_BYTES", 10**9)
    plans: list[str] = []
    push("neu_det", REPO, say=plans.append)
    new = head(hub)
    assert new.parent == old.oid
    gone = old.files.keys() - new.files.keys()
    assert gone
    assert all(f"delete {path}" in plans[0] for path in gone)
    assert "default/train-00000-of-00001.parquet" in new.files
    assert published_whole(hub)
    assert "mini50" in new.files["README.md"].content.decode()


@pytest.mark.parametrize("licence", ["not stated", "CC BY-NC-ND 4.0", "research only"])
def test_what_may_not_be_published_is_not(
    hub: HubServer, licence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = registry.cards() | {"neu_det": replace(registry.card("neu_det"), licence=licence)}
    monkeypatch.setattr(registry, "cards", lambda: cards)
    with pytest.raises(UserError, match=re.escape(licence)) as refusal:
        push("neu_det", REPO, say=quiet)
    assert f"push neu_det --repo {REPO} --i-have-the-rights" in str(refusal.value)
    assert not hub.log
    push("neu_det", REPO, have_rights=True, say=quiet)
    card = DatasetCard(head(hub).files["README.md"].content.decode())
    assert card.data.license == ("unknown" if licence == "not stated" else "other")
    assert ("states no licence" if licence == "not stated" else licence) in card.text
    assert "declared to have the rights" in card.text.replace("\n", " ")


def test_the_real_catalogue_does_not_publish_neu_det() -> None:
    assert hub_card.hub_licence("not stated") is None
    assert hub_card.hub_licence("CC-BY 4.0") == "cc-by-4.0"
    assert hub_card.hub_licence("apache 2.0") == "apache-2.0"


def test_who_is_not_logged_in_learns_how(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match="hf auth login") as refusal:
        push("neu_det", REPO, say=quiet)
    assert f"then: python -m datasets_builders push neu_det --repo {REPO}" in str(refusal.value)
    assert not hub.log
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"does not accept your token.*hf auth login"):
        push("neu_det", REPO, say=quiet)
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    with pytest.raises(UserError, match="write access to lab"):
        push("neu_det", REPO, say=quiet)
    assert not hub.store.repos


@pytest.mark.parametrize(
    ("name", "repo", "reason"),
    [
        ("neu_det/mini50", REPO, "published with it: python -m datasets_builders push neu_det"),
        ("neu_dett", REPO, "Did you mean 'neu_det'"),
        ("neu_det", "set", "write ORG/NAME"),
        ("neu_det", "lab/../x", "cannot be the name"),
        ("neu_det", "lab/a b", "cannot be the name"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_asked(
    hub: HubServer, name: str, repo: str, reason: str
) -> None:
    with pytest.raises(UserError, match=re.escape(reason)):
        push(name, repo, say=quiet)
    assert not hub.log


def test_a_partial_build_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared.prepare("neu_det")
    part = replace(whole, manifest=replace(whole.manifest, partial=True))
    monkeypatch.setattr(prepared, "prepare", lambda name: part)
    with pytest.raises(UserError, match="partial build"):
        push("neu_det", REPO, say=quiet)


@pytest.mark.parametrize("name", ["data.csv", "manifest.json"])
def test_a_repository_with_something_else_is_left_alone(hub: HubServer, name: str) -> None:
    repo = hub.store.create("dataset", REPO, False, "ann")
    other = replace(prepared.prepare("neu_det").manifest, name="other")
    content = b"a,b"
    if name == "manifest.json":
        from datasets_builders.manifest import write_manifest

        folder = Path(prepared.storage.home())
        write_manifest(folder, other)
        content = (folder / name).read_bytes()
    repo.apply("main", [(name, File.regular(content))], "mine", "", "ann")
    before = head(hub).oid
    with pytest.raises(UserError, match=r"nothing was sent\. Choose another name"):
        push("neu_det", REPO, say=quiet)
    assert head(hub).oid == before
    assert not hub.requests("PUT", "")


def test_private_means_private(hub: HubServer) -> None:
    push("neu_det", "lab/secret", private=True, say=quiet)
    assert hub.store.repos["dataset", "lab/secret"].private
    hub.store.create("dataset", REPO, False, "ann")
    with pytest.raises(UserError, match="is there already and public: nothing was sent"):
        push("neu_det", REPO, private=True, say=quiet)
    assert list(head(hub).files) == [".gitattributes"]


Trouble = Callable[[HubServer], None]


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(lambda hub: hub.answer("GET", "/whoami", 429, retry_after="7"), id="whoami-429"),
        pytest.param(lambda hub: hub.answer("GET", f"/api/datasets/{REPO}$", 500, times=2), id="info-500"),
        pytest.param(lambda hub: hub.answer("POST", "/repos/create", 503), id="create-503"),
        pytest.param(lambda hub: hub.lose_answer("POST", "/repos/create"), id="create-lost"),
        pytest.param(lambda hub: hub.answer("POST", "/preupload/", 500, times=3), id="preupload-500"),
        pytest.param(lambda hub: hub.answer("POST", "/objects/batch", 429, retry_after="7"), id="batch-429"),
        pytest.param(lambda hub: hub.answer("PUT", "/lfs/", 500, times=2), id="upload-500"),
        pytest.param(lambda hub: hub.cut("PUT", "/lfs/", after=5_000, times=2), id="upload-cut"),
        pytest.param(lambda hub: hub.lose_answer("POST", "/verify"), id="verify-lost"),
        pytest.param(lambda hub: hub.answer("POST", "/commit/", 500, times=2), id="commit-500"),
        pytest.param(lambda hub: hub.answer("POST", "/commit/", 412), id="commit-412"),
        pytest.param(lambda hub: hub.cut("POST", "/commit/", after=100), id="commit-cut"),
        pytest.param(lambda hub: hub.lose_answer("POST", "/commit/"), id="commit-lost"),
        pytest.param(lambda hub: hub.answer("GET", "/tree/", 502), id="tree-502"),
    ],
)
def test_trouble_that_passes_is_waited_for(hub: HubServer, trouble: Trouble, waits: list[float]) -> None:
    trouble(hub)
    done = push("neu_det", REPO, say=quiet)
    assert hub.faults.all_happened()
    assert waits
    assert waits == sorted(waits), "each wait is at least as long as the one before"
    assert done.commit == head(hub).oid
    assert published_whole(hub)
    assert len(history(hub)) == 2
    assert sent_once(hub)


def test_waits_as_long_as_the_hub_asks(hub: HubServer, waits: list[float]) -> None:
    hub.answer("POST", "/commit/", 429, retry_after="7")
    push("neu_det", REPO, say=quiet)
    assert max(waits) >= 7


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("PUT", "/lfs/", 500, "answered 500"),
        ("POST", "/commit/", 503, "answered 503"),
        ("GET", "/whoami", 429, "slow down"),
        ("POST", "/commit/", 403, "write access"),
    ],
)
def test_trouble_that_stays_leaves_nothing_half(
    hub: HubServer, waits: list[float], method: str, path: str, status: int, reason: str
) -> None:
    hub.answer(method, path, status, times=100)
    with pytest.raises(UserError, match=reason) as refusal:
        push("neu_det", REPO, say=quiet)
    assert f"python -m datasets_builders push neu_det --repo {REPO}" in str(refusal.value)
    if hub.store.repos:
        assert list(head(hub).files) == [".gitattributes"]
    # The same command goes on, and sends nothing again.
    hub.faults = type(hub.faults)()
    push("neu_det", REPO, say=quiet)
    assert published_whole(hub)
    assert sent_once(hub)


def test_without_a_network_it_says_so(hub: HubServer, waits: list[float]) -> None:
    hub.stop()
    with pytest.raises(UserError, match="cannot reach http://127"):
        push("neu_det", REPO, say=quiet)


def test_switched_offline_it_says_so(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        push("neu_det", REPO, say=quiet)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/lfs/", "/commit/"])
def test_killed_in_its_middle_it_goes_on(hub: HubServer, local: Path, tmp_path: Path, place: str) -> None:
    environment = hub.client_environment(TOKEN, tmp_path / "hf") | {SHARD_VARIABLE: "30000"}
    arguments = ["push", "neu_det", "--repo", REPO, "--json"]
    # Let the first files arrive, then stop in the middle of one.
    if place == "/lfs/":
        gates = [hub.hold("PUT", place, after=1000) for _ in range(3)]
        for gate in gates[:2]:
            gate.open()
    else:
        gates = [hub.hold("POST", place, after=1000)]
    process = start(arguments, environment, local)
    gates[-1].wait_until_reached()
    process.send_signal(signal.SIGKILL)
    process.wait()
    gates[-1].open()
    assert list(head(hub).files) == [".gitattributes"]
    arrived = dict(hub.uploaded())
    assert arrived
    again = start(arguments, environment, local)
    output, errors = again.communicate()
    assert again.returncode == 0, errors
    assert json.loads(output)["commit"] == head(hub).oid
    assert published_whole(hub)
    assert sent_once(hub), "what arrived before the kill was not sent again"
    assert arrived.keys() < hub.uploaded().keys() or place == "/commit/"


@pytest.mark.slow
def test_two_machines_push_at_once(hub: HubServer, local: Path, built_home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(built_home, other)
    environment = hub.client_environment(TOKEN, tmp_path / "hf") | {SHARD_VARIABLE: "30000"}
    # One stops with its commit on the way, after it has looked at the repository; the other overtakes it.
    gate = hub.hold("POST", "/commit/")
    running = [start(["push", "neu_det", "--repo", REPO], environment, home) for home in (local, other)]
    gate.wait_until_reached()
    while all(process.poll() is None for process in running):
        time.sleep(0.1)
    gate.open()
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert [logged.status for logged in hub.requests("POST", "/commit/")].count(412) == 1
    assert published_whole(hub)
    assert len(history(hub)) == 2, "the second found everything there"


@pytest.mark.slow
def test_two_processes_push_at_once(hub: HubServer, local: Path, tmp_path: Path) -> None:
    environment = hub.client_environment(TOKEN, tmp_path / "hf")
    gate = hub.hold("POST", "/commit/")
    first = start(["push", "neu_det", "--repo", REPO], environment, local)
    gate.wait_until_reached()
    second = start(["push", "neu_det", "--repo", REPO], environment, local)
    gate.open()
    for process in (first, second):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert published_whole(hub)
    assert len(history(hub)) == 2
    assert sent_once(hub)


@pytest.mark.slow
def test_the_command_line(hub: HubServer, local: Path, tmp_path: Path) -> None:
    environment = hub.client_environment(None, tmp_path / "hf")
    refused = start(["push", "neu_det", "--repo", REPO], environment, local)
    output, errors = refused.communicate()
    assert refused.returncode == 2
    assert "hf auth login" in errors
    assert "Traceback" not in errors
    done = start(["push", "neu_det", "--repo", REPO], hub.client_environment(TOKEN, tmp_path / "hf"), local)
    output, errors = done.communicate()
    assert done.returncode == 0, errors
    assert f"prepare neu_det --hub {REPO}@{head(hub).oid}" in output
    assert "upload default/train-00000-of-00001.parquet" in errors
    assert hub_push.MANIFEST in head(hub).files
