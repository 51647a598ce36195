"""One dataset of the leaderboard: rows under each protocol, ranked, with what their detections say of the order."""

from __future__ import annotations

from collections import Counter

import pandas as pd
import streamlit as st

from datasets_builders.errors import UserError
from datasets_builders.storage import content_key
from leaderboard import charts, look, scores, session
from leaderboard.data import PAPER_PROTOCOL
from leaderboard.table import METRICS

_MOST_JUDGED = 40
"""Every row is compared with every other."""


def show_ranks(rows: pd.DataFrame, metric: str) -> None:
    """Draws the rows of a dataset that the reader chooses, a part for each protocol and version of the data.

    Args:
        rows: Of `leaderboard.table.whole_table`, filtered.
        metric: A key of `METRICS`.
    """
    counts = rows[rows["trust"] != "reported"]["dataset"].value_counts()
    names = [*counts.index, *sorted(set(rows["dataset"]) - set(counts.index))]
    dataset = st.selectbox("Dataset", names, key="on", bind="query-params", width=340)
    rows = rows[rows["dataset"] == dataset]
    order = sorted(
        rows.groupby(["protocol", "fingerprint"]).groups,
        key=lambda block: (block[0] == PAPER_PROTOCOL, block),
    )
    for protocol, fingerprint in order:
        block = rows[(rows["protocol"] == protocol) & (rows["fingerprint"] == fingerprint)]
        reported = protocol == PAPER_PROTOCOL
        st.subheader("Reported in the paper" if reported else look.escape(protocol), anchor=False)
        if reported:
            st.caption(
                "Single runs at their best epoch, so there is no error bar, and no rank can be given an interval."
            )
        else:
            st.caption(
                f"Data version {fingerprint[:12]}. Mean ± standard error over seeds of finetuning, last epoch."
            )
        for reason in sorted(set(block["invalid_reason"]) - {""}):
            st.warning(f"{look.INVALID} This protocol no longer counts: {look.escape(reason)}")
        _show_block(block.sort_values(metric, ascending=False), metric, reported)


def _show_block(block: pd.DataFrame, metric: str, reported: bool) -> None:
    judged = None if reported else _judgement(block)
    shown = pd.DataFrame({"#": range(1, len(block) + 1)}, index=block.index)
    shown["source"] = block["trust"].map(look.trust_sign).where(block["invalid_reason"] == "", look.INVALID)
    shown[METRICS[metric]] = block[metric]  # before the name: a phone shows four columns
    shown["±"] = block[f"{metric}_error"]
    shown["row"] = session.titles(block)
    shown["Δ"] = block[f"delta_{metric}"]
    shown["to"] = block["against"].map(look.mode_label)
    if judged is not None:
        shown["rank interval"] = [judged.get(row, ("", ""))[0] for row in block["row_id"]]
        shown["group"] = [judged.get(row, ("", ""))[1] for row in block["row_id"]]
    shown["seeds"] = block["seeds"]
    shown["params"] = block["parameters_m"]
    shown["FPS"] = block["fps"]
    # Columns in which nothing stands only push others out of sight.
    empty = [name for name in ("±", "Δ", "FPS") if shown[name].isna().all()]
    shown = shown.drop(columns=[*empty, *(["to"] if "Δ" in empty else [])])
    number = st.column_config.NumberColumn
    key = f"ranks-{block['protocol'].iloc[0]}-{block['fingerprint'].iloc[0][:12]}"
    chosen = st.dataframe(
        shown,
        hide_index=True,
        placeholder="",
        on_select="rerun",
        selection_mode="multi-row",
        height=min(560, 38 * (len(shown) + 1) + 4),
        row_height=38,
        key=key,
        alt="Rows of one dataset, best first",
        column_config={
            "#": number("#", width=44),
            "source": st.column_config.TextColumn(
                "", width=34, help="; ".join(badge for badge, _ in look.TRUSTS.values())
            ),
            "rank interval": st.column_config.TextColumn(
                "rank, 95 %",
                help="Where the row stands with other images and seeds: 95 % interval of its rank",
            ),
            "group": st.column_config.TextColumn(
                "group",
                help="Rows that share a letter cannot be told apart (p >= 0.05 after Holm's correction)",
            ),
            METRICS[metric]: number(METRICS[metric], format="%.1f"),
            "±": number("±", format="%.1f", help="Standard error over seeds"),
            "Δ": number(
                "Δ", format="%+.1f", help="Points above or below its baseline, which stands beside it"
            ),
            "params": number("params", format="%.1f M"),
            "FPS": number("FPS", format="%.1f", help="Reported rows: the paper's Table 6, on an RTX 3090"),
        },
    )
    if (block["contamination"] != "").any():
        st.caption(f"{look.CONTAMINATED} may have seen images it is measured on: its record says which.")
    selected = block["row_id"].iloc[chosen["selection"]["rows"]].tolist() if chosen else []
    _actions(selected, reported)
    label = look.dataset_label(block["dataset"].iloc[0])
    session.draw(
        charts.ranking(ranked(block, metric), METRICS[metric], label), "Rows with their standard errors"
    )


def ranked(rows: pd.DataFrame, metric: str, most: int = 25) -> pd.DataFrame:
    """Returns what the ranking chart draws of rows: at most so many, best first, each with a name of its own."""
    rows = charts.with_mode_labels(rows.nlargest(most, metric))
    titles = session.titles(rows)
    times = Counter(titles)  # under two protocols, rows may have one title
    labels = [
        f"{title}, {protocol}" if times[title] > 1 else title
        for title, protocol in zip(titles, rows["protocol"], strict=True)
    ]
    return rows.assign(label=labels, value=rows[metric], error=rows[f"{metric}_error"])[
        ["label", "mode", "source", "value", "error"]
    ]


def _actions(selected: list[str], reported: bool) -> None:
    if not selected:
        st.caption("Tick rows at their left edge to open or compare them.")
        return
    with st.container(horizontal=True):
        if len(selected) == 1:
            session.link("record", "Open this row", {"row": selected[0]})
        elif not reported:
            session.link("compare", f"Compare these {len(selected)} rows", {"rows": ",".join(selected)})
        else:
            st.caption("Reported rows have no detections to compare by; open one at a time.")


def _judgement(block: pd.DataFrame) -> dict[str, tuple[str, str]] | None:
    """Returns rank interval and groups by row; draws how to get them where they are not computed."""
    if len(block) < 2:
        return None
    if len(block) > _MOST_JUDGED:
        block = block.nlargest(_MOST_JUDGED, "map50")
        st.caption(f"Rank intervals and groups are among the {_MOST_JUDGED} best rows by mAP@.5.")
    ids = block["row_id"].tolist()
    reason = scores.why_not(block["dataset"].iloc[0])
    if reason:
        st.info(f"Rank intervals and groups need the dataset's labels. {look.escape(reason)}")
        return None
    known = session.known_judgement(ids)
    if known is None:
        records = int(block["seeds"].sum())
        seconds = scores.SECONDS_PER_RECORD * records
        if not st.button(
            f"Compute rank intervals and groups (about {session.duration(seconds)}, once)",
            key=f"judge-{content_key(ids)[:12]}",
            icon=":material/functions:",
        ):
            return None
        bar = st.progress(0.0, "Comparing rows on the same drawn images")
        try:
            known = session.judgement(ids, lambda done: bar.progress(done / len(ids)))
        except UserError as error:
            st.error(look.escape(str(error)))
            return None
        finally:
            bar.empty()
    if known.smallest is not None:
        held = "" if known.seeds_known else " Some row has one seed, so this speaks of images alone."
        st.caption(
            f"This dataset tells two rows apart in 4 of 5 cases from {known.smallest:.1f} points on.{held}"
        )
    return {
        row: (f"{low:.0f} to {high:.0f}", group)
        for row, (_, low, high), group in zip(ids, known.ranks, known.groups, strict=True)
    }
