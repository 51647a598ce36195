"""Everything about one row: what it is, how far to trust it, how it trained, what it detects, how to make it again."""

from __future__ import annotations

import shlex

import pandas as pd
import streamlit as st

from benchmark.provenance import how
from benchmark.records import Record, StoredRecord, Trust
from benchmark.rows import Row
from datasets_builders.errors import UserError
from leaderboard import charts, look, pictures, scores, session
from leaderboard.table import METRICS

_SAMPLES = 6
_AS_SENT = (
    " The numbers of these two epochs were recomputed from the detections; the rest of the curve, the losses, times "
    "and the machine stand as they were sent."
)


def page() -> None:
    """Draws the page."""
    look.heading("Record", "Everything that is known about one row of the board.")
    table = session.table()
    ids = table["row_id"].tolist()
    wanted = st.query_params.get("row")
    if wanted is not None and wanted not in ids:
        st.warning(
            f"This board has no row {look.escape(wanted[:80])}. It may have been withdrawn, or the address is wrong."
        )
    names = dict(zip(ids, _names(table), strict=True))
    measured = table[table["trust"] != "reported"]["row_id"].tolist()
    start = wanted if wanted in names else (measured or ids)[0]
    order = [*measured, *table[table["trust"] == "reported"]["row_id"]]
    chosen = st.selectbox(
        "Row",
        order,
        index=order.index(start),
        format_func=names.__getitem__,
        key=f"row-{start}",
    )
    if chosen != wanted:
        st.query_params["row"] = chosen
    line = table[table["row_id"] == chosen].iloc[0]
    look.name(names[chosen].partition(" — ")[0])
    _at_a_glance(line)
    if line["trust"] == "reported":
        _reported(table, line)
        return
    try:
        row = session.row(chosen)
    except UserError as error:
        st.error(f"A record of this row cannot be read any more. {look.escape(str(error))}")
        return
    _measured(row, line)


def _names(table: pd.DataFrame) -> list[str]:
    place = [
        f"{look.dataset_label(d)}, {p}" for d, p in zip(table["dataset"], table["protocol"], strict=True)
    ]
    return [f"{title} — {where}" for title, where in zip(session.titles(table), place, strict=True)]


def _at_a_glance(line: pd.Series) -> None:
    badge, meaning = look.TRUSTS[line["trust"]]
    st.caption(
        f"{badge} · {look.escape(look.dataset_label(line['dataset']))} · {look.escape(line['protocol'])}. {meaning}"
    )
    if line["contamination"]:
        st.warning(f"May have seen images it is measured on: {look.escape(line['contamination'])}")
    if line["invalid_reason"]:
        st.warning(f"The protocol of this row no longer counts: {look.escape(line['invalid_reason'])}")

    def shown(metric: str) -> str:
        error = line[f"{metric}_error"]
        return f"{line[metric]:.1f}" + ("" if pd.isna(error) else f" ± {error:.1f}")

    seeds = f"{line['seeds']} seed" + ("s" if line["seeds"] > 1 else ", so no error bar")
    tiles = [(shown("map50"), "mAP@.5", seeds), (shown("map50_95"), "mAP@.5:.95", "percent")]
    if line["against"]:
        tiles.append(
            (f"{line['delta_map50']:+.1f}", f"to {look.mode_label(line['against'])}", "points of mAP@.5")
        )
    if pd.notna(line["parameters_m"]):
        tiles.append((f"{line['parameters_m']:.1f} M", "parameters", "trainable"))
    if pd.notna(line["seconds"]):
        tiles.append((session.duration(line["seconds"]), "finetuning", "mean of the seeds, wall time"))
    look.tiles(tiles)


def _reported(table: pd.DataFrame, line: pd.Series) -> None:
    st.info(
        "The paper prints this number. It left no detections, so nothing about it can be recomputed or compared here."
    )
    kin = table[
        (table["detector"] == line["detector"])
        & (table["backbone"] == line["backbone"])
        & (table["method"] == line["method"])
        & (table["mode"] == line["mode"])
    ]
    st.subheader("The same technique elsewhere", anchor=False)
    columns = ["trust", "protocol", "dataset", *METRICS, "delta_map50"]
    st.dataframe(
        kin[columns].assign(
            trust=kin["trust"].map(look.trust_label), dataset=kin["dataset"].map(look.dataset_label)
        ),
        hide_index=True,
        placeholder="",
        column_config={
            **{name: st.column_config.NumberColumn(label, format="%.1f") for name, label in METRICS.items()},
            "delta_map50": st.column_config.NumberColumn("Δ mAP@.5", format="%+.1f"),
        },
    )
    st.subheader("Measure it yourself", anchor=False)
    method = f" --method {line['method']}" if line["method"] not in ("-", "detection") else ""
    st.code(
        f"python -m benchmark run --backbone {line['backbone']} --mode {line['mode']}{method}"
        f" --detector {line['detector']} --dataset {line['dataset']} --protocol paper-v1",
        language="bash",
    )


def _measured(row: Row, line: pd.Series) -> None:
    with st.container(horizontal=True):
        session.link("compare", "Compare with another row", {"rows": line["row_id"]})
    parts = st.tabs(["Result", "Detections", "Pretraining", "Provenance", "Make it again"])
    with parts[0]:
        _result(row)
    with parts[1]:
        _detections(row)
    with parts[2]:
        _pretraining(row, line)
    with parts[3]:
        _provenance(row)
    with parts[4]:
        _again(row)


def _result(row: Row) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Training", anchor=False)
        points = pd.DataFrame(
            [
                {"epoch": point.epoch, "seed": str(stored.record.cell.seed), "value": point.map50}
                for stored in row.records
                for point in stored.record.curve
                if point.map50 is not None
            ]
        )
        if len(points):
            session.draw(charts.curve(points, "mAP@.5"), "mAP over the epochs of training, a line a seed")
        lost = pd.DataFrame(
            [
                {"epoch": point.epoch, "seed": str(stored.record.cell.seed), "loss": name, "value": value}
                for stored in row.records
                for point in stored.record.curve
                for name, value in point.losses.items()
            ]
        )
        if len(lost):
            with st.expander("Losses"):
                session.draw(charts.losses(lost), "Losses over the epochs of training")
    with right:
        st.subheader("Kinds of defects", anchor=False)
        table = _per_class(row)
        session.draw(
            charts.bars(table.dropna(subset=["AP@.5"]), "class", "AP@.5", "AP@.5, percent, mean over seeds"),
            "AP by class",
        )
    st.dataframe(
        table,
        hide_index=True,
        placeholder="no objects",
        column_config={
            name: st.column_config.NumberColumn(name, format="%.1f")
            for name in ("AP@.5", "AP@.5:.95", "recall")
        },
    )
    records = [stored.record for stored in row.records]
    st.caption(
        f"Last epoch: {records[0].last.epoch}. Best epoch by mAP@.5 on the same images (the paper's choice, and "
        "optimistic): "
        + ", ".join(f"{record.best.metrics.map50:.1f} at epoch {record.best.epoch}" for record in records)
        + "."
        + (_AS_SENT if records[0].trust is Trust.SUBMITTED else "")
    )


def _per_class(row: Row) -> pd.DataFrame:
    entries = [
        {
            "class": entry.name,
            "objects": entry.objects,
            "AP@.5": entry.ap50,
            "AP@.5:.95": entry.ap50_95,
            "recall": entry.recall,
        }
        for stored in row.records
        for entry in stored.record.last.metrics.per_class
    ]
    table = pd.DataFrame(entries).astype(dict.fromkeys(("AP@.5", "AP@.5:.95", "recall"), "float64"))
    return table.groupby("class", sort=False).mean().reset_index().astype({"objects": "int64"})


def _detections(row: Row) -> None:
    record = row.records[0]
    reason = scores.why_not(row.dataset) or pictures.sheet_possible(row.dataset)
    if reason:
        st.info(look.escape(reason))
        return
    st.markdown(
        "Images of the validation split, chosen by lot, at the score of highest F1. Seed "
        f"{record.record.cell.seed}. Blue: finds "
        "a defect. Orange: finds none. Yellow dashes: a defect that is missed."
    )
    show_sheet([record], _SAMPLES, f"samples-{record.record.key[:12]}")


def show_sheet(records: list[StoredRecord], number: int, key: str) -> None:
    """Draws images with what records detect; where a dataset must be generated first, asks before."""
    from datasets_builders import is_ready

    dataset = records[0].record.dataset.name
    if not is_ready(dataset) and not st.button(
        f"Generate {dataset} and draw (about 20 s, once)", key=key, icon=":material/image:"
    ):
        return
    try:
        with st.spinner("Drawing images with their detections"):
            path = pictures.sheet(records, number)
    except UserError as error:
        st.error(look.escape(str(error)))
        return
    st.image(path.read_bytes(), width="content", output_format="PNG")


def _pretraining(row: Row, line: pd.Series) -> None:
    record = row.records[0].record
    if line["submission"]:
        _submission(line)
    if record.weights is None:
        st.markdown(
            "Training began from random values: there is nothing to load, and nothing was pretrained."
        )
        return
    weights = record.weights
    look.facts(
        {
            "weights from": weights.source,
            "sha256": weights.sha256,
            "taken over": f"{weights.loaded} tensors of the {weights.scope}, {weights.share_of_backbone:.1%} of "
            "the backbone's parameters",
            "reinitialised": f"{len(weights.reinitialised)} tensors, whose shapes differ",
            "missing": f"{len(weights.missing)} tensors that the weights do not have",
            "left over": f"{len(weights.unexpected)} tensors that the detector does not have",
        }
    )
    lists = {
        "reinitialised": weights.reinitialised,
        "missing": weights.missing,
        "left over": weights.unexpected,
    }
    named = [(what, name) for what, names in lists.items() for name in names]
    if named:
        with st.expander(f"The {len(named)} tensors by name"):
            st.dataframe(pd.DataFrame(named, columns=["what", "tensor"]), hide_index=True)
    if record.pretraining is None:
        st.caption("These weights were made elsewhere; this project knows no more of how.")
        return
    st.subheader("Stages of pretraining", anchor=False)
    look.facts({"corpus": record.pretraining.corpus, "anomaly maps": record.pretraining.maps or "none"})
    for name, stage in record.pretraining.stages.items():
        with st.expander(f"{look.escape(name)}, key {stage.key[:12]}"):
            st.json({"summary": stage.summary, "inputs": stage.inputs}, expanded=2)


def _submission(line: pd.Series) -> None:
    submissions = session.board().submissions
    found = submissions[submissions["name"] == line["submission"]]
    if found.empty:
        return
    entry = found.iloc[0]
    look.facts(
        {
            "submission": str(entry["name"]),
            "method": str(entry["method_text"] or ""),
            "licence": str(entry["licence"] or ""),
            "pretrained on": str(entry["pretrained_on"] or "not stated"),
        }
    )


def _provenance(row: Row) -> None:
    records = [stored.record for stored in row.records]
    first = records[0]
    commit = first.environment.git_commit
    look.facts(
        {
            "protocol": f"{first.protocol.id}, sha256 {first.protocol.sha256[:12]}",
            "dataset": f"{first.dataset.name}, fingerprint {first.dataset.fingerprint[:12]}, "
            + ", ".join(f"{count} {split}" for split, count in first.dataset.splits.items()),
            "code": f"commit {commit[:12] if commit else 'not known'}"
            + (" with changes that were not committed" if first.environment.git_dirty else ""),
            "machine": _machine(first),
            "finished": ", ".join(f"{record.created:%Y-%m-%d %H:%M} UTC" for record in records),
        }
    )
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "seed": record.cell.seed,
                    "mAP@.5": record.last.metrics.map50,
                    "key": record.key,
                    "detections sha256": record.last.detections_sha256,
                    "interruptions": record.resumes,
                    "finetuning": session.duration(record.cost["finetune"].seconds)
                    if "finetune" in record.cost
                    else "",
                }
                for record in records
            ]
        ),
        hide_index=True,
        column_config={"mAP@.5": st.column_config.NumberColumn(format="%.2f")},
    )
    with st.expander("Settings, software, costs: the records in full"):
        st.json(first.model_dump(mode="json", exclude={"curve"}), expanded=1)
    st.markdown("Check that the numbers follow from the stored detections:")
    st.code(
        shlex.join(["python", "-m", "benchmark", "verify", str(row.records[0].path.parent)]), language="bash"
    )


def _machine(record: Record) -> str:
    environment = record.environment
    gpus = ", ".join(gpu.name for gpu in environment.gpus) or "no GPU"
    return (
        f"{environment.cpu or 'processor not known'}, {environment.cores} cores, "
        f"{environment.memory_mib / 1024:.0f} GiB, "
        f"{gpus}; computed on {environment.device}"
    )


def _again(row: Row) -> None:
    st.markdown("Everything that must be the same, and the command. It writes to a folder of its own.")
    for stored in row.records:
        try:
            words = how(stored.path)
        except UserError as error:
            st.info(look.escape(str(error)))
            continue
        if len(row.records) > 1:
            st.caption(f"Seed {stored.record.cell.seed}")
        st.code(words, language="bash", wrap_lines=True)
