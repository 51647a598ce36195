from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_raw import CLASSES, SIZE, voc_xml
from PIL import Image

from datasets_builders import building, manifest, prepared, registry
from datasets_builders.errors import UserError

pytestmark = pytest.mark.usefixtures("fresh_home", "any_count")

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from datasets_builders import base, prepared, registry
card = replace(registry.cards()["neu_det"], expected=None, subsets={})
registry.cards = lambda: {"neu_det": card}
"""


def dataset_folder() -> Path:
    return prepared.dataset_folder(registry.card("neu_det"))


def left_behind() -> list[str]:
    """Everything in the cache but the lock."""
    folder = dataset_folder().parent
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock")) if folder.exists() else []


def test_prepare_and_load(raw_folder: Path) -> None:
    assert not prepared.is_ready("neu_det")
    done = prepared.prepare("neu_det", raw_folder)
    assert done.built
    assert prepared.is_ready("neu_det")
    assert (done.manifest.images, done.manifest.boxes) == (36, 72)
    assert done.manifest.per_class == dict.fromkeys(CLASSES, 12)
    train, validation = prepared.load("neu_det", "train"), prepared.load("neu_det", "validation")
    assert len(train) + len(validation) == 36
    assert set(train["image_id"]).isdisjoint(validation["image_id"])
    row = train[0]
    assert row["image"].size == SIZE
    assert row["image"].mode == "RGB"
    stored = building.undecoded(train)[0]["image"]["bytes"]
    assert stored == (raw_folder / "IMAGES" / f"{row['image_id']}.jpg").read_bytes()
    assert row["objects"]["bbox"][0] == [1, 2, 19, 29]
    assert train.features["objects"]["category"].feature.names == list(CLASSES)
    assert not prepared.prepare("neu_det").built


def test_fingerprint_is_of_the_content_alone(
    make_raw_folder: Callable[..., Path], fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make_raw_folder()
    prepared.prepare("neu_det", raw)
    first = prepared.fingerprint("neu_det")
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(fresh_home / "other place"))
    other = make_raw_folder("ällsö anders")
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    assert prepared.prepare("neu_det", other).built
    assert prepared.fingerprint("neu_det") == first
    path = other / "ANNOTATIONS" / "crazing_1.xml"
    path.write_text(voc_xml("crazing_1.jpg", [("patches", (1, 2, 20, 31))]))
    prepared.prepare("neu_det", other, force=True)
    assert prepared.fingerprint("neu_det") != first


def test_another_raw_folder_is_built_anew(make_raw_folder: Callable[..., Path]) -> None:
    assert prepared.prepare("neu_det", make_raw_folder("one")).built
    two = make_raw_folder("two", per_class=3)
    assert prepared.prepare("neu_det", two).manifest.images == 18
    assert not prepared.prepare("neu_det", two).built


def test_subsets_are_nested_views(raw_folder: Path) -> None:
    prepared.prepare("neu_det", raw_folder)
    whole = set(prepared.load("neu_det", "train")["image_id"])
    small, larger = prepared.load("neu_det/mini50", "train"), prepared.load("neu_det/mini100", "train")
    assert (len(small), len(larger)) == (8, 12)
    assert set(small["image_id"]) < set(larger["image_id"]) < whole

    def classes(split: Any) -> set[int]:
        return {c for objects in split["objects"] for c in objects["category"]}

    # Whatever the split leaves to train on, even the smallest subset has of every class.
    assert classes(small) == classes(prepared.load("neu_det", "train"))
    ids = prepared.load("neu_det", "validation")["image_id"]
    assert prepared.load("neu_det/mini50", "validation")["image_id"] == ids
    prints = {prepared.fingerprint(name) for name in ("neu_det", "neu_det/mini50", "neu_det/mini100")}
    assert len(prints) == 3
    assert prepared.is_ready("neu_det/mini50")


def test_unknown_split_names_the_nearest(raw_folder: Path) -> None:
    prepared.prepare("neu_det", raw_folder)
    with pytest.raises(UserError, match="Did you mean 'validation'"):
        prepared.load("neu_det", "valid")


def test_raw_sets_say_how_to_get_them() -> None:
    for name in ("neu_det", "neu_det/mini50"):
        with pytest.raises(UserError, match="python -m datasets_builders prepare neu_det --raw DIR"):
            prepared.load(name, "train")
    with pytest.raises(UserError, match="leave out --raw"):
        prepared.prepare("gc10_synthetic", Path())


def test_missing_folders_show_the_layout(tmp_path: Path) -> None:
    for raw in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match="there is no folder") as caught:
            prepared.prepare("neu_det", raw)
        assert "ANNOTATIONS/*.xml" in str(caught.value)
        assert "Get the data from http" in str(caught.value)
        assert left_behind() == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def annotate(path: Path, name: str, box: tuple[float, ...] = (1, 1, 5, 5)) -> None:
    path.write_text(voc_xml(f"{path.stem}.jpg", [(name, box)]))


def duplicate(raw: Path) -> None:
    for folder, copy in (("IMAGES", "Validation_Images"), ("ANNOTATIONS", "Validation_Annotations")):
        (raw / copy).mkdir()
        source = next((raw / folder).glob("patches_1.*"))
        (raw / copy / source.name).write_bytes(source.read_bytes())


XML, JPG = "ANNOTATIONS/patches_1.xml", "IMAGES/patches_1.jpg"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no xml": (lambda r: (r / XML).unlink(), f"image without annotation: {JPG}"),
    "no image": (lambda r: (r / JPG).unlink(), f"annotation without image: {XML}"),
    "truncated": (lambda r: truncate(r / JPG), "unreadable image: patches_1: "),
    "empty": (lambda r: (r / JPG).write_bytes(b""), "unreadable image: patches_1: "),
    "class": (lambda r: annotate(r / XML, "Patch"), "unknown class: patches_1, object 1: 'Patch'"),
    "outside": (
        lambda r: annotate(r / XML, "patches", (30, 1, 41, 9)),
        "box outside the image: patches_1, object 1: [30.0, 1.0, 11.0, 8.0] in 40 x 32",
    ),
    "swapped edges": (lambda r: annotate(r / XML, "patches", (9, 1, 3, 9)), "empty box: patches_1, object 1"),
    "duplicate": (duplicate, "duplicate image id: patches_1"),
    "bad xml": (lambda r: (r / XML).write_text("<a>"), f"{XML}: not XML"),
    "swapped files": (
        lambda r: (r / XML).write_text(voc_xml("patches_2.jpg", [])),
        f"annotation of another image: {XML} is of 'patches_2.jpg'",
    ),
    "resized": (
        lambda r: Image.new("RGB", (20, 16)).save(r / JPG),
        "wrong image size: patches_1: annotated (40, 32), image (20, 16)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_raw_folder_are_named_and_leave_nothing(raw_folder: Path, fault: str) -> None:
    spoil, said = FAULTS[fault]
    spoil(raw_folder)
    with pytest.raises(UserError) as caught:
        prepared.prepare("neu_det", raw_folder)
    assert said in str(caught.value)
    assert str(raw_folder) in str(caught.value)
    assert left_behind() == []
    assert not prepared.is_ready("neu_det")


def test_all_faults_are_reported_at_once(raw_folder: Path) -> None:
    for fault in ("truncated", "no xml"):
        FAULTS[fault][0](raw_folder)
    (raw_folder / "IMAGES" / "scratches_2.jpg").write_bytes(b"x")
    (raw_folder / "ANNOTATIONS" / "patches_2.xml").write_text("")
    with pytest.raises(UserError) as caught:
        prepared.prepare("neu_det", raw_folder)
    assert "3 problem(s)" in str(caught.value)
    assert "image without annotation: 1; unreadable annotation: 1; unreadable image: 1" in str(caught.value)


def test_an_incomplete_folder_is_refused(raw_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = registry.card("neu_det")
    counts = registry.Counts(images=37, boxes=72, per_class=dict.fromkeys(CLASSES, 12))
    monkeypatch.setattr(registry, "cards", lambda: {"neu_det": replace(card, expected=counts)})
    with pytest.raises(UserError, match="images: published 37, found 36"):
        prepared.prepare("neu_det", raw_folder)
    assert left_behind() == []


def test_a_part_is_used_only_when_that_is_allowed_and_is_marked(
    raw_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = registry.cards()
    counts = registry.Counts(images=37, boxes=72, per_class=dict.fromkeys(CLASSES, 12))
    monkeypatch.setattr(
        registry, "cards", lambda: known | {"neu_det": replace(known["neu_det"], expected=counts)}
    )
    part = prepared.prepare("neu_det", raw_folder, partial=True)
    assert part.manifest.partial
    assert manifest.read_manifest(part.folder) == part.manifest
    # Asked for again: with leave, it serves; without, it is compared with the owner again; unasked, it serves.
    assert not prepared.prepare("neu_det", raw_folder, partial=True).built
    assert not prepared.prepare("neu_det").built
    with pytest.raises(UserError, match="images: published 37, found 36"):
        prepared.prepare("neu_det", raw_folder)
    # A damaged part is built again as a part.
    (part.folder / part.manifest.shards["train"][0]).write_bytes(b"")
    again = prepared.prepare("neu_det")
    assert again.built
    assert again.manifest.partial
    assert again.manifest.fingerprint == part.manifest.fingerprint


def test_a_failed_rebuild_keeps_what_was_there(raw_folder: Path) -> None:
    before = prepared.prepare("neu_det", raw_folder).manifest
    truncate(raw_folder / "IMAGES" / "patches_1.jpg")
    with pytest.raises(UserError, match="unreadable image"):
        prepared.prepare("neu_det", raw_folder, force=True)
    assert prepared.prepare("neu_det").manifest == before
    assert left_behind() == ["neu_det"]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, Path.unlink])
@pytest.mark.parametrize("name", ["train-00000.arrow", "validation-00000.arrow"])
def test_damage_is_said_and_repaired_from_the_raw_folder(
    raw_folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], name: str
) -> None:
    before = prepared.prepare("neu_det", raw_folder).manifest
    prepared.load("neu_det", "train")
    time.sleep(0.02)  # a change within the clock's resolution would be a change that never happens
    damage(dataset_folder() / name)
    with caplog.at_level(logging.WARNING):
        assert len(prepared.load("neu_det", "train")) == before.splits["train"]
    assert "neu_det is damaged" in caplog.text
    assert name in caplog.text
    assert prepared.prepare("neu_det").manifest.fingerprint == before.fingerprint
    assert left_behind() == ["neu_det"]


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, Path.unlink])
def test_damage_without_raw_folder_gives_the_command(
    raw_folder: Path, damage: Callable[[Path], object]
) -> None:
    prepared.prepare("neu_det", raw_folder)
    raw_folder.rename(raw_folder.with_name("moved"))
    damage(dataset_folder() / "train-00000.arrow")
    with pytest.raises(UserError, match="python -m datasets_builders prepare neu_det --raw DIR"):
        prepared.load("neu_det", "train")
    prepared.prepare("neu_det", raw_folder.with_name("moved"))
    assert len(prepared.load("neu_det", "train")) > 0


@pytest.mark.parametrize("change", ["{", "[]", '{"name": "neu_det"}', "edit"])
def test_a_damaged_manifest_is_noticed(raw_folder: Path, change: str) -> None:
    prepared.prepare("neu_det", raw_folder)
    path = dataset_folder() / "manifest.json"
    if change == "edit":
        content = json.loads(path.read_text())
        content["boxes"] += 1
        change = json.dumps(content)
    path.write_text(change)
    assert not prepared.is_ready("neu_det")
    with pytest.raises(UserError, match="--raw DIR"):
        prepared.load("neu_det", "train")


def test_a_manifest_cannot_point_elsewhere(raw_folder: Path, tmp_path: Path) -> None:
    found = prepared.prepare("neu_det", raw_folder).manifest
    (tmp_path / "secret").write_text("x")
    files = {"../../../secret": {"bytes": 1, "sha256": "0" * 64}}
    with pytest.raises(manifest.DamagedError):
        manifest.check_sizes(dataset_folder(), replace(found, files=files))


def test_a_change_of_the_rules_rebuilds(
    raw_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = prepared.prepare("neu_det", raw_folder).manifest
    card = replace(registry.card("neu_det"), train_share=0.3)
    monkeypatch.setattr(registry, "cards", lambda: {"neu_det": card})
    with caplog.at_level(logging.WARNING):
        train = prepared.load("neu_det", "train")
    assert "another version" in caplog.text
    assert len(train) < first.splits["train"]


def test_a_checked_dataset_is_not_hashed_again(raw_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared.prepare("neu_det", raw_folder)
    prepared.load("neu_det", "train")
    calls: list[Path] = []
    monkeypatch.setattr(manifest, "file_sha256", lambda path: calls.append(path) or "changed")
    prepared.load("neu_det", "validation")
    assert calls == []


def test_a_home_that_cannot_be_written_is_said(
    raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "file" / "home"))
    assert not prepared.is_ready("neu_det")
    with pytest.raises(UserError, match="Cannot write to") as caught:
        prepared.prepare("neu_det", raw_folder)
    assert "Not a directory" in str(caught.value)
    assert "Set AGSSP_BENCH_HOME" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_home_is_said_and_still_read(raw_folder: Path, fresh_home: Path) -> None:
    prepared.prepare("neu_det", raw_folder)
    for folder in (dataset_folder(), dataset_folder().parent, fresh_home):
        folder.chmod(0o500)
    try:
        assert len(prepared.load("neu_det", "train")) > 0
        with pytest.raises(UserError, match="Permission denied"):
            prepared.prepare("neu_det", raw_folder, force=True)
    finally:
        for folder in (fresh_home, dataset_folder().parent, dataset_folder()):
            folder.chmod(0o700)


def test_a_full_disk_is_said(raw_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.write", full)
    with pytest.raises(UserError, match="No space left on device"):
        prepared.prepare("neu_det", raw_folder)
    assert left_behind() == []


@pytest.mark.slow
def test_kill_leaves_nothing_that_counts(raw_folder: Path, python: str) -> None:
    slow = SCRIPT + (
        "import time\n"
        "row = base.DetectionBuilder.row\n"
        "def slowly(self, *args):\n"
        "    time.sleep(0.2)\n"
        "    return row(self, *args)\n"
        "base.DetectionBuilder.row = slowly\n"
        "prepared.prepare('neu_det', Path(sys.argv[1]))\n"
    )
    process = subprocess.Popen([python, "-c", slow, str(raw_folder)])
    deadline = time.monotonic() + 300
    while not any(name.endswith(".tmp") for name in left_behind()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not prepared.is_ready("neu_det")
    assert not dataset_folder().exists()
    assert prepared.prepare("neu_det", raw_folder).manifest.images == 36
    assert left_behind() == ["neu_det"]


@pytest.mark.slow
def test_processes_that_prepare_at_once_agree(raw_folder: Path, python: str) -> None:
    script = SCRIPT + (
        "done = prepared.prepare('neu_det', Path(sys.argv[1]))\n"
        "print(done.built, prepared.fingerprint('neu_det'), len(prepared.load('neu_det', 'train')))\n"
    )
    processes = [
        subprocess.Popen([python, "-c", script, str(raw_folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(built for built, *_ in said) == ["False", "False", "True"]
    assert len({tuple(rest) for _, *rest in said}) == 1
    assert left_behind() == ["neu_det"]


def test_masks_are_found_inside_or_beside(raw_folder: Path) -> None:
    folder = raw_folder.parent / "sd900_masks" / "Ground truth"
    folder.mkdir(parents=True)
    pixels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    pixels[3:9, 2:7] = 255
    Image.fromarray(pixels).save(folder / "Sc_2.png")
    Image.fromarray(pixels[:-1]).save(folder / "Xx_2.png")
    without = prepared.prepare("neu_det", raw_folder).manifest
    assert without.masks == 1
    rows = [*prepared.load("neu_det", "train"), *prepared.load("neu_det", "validation")]
    with_mask = {row["image_id"]: row["mask"] for row in rows if row["mask"] is not None}
    assert list(with_mask) == ["scratches_2"]
    np.testing.assert_array_equal(np.asarray(with_mask["scratches_2"]), pixels)
    (raw_folder.parent / "sd900_masks").rename(raw_folder / "sd900_masks")
    assert prepared.prepare("neu_det", raw_folder, force=True).manifest.masks == 1
    (raw_folder / "sd900_masks").rename(raw_folder / "elsewhere")
    bare = prepared.prepare("neu_det", raw_folder, force=True).manifest
    assert bare.masks == 0
    assert bare.fingerprint == without.fingerprint
