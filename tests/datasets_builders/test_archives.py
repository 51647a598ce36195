from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets_builders import archives
from datasets_builders.errors import UserError

NAMES = {"set/a.txt": b"first", "set/Ünï çødé 图/B b.TXT": b"second"}


def zip_file(path: Path, members: dict[str, bytes], **attributes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = attributes.get("mode", 0o100644) << 16
            file.writestr(info, data)
    return path


def tar_file(
    path: Path, members: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None
) -> Path:
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change:
                change(info)
            file.addfile(info, io.BytesIO(data))
    return path


def unpack(archive: Path, tmp_path: Path) -> dict[str, bytes]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with archives.unpacked(archive, scratch) as folder:
        assert folder.parent == scratch
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


def assert_refused(archive: Path, tmp_path: Path, reason: str) -> None:
    """Refused with the reason, and nothing is left or written anywhere else."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=reason) as caught:
        unpack(archive, tmp_path)
    assert archive.name in str(caught.value)
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "scratch"}


@pytest.mark.parametrize("name", ["x.zip", "X.ZIP", "x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz"])
def test_contents_come_out_whatever_their_names(tmp_path: Path, name: str) -> None:
    make = zip_file if name.lower().endswith("zip") else tar_file
    archive = make(tmp_path / name, NAMES)
    assert archives.is_archive(archive)
    assert unpack(archive, tmp_path) == NAMES
    assert list((tmp_path / "scratch").iterdir()) == []


HOSTILE_NAMES = ["../out.txt", "set/../../out.txt", "/abs.txt", "C:/x.txt", "..\\out.txt", "a\nb.txt"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    make = zip_file if kind == "zip" else tar_file
    archive = make(tmp_path / f"x.{kind}", {"fine.txt": b"1", name: b"2"})
    assert_refused(archive, tmp_path, r"leads out|not text")


def test_names_in_another_encoding_are_refused_by_name(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as file:
        file.addfile(tarfile.TarInfo("gr\xfcn.txt"))
    assert_refused(archive, tmp_path, "not text")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_come_twice_are_refused(tmp_path: Path, kind: str) -> None:
    members = {"a/x.txt": b"1", "a//x.txt": b"2"}
    archive = (zip_file if kind == "zip" else tar_file)(tmp_path / f"x.{kind}", members)
    assert_refused(archive, tmp_path, "twice")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.FIFOTYPE, "no plain file"),
        (tarfile.CHRTYPE, "no plain file"),
    ],
)
def test_links_and_devices_in_tar_are_refused(tmp_path: Path, kind: bytes, said: str) -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    assert_refused(tar_file(tmp_path / "x.tar", {"innocent": b""}, change), tmp_path, said)


def test_links_in_zip_are_refused(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "x.zip", {"innocent": b"/etc/passwd"}, mode=0o120777)
    assert_refused(archive, tmp_path, "a link")


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 100_000)
    members = {f"{number}.bin": bytes(1_000_000) for number in range(20)}
    archive = (zip_file if name == "x.zip" else tar_file)(tmp_path / name, members)
    assert archive.stat().st_size * archives.MAX_RATIO < 20_000_000
    assert_refused(archive, tmp_path, "bomb")


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 1_000)
    archive = zip_file(tmp_path / "x.zip", {"a.bin": bytes(3_000_000)})
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + offset
        data[at : at + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(data)
    assert_refused(archive, tmp_path, r"bomb|cannot be unpacked")


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    archive = zip_file(tmp_path / "x.zip", {str(number): b"" for number in range(4)})
    assert_refused(archive, tmp_path, "more than 3 files")


def test_a_tar_header_of_absurd_size_is_not_read_into_memory(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**40
    archive.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    assert_refused(archive, tmp_path, "absurd|cannot be unpacked")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_damaged_archives_are_named(tmp_path: Path, name: str) -> None:
    make = zip_file if name == "x.zip" else tar_file
    archive = make(tmp_path / name, {"a.bin": bytes(range(256)) * 400})
    archive.write_bytes(archive.read_bytes()[:-700] if name != "x.tar" else archive.read_bytes()[:50_000])
    assert_refused(archive, tmp_path, "cannot be unpacked")
    (tmp_path / "scratch").rmdir()
    archive.write_bytes(b"no archive at all")
    assert_refused(archive, tmp_path, "cannot be unpacked")


def test_encrypted_zips_are_named(tmp_path: Path) -> None:
    archive = zip_file(tmp_path / "x.zip", {"a.txt": b"secret"})
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    assert_refused(archive, tmp_path, "encrypted")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_any_damage_ends_in_contents_or_a_refusal(tmp_path: Path, kind: str) -> None:
    """Random bytes in random places: never another exception, never a file outside."""
    make = zip_file if kind == "zip" else tar_file
    whole = make(tmp_path / f"whole.{kind}", NAMES | {"c/d.bin": bytes(range(256)) * 8}).read_bytes()
    random = np.random.default_rng(3)
    refused = 0
    archive, scratch = tmp_path / f"x.{kind}", tmp_path / "scratch"
    scratch.mkdir()
    for _ in range(300):
        data = bytearray(whole)
        for place in random.integers(0, len(data), random.integers(1, 8)):
            data[place] = random.integers(0, 256)
        archive.write_bytes(data)
        try:
            with archives.unpacked(archive, scratch):
                pass
        except UserError:
            refused += 1
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            ["scratch", archive.name, f"whole.{kind}"]
        )
        assert list(scratch.iterdir()) == []
    assert refused > 30
