"""Prompts: their form, their number, and that no tokenizer cuts one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from agssp.kead.knowledge import Category, lookup, names
from agssp.kead.prompts import Prompts, assemble, check_lengths
from baselines import openmmlab
from datasets_builders.errors import UserError

_GEAR = Category("gear", "gear wheel", ("bright teeth",), {"root_crack": ("a dark line", "a gap")}, False)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    openmmlab.activate()
    from open_clip import SimpleTokenizer

    return SimpleTokenizer()


def test_generic_prompts_are_every_state_in_every_template() -> None:
    prompts = assemble(_GEAR, descriptions=False)
    assert len(prompts.empty) == 20
    assert len(set(prompts.normal)) == len(prompts.normal) == 4 * 20
    assert len(set(prompts.anomalous)) == len(prompts.anomalous) == 4 * 20
    for state in ("gear wheel", "flawless gear wheel", "perfect gear wheel", "unblemished gear wheel"):
        assert f"a photo of the {state}." in prompts.normal
    for state in (
        "damaged gear wheel",
        *(f"gear wheel with {what}" for what in ("flaw", "defect", "damage")),
    ):
        assert f"a photo of the {state}." in prompts.anomalous
    assert not set(prompts.normal) & set(prompts.anomalous)


def test_descriptions_are_added_in_the_papers_form() -> None:
    generic, full = assemble(_GEAR, descriptions=False), assemble(_GEAR)
    assert full.normal[: len(generic.normal)] == generic.normal
    assert full.normal[len(generic.normal) :] == (
        "A photo of gear wheel without defect, it appears as bright teeth",
    )
    assert full.anomalous[len(generic.anomalous) :] == (
        "A photo of gear wheel with root crack defect, it appears as a dark line",
        "A photo of gear wheel with root crack defect, it appears as a gap",
    )
    assert full.empty == generic.empty


def test_empty_prompts_are_the_templates_without_an_object() -> None:
    generic = assemble(_GEAR, descriptions=False)
    assert "a photo of the." in generic.empty
    for with_object, without in zip(generic.normal[:20], generic.empty, strict=True):
        assert re.sub(r" gear wheel", "", with_object) == without


def test_braces_in_a_users_words_stay_as_they_are() -> None:
    category = Category("odd", "part {0} {x}", ("{}",), {"a": ("{object}",)}, False)
    prompts = assemble(category)
    assert "a photo of part {0} {x}." in prompts.normal
    assert prompts.anomalous[-1].endswith("it appears as {object}")


@pytest.mark.parametrize("name", [*names(), "unknown thing"])
def test_no_prompt_of_ours_is_cut(name: str, tokenizer: Any) -> None:
    prompts = assemble(lookup(name))
    check_lengths(prompts, tokenizer, 77)
    # The same, counted token by token; and short enough to leave room.
    for text in (*prompts.normal, *prompts.anomalous, *prompts.empty):
        assert len(tokenizer.encode(text)) + 2 <= 60, text


def test_a_prompt_is_refused_from_the_first_token_too_many(tokenizer: Any) -> None:
    fits, cut = " ".join(["steel"] * 75), " ".join(["steel"] * 76)
    assert len(tokenizer.encode(fits)) == 75
    check_lengths(Prompts((fits,), (), ()), tokenizer, 77)
    for prompts in (Prompts((cut,), (), ()), Prompts((), (cut,), ()), Prompts((fits,), (), (fits, cut))):
        with pytest.raises(UserError, match="77 tokens") as refusal:
            check_lengths(prompts, tokenizer, 77)
        assert cut in str(refusal.value)


def test_a_text_encoder_with_less_context_is_asked_itself(tokenizer: Any) -> None:
    check_lengths(Prompts(("a photo",), (), ()), tokenizer, 4)
    with pytest.raises(UserError):
        check_lengths(Prompts(("a photo",), (), ()), tokenizer, 3)
