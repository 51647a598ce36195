"""What visitors upload is checked in a folder that vanishes; whatever it is, the page gets an answer."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from datasets_builders.errors import UserError
from leaderboard import checking
from leaderboard.checking import check_upload


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(checking.tempfile, "tempdir", str(tmp_path))
    return tmp_path / "home"


def zipped(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (b"no zip", "cannot be unpacked"),
        (zipped(**{"readme.txt": "x"}), "holds no submission.json"),
        (zipped(**{"../escaped.txt": "x", "submission.json": "{}"}), "leads out of the folder"),
        (zipped(**{"/etc/escaped": "x"}), "leads out of the folder"),
    ],
)
def test_what_is_no_submission_is_refused_with_its_reason(
    archive: bytes, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        check_upload(archive, "results")
    left = [path for path in tmp_path.iterdir() if path.name != "home"]
    assert left == []
    assert not (tmp_path.parent / "escaped.txt").exists()


def test_a_small_zip_that_unfolds_to_much_is_refused_before_it_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("weights.safetensors", "w", force_zip64=True) as file:
            for _ in range(1100):
                file.write(bytes(2**20))
        archive.writestr("submission.json", "{}")
    assert len(buffer.getvalue()) < 2_000_000
    monkeypatch.setattr(checking, "unpacked", lambda *given: pytest.fail("it was unpacked"))
    with pytest.raises(UserError, match=r"unfolds to 1,153,433,602 bytes in 2 files"):
        check_upload(buffer.getvalue(), "results")
    many = zipped(**{f"records/{number}": "" for number in range(6000)})
    with pytest.raises(UserError, match=r"6,000 files; this form takes"):
        check_upload(many, "results")


def test_a_link_in_a_zip_is_refused_without_the_servers_paths(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("submission.json")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(
        UserError, match=r"^submission\.zip: refused, .* is a link\. Make the zip again"
    ) as refused:
        check_upload(buffer.getvalue(), "results")
    assert str(tmp_path) not in str(refused.value)


def test_one_at_a_time(home: Path) -> None:
    (home / "leaderboard").mkdir(parents=True)
    with FileLock(home / "leaderboard" / "upload.lock"), pytest.raises(UserError, match="Another submission"):
        check_upload(zipped(**{"submission.json": "{}"}), "results")


@pytest.mark.slow
def test_complaints_come_back_without_the_servers_paths(tmp_path: Path) -> None:
    found = check_upload(zipped(**{"mine/submission.json": '{"name": "<b>x</b>"}'}), str(tmp_path / "none"))
    assert not found["valid"]
    assert found["complaints"]
    assert str(tmp_path) not in " ".join(found["complaints"])
    assert "submission.json" in " ".join(found["complaints"])


def test_a_check_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "SECONDS", 0.01)
    with pytest.raises(UserError, match="submit validate FOLDER"):
        check_upload(zipped(**{"submission.json": "{}"}), "results")
