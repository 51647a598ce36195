from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from test_paper_sets import billet, text
from test_public_sets import save, texture, tiles

from datasets_builders import exports, prepared, registry
from datasets_builders.cli import main
from datasets_builders.errors import UserError
from datasets_builders.images import decode_image
from datasets_builders.raw_formats import read_yolo
from datasets_builders.raw_json import read_coco


@pytest.fixture
def ready(tmp_path: Path, fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Casting Billet and Magnetic-Tile, prepared from made files."""
    known = registry.cards()
    small = {
        name: replace(known[name], expected=None, subsets={"mini50": 3} if known[name].subsets else {})
        for name in ("casting_billet", "magnetic_tile")
    }
    monkeypatch.setattr(registry, "cards", lambda: known | small)
    raw = billet(tmp_path / "billet", 12)
    turned = Image.fromarray(texture(5, (30, 20)))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(raw / "images" / "Turned.jpg", exif=exif, quality=95)
    text(raw / "labels" / "Turned.txt", "2 0.5 0.5 0.5 0.2\n")
    save(raw / "images" / "turned.png", texture(6, (30, 20)))
    prepared.prepare("casting_billet", raw)
    prepared.prepare("magnetic_tile", tiles(tmp_path / "tiles"))
    return {"casting_billet": raw}


def rows(name: str, split: str) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in prepared.load(name, split)}


@pytest.mark.parametrize("name", ["casting_billet", "casting_billet/mini50", "magnetic_tile"])
def test_coco_says_what_the_dataset_says(tmp_path: Path, ready: dict[str, Path], name: str) -> None:
    out = tmp_path / "out"
    done = exports.export(name, "coco", out)
    classes = registry.card(name).classes
    for split in ("train", "validation"):
        path = out / "annotations" / f"instances_{split}.json"
        own = rows(name, split)
        found = read_coco(path)
        assert len(found) == len(own) == done.images[split]
        assert {item.file_name for item in found} == {file.name for file in (out / split).iterdir()}
        coco = COCO(str(path))
        assert [coco.cats[number]["name"] for number in sorted(coco.cats)] == list(classes)
        assert len(coco.anns) == done.boxes[split]
        for item in found:
            row = own[Path(item.file_name).stem.removesuffix("~2")]
            objects = row["objects"]
            assert item.size == (row["width"], row["height"])
            assert [classes.index(one.category) for one in item.objects] == objects["category"]
            assert [list(one.bbox) for one in item.objects] == objects["bbox"]
            with Image.open(out / split / item.file_name) as image:
                assert image.size == item.size
                assert image.getexif().get(0x0112, 1) == 1
                np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(row["image"]))
        if name == "magnetic_tile":
            for annotation in coco.anns.values():
                info = coco.imgs[annotation["image_id"]]
                row = own[Path(info["file_name"]).stem]
                place = row["objects"]["id"].index(annotation["id"]) + 1
                np.testing.assert_array_equal(coco.annToMask(annotation), np.asarray(row["mask"]) == place)
    assert registry.card(name).licence in (out / "ORIGIN.txt").read_text()
    assert prepared.fingerprint(name) in (out / "ORIGIN.txt").read_text()


def test_yolo_says_what_the_dataset_says(tmp_path: Path, ready: dict[str, Path]) -> None:
    out = tmp_path / "out"
    done = exports.export("casting_billet", "yolo", out)
    data = yaml.safe_load((out / "data.yaml").read_text())
    classes = registry.card("casting_billet").classes
    assert data["names"] == dict(enumerate(classes))
    for split, key in (("train", "train"), ("validation", "val")):
        images, own = out / data[key], rows("casting_billet", split)
        labels = Path(str(images).replace("/images/", "/labels/"))
        assert {f.stem for f in images.iterdir()} == {f.stem for f in labels.iterdir()}
        assert len(own) == len(list(images.iterdir())) == done.images[split]
        for path in labels.iterdir():
            row = own[path.stem.removesuffix("~2")]
            found = read_yolo(path, data["names"])
            assert [classes.index(one.category) for one in found] == row["objects"]["category"]
            scale = np.array([row["width"], row["height"]] * 2)
            boxes = np.array([one.bbox for one in found]).reshape(-1, 4) * scale
            np.testing.assert_allclose(boxes, np.array(row["objects"]["bbox"]).reshape(-1, 4), atol=1e-4)


def test_unchanged_bytes_and_turned_pictures(tmp_path: Path, ready: dict[str, Path]) -> None:
    exports.export("casting_billet", "coco", tmp_path / "out")
    files = {
        f.name: f.read_bytes()
        for split in ("train", "validation")
        for f in (tmp_path / "out" / split).iterdir()
    }
    raw = ready["casting_billet"] / "images"
    assert files["Çast Billet_4.jpg"] == (raw / "Çast Billet_4.jpg").read_bytes()
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(files["Turned.png"]))),
        decode_image((raw / "Turned.jpg").read_bytes()),
    )


def test_a_photo_that_holds_a_second_one_keeps_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = io.BytesIO()
    first, preview = Image.new("RGB", (8, 6)), Image.new("RGB", (4, 3))
    first.save(photo, format="MPO", save_all=True, append_images=[preview])
    assert decode_image(photo.getvalue()).shape == (6, 8, 3)
    monkeypatch.setattr("datasets_builders.building.undecoded", lambda dataset: dataset)
    listed: Any = [{"image_id": "phone", "image": {"bytes": photo.getvalue()}}]
    ((name, data, _),) = exports._files(listed, "train")
    assert (name, data) == ("phone.jpg", photo.getvalue())


def test_file_names_are_unique_on_every_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    png = io.BytesIO()
    Image.new("L", (2, 2)).save(png, format="PNG")
    ids = ["a", "A", "a~2", "x/y", "x:y", "../up", "..", "ü ß", "con. "]
    monkeypatch.setattr("datasets_builders.building.undecoded", lambda dataset: dataset)
    listed: Any = [{"image_id": i, "image": {"bytes": png.getvalue()}} for i in ids]
    names = [name for name, _, _ in exports._files(listed, "train")]
    assert len({name.casefold() for name in names}) == len(ids)
    assert all("/" not in name and ":" not in name and not name.startswith(".") for name in names)
    assert "ü ß.png" in names


def test_what_is_there_is_never_replaced(tmp_path: Path, ready: dict[str, Path]) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        exports.export("casting_billet", "coco", tmp_path / "out")
    with pytest.raises(UserError, match="Unknown format 'voc'"):
        exports.export("casting_billet", "voc", tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write"):
        exports.export("casting_billet", "coco", tmp_path / "file" / "out")


def test_a_failed_export_leaves_nothing(
    tmp_path: Path, ready: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "_write_origin", fail)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match="No space left"):
        exports.export("casting_billet", "yolo", tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


def test_command(
    tmp_path: Path,
    ready: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(
        "sys.argv", ["x", "export", "casting_billet/mini50", "--format", "yolo", "--out", str(out)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "train: 3 images" in capsys.readouterr().out
    assert (out / "data.yaml").is_file()
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "exists already" in capsys.readouterr().err


def test_json_is_plain(tmp_path: Path, ready: dict[str, Path]) -> None:
    exports.export("magnetic_tile", "coco", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert content["info"]["version"] == prepared.fingerprint("magnetic_tile")
    annotation = content["annotations"][0]
    assert set(annotation) == {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}
    assert min(item["id"] for item in content["annotations"]) == 1
