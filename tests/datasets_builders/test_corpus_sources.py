from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from datasets_builders.corpus.catalogue import entries
from datasets_builders.corpus.sources import folder_key, known_sources, own_sources
from datasets_builders.errors import UserError

# The paper's table of public sources, typed from it.
PUBLIC_COUNTS = {
    "aitex": 245, "apddd": 1885, "bsd_cls": 4913, "bsdata": 1104, "btad": 2540, "cr7_det": 4140,
    "dagm2007": 16100, "dtd_synthetic": 2504, "fssd_12": 1200, "kolektorsdd": 399, "kolektorsdd2": 3335,
    "magnetic_tile": 1344, "mpdd": 1342, "msd_seg": 776, "mvtec": 1384, "neu_seg": 4470, "road_crack": 776,
    "rsdds": 195, "severstal": 8844, "ssgd": 2504,
}  # fmt: skip


def group(name: str) -> dict:
    return {key: source for key, source in known_sources().items() if source.group == name}


def test_all_sources_of_the_paper_with_its_counts() -> None:
    assert {name: source.expected_images for name, source in group("public").items()} == PUBLIC_COUNTS
    assert len(group("private")) == 14
    for name in ("public", "private"):
        assert sum(source.expected_images for source in group(name).values()) == 60_000


def test_categories_are_the_papers_61() -> None:
    categories = entries()["corpus"]["categories"]
    assert len(categories) == len(set(categories)) == 61
    assert (categories[0], categories[28], categories[60]) == ("steel_pipe", "leather", "tile")
    used = Counter(
        category
        for name in ("public", "private")
        for source in group(name).values()
        for category in source.expected_by_category
    )
    assert used.keys() <= set(categories)
    assert set(categories) - used.keys() == {"gc10_steel_plate"}


def test_small_real_corpus_has_17_categories_and_3666_images() -> None:
    entry = entries()["corpus_x_sdd_gc10"]
    sources = [known_sources()[name] for name in entry["sources"]]
    assert sorted(c for s in sources for c in s.expected_by_category) == sorted(entry["categories"])
    assert len(entry["categories"]) == 17
    assert sum(source.expected_images or 0 for source in sources) == 3666


def test_every_entry_says_what_a_user_needs() -> None:
    for source in known_sources().values():
        for text in (source.title, source.homepage, source.licence, source.obtain):
            assert text.strip()
        assert source.seen_in_the_wild == (source.layout_from == "sample")
    keys = [key for source in known_sources().values() for key in source.folder_keys]
    assert len(keys) == len(set(keys)), "two sources would take the same folder"


def test_folder_names_match_in_any_spelling() -> None:
    assert folder_key("MSD-Seg") == folder_key("msd_seg") == folder_key("MSD Seg")
    assert folder_key("KolektorSDD") != folder_key("KolektorSDD2")


def test_own_sources(tmp_path: Path) -> None:
    assert own_sources(tmp_path) == {}
    (tmp_path / "sources.yaml").write_text("line_4: {category: our_plate, licence: ours, expected: 3}\n")
    source = own_sources(tmp_path)["line_4"]
    assert (source.group, source.layout.kind, source.licence) == ("own", "images", "ours")
    assert source.expected_by_category == {"our_plate": 3}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("line_4: {licence: ours}", "takes `category` alone"),
        ("line_4: {category: a, layout: {kind: mvtec}}", "takes `categories` alone"),
        ("line_4: {category: a, color: red}", "color"),
        ("magnetic_tile: {category: a}", "is a source of the package already"),
        ("../../line_4: {category: a}", "cannot be the name of a source"),
        ("/line_4: {category: a}", "cannot be the name of a source"),
        ("- a list", "cannot be used"),
        ("a: [", "cannot be used"),
        ("!!python/object/apply:os.getcwd []", "cannot be used"),
    ],
)
def test_bad_own_sources_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "sources.yaml").write_text(text)
    with pytest.raises(UserError, match=r"sources\.yaml") as caught:
        own_sources(tmp_path)
    assert reason in str(caught.value)


def test_the_documentation_has_every_source() -> None:
    text = (Path(__file__).parents[2] / "docs" / "corpus.md").read_text(encoding="utf-8")
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| `")}
    for name, source in known_sources().items():
        line = lines[f"`{name}`"]
        assert f"| {source.expected_images} |" in line
        if source.group != "private":
            assert f"| {source.licence} |" in line
            assert ("not yet seen in the wild" in line) != source.seen_in_the_wild
        assert ("(assumed)" in line) == (source.categories_from == "assumed")
