"""The leaderboard: `python -m leaderboard`, or `streamlit run leaderboard/app.py`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from leaderboard import look


def _view(name: str) -> Callable[[], None]:
    """Returns what draws a page; its module is imported when it is first asked for."""

    def draw() -> None:
        importlib.import_module(f"leaderboard.views.{name}").page()

    return draw


# A file: Streamlit's own icons would be fetched from another host.
_ICON = Path(__file__).with_name("icon.svg")
# Address -> what draws the page, its title, its icon.
PAGES = {
    "leaderboard": (_view("board"), "Leaderboard", "leaderboard"),
    "compare": (_view("compare"), "Compare", "compare_arrows"),
    "explore": (_view("explore"), "Explore", "scatter_plot"),
    "record": (_view("record"), "Record", "receipt_long"),
    "datasets": (_view("datasets"), "Datasets", "photo_library"),
    "submit": (_view("submit"), "Submit", "upload_file"),
    "about": (_view("about"), "About", "info"),
}


def pages() -> dict[str, StreamlitPage]:
    """Returns the pages by address, in the order of the menu."""
    return {
        address: st.Page(
            draw, title=title, icon=f":material/{icon}:", url_path=address, default=address == "leaderboard"
        )
        for address, (draw, title, icon) in PAGES.items()
    }


def main() -> None:
    """Draws the page that the address names."""
    st.set_page_config(page_title="AGSSP-Bench", page_icon=str(_ICON), layout="wide")
    look.style()
    st.navigation(list(pages().values()), position="top").run()


if __name__ == "__main__":
    main()
