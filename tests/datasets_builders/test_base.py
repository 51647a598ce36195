from __future__ import annotations

import io
import pathlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from datasets_builders import base, building, content, registry
from datasets_builders import manifest as manifest_module
from datasets_builders.errors import UserError


def png(width: int = 8, height: int = 6) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


class Listed(base.DetectionBuilder):
    """Yields what the test put into `examples`."""

    examples: ClassVar[Sequence[base.RawExample]] = ()

    def read(self, raw: Path) -> Iterable[base.RawExample]:
        return self.examples


def card(**changes: Any) -> registry.DatasetCard:
    facts: dict[str, Any] = {
        "name": "listed",
        "title": "A list",
        "classes": ("a", "b"),
        "masks": "none",
        "origin": "raw",
        "licence": "CC0",
        "homepage": "https://example.org",
        "citation": "Nobody",
        "builder": f"{__name__}:Listed",
        "layout": "anything",
    }
    return registry.DatasetCard(**facts | changes)


def build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: Sequence[base.RawExample], **changes: Any
) -> list[dict[str, Any]]:
    """All rows of a build, train before validation, images undecoded."""
    monkeypatch.setattr(Listed, "examples", examples)
    folder = tmp_path / "built"
    manifest = building.build(card(**changes), tmp_path, folder)
    return [
        row
        for shards in manifest.shards.values()
        for row in building.undecoded(building.read_split(folder, shards))
    ]


def test_rows_are_complete_and_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = (base.RawObject("b", (1, 2, 3, 4)), base.RawObject("a", (0, 0, 8, 6), area=5.0))
    (tmp_path / "file.png").write_bytes(png())
    rows = build(
        tmp_path,
        monkeypatch,
        [
            base.RawExample("z", png(), objects, split="train", size=(8, 6)),
            base.RawExample("c", tmp_path / "file.png", split="train"),
            base.RawExample("m", png(), objects[:1], split="train"),
            base.RawExample("a", png(), objects[:1], split="validation"),
        ],
    )
    assert [row["image_id"] for row in rows] == ["c", "m", "z", "a"]
    assert rows[0]["objects"] == {"id": [], "bbox": [], "area": [], "category": []}
    assert rows[2] == {
        "image": {"bytes": png(), "path": None},
        "image_id": "z",
        "width": 8,
        "height": 6,
        "objects": {
            "id": [2, 3],
            "bbox": [[1, 2, 3, 4], [0, 0, 8, 6]],
            "area": [12, 5],
            "category": [1, 0],
        },
        "mask": None,
    }


def test_splits_do_not_depend_on_order_or_on_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"image{n}" for n in range(60)]

    def split_of(chosen: Sequence[str]) -> dict[str, str]:
        monkeypatch.setattr(Listed, "examples", [base.RawExample(n, png()) for n in chosen])
        manifest = building.build(card(), tmp_path, tmp_path / "built")
        return {
            image_id: split
            for split, shards in manifest.shards.items()
            for image_id in building.read_split(tmp_path / "built", shards)["image_id"]
        }

    whole = split_of(names)
    assert whole == {n: content.hash_split("listed", n, 0.5) for n in names}
    part = split_of(names[::-2])
    assert part.items() <= whole.items()
    assert len(part) == 30


def test_groups_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [base.RawExample(f"{n}", png(), group=f"place{n % 7}") for n in range(70)]
    build(tmp_path, monkeypatch, examples)
    manifest = manifest_module.read_manifest(tmp_path / "built")
    assert manifest is not None
    places = [
        {int(i) % 7 for i in building.read_split(tmp_path / "built", shards)["image_id"]}
        for shards in manifest.shards.values()
    ]
    assert places[0].isdisjoint(places[1])
    assert places[0] | places[1] == set(range(7))


def test_names_are_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same accented name is written differently by different file systems."""
    decomposed = unicodedata.normalize("NFD", "prüfling 1")
    rows = build(tmp_path, monkeypatch, [base.RawExample(decomposed, png()), base.RawExample("B", png())])
    assert {row["image_id"] for row in rows} == {"pr\u00fcfling 1", "B"}


def test_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soft = np.zeros((6, 8), np.uint8)
    soft[1:3, 1:4], soft[4, 4] = 200, 100
    example = base.RawExample("x", png(), [base.RawObject("a", (1, 1, 3, 2))], mask=soft, split="train")
    empty = base.RawExample("y", png(), split="validation")

    def mask(example: base.RawExample, kind: str) -> np.ndarray:
        row = build(tmp_path, monkeypatch, [example, empty], masks=kind)[0]
        image = Image.open(io.BytesIO(row["mask"]["bytes"]))
        assert image.mode == "L"
        return np.asarray(image)

    np.testing.assert_array_equal(mask(example, "binary"), (soft > 127) * 255)
    by_object = (soft == 200).astype(np.uint8)
    np.testing.assert_array_equal(mask(replace(example, mask=by_object), "instance"), by_object)
    with pytest.raises(UserError, match="wrong mask values: x: not one value for each of 1 objects"):
        mask(replace(example, mask=by_object + by_object), "instance")


def test_rounding_is_cut_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = base.RawObject("a", (-0.01, 2.0, 8.02, 4.04))
    row = build(tmp_path, monkeypatch, [base.RawExample("x", png(), [item])])[0]
    x, y, width, height = row["objects"]["bbox"][0]
    assert (x, y, width, height) == (0, 2, 8, 4)


ok = base.RawObject("a", (0, 0, 2, 2))


def boxed(*box: float, category: str = "a") -> base.RawExample:
    return base.RawExample("x", png(), [base.RawObject(category, box)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (base.RawExample("x", png()[:45], [ok]), "unreadable image: x: "),
        (base.RawExample("x", Path("/nowhere/x.png"), [ok]), "unreadable image: x: "),
        (base.RawExample("x", png(), size=(8, 7)), "wrong image size: x: annotated (8, 7), image (8, 6)"),
        (boxed(0, 0, 1, 1, category="c"), "unknown class: x, object 1: 'c'"),
        (boxed(7, 0, 2, 1), "box outside the image: x, object 1: [7, 0, 2, 1] in 8 x 6"),
        (boxed(8.01, 0, 0.02, 1), "box outside the image: x, object 1: [8.01, 0, 0.02, 1] in 8 x 6"),
        (boxed(-1, 0, 2, 1), "box outside the image: x, object 1"),
        (boxed(0, 0, float("inf"), 1), "box outside the image"),
        (boxed(float("nan"), 0, 1, 1), "box outside the image"),
        (boxed(0, 0, 0, 1), "empty box: x, object 1"),
        (boxed(0, 0, float("nan"), 1), "empty box: x, object 1"),
        (base.RawExample("x", png(), mask=b"-"), "unreadable mask: x: "),
        (base.RawExample("x", png(), mask=np.zeros((5, 8), np.uint8)), "wrong mask size: x: mask (8, 5)"),
    ],
)
def test_every_problem_is_named_and_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: base.RawExample, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        build(tmp_path, monkeypatch, [base.RawExample("fine", png(), [ok]), example], masks="binary")
    assert said in str(caught.value)
    assert "listed: 1 problem(s)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_problems_of_both_splits_are_counted_and_the_first_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [base.RawExample(f"t{n:02}", b"", split="train") for n in range(15)]
    bad += [base.RawExample(f"v{n:02}", b"", split="validation") for n in range(15)]
    bad += [base.RawExample("t00", png())]
    with pytest.raises(UserError) as caught:
        build(tmp_path, monkeypatch, bad)
    text = str(caught.value)
    assert "31 problem(s)" in text
    assert "(duplicate image id: 1; unreadable image: 30)" in text
    assert "  duplicate image id: t00\n" in text
    assert "v03" in text
    assert "v04" not in text
    assert "  and 11 more" in text


def test_counts_that_differ_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = registry.Counts(images=2, boxes=1, per_class={"a": 0, "b": 1})
    with pytest.raises(UserError) as caught:
        build(tmp_path, monkeypatch, [base.RawExample("x", png(), [ok])], expected=expected)
    text = str(caught.value)
    assert "images: published 2, found 1" in text
    assert "a: published 0, found 1" in text
    assert "b: published 1, found 0" in text
    assert "boxes" not in text
    assert not (tmp_path / "built").exists()


def listed(tmp_path: Path) -> Listed:
    return Listed(card(), tmp_path, tmp_path / "cache")


def test_files_are_listed_sorted_and_without_leftovers(tmp_path: Path) -> None:
    folder = tmp_path / "Ordner mit Umläuten"
    folder.mkdir()
    for name in ("b.JPG", "a.jpg", ".a.jpg", "Thumbs.db", "c.png", "É x.Jpg"):
        (folder / name).touch()
    (folder / "d.jpg").mkdir()
    builder = listed(tmp_path)
    found = builder.files(folder, ".jpg")
    assert {stem: path.name for stem, path in found.items()} == {"a": "a.jpg", "b": "b.JPG", "É x": "É x.Jpg"}
    assert list(found) == ["a", "b", "É x"]
    assert builder.problems.found == []
    (folder / "b.jpg").touch()
    builder.files(folder, ".jpg")
    assert builder.problems.found == [("two files of one name", "Ordner mit Umläuten/b.JPG and b.jpg")]


def test_data_within_folders_is_located(tmp_path: Path) -> None:
    builder = listed(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        builder.locate(tmp_path, "images", "labels")
    for name in ("deep/z/images", "deep/z/labels", "deep/b/images", "deep/b/labels", "a/images"):
        (tmp_path / name).mkdir(parents=True)
    assert builder.locate(tmp_path, "images", "labels") == tmp_path / "deep" / "b"
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    assert builder.locate(tmp_path, "images", "labels") == tmp_path


def test_file_names_that_are_not_text_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in another encoding than the system's reads as surrogates, which no file format can store."""
    with pytest.raises(UserError, match="file name that is not text") as caught:
        build(tmp_path, monkeypatch, [base.RawExample("gr\udcfcn", png()), base.RawExample("fine", png())])
    assert "gr\\udcfcn" in str(caught.value)


def test_boxes_as_fractions_are_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = base.RawObject("a", (0.25, 0.5, 0.5, 0.5))
    (row,) = build(tmp_path, monkeypatch, [base.RawExample("x", png(), [item], fractions=True)])
    assert row["objects"]["bbox"] == [[2, 3, 4, 3]]


def test_a_builders_own_rules_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mend(
        self: Listed, image_id: str, example: base.RawExample, size: tuple[int, int]
    ) -> base.RawExample | None:
        assert size == (8, 6)
        if image_id == "out":
            self.cleaning.note("whole images", image_id, images=1)
            return None
        self.cleaning.note("boxes", image_id, boxes=["b"])
        return replace(example, objects=example.objects[:1])

    monkeypatch.setattr(Listed, "mend", mend)
    two = [ok, ok]
    examples = [base.RawExample("in", png(), two, part="p"), base.RawExample("out", png(), two, part="p")]
    expected = registry.Counts(images=2, boxes=2, parts={"p": 2})
    (row,) = build(tmp_path, monkeypatch, examples, expected=expected)
    assert row["image_id"] == "in"
    manifest = manifest_module.read_manifest(tmp_path / "built")
    assert manifest is not None
    assert manifest.cleaning == {
        "whole images": {"count": 1, "examples": ["out"]},
        "boxes": {"count": 1, "examples": ["in"]},
    }
    assert manifest.left_out == {"images": 1, "boxes": {"b": 1}}
    unexplained = registry.Counts(images=3, boxes=2)
    with pytest.raises(UserError, match="images: published 3, found 1, left out by rule 1"):
        build(tmp_path, monkeypatch, examples, expected=unexplained)


def test_builders_keep_their_own_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` would replace `Path` and others in the builders' modules."""
    build(tmp_path, monkeypatch, [base.RawExample("x", png())])
    assert Path is pathlib.Path
    assert base.Path is pathlib.Path
