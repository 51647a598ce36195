"""The datasets: what they show, how large they are, under which licence, and what an audit found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st
import yaml

import datasets_builders
from datasets_builders import registry
from datasets_builders.errors import UserError
from datasets_builders.prepared import quick_manifest
from datasets_builders.registry import DatasetCard
from leaderboard import look, pictures, session

_AUDITS = Path(__file__).parents[1] / "audits.yaml"
_KINDS = {"All": None, "Photographs": "raw", "Generated": "procedural"}


def page() -> None:
    """Draws the page."""
    look.heading(
        "Datasets",
        "Surfaces with defects, each with a frozen split and a fingerprint, so that everyone measures on the same.",
    )
    kind = st.segmented_control(
        "Kind",
        list(_KINDS),
        default="All",
        required=True,
        key="kind",
        bind="query-params",
        label_visibility="collapsed",
    )
    table = session.table()
    counts = table.groupby("dataset")["trust"].agg(
        lambda trusts: ((trusts != "reported").sum(), (trusts == "reported").sum())
    )
    audits = yaml.safe_load(_AUDITS.read_text(encoding="utf-8"))
    cards = registry.cards()
    for name, card in cards.items():
        if card.origin in ("derived", "own") or card.toy or _KINDS[str(kind)] not in (None, card.origin):
            continue
        minis = [other for other in cards.values() if other.parent == name]
        with st.container(border=True):
            _show(
                card,
                minis,
                {entry: counts.get(entry, (0, 0)) for entry in (name, *(mini.name for mini in minis))},
                audits.get(name),
            )


def _show(
    card: DatasetCard,
    minis: list[DatasetCard],
    rows: dict[str, tuple[int, int]],
    audit: dict[str, Any] | None,
) -> None:
    title, _, rest = card.title.partition(",")
    st.subheader(look.escape(title), anchor=False)
    origin = "generated" if card.origin == "procedural" else "photographs"
    st.caption(f"`{card.name}` · {origin}{' · ' + look.escape(rest) if rest else ''}")
    _picture(card)
    manifest = quick_manifest(card)
    facts = {"images": _images(card)}
    if manifest is not None:
        facts["on this machine"] = ", ".join(
            f"{count:,} {split}" for split, count in manifest.splits.items()
        ) + (" (a part of it)" if manifest.partial else "")
    if card.expected is not None and card.expected.boxes:
        facts["boxes"] = f"{card.expected.boxes:,}"
    facts["defects"] = ", ".join(name.replace("_", " ") for name in card.classes)
    facts["masks"] = {"none": "none", "binary": "defect or not, by pixel", "instance": "one a defect"}[
        card.masks
    ]
    facts["licence"] = card.licence
    if minis:
        facts["smaller sets"] = ", ".join(f"{mini.name} ({mini.title.rpartition(': ')[2]})" for mini in minis)
    measured, reported = (sum(entry[i] for entry in rows.values()) for i in (0, 1))
    facts["rows on this board"] = f"{measured} measured, {reported} reported"
    facts["audit"] = f"{audit['finding']} {audit['remedy']}" if audit else _not_audited(card)
    look.facts(facts)
    with st.container(horizontal=True):
        if measured or reported:
            track = "Generated surfaces" if card.origin == "procedural" else "Real surfaces"
            session.link("leaderboard", "Its rows", {"images": track, "dataset": card.name})
        if not datasets_builders.is_ready(card.name) and card.origin != "procedural":
            with st.popover("Get it", icon=":material/download:"):
                st.markdown("From its owner's files:")
                st.code(f"python -m datasets_builders prepare {card.name} --raw DIR", language="bash")
                look.facts({"owner": card.homepage, "cite": card.citation})


def _images(card: DatasetCard) -> str:
    if card.splits:
        return ", ".join(f"{count:,} {split}" for split, count in card.splits.items())
    return f"{card.expected.images:,}" if card.expected else "not stated"


def _not_audited(card: DatasetCard) -> str:
    if card.origin == "procedural":
        return "Every image is rendered from its own seed: no two share a surface."
    return f"Not yet, on its owner's files. Do it: python -m datasets_builders audit {card.name}"


def _picture(card: DatasetCard) -> None:
    if not pictures.may_be_shown(card):
        st.caption("No pictures here: no licence that allows copies is stated.")
        return
    try:
        found = pictures.samples(card)
    except UserError as error:
        st.warning(look.escape(str(error)))
        return
    if not found:
        st.caption("Its licence allows pictures; they are shown once it is on this machine.")
        return
    with st.container(horizontal=True, gap="small"):
        for file in found:
            st.image(file.read_bytes(), width=148, output_format="PNG")
