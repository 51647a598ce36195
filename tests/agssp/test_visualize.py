"""`boxes` and `visualize` on a small procedural corpus: what they write, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_maps import defect_map, map_row, store_maps
from PIL import Image

from agssp import drawing, map_sheet
from agssp.box_store import BoxRow, open_boxes
from agssp.cli import run_app
from agssp.map_inputs import Images, open_images
from agssp.map_store import open_maps
from agssp.upsampling import upsample
from datasets_builders.images import decode_image

CORPUS = "corpus_synthetic/n12_k3_s1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, _session_home: Path) -> Iterator[Path]:
    """A folder with maps of the corpus from two sources, and boxes of the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGSSP_BENCH_HOME", str(_session_home))
        made = tmp_path_factory.mktemp("visualize")
        images = open_images(CORPUS)
        rng = np.random.default_rng(0)
        decoded = [image.decode() for image in images.read(range(len(images.ids)))]
        for name, grid in (("first", (15, 15)), ("second", (9, 12))):
            rows = [
                map_row(i.image_id, defect_map(rng, grid, k % 3), i.image.shape[1::-1], i.category)
                for k, i in enumerate(decoded)
            ]
            store_maps(made / name, rows, images.identity())
        assert run_app(["boxes", str(made / "first"), "--out", str(made / "boxes")]) == 0
        yield made


@pytest.fixture
def images() -> Images:
    return open_images(CORPUS)


def test_boxes_prints_what_it_made(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["boxes", str(folder / "first"), "--out", str(folder / "boxes")]
    assert run_app(arguments) == 0
    table = capsys.readouterr().out
    store = open_boxes(folder / "boxes")
    for name, found in store.categories.items():
        line = next(line.split() for line in table.splitlines() if line.startswith(name))
        wanted = [str(found.images), str(found.boxes), f"{found.negatives / found.images:.0%}"]
        assert line == [name, *wanted, f"{found.threshold:.4f}"]
    assert run_app([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fingerprint"] == store.fingerprint
    assert facts["boxes"] == sum(len(row.boxes) for row in store) > 0
    assert facts["negatives"] == sum(not len(row.boxes) for row in store) > 0
    assert facts["identity"]["settings"]["image_gate"] is None


def test_other_boxes_are_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["boxes", str(folder / "first"), "--out", str(folder / "boxes"), "--margin", "0.2"]
    before = open_boxes(folder / "boxes").fingerprint
    assert run_app(arguments) == 2
    assert "choose another folder with --out" in capsys.readouterr().err
    assert open_boxes(folder / "boxes").fingerprint == before


def test_boxes_are_exported_with_their_images(folder: Path, tmp_path: Path, images: Images) -> None:
    arguments = ["boxes", str(folder / "first"), "--out", str(folder / "boxes")]
    coco, yolo = tmp_path / "coco", tmp_path / "yolo"
    assert run_app([*arguments, "--coco", str(coco), "--yolo", str(yolo)]) == 0
    content = json.loads((coco / "annotations" / "instances_train.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "defect"}]
    assert len(content["images"]) == 12
    store = open_boxes(folder / "boxes")
    wanted = [
        (box, score, area)
        for row in store
        for box, score, area in zip(row.boxes.tolist(), row.scores.tolist(), row.areas.tolist(), strict=True)
    ]
    assert [(a["bbox"], a["score"], a["area"]) for a in content["annotations"]] == wanted
    stored = images.read(range(12))
    for entry, image in zip(content["images"], stored, strict=True):
        assert (coco / "train" / entry["file_name"]).read_bytes() == image.image
    described = yaml.safe_load((yolo / "data.yaml").read_text())
    assert described == {"train": "images/train", "names": {0: "defect"}}
    lines = [path.read_text().splitlines() for path in sorted((yolo / "labels" / "train").iterdir())]
    assert sum(map(len, lines)) == len(wanted)
    assert sum(not found for found in lines) == sum(not len(row.boxes) for row in store)


def test_an_export_that_would_overwrite_is_refused_before_the_work(folder: Path, tmp_path: Path) -> None:
    arguments = ["boxes", str(folder / "first"), "--out", str(tmp_path / "new"), "--yolo", str(tmp_path)]
    assert run_app(arguments) == 2
    assert not (tmp_path / "new").exists()


def test_a_corpus_that_changed_is_not_exported(
    folder: Path, tmp_path: Path, images: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(open_maps(folder / "first"))
    store_maps(tmp_path / "maps", rows, images.identity() | {"fingerprint": "other"})
    arguments = ["boxes", str(tmp_path / "maps"), "--out", str(tmp_path / "b"), "--coco", str(tmp_path / "c")]
    assert run_app(arguments) == 2
    assert "has changed since its maps were made" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_sheet_shows_image_mask_map_and_boxes(folder: Path, tmp_path: Path, images: Images) -> None:
    out = tmp_path / "sheet.png"
    arguments = ["visualize", str(folder / "first"), "--boxes", str(folder / "boxes"), "--out", str(out)]
    chosen = images.ids[2:5]
    assert run_app([*arguments, *(word for image_id in chosen for word in ("--id", image_id))]) == 0
    page = np.asarray(Image.open(out).convert("RGB"))
    assert page.shape[1] == 2 * drawing.MARGIN + 5 * (drawing.TILE + drawing.GAP) - drawing.GAP
    again = tmp_path / "again.png"
    arguments[-1] = str(again)
    assert run_app([*arguments, *(word for image_id in chosen for word in ("--id", image_id))]) == 0
    assert out.read_bytes() == again.read_bytes()


def tile(page: np.ndarray, row: int, column: int) -> np.ndarray:
    """The pixels of a panel."""
    left = drawing.MARGIN + column * (drawing.TILE + drawing.GAP)
    top = drawing.MARGIN + 40 + drawing.HEADER
    top += row * (drawing.TILE + drawing.CAPTION + drawing.GAP)
    return page[top : top + drawing.TILE, left : left + drawing.TILE]


def example(boxes: list[list[float]], scores: list[float]) -> map_sheet.Example:
    values = np.zeros((13, 13), np.float32)
    values[:, 7:] = 1.5
    row = map_row("id", values, (drawing.TILE, drawing.TILE))
    truth = np.zeros((drawing.TILE, drawing.TILE), bool)
    truth[10:20, 10:20] = True
    pixels = np.full((*truth.shape, 3), 90, np.uint8)
    found = np.array(boxes, np.float32).reshape(-1, 4)
    stored = BoxRow(
        "id", "plate", *truth.shape, found, np.array(scores, np.float32), found[:, 2] * found[:, 3]
    )
    return map_sheet.Example(pixels, truth, (row,), 0.75, stored)


def test_panels_hold_what_their_labels_say() -> None:
    shown = example([[60, 100, 50, 40]], [1.25])
    page = np.asarray(map_sheet.sheet([shown, shown], ["made"], "title"))
    for row in (0, 1):
        assert (tile(page, row, 0) == 90).all()
        mask = tile(page, row, 1)
        assert (mask[10:20, 10:20] == 255).all()
        assert (mask[30:] == 0).all()
        heat = drawing.colours(upsample(shown.maps[0].map, (drawing.TILE, drawing.TILE)), 0, 1.5)
        np.testing.assert_array_equal(tile(page, row, 2), heat)
        above = upsample(shown.maps[0].map, (drawing.TILE, drawing.TILE)) > 0.75
        np.testing.assert_array_equal(tile(page, row, 3)[..., 0] == 255, above)
        drawn = (tile(page, row, 4) != 90).any(axis=2)
        rows, columns = np.nonzero(drawn)
        assert (columns.min(), rows.max()) == (60, 139)
        assert drawn[100, 60:110].all()
        assert not drawn[103:137, 63:107].any()
    # Without boxes, neither their mask nor they are there.
    bare = map_sheet.Example(shown.pixels, None, shown.maps)
    assert map_sheet.sheet([bare], ["made"], "title").width < page.shape[1] - 2 * drawing.TILE


def test_labels_of_scores_never_cover_each_other() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels: list[drawing.Rectangle] = []
        corners = rng.uniform(0, 200, (12, 2))
        for x, y in corners.tolist():
            place = drawing.label_place((x, y, x + 30, y + 20), (30, 14), labels, [])
            if place is not None:
                assert min(place) >= 0
                assert max(place) <= drawing.TILE
                assert not any(drawing.overlap(place, other) for other in labels)
                labels.append(place)
        assert len(labels) >= 6


def test_colours_rise_in_brightness_and_keep_to_their_range() -> None:
    ramp = drawing.colours(np.linspace(-1, 3, 41, dtype=np.float32)[None], 0, 2)[0].astype(float)
    brightness = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(brightness) >= 0).all()
    assert (np.diff(brightness)[10:30] > 0).all()
    assert (ramp[:10] == ramp[10]).all()
    assert (ramp[31:] == ramp[30]).all()
    assert drawing.colours(np.ones((2, 2), np.float32), 1, 1).shape == (2, 2, 3)


def test_sources_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "fig5.png"
    assert (
        run_app(
            ["visualize", str(folder / "first"), str(folder / "second"), "--out", str(out), "--number", "3"]
        )
        == 0
    )
    page = decode_image(out.read_bytes())
    assert page.shape[1] == 2 * drawing.MARGIN + 4 * (drawing.TILE + drawing.GAP) - drawing.GAP


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["second", "--boxes", "boxes"], "were not made from the maps"),
        (["first", "--id", "nobody"], "not among the maps"),
        (["nowhere"], "holds no anomaly maps"),
        (["first", "--boxes", "second"], "cannot be used"),
        (["first", "--boxes", "nowhere"], "holds no pseudo boxes"),
        (["first", "--images", "nothing"], "Unknown dataset or corpus"),
        (["first", "--images", "corpus_synthetic/n9_k3_s2"], "not among the images"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    known = ("first", "second", "boxes", "nowhere")
    words = [str(folder / word) if word in known else word for word in arguments]
    assert run_app(["visualize", *words, "--out", str(tmp_path / "x.png")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
