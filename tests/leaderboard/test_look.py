"""Strangers' texts stay texts."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from datasets_builders import registry
from leaderboard import look

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "**bold** _it_ `code`",
    "[click](javascript:alert(1))",
    "![x](http://a.b/c.png)",
    "# head",
    "| a | b |",
    "1. one",
    "~~gone~~ $x^2$",
    ":red[text] :material/home:",
    "&lt;b&gt; &amp;",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_a_strangers_text_as_it_is(text: str) -> None:
    shown = (
        MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(look.escape(text))
    )
    assert shown == f"<p>{html.escape(text).replace('&#x27;', chr(39))}</p>\n"


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=60))
def test_markdown_adds_nothing_to_any_text(text: str) -> None:
    shown = (
        MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(look.escape(text))
    )
    words = " ".join(text.split())
    assert html.unescape(shown.removeprefix("<p>").removesuffix("</p>\n")) == words
    assert shown.count("<") == (2 if words else 0)


def test_labels_of_what_nobody_knows_are_the_words_themselves() -> None:
    assert look.dataset_label("no such/set") == "no such/set"
    assert look.mode_label("odd") == "odd"
    assert look.trust_label("odd") == "odd"
    assert look.backbone_label("odd:x") == "odd-x"
    assert look.dataset_label("casting_billet/mini50") == "Casting Billet (mini50)"


def test_no_two_datasets_share_a_label() -> None:
    labels = [look.dataset_label(name) for name in registry.names()]
    assert len(set(labels)) == len(labels)
