"""The loopback Hub itself: the real client finds there what the real Hub would show it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server.client import use_hub
from hub_server.server import HubServer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = {"repo_id": "lab/set", "repo_type": "dataset"}
LARGE = bytes(range(256)) * 2000


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.store.add_user("hf_ann", "ann", orgs=["lab"])
        server.store.add_user("hf_bob", "bob")
        server.store.add_user("hf_reader", "ann", orgs=["lab"], write=False)
        yield server


@pytest.fixture
def api(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    use_hub(hub, "hf_ann", tmp_path / "home", monkeypatch)
    api = HfApi(endpoint=hub.url)
    api.create_repo(**REPO)
    return api


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def test_who_asks(hub: HubServer, api: HfApi) -> None:
    assert api.whoami()["name"] == "ann"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_nobody")


def test_files_come_back_as_committed(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    done = api.create_commit(
        **REPO, operations=[add("a b/ü.txt", b"small"), add("data/x.parquet", LARGE)], commit_message="first"
    )
    assert api.dataset_info("lab/set").sha == done.oid
    for path, content in (("a b/ü.txt", b"small"), ("data/x.parquet", LARGE)):
        assert Path(api.hf_hub_download(**REPO, filename=path)).read_bytes() == content
    # Large files come from the other host, and the token does not go there (the server would refuse it).
    assert [logged.authorized for logged in hub.requests("GET", "/cdn/")] == [False]
    tree = {file.path: file for file in api.list_repo_tree(**REPO, recursive=True)}
    assert set(tree) == {".gitattributes", "a b", "a b/ü.txt", "data", "data/x.parquet"}
    assert tree["data/x.parquet"].lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert tree["a b/ü.txt"].blob_id == hashlib.sha1(b"blob 5\0small").hexdigest()
    flat = {file.path for file in api.list_repo_tree(**REPO, path_in_repo="data")}
    assert flat == {"data/x.parquet"}
    found = api.get_paths_info(**REPO, paths=["data", "data/x.parquet", "nothing"], expand=True)
    assert [info.path for info in found] == ["data", "data/x.parquet"]
    assert found[1].last_commit.oid == done.oid
    # The same content is not sent twice, and a commit that changes nothing is not made.
    api.create_commit(**REPO, operations=[add("data/y.parquet", LARGE)], commit_message="again")
    assert list(hub.uploaded().values()) == [1]
    before = api.dataset_info("lab/set").sha
    assert (
        api.create_commit(**REPO, operations=[add("data/y.parquet", LARGE)], commit_message="no").oid
        == before
    )


def test_ranges(hub: HubServer, api: HfApi) -> None:
    api.create_commit(**REPO, operations=[add("x.bin", LARGE), add("y.txt", LARGE)], commit_message="x")
    files = HfFileSystem(endpoint=hub.url, skip_instance_cache=True)
    for name in ("x.bin", "y.txt"):
        with files.open(f"datasets/lab/set/{name}", block_size=1000) as file:
            file.seek(300_000)
            assert file.read(77) == LARGE[300_000:300_077]
            file.seek(-5, 2)
            assert file.read() == LARGE[-5:]
    assert all(logged.sent < len(LARGE) for logged in hub.requests("GET", "/cdn/"))
    assert {logged.status for logged in hub.requests("GET", "/cdn/")} == {206}


def test_uploads_in_parts(hub: HubServer, api: HfApi) -> None:
    hub.api.part_bytes = 100_000
    api.create_commit(**REPO, operations=[add("x.bin", LARGE)], commit_message="x")
    assert len(hub.requests("PUT", "/part/")) == 6
    assert Path(api.hf_hub_download(**REPO, filename="x.bin")).read_bytes() == LARGE


def test_long_lists_come_in_pages(hub: HubServer, api: HfApi) -> None:
    hub.api.tree_page = 7
    names = [f"{n:03}.txt" for n in range(30)]
    api.create_commit(**REPO, operations=[add(name, b"x") for name in names], commit_message="x")
    listed = [file.path for file in api.list_repo_tree(**REPO)]
    assert listed == [".gitattributes", *names]
    assert len(hub.requests("GET", "/tree/")) == 5
    for n in range(12):
        api.create_commit(**REPO, operations=[add("n.txt", str(n).encode())], commit_message=f"c{n}")
    assert [c.title for c in api.list_repo_commits(**REPO)][:2] == ["c11", "c10"]
    assert len(api.list_repo_commits(**REPO)) == 14


def test_branches_tags_and_revisions(hub: HubServer, api: HfApi) -> None:
    first = api.create_commit(**REPO, operations=[add("x.txt", b"1")], commit_message="1").oid
    api.create_tag(**REPO, tag="v1")
    api.create_branch(**REPO, branch="next/one")
    second = api.create_commit(
        **REPO, operations=[add("x.txt", b"2")], commit_message="2", revision="next/one"
    ).oid
    refs = api.list_repo_refs(**REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "next/one": second}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first)]
    for revision, content in (("v1", b"1"), ("next/one", b"2"), (first, b"1"), (second, b"2")):
        path = api.hf_hub_download(**REPO, filename="x.txt", revision=revision)
        assert Path(path).read_bytes() == content
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(**REPO, tag="v1")
    api.delete_tag(**REPO, tag="v1")
    api.delete_branch(**REPO, branch="next/one")
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info("lab/set", revision="v1")


def test_a_commit_on_a_moved_head_is_refused(api: HfApi) -> None:
    head = api.dataset_info("lab/set").sha
    api.create_commit(**REPO, operations=[add("x.txt", b"1")], commit_message="1", parent_commit=head)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(**REPO, operations=[add("y.txt", b"1")], commit_message="1", parent_commit=head)
    with pytest.raises(EntryNotFoundError):
        api.create_commit(**REPO, operations=[CommitOperationDelete("nothing.txt")], commit_message="gone")
    api.create_commit(**REPO, operations=[CommitOperationDelete("x.txt")], commit_message="gone")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(**REPO, filename="x.txt")


def test_pull_requests(hub: HubServer, api: HfApi) -> None:
    api.create_commit(**REPO, operations=[add("x.txt", b"1")], commit_message="1")
    bob = HfApi(endpoint=hub.url, token="hf_bob")
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.create_commit(**REPO, operations=[add("x.txt", b"2")], commit_message="mine")
    pulls = [
        bob.create_commit(
            **REPO,
            operations=[add(name, content), add(f"{name}.bin", LARGE + content)],
            commit_message=f"change {name}",
            create_pr=True,
        )
        for name, content in (("x.txt", b"2"), ("x.txt", b"3"), ("y.txt", b"4"))
    ]
    assert [pull.pr_num for pull in pulls] == [1, 2, 3]
    bob.create_commit(
        **REPO, operations=[add("z.txt", b"5")], commit_message="more", revision=pulls[2].pr_revision
    )
    assert {d.num for d in api.get_repo_discussions(**REPO, discussion_type="pull_request")} == {1, 2, 3}
    details = api.get_discussion_details(**REPO, discussion_num=3)
    assert (details.author, details.status, details.target_branch) == ("bob", "open", "refs/heads/main")
    api.comment_discussion(**REPO, discussion_num=3, comment="fine")
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.merge_pull_request(**REPO, discussion_num=3)
    api.merge_pull_request(**REPO, discussion_num=3)
    api.merge_pull_request(**REPO, discussion_num=1)
    assert api.get_discussion_details(**REPO, discussion_num=2).conflicting_files == ["x.txt", "x.txt.bin"]
    with pytest.raises(HfHubHTTPError, match="conflicts"):
        api.merge_pull_request(**REPO, discussion_num=2)
    api.change_discussion_status(**REPO, discussion_num=2, new_status="closed")
    for name, content in (("x.txt", b"2"), ("y.txt", b"4"), ("z.txt", b"5")):
        assert Path(api.hf_hub_download(**REPO, filename=name)).read_bytes() == content
    pull = bob.create_pull_request(**REPO, title="An empty one")
    assert (pull.status, pull.git_reference) == ("draft", "refs/pr/4")


def test_private_and_unknown_repositories_look_alike(hub: HubServer, api: HfApi) -> None:
    api.create_repo("lab/secret", repo_type="dataset", private=True)
    assert api.dataset_info("lab/secret").private
    for token in (False, "hf_bob"):
        for name in ("lab/secret", "lab/nothing"):
            with pytest.raises(RepositoryNotFoundError):
                api.hf_hub_download(name, "x.txt", repo_type="dataset", token=token)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_commit(**REPO, operations=[add("x", b"x")], commit_message="x", token="hf_reader")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("lab/other", repo_type="dataset", token="hf_bob")


def test_a_broken_card_is_refused(api: HfApi) -> None:
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit(**REPO, operations=[add("README.md", b"---\na: [\n---\n")], commit_message="x")
