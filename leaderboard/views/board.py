"""The leaderboard: the paper's Table 2 as a living table, or one dataset ranked with its intervals."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from leaderboard import charts, look, session
from leaderboard.table import FILTERS, METRICS, TECHNIQUE, by_dataset, filtered, to_csv, to_json
from leaderboard.views.ranks import ranked, show_ranks

_TABLE, _DATASET = "All datasets", "One dataset"
_IMAGES = {"Real surfaces": "real", "Generated surfaces": "procedural"}
_EXTRAS = ["±", "Δ", "parameters", "FPS", "seeds", "protocol", "maps", "corpus", "submission"]
_DEFAULT_EXTRAS = ["Δ", "parameters"]
_STYLED = 400
"""Tables of more lines are shown without colours: each coloured cell is sent to the browser."""


def page() -> None:
    """Draws the page."""
    look.heading(
        "Which pretraining finds more defects?",
        "By how much does pretraining improve a surface-defect detector, and can you trust the number? Every "
        "measured row "
        "follows one recipe and can be recomputed from its stored detections.",
    )
    table = session.table()
    _glance(table)
    images, layout, metric = _controls()
    chosen, words, extras = _filters(table)
    # Generated pictures and photographs are never put into one table.
    shown = filtered(table[table["track"] == _IMAGES[images]], chosen, words)
    if shown.empty:
        _empty(table, images)
    elif layout == _TABLE:
        _all_datasets(shown, metric, extras)
    else:
        show_ranks(shown, metric)
    _downloads(shown)
    st.divider()
    look.trust_legend(sorted(table["trust"].unique()))
    _quarantine()


def _glance(table: pd.DataFrame) -> None:
    reported = int((table["trust"] == "reported").sum())
    measured = table[table["trust"] != "reported"]
    seeds = int(measured["seeds"].sum())
    real = measured[measured["track"] == "real"]
    look.tiles(
        [
            (f"{len(measured):,}", "rows measured", f"{seeds:,} finished trainings"),
            (f"{len(real):,}", "of them on photographs", "the others on generated surfaces"),
            (f"{reported:,}", "rows reported", "in the paper; single runs"),
            (f"{table['dataset'].nunique():,}", "datasets", f"{table['backbone'].nunique():,} backbones"),
        ]
    )


def _controls() -> tuple[str, str, str]:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        images = st.segmented_control(
            "Images",
            list(_IMAGES),
            default=next(iter(_IMAGES)),
            required=True,
            key="images",
            bind="query-params",
            help="Rows on photographs and rows on generated pictures are never compared with each other.",
        )
        layout = st.segmented_control(
            "Show",
            [_TABLE, _DATASET],
            default=_TABLE,
            required=True,
            key="show",
            bind="query-params",
            help="One dataset: ranked, with error bars, rank intervals and groups that cannot be told apart.",
        )
        labels = {label: name for name, label in METRICS.items()}
        metric = st.segmented_control(
            "Metric",
            list(labels),
            default=next(iter(labels)),
            required=True,
            key="metric",
            bind="query-params",
            help="Percent. Measured rows: mean over seeds at the last epoch. Reported rows: the paper's best epoch.",
        )
    return str(images), str(layout), labels[str(metric)]


def _filters(table: pd.DataFrame) -> tuple[dict[str, list[str]], str, list[str]]:
    with st.sidebar:
        words = st.text_input(
            "Search", key="search", bind="query-params", placeholder="swin simmim", icon=":material/search:"
        )
        chosen = {
            column: st.multiselect(
                column.capitalize(),
                sorted(set(table[column]) - {""}),
                key=column,
                bind="query-params",
                placeholder="all",
                help=None
                if column != "protocol"
                else "The recipe of finetuning. `paper`: the authors' own runs.",
            )
            for column in FILTERS
        }
        extras = st.multiselect(
            "Columns",
            _EXTRAS,
            default=_DEFAULT_EXTRAS,
            key="columns",
            bind="query-params",
            placeholder="fewest",
        )
        active = sum(map(bool, chosen.values())) + bool(words)
        st.button(
            f"Clear {active} filter{'s' if active != 1 else ''}" if active else "No filter is set",
            disabled=not active,
            on_click=_clear,
            width="stretch",
        )
    return chosen, str(words), extras


def _clear() -> None:
    for column in FILTERS:
        st.session_state[column] = []
    st.session_state["search"] = ""


def _empty(table: pd.DataFrame, images: str) -> None:
    if not (table["track"] == _IMAGES[images]).any():
        st.info("Nothing was measured on these images yet. The first row takes some minutes on a laptop:")
        st.code("python -m benchmark run --backbone swin --mode scratch --protocol mini-v1", language="bash")
    else:
        st.info(
            "No row fits these filters. Clear some of them in the sidebar (the arrow at the top left opens it)."
        )


def _all_datasets(rows: pd.DataFrame, metric: str, extras: list[str]) -> None:
    wide = by_dataset(rows, metric)
    names = [name for name in wide.columns if name in set(rows["dataset"])]
    shown = pd.DataFrame(
        {
            "source": wide["trust"].map(look.trust_sign).where(wide["invalid_reason"] == "", look.INVALID),
            "model": [
                (entry.submission or look.model_label(entry.detector, entry.backbone, entry.method))
                + (f" {look.CONTAMINATED}" if entry.contamination else "")
                for entry in wide[[*TECHNIQUE, "contamination"]].itertuples()
            ],
            "mode": _modes(wide),
        }
    )
    config = {
        "source": st.column_config.TextColumn(
            "", width=34, help="; ".join(badge for badge, _ in look.TRUSTS.values())
        ),
        "model": st.column_config.TextColumn(
            "model",
            width=150,  # by itself it would be as wide as the first rows need
            help="The backbone; under YOLOv8 where no detector is named, by classification where no method is",
        ),
        "mode": st.column_config.TextColumn(
            "mode", help="What the detector starts from: the ladder of the paper's Table 2"
        ),
    }
    best: list[str] = []
    gains: list[str] = []
    for name in names:
        label = look.dataset_label(name)
        label = label if label not in shown.columns else name
        best.append(label)
        shown[label] = wide[name]
        config[label] = st.column_config.NumberColumn(
            label, format="%.1f", help=f"{METRICS[metric]}, percent"
        )
        if "±" in extras:
            shown[f"± {label}"] = wide[f"{name} ±"]
            config[f"± {label}"] = st.column_config.NumberColumn(
                "±", format="%.1f", help="Standard error over seeds"
            )
        if "Δ" in extras:
            shown[f"Δ {label}"] = wide[f"{name} Δ"]
            gains.append(f"Δ {label}")
            config[f"Δ {label}"] = st.column_config.NumberColumn(
                "Δ",
                format="%+.1f",
                help="Points above (+) or below (-) ImageNet weights of the same detector and backbone; above scratch "
                "where there is no such row. Empty for the baseline itself, and where two rows could be it.",
            )
    for extra, column, form in (
        ("parameters", "parameters_m", "%.1f M"),
        ("FPS", "fps", "%.1f"),
        ("seeds", "seeds", "%d"),
    ):
        if extra in extras:
            shown[extra] = wide[column]
            config[extra] = st.column_config.NumberColumn(extra, format=form)
    for extra in ("protocol", "maps", "corpus", "submission"):
        if extra in extras:
            shown[extra] = wide[extra]
    present = set(wide["trust"])
    signs = "; ".join(badge for trust, (badge, _) in look.TRUSTS.items() if trust in present)
    if (wide["invalid_reason"] != "").any():
        signs += f"; {look.INVALID} its protocol no longer counts"
    if (wide["contamination"] != "").any():
        signs += f"; {look.CONTAMINATED} may have seen images it is measured on"
    over = (
        " Δ: points above ImageNet weights of the same backbone, or above scratch where there are none."
        if gains
        else ""
    )
    st.caption(
        f"{len(shown):,} techniques. {signs}. The best number of a column is bold.{over} Click a column's head to sort."
    )
    st.dataframe(
        _styled(shown, best, gains),
        hide_index=True,
        column_config=config,
        placeholder="",
        height=min(640, 38 * (len(shown) + 1) + 4),
        row_height=38,
        alt="Techniques and their numbers on every dataset",
        key="all_datasets",
    )
    _overview(rows, metric)


def _modes(wide: pd.DataFrame) -> list[str]:
    """Names modes; with the anomaly maps where these alone tell two lines apart."""
    kin = [name for name in TECHNIQUE if name != "maps"]
    several = wide.groupby(kin, sort=False, dropna=False)["maps"].transform("nunique") > 1
    return [
        look.mode_label(mode) + (f" ({maps})" if more and maps else "")
        for mode, maps, more in zip(wide["mode"], wide["maps"], several, strict=True)
    ]


def _styled(shown: pd.DataFrame, best: list[str], gains: list[str]) -> object:
    if len(shown) > _STYLED:
        return shown
    up, down = ("#7cc6f2", "#f4a26c") if look.is_dark() else ("#00649e", "#b34600")

    def colour(value: float) -> str:
        return "" if pd.isna(value) or abs(value) < 0.05 else f"color: {up if value > 0 else down}"

    counts = shown["source"] != look.INVALID
    styler = shown.style.map(colour, subset=gains) if gains else shown.style
    styler = styler.apply(
        lambda row: [f"color: {look.faint()}"] * len(row), axis=1, subset=(~counts, shown.columns)
    )
    return styler.highlight_max(subset=(counts, best), props="font-weight: 700") if best else styler


def _overview(rows: pd.DataFrame, metric: str) -> None:
    """Draws the best rows, of those that count, on the dataset that has most of them."""
    rows = rows[rows["invalid_reason"] == ""]
    if rows.empty:
        return
    dataset = rows["dataset"].value_counts().index[0]
    label = look.dataset_label(dataset)
    here = rows[rows["dataset"] == dataset]
    st.subheader(f"The best on {look.escape(label)}", anchor=False)
    st.caption(
        "Hollow: reported. Full: measured, with its standard error over seeds. Shapes and colours are the modes."
    )
    session.draw(
        charts.ranking(ranked(here, metric, most=15), METRICS[metric], label), "The best rows, best first"
    )


def _downloads(shown: pd.DataFrame) -> None:
    rows = f"{len(shown):,} row{'s' if len(shown) != 1 else ''}"
    with st.container(horizontal=True):
        st.download_button(
            f"CSV, {rows}",
            lambda: to_csv(shown).encode(),
            "agssp-bench.csv",
            "text/csv",
            icon=":material/download:",
            on_click="ignore",
            disabled=shown.empty,
        )
        st.download_button(
            f"JSON, {rows}",
            lambda: to_json(shown).encode(),
            "agssp-bench.json",
            "application/json",
            icon=":material/download:",
            on_click="ignore",
            disabled=shown.empty,
        )


def _quarantine() -> None:
    found = session.board().quarantined
    if len(found):
        with st.expander(
            f"{len(found)} files were set aside: they are not what they should be", icon=":material/warning:"
        ):
            st.dataframe(found, hide_index=True, column_config={"path": "file", "reason": "why"})
