"""Two rows or more side by side: is the difference real, for which defects, and on which images does it show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st

from benchmark.compare import METRICS, Comparison, compare_pairs
from benchmark.rows import Row
from benchmark.statistics.difference import LEVEL, Difference
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key
from leaderboard import charts, look, pictures, precision, scores, session
from leaderboard.views.record import show_sheet

_MOST = 6
_IMAGES = 6


def page() -> None:
    """Draws the page."""
    look.heading(
        "Compare rows", "Is one better than the other, for which defects, and on which images does it show?"
    )
    table = session.table()
    measured = table[table["trust"] != "reported"]
    blocks = measured.groupby(["protocol", "dataset", "fingerprint"], sort=False).size()
    blocks = blocks[blocks > 1].sort_values(ascending=False)
    if blocks.empty:
        _nothing(measured)
        return
    wanted = [
        entry for entry in st.query_params.get("rows", "").split(",") if entry in set(measured["row_id"])
    ]
    block = _block(measured, blocks, wanted)
    names = dict(zip(block["row_id"], session.titles(block), strict=True))
    start = [entry for entry in wanted if entry in names]
    start += [entry for entry in _worth_comparing(block) if entry not in start][: max(0, 2 - len(start))]
    chosen = st.multiselect(
        "Rows, the first against each of the others",
        list(names),
        default=start,
        format_func=names.__getitem__,
        max_selections=_MOST,
        key=f"rows-{content_key(start)[:8]}",
    )
    if chosen != wanted:
        st.query_params["rows"] = ",".join(chosen)
    if len(chosen) < 2:
        st.info("Choose two rows or more.")
        return
    _show(chosen, names, measured)


def _nothing(measured: pd.DataFrame) -> None:
    st.info(
        "Two rows that were measured on the same data under the same protocol can be compared. "
        f"This board has {len(measured)} measured rows, and no two of them are. Measure a second one, such as:"
    )
    st.code(
        "python -m benchmark run --backbone swin --mode scratch --protocol mini-v1 --seeds 0 1 2",
        language="bash",
    )
    st.caption(
        "The paper's rows left no detections: they stand in the leaderboard, and cannot be compared by them."
    )


def _block(measured: pd.DataFrame, blocks: pd.Series, wanted: Sequence[str]) -> pd.DataFrame:
    """Lets the reader choose the data; the rows of an address choose it first."""
    places = list(blocks.index)
    first = measured[measured["row_id"].isin(wanted[:1])]
    start = 0
    if len(first):
        own = tuple(first.iloc[0][["protocol", "dataset", "fingerprint"]])
        start = places.index(own) if own in places else 0
    chosen = st.selectbox(
        "Dataset and protocol",
        range(len(places)),
        index=start,
        format_func=lambda i: f"{look.dataset_label(places[i][1])}, {places[i][0]} ({blocks.iloc[i]} rows)",
        width=420,
        key=f"block-{start}",
    )
    protocol, dataset, fingerprint = places[chosen]
    return measured[
        (measured["protocol"] == protocol)
        & (measured["dataset"] == dataset)
        & (measured["fingerprint"] == fingerprint)
    ]


def _worth_comparing(block: pd.DataFrame) -> list[str]:
    """Returns all rows: the best one, what it is measured against, and then the others."""
    block = block.sort_values("map50", ascending=False)
    best = block.iloc[0]
    baseline = block[
        (block["mode"] == best["against"])
        & (block["backbone"] == best["backbone"])
        & (block["detector"] == best["detector"])
    ]
    return list(dict.fromkeys([best["row_id"], *baseline["row_id"], *block["row_id"]]))


def _show(chosen: list[str], names: dict[str, str], measured: pd.DataFrame) -> None:
    try:
        rows = [session.row(entry) for entry in chosen]
    except UserError as error:
        st.error(f"A record of these rows cannot be read any more. {look.escape(str(error))}")
        return
    reason = scores.why_not(rows[0].dataset)
    if reason:
        st.info(look.escape(reason))
        _numbers(rows, [names[entry] for entry in chosen])
        return
    if not all(scores.is_stored(row) for row in rows):
        seconds = scores.SECONDS_PER_RECORD * sum(len(row.seeds) for row in rows)
        _numbers(rows, [names[entry] for entry in chosen])
        if not st.button(f"Compare (about {session.duration(seconds)}, once)", type="primary", key="compute"):
            st.caption(
                "Reads the stored detections of each row on the same 1,000 draws of the validation images."
            )
            return
    try:
        with st.spinner("Comparing on the same drawn images"):
            found = compare_pairs([(rows[0], row) for row in rows[1:]], scores.scores_of)
    except UserError as error:
        st.error(look.escape(str(error)))
        return
    labels = [names[entry] for entry in chosen]
    _verdicts(found, labels)
    _classes(found, labels)
    _curves(rows, labels)
    _images(rows, labels)
    _elsewhere(chosen, measured)


def _numbers(rows: Sequence[Row], labels: Sequence[str]) -> None:
    st.dataframe(
        pd.DataFrame(
            {
                "row": labels,
                "mAP@.5": [row.map50 for row in rows],
                "±": [row.map50_error for row in rows],
                "mAP@.5:.95": [row.map50_95 for row in rows],
                "seeds": [len(row.seeds) for row in rows],
            }
        ),
        hide_index=True,
        placeholder="",
        column_config={
            name: st.column_config.NumberColumn(format="%.1f") for name in ("mAP@.5", "±", "mAP@.5:.95")
        },
    )


def _verdicts(found: Sequence[Comparison], labels: Sequence[str]) -> None:
    st.subheader("Is the difference real?", anchor=False)
    for entry, other in zip(found, labels[1:], strict=True):
        st.markdown(
            f"**{look.escape(labels[0])}** (A) against **{look.escape(other)}** (B): {entry.verdict()}"
        )
    table = pd.DataFrame(
        [
            _interval(
                f"{other}, {METRICS[metric]}" if len(found) > 1 else METRICS[metric],
                entry.metrics[metric],
                entry.adjusted[metric],
            )
            for entry, other in zip(found, labels[1:], strict=True)
            for metric in METRICS
        ]
    )
    session.draw(
        charts.intervals(table, "A less B, points, with its 95 % interval"), "Differences with intervals"
    )


def _interval(name: str, found: Difference, adjusted: float) -> dict[str, object]:
    verdict = "not told apart" if adjusted >= LEVEL else "higher" if found.value > 0 else "lower"
    return {
        "name": name,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "verdict": verdict,
        "p": adjusted,
    }


def _classes(found: Sequence[Comparison], labels: Sequence[str]) -> None:
    st.subheader("For which defects?", anchor=False)
    entry = found[0] if len(found) == 1 else found[_pair(labels, "classes-of")]
    rows = [
        _interval(name, difference, entry.classes_adjusted[name])
        for name, difference in entry.classes.items()
        if difference is not None
    ]
    if not rows:
        st.info("Too few objects of every class to say anything of a single one.")
        return
    session.draw(
        charts.intervals(
            pd.DataFrame(rows).sort_values("value", ascending=False), "AP@.5 of A less B, points"
        ),
        "Differences by class with intervals",
    )
    few = [name for name, difference in entry.classes.items() if difference is None]
    if few:
        st.caption(f"Too few objects to say: {look.escape(', '.join(few))}.")


def _pair(labels: Sequence[str], key: str) -> int:
    return st.selectbox(
        "Against", range(len(labels) - 1), format_func=lambda i: labels[i + 1], key=key, width=420
    )


def _curves(rows: Sequence[Row], labels: Sequence[str]) -> None:
    st.subheader("Precision and recall", anchor=False)
    try:
        found = [_curves_of(_detections_of(row), row) for row in rows]
    except UserError as error:
        st.error(look.escape(str(error)))
        return
    classes = list(found[0])
    chosen = st.selectbox(
        "Kind of defect", ["all, mean", *classes], key="defect", bind="query-params", width=320
    )
    points = []
    for label, curves in zip(labels, found, strict=True):
        mean = (
            np.mean([curves[name] for name in classes], axis=0)
            if chosen not in classes
            else curves[str(chosen)]
        )
        points += [
            {"side": label, "recall": recall, "precision": value}
            for recall, value in zip(precision.RECALLS, mean, strict=True)
        ]
    session.draw(charts.precision_recall(pd.DataFrame(points)), "Precision over recall, a line a row")
    st.caption(
        "At half an overlap, from the stored detections, mean over seeds. The area under a line is its AP@.5."
    )


def _detections_of(row: Row) -> list[str]:
    """Tells rows apart that are one experiment, such as a submission and what a maintainer measured of it."""
    return [stored.record.last.detections_sha256 for stored in row.records]


@st.cache_data(show_spinner="Matching detections with objects", max_entries=100)
def _curves_of(detections: list[str], _row: Row) -> dict[str, np.ndarray]:
    return precision.curves(_row)


def _images(rows: Sequence[Row], labels: Sequence[str]) -> None:
    st.subheader("Where they differ", anchor=False)
    other = 1 if len(rows) == 2 else 1 + _pair(labels, "images-of")
    reason = pictures.sheet_possible(rows[0].dataset)
    if reason:
        st.info(look.escape(reason))
        return
    first, second = rows[0].records[0], rows[other].records[0]
    st.markdown(
        f"The {_IMAGES} validation images on which F1 differs most, at each row's own best score. Left A, right "
        "B: seed "
        f"{first.record.cell.seed} of {look.escape(labels[0])} and seed {second.record.cell.seed} of "
        f"{look.escape(labels[other])}. Blue: finds a defect. Orange: finds none. Yellow dashes: missed."
    )
    show_sheet([first, second], _IMAGES, f"differ-{first.record.key[:8]}-{second.record.key[:8]}")


def _elsewhere(chosen: Sequence[str], measured: pd.DataFrame) -> None:
    """Compares the same two techniques on every dataset that both are on."""
    what = ["detector", "backbone", "method", "mode", "maps", "corpus", "submission", "protocol"]
    a, b = (measured[measured["row_id"] == entry].iloc[0] for entry in chosen[:2])
    pairs = []
    for _, group in measured[measured["protocol"] == a["protocol"]].groupby(
        ["dataset", "fingerprint"], sort=False
    ):
        sides = [group[(group[what] == side[what]).all(axis=1)] for side in (a, b)]
        if all(len(side) == 1 for side in sides):
            pairs.append(tuple(side.iloc[0]["row_id"] for side in sides))
    if len(pairs) < 2:
        return
    st.subheader("The same two on other datasets", anchor=False)
    rows = [(session.row(one), session.row(two)) for one, two in pairs]
    usable = [pair for pair in rows if scores.why_not(pair[0].dataset) is None]
    missing = [row for pair in usable for row in pair if not scores.is_stored(row)]
    if missing:
        seconds = scores.SECONDS_PER_RECORD * sum(len(row.seeds) for row in missing)
        if not st.button(
            f"Compare on {len(usable)} datasets (about {session.duration(seconds)}, once)", key="everywhere"
        ):
            return
    try:
        with st.spinner("Comparing"):
            found = compare_pairs(usable, scores.scores_of)
    except UserError as error:
        st.error(look.escape(str(error)))
        return
    table = pd.DataFrame(
        [
            _interval(look.dataset_label(entry.a.dataset), entry.metrics["map50"], entry.adjusted["map50"])
            for entry in found
        ]
    )
    session.draw(
        charts.intervals(table, "mAP@.5 of A less B, points"), "Differences by dataset with intervals"
    )
