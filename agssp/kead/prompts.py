"""Prompts from what is known of a category: states in templates, and one sentence for each description."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from agssp.kead.knowledge import Category
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

if TYPE_CHECKING:
    from torch import Tensor

_TEMPLATES = Path(__file__).with_name("templates.yaml")


@dataclass(frozen=True)
class Prompts:
    """The texts that stand for one category.

    Attributes:
        normal: Texts for the sound object.
        anomalous: Texts for the object with defects.
        empty: The templates without any object, for redundancy removal.
    """

    normal: tuple[str, ...]
    anomalous: tuple[str, ...]
    empty: tuple[str, ...]


@functools.cache
def _forms() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(_TEMPLATES.read_text(encoding="utf-8"))
    return content


def fingerprint() -> str:
    """Returns the sha256 of the templates, states and sentences, for keys."""
    return content_key(_forms())


def assemble(category: Category, *, descriptions: bool = True) -> Prompts:
    """Puts the prompts of a category together (paper section 3.2).

    Args:
        category: What is known of it.
        descriptions: Whether to add the descriptions of its surface and its defects to the generic states.

    Returns:
        The prompts, in a fixed order.
    """
    forms = _forms()

    def generic(kind: str) -> list[str]:
        states = [state.format(category.phrase) for state in forms["states"][kind]]
        return [template.format(state) for state in states for template in forms["templates"]]

    normal, anomalous = generic("normal"), generic("anomalous")
    if descriptions:
        sentence = forms["described"]
        normal += [
            sentence["normal"].format(object=category.phrase, features=text) for text in category.normal
        ]
        anomalous += [
            sentence["anomalous"].format(object=category.phrase, defect=_words(kind), features=text)
            for kind, texts in category.defects.items()
            for text in texts
        ]
    empty = (" ".join(template.format("").replace(" .", ".").split()) for template in forms["templates"])
    return Prompts(tuple(normal), tuple(anomalous), tuple(empty))


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def check_lengths(prompts: Prompts, tokenizer: Callable[..., Tensor], context_length: int) -> None:
    """Refuses prompts that a tokenizer would cut.

    Args:
        prompts: All texts of a category.
        tokenizer: One of open_clip's, called as `tokenizer(texts, context_length=...)`.
        context_length: Tokens that the text encoder takes, with start and end.

    Raises:
        UserError: A prompt is longer; names it.
    """
    texts: Sequence[str] = [*prompts.normal, *prompts.anomalous, *prompts.empty]
    # With room for one token more, a text that fits leaves the last place to padding, as the empty text does.
    last = tokenizer(["", *texts], context_length=context_length + 1)[:, -1].tolist()
    for text, token in zip(texts, last[1:], strict=True):
        if token != last[0]:
            raise UserError(
                f"This prompt has more than the {context_length} tokens of the text encoder and would be cut: "
                f"{text!r}. Shorten the description or the object's phrase."
            )
