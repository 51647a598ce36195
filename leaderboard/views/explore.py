"""Charts over all rows: accuracy against cost, small training sets, the ladder of modes, anomaly maps, ablations."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from leaderboard import charts, look, session
from leaderboard.anomaly import reported_anomaly_rows
from leaderboard.data import PAPER_PROTOCOL
from leaderboard.table import METRICS, deltas, paper_entries

_TOPICS = {
    "Ladder": "What each step of pretraining adds",
    "Cost": "Accuracy against size and speed",
    "Few images": "How much pretraining helps with few labels",
    "Anomaly maps": "How well defects are found without labels",
    "Ablations": "Which part of the method does the work",
}
_REPORTED = "Reported in the paper; nobody here measured it."


def page() -> None:
    """Draws the page."""
    look.heading(
        "Explore", "What the rows say together. Hollow or dashed: reported by the paper. Full: measured here."
    )
    topic = st.segmented_control(
        "Topic",
        list(_TOPICS),
        default="Ladder",
        required=True,
        key="topic",
        bind="query-params",
        label_visibility="collapsed",
    )
    st.subheader(_TOPICS[str(topic)], anchor=False)
    table = session.table()
    table = table[table["invalid_reason"] == ""]  # what no longer counts is compared with nothing
    {
        "Ladder": _ladder,
        "Cost": _cost,
        "Few images": _few_images,
        "Anomaly maps": _anomaly,
        "Ablations": _ablations,
    }[str(topic)](table)


def _metric() -> str:
    labels = {label: name for name, label in METRICS.items()}
    return labels[
        str(
            st.segmented_control(
                "Metric", list(labels), default="mAP@.5", required=True, key="metric", bind="query-params"
            )
        )
    ]


def _block(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """Lets the reader choose rows that may stand in one chart: a protocol and a dataset."""
    blocks = table.groupby(["dataset", "protocol"], sort=False)["mode"].agg(["nunique", "size"]).reset_index()
    blocks = blocks.sort_values(["nunique", "size"], ascending=False)
    names = [f"{entry.dataset}, {entry.protocol}" for entry in blocks.itertuples()]
    chosen = st.selectbox("Dataset and protocol", names, key=key, bind="query-params", width=380)
    dataset, _, protocol = str(chosen).rpartition(", ")
    return table[(table["dataset"] == dataset) & (table["protocol"] == protocol)]


def _ladder(table: pd.DataFrame) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        rows = _block(table, "data")
        metric = _metric()
        detectors = list(rows["detector"].value_counts().index)
        if len(detectors) > 1:
            detector = st.segmented_control(
                "Detector",
                detectors,
                format_func=look.detector_label,
                default=detectors[0],
                required=True,
                key="under",
                bind="query-params",
            )
            rows = rows[rows["detector"] == detector]
    drawn = charts.with_mode_labels(ladders(rows))
    drawn = drawn.assign(backbone=drawn["line"], value=drawn[metric], error=drawn[f"{metric}_error"])
    session.draw(charts.gains(drawn, METRICS[metric]), "mAP by mode of pretraining, a line a technique")
    coco = (
        " COCO is no step of the ladder: there the whole detector was trained, with labels."
        if (rows["mode"] == "coco").any()
        else ""
    )
    st.caption(_about(rows) + coco)


_STEPS = ["method", "maps", "corpus"]
"""What sets apart two pretrainings of one backbone."""


def ladders(rows: pd.DataFrame) -> pd.DataFrame:
    """Puts rows on lines from the bottom of the ladder to its top.

    A row stands on each line that it may be a step of: scratch begins the lines of all methods, and what was pretrained
    without anomaly maps those of all maps. No line has two rows on one step; a second one stands alone.

    Args:
        rows: Of `whole_table`, of one dataset, protocol and detector.

    Returns:
        The rows, some of them several times, with `line`, the name of the line.
    """
    rows = rows.assign(method=rows["method"].replace({"-": "", "detection": ""}))
    versions = rows["fingerprint"].nunique()
    parts = []
    for (_, version), kin in rows.groupby(["backbone", "fingerprint"], sort=False):
        steps = list(dict.fromkeys(kin[_STEPS].itertuples(index=False, name=None)))
        tops = [one for one in steps if not any(_leads(one, other) for other in steps)]
        for top in tops:
            mask = [_leads(one, top) or one == top for one in kin[_STEPS].itertuples(index=False, name=None)]
            name = _line(kin["backbone"].iloc[0], top, tops)
            parts.append(kin[mask].assign(line=name if versions == 1 else f"{name}, data {version[:8]}"))
    found = pd.concat(parts, ignore_index=True)
    number = found.groupby(["line", "mode"], sort=False).cumcount() + 1
    return found.assign(line=found["line"] + [f" #{n}" if n > 1 else "" for n in number])


def _leads(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether a pretraining is the other with something left open."""
    return one != other and all(mine in ("", theirs) for mine, theirs in zip(one, other, strict=True))


def _line(backbone: str, top: tuple[str, ...], tops: list[tuple[str, ...]]) -> str:
    """Names a line, by its maps and corpus only where others of its backbone and method have other ones."""
    method, *rest = top
    words = [look.model_label("yolov8", backbone, method or "-")]
    for place, word in enumerate(rest, start=1):
        if len({other[place] for other in tops if other[0] == method}) > 1:
            words.append(word or "no maps")
    return ", ".join(words)


def _about(rows: pd.DataFrame) -> str:
    measured = "Bars are standard errors over seeds of finetuning; a row with one seed has none."
    reported = "Reported rows are single runs: a step of a point or two may be luck."
    kinds = set(rows["trust"] == "reported")
    return " ".join([measured] * (False in kinds) + [reported] * (True in kinds))


def _cost(table: pd.DataFrame) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        known = table[table["parameters_m"].notna()]
        rows = _block(known, "data")
        metric = _metric()
        costs = {"parameters": "parameters_m", "milliseconds per image": "ms"}
        if rows["fps"].notna().any():
            cost_name = st.segmented_control(
                "Cost", list(costs), default="parameters", required=True, key="cost", bind="query-params"
            )
        else:
            cost_name = "parameters"
    cost = costs[str(cost_name)]
    rows = rows.assign(ms=1000 / rows["fps"])
    rows = rows[rows[cost].notna()]
    rows = _with_table6(rows, metric)
    drawn = rows.assign(front=pareto_front(rows[cost], rows["value"]))
    title = "parameters, millions" if cost == "parameters_m" else "milliseconds per image"
    session.draw(charts.pareto(drawn, cost, title, METRICS[metric]), "mAP against cost")
    st.caption(
        "Dashed: the front. For each row on it, nothing here is both cheaper and better. "
        + (
            "Parameters and speed of reported rows: the paper's Table 6, measured on its RTX 3090."
            if (rows["source"] == "reported").any()
            else ""
        )
    )


def _with_table6(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Adds the other detectors of the paper's Table 6 to its own rows."""
    drawn = charts.with_mode_labels(rows).assign(
        label=session.titles(rows), value=rows[metric], error=rows[f"{metric}_error"]
    )
    reported = set(rows["protocol"]) == {PAPER_PROTOCOL} and set(rows["dataset"]) == {"casting_billet"}
    if not reported:
        return drawn
    wide = (
        paper_entries("table6").pivot_table(index="detector", columns="metric", values="value").reset_index()
    )
    wide = wide[~wide["detector"].str.endswith("_agssp")]
    others = pd.DataFrame(
        {
            "label": wide["detector"].str.replace("_", "-"),
            "mode": "other detectors",
            "source": "reported",
            "value": wide[metric],
            "parameters_m": wide["params_m"],
            "ms": 1000 / wide["fps"],
        }
    )
    return pd.concat([drawn, others], ignore_index=True)


def pareto_front(cost: pd.Series, value: pd.Series) -> list[bool]:
    """Tells for each row whether nothing is as cheap or cheaper and better, or cheaper and as good.

    Args:
        cost: Less is better.
        value: More is better.
    """
    pairs = list(zip(cost, value, strict=True))
    return [
        not any(c <= cost_ and v >= value_ and (c, v) != (cost_, value_) for c, v in pairs)
        for cost_, value_ in pairs
    ]


def _few_images(table: pd.DataFrame) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        metric = _metric()
        tracks = {"Real surfaces": "real", "Generated surfaces": "procedural"}
        there = [words for words, track in tracks.items() if track in set(table["track"])]
        track = st.segmented_control(
            "Images", there, default=there[0], required=True, key="images", bind="query-params"
        )
        against = st.segmented_control(
            "Gain over",
            ["imagenet", "scratch"],
            format_func=look.mode_label,
            default="imagenet",
            required=True,
            key="over",
            bind="query-params",
        )
        rows = gains_over(table[table["track"] == tracks[str(track)]], str(against), metric)
        modes = [mode for mode in look.MODES if mode != "scratch" and mode in set(rows["mode"])]
        if not modes:
            st.info(
                f"No row on these images has a {look.mode_label(str(against))} row of the same detector and backbone "
                "beside it yet. Choose the other baseline, or the other images."
            )
            return
        mode = st.segmented_control(
            "Of",
            modes,
            format_func=look.mode_label,
            default=modes[-1],
            required=True,
            key="step",
            bind="query-params",
        )
    rows = charts.with_mode_labels(rows[rows["mode"] == mode])
    rows["series"] = _series(rows)
    rows["family"] = rows["dataset"].str.partition("/")[0]
    rows["dataset"] = rows["dataset"].map(look.dataset_label)
    if rows["images"].nunique() == 1:
        st.caption(
            f"All of these sets have {rows['images'].iloc[0]:.0f} training images: no trend to see here."
        )
    session.draw(
        charts.sizes(rows, METRICS[metric]), "Gain of pretraining over the number of training images"
    )
    st.caption(
        f"Points of {look.mode_label(str(mode))} above the {look.mode_label(str(against))} row of the same detector "
        "and backbone. Each point is a dataset; lines join a set with its mini sets, which have fewer training images "
        f"and the same validation images. {_about(rows)}"
    )
    number = st.column_config.NumberColumn
    st.dataframe(
        rows.sort_values(["images", "gain"], ascending=[True, False])[
            ["dataset", "images", "series", "gain", "error", "seeds"]
        ],
        hide_index=True,
        placeholder="",
        alt="Gains by dataset",
        column_config={
            "images": number("training images", format="%d"),
            "series": "technique",
            "gain": number(f"gain, {METRICS[metric]}", format="%+.1f"),
            "error": number("±", format="%.1f", help="Standard error over the seeds of both rows"),
        },
    )


def gains_over(table: pd.DataFrame, mode: str, metric: str) -> pd.DataFrame:
    """Returns the rows that have a baseline in a mode and a known number of training images.

    Args:
        table: Of `whole_table`.
        mode: Of the baselines.
        metric: A key of `METRICS`.

    Returns:
        The rows with `images`, `gain` (points) and `error` (standard error of the gain; NaN where a row has one seed).
    """
    found = deltas(table, mode)
    images = table["train_images"].astype("Float64").fillna(table["dataset"].map(_PAPER_SIZES))
    rows = table.assign(
        images=images.astype("float64"), gain=found[f"delta_{metric}"], error=found[f"delta_{metric}_error"]
    )
    return rows[rows["images"].notna() & rows["gain"].notna() & (rows["invalid_reason"] == "")]


def _series(rows: pd.DataFrame) -> list[str]:
    """Names techniques: by what differs, and by the protocol, since one line never joins two."""
    measured = rows[rows["trust"] != "reported"]
    several = [name for name in ("maps", "corpus", "protocol") if measured[name].nunique() > 1]
    return [
        ", ".join(
            [
                row.submission or look.model_label(row.detector, row.backbone, row.method),
                *(getattr(row, name) for name in several if row.trust != "reported" and getattr(row, name)),
                row.source,
            ]
        )
        for row in rows.itertuples()
    ]


_PAPER_SIZES = {  # as far as the paper says
    "casting_billet": 530,
    "casting_billet/mini50": 50,
    "steel_pipe": 613,
    "gc10_det/mini": 500,
    "fd": 540,
}


def _anomaly(table: pd.DataFrame) -> None:
    del table
    rows = session.board().anomaly
    dataset = st.selectbox(
        "Dataset", list(dict.fromkeys(rows["dataset"])), key="surface", bind="query-params", width=340
    )
    rows = rows[rows["dataset"] == dataset]
    drawn = rows.assign(
        label=[
            " ".join(filter(None, [row.detector, row.encoder, f"{row.shots} shot", row.switches]))
            for row in rows.itertuples()
        ],
        source=["reported" if trust == "reported" else "measured" for trust in rows["trust"]],
    )
    both = drawn.dropna(subset=["image_auroc", "pixel_auroc"])
    if len(both):
        session.draw(charts.scatter_anomaly(both), "Anomaly detectors: image AUROC over pixel AUROC")
    number = st.column_config.NumberColumn
    st.dataframe(
        rows.assign(trust=rows["trust"].map(look.trust_label), seeds=rows["seeds"].where(rows["seeds"] > 0))
        .drop(columns="dataset")
        .dropna(axis=1, how="all"),
        hide_index=True,
        placeholder="",
        alt="Rows of the anomaly benchmark",
        column_config={
            "image_auroc": number(
                "image AUROC", format="%.1f", help="Percent: is the image told from normal ones?"
            ),
            "pixel_auroc": number("pixel AUROC", format="%.1f", help="Percent: are the defect's pixels?"),
            "pixel_aupro": number("AUPRO", format="%.1f", help="Percent, up to a false positive rate of 0.3"),
            "mask_iou": number("mask IoU", format="%.1f", help="Percent, at the adaptive threshold"),
            "images_per_second": number("images/s", format="%.1f", help="On the machine of the record"),
        },
    )
    st.caption(
        "Top right is better. Reported rows: the paper's Table 4. Measure one: python -m benchmark anomaly --help"
    )


def _ablations(table: pd.DataFrame) -> None:
    del table
    st.markdown(
        "**Backbone pretraining** (the paper's Table 5): Swin-B, SimMIM, AGBP, YOLOv8 on Casting Billet; lower stages "
        "frozen or not, the last two stages distilled or not."
    )
    metric = _metric()
    entries = paper_entries("table5")
    entries = entries[entries["metric"] == metric]
    words = {"freeze_lower": "frozen", "distill_last_two": "two stages"}
    labels = [
        ", ".join(
            f"{words[name]}: {value}" for name, _, value in (part.partition("=") for part in note.split(";"))
        )
        for note in entries["note"]
    ]
    session.draw(
        charts.bars(
            entries.assign(label=labels)[["label", "value"]], "label", "value", f"{METRICS[metric]}, percent"
        ),
        "Table 5 of the paper",
    )
    st.markdown(
        "**Anomaly maps** (the paper's Table 4): what defect descriptions and V-V attention add, with few normal "
        "images."
    )
    rows = reported_anomaly_rows()
    rows = rows[(rows["detector"] == "kead") & (rows["dataset"] == "casting_billet")]
    drawn = pd.DataFrame(
        {
            "label": [f"{row.encoder}: {row.switches.replace('_', ' ')}" for row in rows.itertuples()],
            "value": rows["image_auroc"],
            "encoder": rows["encoder"],
        }
    )
    session.draw(charts.bars(drawn, "label", "value", "image AUROC, percent", "encoder"), "Ablation of KeAD")
    st.caption(
        f"{_REPORTED} Ablations of this project's own stages stand in the leaderboard as rows with other maps or "
        "settings."
    )
