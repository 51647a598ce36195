"""The whole search on made copies: what must be found, how it is named, and what must not be found."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from made_copies import COPIERS, collection, cropped, recompressed

from datasets_builders.audit import candidates, matching, signatures
from datasets_builders.audit.candidates import CandidateSearch
from datasets_builders.audit.descriptors import orient
from datasets_builders.audit.matching import Found, Match, find_matches
from datasets_builders.audit.pictures import Collection
from datasets_builders.audit.signatures import pixel_hash


def surface(seed: int, height: int = 150, width: int = 170) -> np.ndarray:
    """Rolled metal: grain along the rows, a few blots, and stripes that every picture shares."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=(height, width)).astype(np.float32), (0, 0), 3, sigmaY=1.5)
    blots = cv2.GaussianBlur(rng.normal(size=(height, width)).astype(np.float32), (0, 0), 9)
    stripes = np.random.default_rng(5).normal(size=width).cumsum()
    picture = 120 + 9 * noise / noise.std() + 6 * blots / blots.std() + 3 * (stripes - stripes.mean())
    return np.repeat(np.clip(picture, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    return {f"s{seed}": surface(seed) for seed in range(24)}


@pytest.fixture(scope="module")
def references(pictures: dict[str, np.ndarray]) -> Collection:
    return collection("references", dict(list(pictures.items())[:16]))


def pairs(found: Found, first: Collection, second: Collection) -> dict[tuple[str, str], Match]:
    return {(first.image_id(m.query), second.image_id(m.reference)): m for m in found.matches}


def test_every_kind_of_copy_is_found(pictures: dict[str, np.ndarray], references: Collection) -> None:
    rng = np.random.default_rng(0)
    queries = collection(
        "copies",
        {f"{kind}-{k}": copier(pictures[f"s{k}"], rng) for kind, copier in COPIERS.items() for k in range(6)},
    )
    found = pairs(find_matches(queries, references), queries, references)
    expected = {(f"{kind}-{k}", f"s{k}") for kind in COPIERS for k in range(6)}
    assert found.keys() == expected
    for (name, _), match in found.items():
        assert match.score > 0.5
        wanted = {"turned": "turned", "cropped": "crop", "everything": "crop"}.get(name.split("-")[0], "copy")
        assert match.kind == wanted, name


def test_unrelated_pictures_of_one_strip_do_not_match(
    pictures: dict[str, np.ndarray], references: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = collection("others", dict(list(pictures.items())[16:]))
    assert find_matches(queries, references).matches == []
    monkeypatch.setattr(candidates, "MIN_SIMILARITY", 0.2)
    found = find_matches(queries, references)
    assert found.compared >= 64, "the nearest ones are looked at all the same"
    assert found.matches == []


@pytest.mark.parametrize("orientation", range(8))
def test_orientation_and_window_say_how_to_see_the_same(
    pictures: dict[str, np.ndarray], references: Collection, orientation: int
) -> None:
    whole = orient(pictures["s3"], orientation)
    height, width = whole.shape[:2]
    top, left = height // 10, width // 20
    queries = collection(
        f"one{orientation}", {"q": whole[top : top + height * 4 // 5, left : left + width * 9 // 10]}
    )
    (match,) = find_matches(queries, references).matches
    assert references.image_id(match.reference) == "s3"
    assert match.orientation == orientation
    expected = (left / width, top / height, (width * 9 // 10) / width, (height * 4 // 5) / height)
    np.testing.assert_allclose(match.window, expected, atol=0.01)
    assert match.kind == "crop"
    assert match.covers_query == pytest.approx(1, abs=0.02)
    assert match.covers_reference == pytest.approx(0.72, abs=0.02)


def test_a_reference_that_was_cut_from_a_query_is_found(pictures: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    cuts = collection("cuts", {name: cropped(picture, rng) for name, picture in pictures.items()})
    wholes = collection("wholes", {k: pictures[k] for k in ("s1", "s7", "s20")})
    found = pairs(find_matches(wholes, cuts), wholes, cuts)
    assert found.keys() == {("s1", "s1"), ("s7", "s7"), ("s20", "s20")}
    for match in found.values():
        assert match.kind == "crop"
        assert match.covers_reference == pytest.approx(1, abs=0.03)
        assert 0.55 < match.covers_query < 0.95


def test_exact_copies_are_those_with_the_same_decoded_pixels(
    pictures: dict[str, np.ndarray], references: Collection
) -> None:
    flat = np.full((50, 60, 3), 30, np.uint8)
    queries = collection("exact", {"a": pictures["s2"], "flat": flat, "flat turned": flat[:, :50]})
    others = collection("with-flat", {"x": pictures["s2"], "y": pictures["s4"], "flat": flat})
    found = find_matches(queries, others)
    assert {
        (queries.image_id(m.query), others.image_id(m.reference), m.kind, m.score) for m in found.matches
    } == {
        ("a", "x", "exact", 1.0),
        ("flat", "flat", "exact", 1.0),
    }
    assert found.blank == ([1, 2], [2]), "blank pictures match only exactly, and are named"


def test_pixel_hash_knows_size_and_every_pixel() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    changed = pixels.copy()
    changed[3, 5, 2] = 1
    hashes = {pixel_hash(p) for p in (pixels, changed, pixels.reshape(6, 4, 3), pixels[:, :5])}
    assert len(hashes) == 4
    assert pixel_hash(pixels) == pixel_hash(np.asfortranarray(pixels))


def test_within_a_dataset_every_pair_is_found_once_and_overlaps_too(pictures: dict[str, np.ndarray]) -> None:
    long = surface(77, 150, 260)
    images = {k: pictures[k] for k in ("s0", "s1", "s2", "s3")}
    images |= {
        "left": long[:, :180],
        "right": long[:, 60:240],
        "s1 again": recompressed(pictures["s1"], np.random.default_rng(2)),
    }
    data = collection("data", images, splits=("train", "validation"))
    found = find_matches(data, data, overlaps=True)
    named = {frozenset((data.image_id(m.query), data.image_id(m.reference))): m.kind for m in found.matches}
    assert named == {frozenset(("left", "right")): "overlap", frozenset(("s1", "s1 again")): "copy"}
    assert len(found.matches) == 2
    assert [data.split(row) for row in range(len(data))] == ["train"] * 4 + ["validation"] * 3
    assert list(data.rows_of("validation")) == [4, 5, 6]


def test_processes_change_nothing(
    pictures: dict[str, np.ndarray], references: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    queries = collection("pool", {f"q{k}": COPIERS["everything"](pictures[f"s{k}"], rng) for k in range(10)})
    alone = find_matches(queries, references)
    monkeypatch.setattr(matching, "_CHUNK", 4)
    monkeypatch.setattr(matching, "_BATCH", 2)
    monkeypatch.setattr(signatures, "BATCH", 1)
    signatures.signatures_folder(queries).rename(signatures.signatures_folder(queries).with_suffix(".old"))
    assert find_matches(queries, references, workers=2) == alone
    assert len(alone.matches) == 10


def test_signatures_are_computed_once(
    pictures: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = collection("once", {k: pictures[k] for k in ("s5", "s6")})
    first = signatures.signatures(data)
    assert isinstance(first.thumbs, np.memmap), "on disk, not in memory"
    monkeypatch.setattr(Collection, "pixels", lambda *_: pytest.fail("decoded again"))
    second = signatures.signatures(data)
    np.testing.assert_array_equal(first.hashes, second.hashes)
    assert second.sizes.tolist() == [[150, 170]] * 2


def test_a_failed_reading_leaves_nothing(
    pictures: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = collection("fails", {"s8": pictures["s8"]})

    def broken(*_: object) -> np.ndarray:
        raise OSError("no")

    monkeypatch.setattr(Collection, "pixels", broken)
    with pytest.raises(OSError, match="no"):
        signatures.signatures(data)
    assert not signatures.signatures_folder(data).exists()


def test_large_indexes_find_what_small_ones_do(
    pictures: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets_builders.audit.descriptors import squash
    from datasets_builders.audit.pictures import grey

    thumbs = np.stack([squash(grey(p)) for p in pictures.values()])
    rng = np.random.default_rng(3)
    copies = np.stack([squash(grey(COPIERS["everything"](p, rng))) for p in pictures.values()])
    monkeypatch.setattr(candidates, "_FLAT_BELOW", 10**9)
    exact = list(CandidateSearch(thumbs, overlaps=False).search(copies, 0))
    monkeypatch.setattr(candidates, "_FLAT_BELOW", 0)
    quick = list(CandidateSearch(thumbs, overlaps=False).search(copies, 0))
    for row, (slow, fast) in enumerate(zip(exact, quick, strict=True)):
        assert slow[0].reference == fast[0].reference == row
        assert fast[0].similarity == pytest.approx(slow[0].similarity, abs=0.05)


@pytest.mark.real_data
@pytest.mark.slow
def test_copies_of_real_metal(raw_data: object) -> None:
    """Recall and false pairs on rolled steel; tests/performance/bench_audit.py does it at full size."""
    from pathlib import Path

    from datasets_builders.images import decode_image

    assert isinstance(raw_data, Path)
    rng = np.random.default_rng(8)
    files = sorted((raw_data / "raw" / "x_sdd").rglob("*.jpg"))
    chosen = [files[i] for i in rng.permutation(len(files))[:160]]
    images = {f"{f.parent.name}/{f.stem}": decode_image(f.read_bytes()) for f in chosen}
    names = list(images)
    references = collection("x-sdd", {name: images[name] for name in names[:80]})
    copies = {
        f"{kind}|{name}": copier(images[name], rng) for kind, copier in COPIERS.items() for name in names[:20]
    }
    queries = collection("x-sdd copies", copies | {name: images[name] for name in names[80:]})
    found = {
        (queries.image_id(m.query), references.image_id(m.reference))
        for m in find_matches(queries, references).matches
    }
    for kind in COPIERS:
        recall = np.mean([(f"{kind}|{name}", name) in found for name in names[:20]])
        assert recall >= (0.8 if kind in ("cropped", "everything") else 0.95), kind
    false = {query for query, _ in found if "|" not in query}
    assert len(false) <= 1, false
