"""How the board looks: words for people, colours, badges and headings. A stranger's text never becomes markup here."""

from __future__ import annotations

import functools
import html
import string

import streamlit as st

from benchmark.submit.texts import for_spreadsheet
from datasets_builders import registry

MODES = {
    "scratch": "Scratch",
    "imagenet": "ImageNet",
    "coco": "COCO",
    "industrial": "Industrial",
    "agbp": "AGBP",
    "agssp": "AGSSP",
    "custom": "Own weights",
}
"""Up the ladder of the paper's Table 2; charts give them the theme's colours in this order."""

TRUSTS = {
    "reported": (
        "◌ reported",
        "Printed in the paper: a single run at its best epoch. Nobody here measured it.",
    ),
    "measured": (
        "● measured",
        "Run by whoever keeps these records. Its detections are stored: anyone can recompute it.",
    ),
    "submitted": (
        "▲ submitted",
        "Sent by someone else. Its numbers were recomputed from the detections they sent.",
    ),
    "reproduced": ("✔ reproduced", "A maintainer finetuned its weights again and got an agreeing result."),
}
"""Trust -> its badge, and what it means."""

INVALID = "✕"
"""Instead of the trust's sign, where the protocol no longer counts."""

CONTAMINATED = "⚠"
"""After a name, where the pretraining may have seen images that the row is measured on."""

_PALETTES = {
    "light": ["#6b7683", "#0072b2", "#c94f00", "#00855f", "#b45f93", "#b87700", "#3f9bd1"],
    "dark": ["#9aa7b4", "#56b4e9", "#f08040", "#2fc298", "#d896bd", "#e69f00", "#f0e442"],
}
_BACKBONES = {"csp_darknet": "CSPDarknet", "resnet": "ResNet", "swin": "Swin", "lite0": "EfficientNet-Lite0"}
_DETECTORS = {"yolov8": "YOLOv8", "faster_rcnn": "Faster R-CNN", "dino": "DINO"}
_METHODS = {
    "cls": "classification",
    "mocov3": "MoCo v3",
    "simmim": "SimMIM",
    "detection": "detection",
    "-": "none",
}


def mode_label(mode: str) -> str:
    """Returns a mode as the paper writes it; an unknown one as it is."""
    return MODES.get(mode, mode)


def trust_label(trust: str) -> str:
    """Returns a trust with its sign."""
    return TRUSTS[trust][0] if trust in TRUSTS else trust


def trust_sign(trust: str) -> str:
    """Returns a trust's sign alone."""
    return trust_label(trust).partition(" ")[0]


def backbone_label(backbone: str) -> str:
    """Returns `name:variant` for people."""
    name, _, variant = backbone.partition(":")
    known = _BACKBONES.get(name, name)
    if known == _BACKBONES["lite0"]:
        return known
    return f"{known}-{variant}" if len(variant) <= 2 else f"{known} {variant}"


def detector_label(detector: str) -> str:
    """Returns a detector as its authors write it."""
    return _DETECTORS.get(detector, detector)


def model_label(detector: str, backbone: str, method: str) -> str:
    """Returns a backbone for people; its detector where that is not YOLOv8, its method where not classification."""
    text = (
        backbone_label(backbone)
        if detector == "yolov8"
        else f"{detector_label(detector)} {backbone_label(backbone)}"
    )
    return text if method in ("-", "cls", "detection") else f"{text}, {method_label(method)}"


def method_label(method: str) -> str:
    """Returns a method of pretraining for people."""
    return _METHODS.get(method, method)


def dataset_label(name: str) -> str:
    """Returns a dataset's short title; a name that the catalogue does not know as it is."""
    return _dataset_labels().get(name, name)


@functools.cache
def _dataset_labels() -> dict[str, str]:
    labels: dict[str, str] = {}
    for name, card in registry.cards().items():
        title = registry.card(card.dataset).title.partition(",")[0].partition(":")[0]
        label = f"{title} ({card.config})" if card.config else title
        labels[name] = label if label not in labels.values() else f"{title} ({name})"
    return labels


def escape(text: str) -> str:
    """Returns a text that Streamlit's Markdown shows as it is: every sign that could mean something is escaped."""
    plain = " ".join(text.split())
    return "".join(f"\\{sign}" if sign in string.punctuation else sign for sign in plain)


def plain_cell(value: object) -> object:
    """Returns a value for CSV; texts as `benchmark.submit.texts.for_spreadsheet` makes them."""
    return for_spreadsheet(value) if isinstance(value, str) else value


def is_dark() -> bool:
    """Whether the reader's browser shows the dark theme; before it has said so, no."""
    return st.context.theme.type == "dark"


def ink() -> str:
    """Returns the colour of text in charts."""
    return "#e8eef4" if is_dark() else "#16202b"


def faint() -> str:
    """Returns the colour of what is less important in charts."""
    return "#93a1b0" if is_dark() else "#5d6a78"


def palette() -> list[str]:
    """Returns the colours of categories that are no modes: those of the theme, the quiet first one last."""
    grey, *others = _PALETTES["dark" if is_dark() else "light"]
    return [*others, grey]


def heading(title: str, explanation: str) -> None:
    """Writes a page's title and what it is for, in one line. Both are our own words."""
    st.title(title, anchor=False)
    st.markdown(f'<p class="lead">{html.escape(explanation)}</p>', unsafe_allow_html=True)


def name(text: str) -> None:
    """Writes a heading that holds a stranger's text."""
    st.html(f"<h2 style='margin:0;padding:0.4rem 0 0.2rem'>{html.escape(text)}</h2>")


def facts(entries: dict[str, str]) -> None:
    """Writes names and values; both may be a stranger's text."""
    lines = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in entries.items())
    st.html(f'<dl class="facts">{lines}</dl>')


def tiles(entries: list[tuple[str, str, str]]) -> None:
    """Writes numbers at a glance: (number, name, remark), side by side where there is room."""
    lines = "".join(
        f"<div><b>{html.escape(number)}</b><span>{html.escape(label)}</span><small>{html.escape(remark)}</small></div>"
        for number, label, remark in entries
    )
    st.html(f'<div class="tiles">{lines}</div>')


def trust_legend(present: list[str]) -> None:
    """Writes what each kind of trust on this page means."""
    lines = "".join(
        f"<div><b>{html.escape(badge)}</b> {html.escape(meaning)}</div>"
        for trust, (badge, meaning) in TRUSTS.items()
        if trust in present
    )
    st.html(f'<div class="legend">{lines}</div>')


def style() -> None:
    """Adds the few rules that the theme cannot say; colours come from the theme, so that both look right."""
    st.html(_STYLE)


_STYLE = """
<style>
.stMainBlockContainer { max-width: 1280px; padding-top: 4.2rem; padding-bottom: 4rem; }
p.lead { font-size: 1.08rem; opacity: 0.82; margin: -0.6rem 0 0.4rem; max-width: 60rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.6rem; margin: 0.2rem 0; }
.tiles div { border: 1px solid rgba(128, 145, 165, 0.35); border-radius: 0.6rem; padding: 0.55rem 0.8rem; }
.tiles b { display: block; font-size: 1.55rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles span { display: block; font-weight: 600; font-size: 0.9rem; }
.tiles small { display: block; opacity: 0.72; font-size: 0.8rem; }
.legend { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 0.2rem 1.2rem;
  font-size: 0.85rem; }
.legend div { opacity: 0.85; }
dl.facts { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: 0.25rem 1rem; margin: 0;
  padding: 0; font-size: 0.92rem; }
dl.facts dt { opacity: 0.7; }
dl.facts dt, dl.facts dd { padding: 0; margin: 0; }
dl.facts dd { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
@media (max-width: 640px) {
  .stMainBlockContainer { padding: 3.6rem 0.9rem 2.5rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles small { display: none; }
  h1 { font-size: 1.6rem !important; }
  p.lead { font-size: 0.98rem; }
}
</style>
"""
