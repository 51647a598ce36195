from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from made_sources import make_file, make_source

from datasets_builders import archives
from datasets_builders.corpus import builder, load_corpus, prepare_corpus, store
from datasets_builders.errors import UserError

Member = tuple[str, bytes | Callable[[zipfile.ZipInfo], bytes]]


def pack(folder: Path, archive: Path, wrapper: str = "") -> Path:
    """Packs a folder as zip or tar, by the archive's suffix."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in files:
                file.write(path, f"{wrapper}{path.relative_to(folder).as_posix()}")
    else:
        with tarfile.open(archive, "w:" + {"tgz": "gz", "tar": ""}.get(archive.suffix[1:], "xz")) as file:
            for path in files:
                file.add(path, f"{wrapper}{path.relative_to(folder).as_posix()}")
    return archive


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.xz", ".tgz"])
@pytest.mark.parametrize("wrapper", ["", "release/neu-seg v1/"])
def test_an_archive_is_as_good_as_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, wrapper: str
) -> None:
    make_source(tmp_path / "folders", "neu_seg")
    pack(tmp_path / "folders" / "neu_seg", tmp_path / "packed" / f"NEU Seg{suffix}", wrapper)
    fingerprints = set()
    for raw in ("folders", "packed"):
        monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / f"home-{raw}"))
        fingerprints.add(prepare_corpus("corpus", tmp_path / raw, workers=1).manifest.fingerprint)
        assert not prepare_corpus("corpus", tmp_path / raw, workers=1).built
    assert len(fingerprints) == 1
    assert {path.name for path in store.corpus_folder("corpus").iterdir()} == {
        "manifest.json",
        "neu_seg-00000.parquet",
        "skipped.tsv",
    }
    assert not store.work_folder("corpus").exists()


def test_a_folder_wins_over_its_archive(tmp_path: Path, fresh_home: Path) -> None:
    make_source(tmp_path / "raw", "neu_seg")
    (tmp_path / "raw" / "neu_seg.zip").write_bytes(b"never opened")
    assert prepare_corpus("corpus", tmp_path / "raw", workers=1).manifest.images == 2


def test_names_in_the_packers_own_encoding(tmp_path: Path, fresh_home: Path) -> None:
    image = make_file(tmp_path / "1.png").read_bytes()
    path = tmp_path / "raw" / "pipeData.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        for name in ("冷轧/1.png", "plain 1.png"):
            info = zipfile.ZipInfo()
            info.filename = name.encode("gb18030").decode("cp437")
            file.writestr(info, image)
    content = path.read_bytes()
    # Writes the names as such a packer does: their own bytes, and no mark that they are UTF-8.
    for name in ("冷轧/1.png",):
        wrong = name.encode("gb18030").decode("cp437").encode("utf-8")
        assert wrong in content
    raw_names = "冷轧/1.png".encode("gb18030")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(zipfile.ZipInfo("X" * len(raw_names)), image)
        file.writestr(zipfile.ZipInfo("plain 1.png"), image)
    path.write_bytes(path.read_bytes().replace(b"X" * len(raw_names), raw_names))
    prepare_corpus("corpus", path.parent, workers=1)
    assert load_corpus("corpus")["image_id"] == ["pipeData/plain 1.png", "pipeData/冷轧/1.png"]


def link(info: zipfile.ZipInfo) -> bytes:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return b"../../../../etc/passwd"


HOSTILE: dict[str, list[Member]] = {
    "climbs": [("a.png", b"1"), ("../../evil.png", b"x")],
    "climbs deep": [("a/b/../../../evil.png", b"x")],
    "absolute": [("/tmp/evil_corpus.png", b"x")],
    "drive": [("C:/evil.png", b"x")],
    "backslashes": [("..\\..\\evil.png", b"x")],
    "link": [("evil.png", link)],
    "twice": [("a.png", b"1"), ("a.png", b"2")],
    "bomb": [("bomb.png", b"\0" * (1 << 24))],
}


def hostile_zip(path: Path, members: list[Member]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content(info) if callable(content) else content)


def hostile_tar(path: Path, members: list[Member]) -> None:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if callable(content):
                info.type, info.linkname = tarfile.SYMTYPE, "../../../../etc/passwd"
                file.addfile(info)
            else:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_hostile_archives_are_refused_and_write_nothing_outside(
    tmp_path: Path, fresh_home: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str
) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    raw = tmp_path / "raw"
    make_source(raw, "neu_seg")
    archive = raw / f"pipeData{suffix}"
    (hostile_zip if suffix == ".zip" else hostile_tar)(archive, HOSTILE[kind])
    before = {path for path in tmp_path.rglob("*") if fresh_home not in path.parents}
    with pytest.raises(UserError, match="pipeData") as caught:
        prepare_corpus("corpus", raw, workers=1)
    assert str(archive) in str(caught.value)
    after = {path for path in tmp_path.rglob("*") if fresh_home not in path.parents}
    assert after - before <= {fresh_home}
    assert not Path("/tmp/evil_corpus.png").exists()
    assert not list(fresh_home.rglob("*evil*"))
    assert not list(fresh_home.rglob("unpacked-*"))
    assert not store.corpus_folder("corpus").exists()
    # Without it, what the build had already made is used.
    archive.unlink()
    assert prepare_corpus("corpus", raw, workers=1).manifest.images == 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not an archive" * 50])
@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_damaged_archives_are_refused(tmp_path: Path, fresh_home: Path, content: bytes, suffix: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / f"pipeData{suffix}").write_bytes(content)
    with pytest.raises(UserError):
        prepare_corpus("corpus", tmp_path / "raw", workers=1)
    assert not store.corpus_folder("corpus").exists()


def test_a_changed_archive_is_read_again(tmp_path: Path, fresh_home: Path) -> None:
    make_source(tmp_path / "folders", "neu_seg")
    archive = pack(tmp_path / "folders" / "neu_seg", tmp_path / "raw" / "neu_seg.zip")
    first = prepare_corpus("corpus", archive.parent, workers=1).manifest
    make_file(tmp_path / "folders" / "neu_seg" / "images" / "test" / "000002.jpg")
    pack(tmp_path / "folders" / "neu_seg", archive)
    second = prepare_corpus("corpus", archive.parent, workers=1)
    assert second.built
    assert second.manifest.images == first.images + 1
    os.utime(archive, (5, 5))
    assert (
        prepare_corpus("corpus", archive.parent, workers=1).manifest.fingerprint
        == second.manifest.fingerprint
    )


def test_an_archive_that_changes_between_two_attempts_is_unpacked_again(
    tmp_path: Path, fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(tmp_path / "folders", "neu_seg")
    archive = pack(tmp_path / "folders" / "neu_seg", tmp_path / "raw" / "neu_seg.zip")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builder, "make_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus("corpus", archive.parent, workers=1)
    make_file(tmp_path / "folders" / "neu_seg" / "images" / "test" / "000002.jpg")
    pack(tmp_path / "folders" / "neu_seg", archive)
    assert prepare_corpus("corpus", archive.parent, workers=1).manifest.images == 3
