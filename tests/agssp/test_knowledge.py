"""The descriptions: what they must cover, how a user's file is merged, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from agssp.kead.knowledge import MAX_FILE_BYTES, fingerprint, lookup, names
from datasets_builders import registry
from datasets_builders.corpus import catalogue
from datasets_builders.corpus.synthetic import category_recipes
from datasets_builders.errors import UserError
from datasets_builders.synthetic.scenes import surface_recipes

_OURS = Path(__file__).parents[2] / "agssp" / "kead" / "descriptions.yaml"


def _write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", registry.names())
def test_every_class_of_every_evaluation_set_is_described(name: str) -> None:
    category = lookup(name)
    assert not category.fallback
    assert set(registry.card(name).classes) <= set(category.defects)


@pytest.mark.parametrize("corpus", ["corpus", "corpus_x_sdd_gc10"])
def test_every_category_of_the_corpora_is_known(corpus: str) -> None:
    categories = catalogue.entry(corpus)["categories"]
    assert len(categories) == {"corpus": 61, "corpus_x_sdd_gc10": 17}[corpus]
    for name in categories:
        assert not lookup(name).fallback, name


def test_the_defect_that_names_a_category_is_one_of_its_defects() -> None:
    for name in catalogue.entry("corpus_x_sdd_gc10")["categories"]:
        assert name in lookup(name).defects


@pytest.mark.parametrize("count", [len(surface_recipes()), 40])
def test_every_procedural_surface_is_known(count: int) -> None:
    for name in category_recipes(count):
        assert not lookup(name).fallback, name


def test_every_entry_resolves_to_distinct_complete_descriptions() -> None:
    for name in names():
        category = lookup(name)
        assert category.name == name
        assert category.phrase
        assert category.normal
        assert category.defects
        texts = [text for kind in category.defects.values() for text in kind]
        assert len(set(texts)) == len(texts), name


def test_every_general_description_is_used_by_a_category() -> None:
    file = yaml.safe_load(_OURS.read_text(encoding="utf-8"))
    used = {(kind, texts) for name in names() for kind, texts in lookup(name).defects.items()}
    assert {(kind, tuple(texts)) for kind, texts in file["defects"].items()} <= used


def test_a_synthetic_set_says_what_its_real_one_says() -> None:
    for real in ("casting_billet", "steel_pipe"):
        made, true = lookup(f"{real}_synthetic"), lookup(real)
        assert (made.phrase, made.normal, made.defects) == (true.phrase, true.normal, true.defects)


def test_a_numbered_name_is_the_name_without_its_number_unless_it_is_known_itself() -> None:
    assert lookup("rolled_2").phrase == lookup("rolled").phrase
    assert lookup("scaled_pipe_13").phrase == lookup("scaled_pipe").phrase
    assert not lookup("Woven_068").fallback
    assert lookup("Woven_999").fallback


def test_an_unknown_category_is_metal_in_general_and_says_so() -> None:
    for name in ("gearbox", "", "../x", "rolled_", "ßteel"):
        category = lookup(name)
        assert category.fallback
        assert category.phrase == lookup("generic_metal").phrase
    assert not lookup("generic_metal").fallback


def test_a_users_file_adds_and_replaces(tmp_path: Path) -> None:
    extra = _write(
        tmp_path,
        """
defects: {chip: [a bright broken edge]}
categories:
  gear: {phrase: gear wheel, normal: [bright teeth], defects: [chip, crack]}
  worm: {like: gear, phrase: worm gear, described: {crack: [a dark line at the root]}}
  neu_det: {like: neu_det_before, normal: [changed]}
  neu_det_before: {like: x_sdd}
""",
    )
    gear, worm = lookup("gear", extra), lookup("worm", extra)
    assert gear.phrase == "gear wheel"
    assert dict(gear.defects) == {
        "chip": ("a bright broken edge",),
        "crack": lookup("generic_metal").defects["crack"],
    }
    assert worm.normal == ("bright teeth",)
    assert dict(worm.defects) == {
        "chip": ("a bright broken edge",),
        "crack": ("a dark line at the root",),
    }
    assert lookup("neu_det", extra).normal == ("changed",)
    assert lookup("neu_det").normal != ("changed",)
    assert set(names(extra)) == set(names()) | {"gear", "worm", "neu_det_before"}


def test_an_empty_mapping_changes_nothing(tmp_path: Path) -> None:
    assert lookup("neu_det", _write(tmp_path, "{}")) == lookup("neu_det")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("categories: {gear: {phrase: gear}}", "no defects"),
        ("categories: {gear: {phrase: gear, defects: [crack]}}", "no normal"),
        ("categories: {gear: {normal: [x], defects: [crack]}}", "no phrase"),
        ("categories: {gear: {like: wheel}}", "like: wheel names no category"),
        ("categories: {gear: {like: wheel}, wheel: {like: gear}}", "comes back to itself"),
        (
            "categories: {gear: {phrase: g, normal: [x], defects: [nothing]}}",
            "defect nothing has no description",
        ),
        ("categories: {gear: {phrase: g, normal: [x], defekts: [crack]}}", "categories.gear.defekts"),
        ("categories: {gear: {phrase: 5, normal: [x], defects: [crack]}}", "categories.gear.phrase"),
        ("categories: {gear: {phrase: '', normal: [x], defects: [crack]}}", "categories.gear.phrase"),
        ("categories: {gear: {phrase: g, normal: [], defects: [crack]}}", "categories.gear.normal"),
        ('categories: {gear: {phrase: "a\\nb", normal: [x], defects: [crack]}}', "one line of printable"),
        ("categories: {'a/b': {like: rolled}}", "categories"),
        ("- a\n- list", "the file"),
        ("", "the file"),
        ("categories: {a: &x {like: rolled}, b: *x}", "aliases"),
        ("categories: {a: {like: rolled}, a: {like: cast}}", "appears twice"),
        ("categories: {? [a, b] : {like: rolled}}", "not readable"),
        ("!!python/object/apply:os.getcwd []", "not readable"),
        ("categories: {gear: {phrase: g", "not readable"),
        ("[" * 5000, "not readable"),
        ("\x00", "not readable"),
        (f"defects: {{chip: ['{'x' * 301}']}}", "defects.chip"),
        ("#" * (MAX_FILE_BYTES + 1), "larger than"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(UserError) as refusal:
        lookup("neu_det", path)
    assert str(path) in str(refusal.value)
    assert complaint in str(refusal.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        lookup("neu_det", tmp_path / "none.yaml")
    with pytest.raises(UserError, match="Cannot read"):
        lookup("neu_det", tmp_path)


def test_the_fingerprint_follows_the_words_not_the_file(tmp_path: Path) -> None:
    assert fingerprint() == fingerprint(_write(tmp_path, "{}"))
    text = "categories: {gear: {like: rolled, phrase: gear}}"
    changed = fingerprint(_write(tmp_path, text))
    assert changed != fingerprint()
    assert changed == fingerprint(_write(tmp_path, f"# a remark\n{text}"))
    assert changed != fingerprint(_write(tmp_path, text.replace("phrase: gear", "phrase: wheel")))
