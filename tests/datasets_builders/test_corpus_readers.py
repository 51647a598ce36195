from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from made_sources import PUBLIC, make_file, make_source

from datasets_builders.corpus.files import Skipped, shown
from datasets_builders.corpus.readers import read
from datasets_builders.corpus.sources import Source, known_sources
from datasets_builders.errors import UserError


def taken(name: str | Source, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(image id -> category, what was skipped -> reason)."""
    source = known_sources()[name] if isinstance(name, str) else name
    images, skipped = {}, {}
    for item in read(source, folder):
        if isinstance(item, Skipped):
            skipped[item.name] = item.reason
        else:
            images[f"{source.name}/{item[0].name}"] = item[1]
    return images, skipped


@pytest.mark.parametrize("name", PUBLIC)
def test_published_layouts(tmp_path: Path, name: str) -> None:
    expected = make_source(tmp_path, name)
    assert taken(name, tmp_path / name) == (expected, {})


def test_every_public_source_is_tried() -> None:
    assert set(PUBLIC) == {name for name, source in known_sources().items() if source.group == "public"}


@pytest.mark.parametrize("name", PUBLIC)
def test_wrapping_folders_change_nothing(tmp_path: Path, name: str) -> None:
    expected = make_source(tmp_path, name, f"{name}/Release v1/{name}-main")
    assert taken(name, tmp_path / name) == (expected, {})


@pytest.mark.parametrize("name", ["aitex", "apddd", "btad", "dagm2007", "mvtec", "neu_seg", "msd_seg"])
def test_another_layout_is_refused_with_the_expected_one(tmp_path: Path, name: str) -> None:
    make_file(tmp_path / "somewhere" / "else" / "1.png")
    with pytest.raises(UserError, match=f"{name}: .* does not have the layout") as caught:
        taken(name, tmp_path)
    assert "Expected in it" in str(caught.value)


def test_private_sources_are_plain_folders(tmp_path: Path) -> None:
    for file in ("a/1.png", "a/b/2.JPG", "3.tif", "notes.txt", ".hidden.png", ".git/4.png", "__MACOSX/5.png"):
        make_file(tmp_path / file)
    images, skipped = taken("pipeData", tmp_path)
    assert list(images) == ["pipeData/3.tif", "pipeData/a/1.png", "pipeData/a/b/2.JPG"]
    assert set(images.values()) == {"steel_pipe"}
    assert not skipped


def test_the_order_is_that_of_names_not_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("b.png", "a.png", "Z.png", "é.png", "a/1.png"):
        make_file(tmp_path / file)
    expected = list(taken("pipeData", tmp_path)[0])
    real = os.scandir

    class Backwards:
        def __init__(self, folder: Path) -> None:
            with real(folder) as found:
                self.entries = sorted(found, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list:
            return self.entries

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert list(taken("pipeData", tmp_path)[0]) == expected
    assert expected == [f"pipeData/{name}" for name in ("Z.png", "a/1.png", "a.png", "b.png", "é.png")]


def test_unicode_spaces_and_case(tmp_path: Path) -> None:
    make_source(tmp_path, "cr7_det")
    make_file(tmp_path / "cr7_det" / "lengzha" / "image" / "e\u0301crou 冷轧.PNG")
    images, _ = taken("cr7_det", tmp_path / "cr7_det")
    assert list(images) == ["cr7_det/image/oil spots28.jpg", "cr7_det/image/\xe9crou 冷轧.PNG"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_are_kept_with_their_bytes_shown(tmp_path: Path) -> None:
    name = os.fsdecode("冷轧.png".encode("gb18030"))
    make_file(tmp_path / name)
    images, skipped = taken("pipeData", tmp_path)
    assert list(images) == [r"pipeData/\xc0\xe4\xd4\xfe.png"]
    assert not skipped
    assert shown(name).encode("utf-8")


def test_two_spellings_of_one_name_are_not_two_images(tmp_path: Path) -> None:
    make_file(tmp_path / "\xe9.png")
    make_file(tmp_path / "e\u0301.png")
    if len(os.listdir(tmp_path)) < 2:  # noqa: PTH208
        pytest.skip("this file system makes them one file")
    images, skipped = taken("pipeData", tmp_path)
    assert list(images) == ["pipeData/\xe9.png"]
    assert skipped == {"\xe9.png": "another file of the same name (accents composed) was taken"}


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    secret = make_file(tmp_path / "outside" / "secret.png")
    inside = tmp_path / "pipeData"
    make_file(inside / "a.png")
    (inside / "leak.png").symlink_to(secret)
    (inside / "broken.png").symlink_to(inside / "nowhere.png")
    (inside / "same.png").symlink_to(inside / "a.png")
    (inside / "folder").symlink_to(tmp_path / "outside")
    (inside / "loop").symlink_to(inside)
    images, skipped = taken("pipeData", inside)
    assert list(images) == ["pipeData/a.png", "pipeData/same.png"]
    assert skipped.keys() == {"leak.png", "broken.png", "folder", "loop"}
    assert "leaves" in skipped["leak.png"]
    assert "not followed" in skipped["loop"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_are_not_opened(tmp_path: Path) -> None:
    make_file(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert taken("pipeData", tmp_path) == ({"pipeData/a.png": "steel_pipe"}, {"b.png": "not a regular file"})


def test_what_belongs_to_nothing_is_said(tmp_path: Path) -> None:
    make_source(tmp_path, "bsdata")
    make_file(tmp_path / "bsdata" / "label" / "gone.json")
    assert taken("bsdata", tmp_path / "bsdata")[1] == {"label/gone.json": "an annotation without its image"}
    make_source(tmp_path, "magnetic_tile")
    make_file(tmp_path / "magnetic_tile" / "MT_Free" / "Imgs" / "gone.png")
    assert taken("magnetic_tile", tmp_path / "magnetic_tile")[1] == {
        "MT_Free/Imgs/gone.png": "a mask without its image"
    }
    make_source(tmp_path, "msd_seg")
    make_file(tmp_path / "msd_seg" / "Glass_Cr" / "Images" / "1.jpg")
    assert taken("msd_seg", tmp_path / "msd_seg")[1] == {"Glass_Cr/": "no category is known for this folder"}


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "folder", "images"),
    [
        ("bsdata", "samples/bsdata", 16),
        ("cr7_det", "samples/cr7_det", 24),
        ("magnetic_tile", "samples/magnetic_tile", 24),
        ("x_sdd", "x_sdd", 1360),
        ("gc10_cls224", "gc10_cls224", 2306),
    ],
)
def test_real_layouts(raw_data: Path, name: str, folder: str, images: int) -> None:
    found, skipped = taken(name, raw_data / "raw" / folder)
    assert len(found) == images
    assert not skipped
    source = known_sources()[name]
    assert source.seen_in_the_wild
    if isinstance(source.expected, dict):
        counts = {category: list(found.values()).count(category) for category in source.expected}
        assert counts == source.expected
