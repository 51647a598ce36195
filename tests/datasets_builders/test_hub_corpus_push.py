"""Publishing corpora, to a Hub on loopback with the real client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from hub_corpus_fixtures import NAME, REPO, encoded, quiet, start
from hub_server.server import HubServer
from hub_server.store import Commit
from huggingface_hub import DatasetCard

from datasets_builders.corpus import load_corpus, prepare_corpus, store
from datasets_builders.errors import UserError
from datasets_builders.hub_corpus_push import push_corpus
from datasets_builders.storage import file_sha256

pytestmark = pytest.mark.usefixtures("hub", "corpus")


def head(hub: HubServer) -> Commit:
    return hub.store.repos["dataset", REPO].commit("main")


def history(hub: HubServer) -> list[str]:
    return [commit.title for commit in hub.store.repos["dataset", REPO].history("main")]


def shards(files: dict) -> list[str]:
    return [path for path in files if path.endswith(".parquet")]


def test_shards_are_published_as_they_are_one_folder_a_source(hub: HubServer) -> None:
    said: list[str] = []
    done = push_corpus(NAME, REPO, have_rights=True, say=said.append)
    built = prepare_corpus(NAME)
    files = head(hub).files
    assert done.commit == head(hub).oid
    assert {path: file.etag for path, file in files.items() if path.endswith(".parquet")} == {
        f"{shard.rpartition('-')[0]}/{shard}": file_sha256(built.folder / shard)
        for shard in built.manifest.shards
    }
    assert len(shards(files)) == 5
    assert {path.partition("/")[0] for path in shards(files)} == {"gc10_cls224", "x_sdd"}
    assert files.keys() - set(shards(files)) == {
        ".gitattributes",
        "README.md",
        "manifest.json",
        "skipped.tsv",
    }
    assert len(history(hub)) == 2
    assert set(hub.uploaded().values()) == {1}
    for path in files.keys() - {".gitattributes"}:
        assert f"upload {path}, {files[path].size:,} bytes" in said[0]
    # Nothing tells where the files lay on this machine, nor is a copy of the corpus left here.
    assert built.manifest.raw is not None
    home = str(Path(built.manifest.raw).parent).encode()
    assert not [path for path, file in files.items() if home in file.content]
    assert not list((store.storage.home() / "hub" / "push").glob("[!.]*"))
    published = json.loads(files["manifest.json"].content)
    assert published["fingerprint"] == built.manifest.fingerprint
    assert (published["raw"], published["hub"]) == (None, None)


def test_sources_that_may_not_be_published_are_named(hub: HubServer) -> None:
    with pytest.raises(UserError) as refusal:
        push_corpus(NAME, REPO, say=quiet)
    said = str(refusal.value)
    assert "gc10_cls224: 'the original: CC BY 4.0'" in said
    assert "x_sdd" not in said.replace(NAME, "")
    assert f"push {NAME} --repo {REPO} --i-have-the-rights" in said
    assert not hub.log


def test_the_card_says_what_one_must_know(hub: HubServer) -> None:
    push_corpus(NAME, REPO, have_rights=True, say=quiet)
    card = DatasetCard(head(hub).files["README.md"].content.decode())
    data = card.data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "per-source")
    assert {c["config_name"]: c["data_files"][0]["path"] for c in data["configs"]} == {
        "default": ["gc10_cls224/*.parquet", "x_sdd/*.parquet"],
        "gc10_cls224": ["gc10_cls224/*.parquet"],
        "x_sdd": ["x_sdd/*.parquet"],
    }
    manifest = prepare_corpus(NAME).manifest
    info = {entry["config_name"]: entry["splits"][0]["num_examples"] for entry in data["dataset_info"]}
    found = {source["name"]: source["found"] for source in manifest.sources}
    assert info == {"default": manifest.images} | found
    for source in manifest.sources:
        line = next(line for line in card.text.splitlines() if line.startswith(f"| `{source['name']}` | ["))
        assert [cell.strip() for cell in line.split("|")[3:5]] == [str(source["found"]), source["licence"]]
        for category, count in source["found_by_category"].items():
            index = manifest.categories.index(category)
            assert sum(s["found_by_category"].get(category, 0) for s in manifest.sources) >= count
            assert re.search(rf"^\| {index} \| `{category}` \| \d+ \|$", card.text, re.MULTILINE)
    assert manifest.fingerprint in card.text
    assert "No licence that allows a copy is known of `gc10_cls224`" in card.text
    assert "`x_sdd` (https://doi.org/" in card.text
    assert "`x_sdd`: 1 file(s) left out" in card.text
    assert "expected were 1,360" in card.text


def test_a_procedural_corpus_has_one_config_and_its_licence(hub: HubServer) -> None:
    name = prepare_corpus("corpus_synthetic", images=3, categories=2, seed=5, workers=1).name
    push_corpus(name, REPO, say=quiet)
    card = DatasetCard(head(hub).files["README.md"].content.decode())
    assert card.data.license == "apache-2.0"
    assert [config["config_name"] for config in card.data.to_dict()["configs"]] == ["default"]
    assert f"prepare {name} --hub {REPO}@REVISION" in card.text
    assert shards(head(hub).files) == ["corpus_synthetic/synthetic-00000.parquet"]


def test_again_there_is_nothing_to_do(hub: HubServer) -> None:
    first = push_corpus(NAME, REPO, have_rights=True, say=quiet)
    before = len(hub.requests("PUT", ""))
    again = push_corpus(NAME, REPO, have_rights=True, say=quiet)
    assert (again.changed, again.files, again.commit) == (False, 0, first.commit)
    assert len(hub.requests("PUT", "")) == before
    assert len(history(hub)) == 2


def test_another_build_replaces_the_old_one_at_once(hub: HubServer, corpus: Path) -> None:
    push_corpus(NAME, REPO, have_rights=True, say=quiet)
    old = head(hub).files
    for path in (corpus / "x_sdd" / "red iron").glob("*"):
        path.unlink()
    prepare_corpus(NAME, corpus, workers=1)
    plans: list[str] = []
    push_corpus(NAME, REPO, have_rights=True, say=plans.append)
    new = head(hub).files
    unchanged = [path for path in shards(new) if path.startswith("gc10")]
    assert all(old[path].etag == new[path].etag for path in unchanged)
    assert not [path for path in unchanged if f"upload {path}," in plans[0]]
    assert "delete x_sdd/" in plans[0]
    assert {*shards(new), "README.md", "skipped.tsv"} == json.loads(new["manifest.json"].content)[
        "files"
    ].keys()


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(lambda hub: hub.answer("PUT", "/lfs", 500, times=2), id="upload-500"),
        pytest.param(lambda hub: hub.answer("POST", "/commit/", 429, retry_after="7"), id="commit-429"),
        pytest.param(lambda hub: hub.cut("PUT", "/lfs", after=1_000), id="upload-cut"),
        pytest.param(lambda hub: hub.lose_answer("POST", "/commit/"), id="commit-lost"),
    ],
)
def test_trouble_that_passes_is_waited_for(
    hub: HubServer, trouble: Callable[[HubServer], None], waits: list[float]
) -> None:
    trouble(hub)
    push_corpus(NAME, REPO, have_rights=True, say=quiet)
    assert hub.faults.all_happened()
    files = head(hub).files
    described = json.loads(files["manifest.json"].content)["files"]
    assert all(files[path].size == known["bytes"] for path, known in described.items())
    assert len(history(hub)) == 2


def test_trouble_that_stays_shows_nothing_half_and_the_rest_goes_up_later(
    hub: HubServer, waits: list[float]
) -> None:
    fault = hub.faults.plan("POST", "/commit/", times=50, status=500)
    with pytest.raises(UserError, match="Nothing half is visible") as refusal:
        push_corpus(NAME, REPO, have_rights=True, say=quiet)
    assert f"push {NAME} --repo {REPO} --i-have-the-rights" in str(refusal.value)
    assert not shards(head(hub).files)
    fault.times = 0
    push_corpus(NAME, REPO, have_rights=True, say=quiet)
    assert set(hub.uploaded().values()) == {1}
    assert len(shards(head(hub).files)) == 5


def test_a_shard_that_was_changed_is_not_published(hub: HubServer) -> None:
    built = prepare_corpus(NAME)
    path = built.folder / built.manifest.shards[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="has changed on this machine"):
        push_corpus(NAME, REPO, have_rights=True, say=quiet)
    assert not shards(head(hub).files)


def test_a_repository_of_something_else_is_left_alone(hub: HubServer) -> None:
    push_corpus(NAME, REPO, have_rights=True, say=quiet)
    other = prepare_corpus("corpus_synthetic", images=2, categories=1, seed=0, workers=1).name
    with pytest.raises(UserError, match=f"holds {NAME}"):
        push_corpus(other, REPO, say=quiet)
    with pytest.raises(UserError, match="already and public"):
        push_corpus(NAME, REPO, private=True, have_rights=True, say=quiet)


def test_what_is_not_prepared_or_has_no_login(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="prepare corpus --raw DIR"):
        push_corpus("corpus", REPO, say=quiet)
    with pytest.raises(UserError, match="ORG/NAME"):
        push_corpus(NAME, "set", say=quiet)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match=f"push {NAME} --repo {REPO} --private --i-have-the-rights"):
        push_corpus(NAME, REPO, private=True, have_rights=True, say=quiet)


@pytest.mark.slow
def test_the_plain_client_reads_what_was_built(hub: HubServer, tmp_path: Path) -> None:
    push_corpus(NAME, REPO, have_rights=True, say=quiet)
    script = """
import datasets, sys
data = datasets.load_dataset("lab/set", split="train")
print(data.features)
print(datasets.load_dataset("lab/set", "x_sdd", split="train").num_rows)
next(iter(datasets.load_dataset("lab/set", split="train", streaming=True)))["image"].load()
data.cast_column("image", datasets.Image(decode=False)).save_to_disk(sys.argv[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")],
        env=os.environ | hub.client_environment(None, tmp_path / "fresh"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    mine = load_corpus(NAME)
    assert isinstance(mine, datasets.Dataset)
    assert done.stdout.splitlines()[:2] == [
        str(mine.features),
        str(sum(source == "x_sdd" for source in mine["source"])),
    ]
    theirs = datasets.load_from_disk(str(tmp_path / "out"))
    assert theirs.to_list() == encoded(mine).to_list()


@pytest.mark.slow
def test_killed_in_its_middle_it_goes_on(hub: HubServer, tmp_path: Path) -> None:
    environment = hub.client_environment("hf_ann", tmp_path / "hf")
    arguments = ["push", NAME, "--repo", REPO, "--i-have-the-rights"]
    gates = [hub.hold("PUT", "/lfs", after=500) for _ in range(3)]
    gates[0].open()
    gates[1].open()
    process = start(arguments, environment)
    gates[2].wait_until_reached()
    process.send_signal(signal.SIGKILL)
    process.wait()
    gates[2].open()
    assert not shards(head(hub).files)
    again = start(arguments, environment)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert len(shards(head(hub).files)) == 5
    # Only the file that it was at was sent again.
    assert sorted(hub.uploaded().values()) in ([1] * 5, [1] * 4 + [2])
