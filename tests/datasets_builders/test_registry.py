from __future__ import annotations

import subprocess

import pytest

from datasets_builders import registry
from datasets_builders.building import builder_class
from datasets_builders.errors import UserError


def test_every_card_is_consistent() -> None:
    for name in registry.names():
        card = registry.card(name)
        assert card.name == name
        assert card.masks in ("none", "binary", "instance")
        assert len(set(card.classes)) == len(card.classes) > 0
        assert card.licence
        assert card.citation
        assert card.title
        assert builder_class(card)
        if card.origin == "raw":
            assert card.layout
            assert card.homepage.startswith("http")
        if card.expected is not None:
            assert tuple(card.expected.per_class) in (card.classes, ())
            if card.expected.per_class:
                assert sum(card.expected.per_class.values()) == card.expected.boxes
            assert sum(card.expected.parts.values()) in (card.expected.images, 0)


def test_all_sets_of_the_paper_are_there() -> None:
    for name in ("casting_billet/mini50", "steel_pipe", "gc10_det/mini", "fd", "neu_det/mini100"):
        assert registry.card(name)
    for name in ("magnetic_tile", "bsdata", "cr7_det"):
        assert registry.card(name).seen
    assert not registry.card("gc10_det").seen


def test_derived_cards_point_to_their_dataset() -> None:
    card = registry.card("neu_det/mini50")
    assert (card.origin, card.parent, card.dataset, card.config) == (
        "derived",
        "neu_det",
        "neu_det",
        "mini50",
    )
    assert card.classes == registry.card("neu_det").classes
    assert (registry.card("neu_det").dataset, registry.card("neu_det").config) == ("neu_det", None)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UserError, match=r"Unknown dataset 'neudet'. Did you mean 'neu_det'\?"):
        registry.card("neudet")


def test_command_line_modules_are_light(python: str) -> None:
    heavy = "{'torch', 'datasets', 'pandas', 'cv2', 'numpy', 'pyarrow', 'mmengine', 'PIL'}"
    code = (
        "import sys, datasets_builders.cli as cli\n"
        "datasets_builders = sys.modules['datasets_builders']\n"
        "[datasets_builders.is_ready(name) for name in datasets_builders.names()]\n"
        "sys.argv = ['x', 'list']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        f"sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "neu_det/mini50" in done.stdout
