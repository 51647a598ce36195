"""The leaderboard page: `python -m leaderboard`."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import streamlit as st

from leaderboard.anomaly import measured_anomaly_rows, reported_anomaly_rows
from leaderboard.data import measured_rows, reported_rows

RESULTS_VARIABLE = "AGSSP_BENCH_RESULTS"

_COLUMNS = {
    "map50": st.column_config.NumberColumn(
        "mAP@.5", format="%.1f", help="Percent, last epoch, mean over seeds"
    ),
    "map50_error": st.column_config.NumberColumn("±", format="%.1f", help="Standard error over seeds"),
    "map50_95": st.column_config.NumberColumn("mAP@.5:.95", format="%.1f"),
    "map50_95_error": st.column_config.NumberColumn("± ", format="%.1f"),
    "parameters_m": st.column_config.NumberColumn("params (M)", format="%.1f"),
}

_ANOMALY_COLUMNS = {
    name: st.column_config.NumberColumn(label, format="%.1f", help=help_)
    for name, label, help_ in (
        ("image_auroc", "image AUROC", "Percent, mean over seeds"),
        ("pixel_auroc", "pixel AUROC", "Percent, mean over seeds"),
        ("pixel_aupro", "AUPRO", "Percent, up to a false positive rate of 0.3"),
        ("mask_iou", "mask IoU", "Percent, at the adaptive threshold"),
        ("images_per_second", "images/s", "On the machine of the record"),
    )
}


def _filtered(rows: pd.DataFrame, columns: tuple[str, ...], key: str) -> pd.DataFrame:
    for column, place in zip(columns, st.columns(len(columns)), strict=True):
        chosen = place.multiselect(column, sorted(rows[column].unique()), key=f"{key}-{column}")
        if chosen:
            rows = rows[rows[column].isin(chosen)]
    return rows


def main() -> None:
    """Draws the page."""
    st.set_page_config(page_title="AGSSP-Bench", layout="wide")
    st.title("AGSSP-Bench")
    st.write(
        "Which pretraining makes a surface-defect detector better, by how much, and can you trust the number?"
    )
    results = Path(os.environ.get(RESULTS_VARIABLE, "results"))
    measured = measured_rows(results)
    st.header("Measured")
    if measured.rows.empty:
        st.info(
            f"No records in `{results}` yet. Make one: `python -m benchmark run --backbone swin --mode scratch`"
        )
    else:
        st.write("Each row is recomputable from the detections stored with its records.")
        shown = _filtered(measured.rows, ("protocol", "dataset", "backbone", "mode"), "measured")
        st.dataframe(shown, hide_index=True, width="stretch", column_config=_COLUMNS)
    for damaged in measured.damaged:
        st.warning(f"Left out: {damaged.reason}")
    st.header("Reported in the paper")
    st.write("Single runs, best epoch; not measured here.")
    shown = _filtered(reported_rows(), ("dataset", "backbone", "method", "mode"), "reported")
    st.dataframe(shown, hide_index=True, width="stretch", column_config=_COLUMNS)
    _show_anomaly(results)


def _show_anomaly(results: Path) -> None:
    """Draws the anomaly benchmark: what detectors find without being trained."""
    st.header("Anomaly maps")
    measured = measured_anomaly_rows(results)
    if measured.rows.empty:
        st.info(
            "No records of the anomaly benchmark yet. Make one: `python -m benchmark anomaly --detector kead --encoder "
            "tiny --dataset casting_billet_synthetic`"
        )
    else:
        st.write("Measured; each row is recomputable from the maps stored with its records.")
        st.dataframe(measured.rows, hide_index=True, width="stretch", column_config=_ANOMALY_COLUMNS)
    for damaged in measured.damaged:
        st.warning(f"Left out: {damaged.reason}")
    st.write("Reported in the paper's Table 4; not measured here.")
    shown = _filtered(reported_anomaly_rows(), ("dataset", "detector", "encoder"), "anomaly")
    st.dataframe(shown, hide_index=True, width="stretch", column_config=_ANOMALY_COLUMNS)


if __name__ == "__main__":
    main()
