"""What the paper reports, as data: single numbers that nobody here measured, without detections or errors."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

PAPER = Path(__file__).with_name("paper_results.csv")
"""Columns: table, detector, backbone, method, mode, pretrain_set, dataset, metric, value, note. Table 4's detector and
Table 6's model stand under `backbone`."""

_TABLES = ("table2", "table3", "fig6e")  # whose rows are cells of this benchmark
_BACKBONES = {
    "csp_darknet": "csp_darknet:s",
    "resnet50": "resnet:50",
    "swin_base": "swin:base",
}
_DATASETS = {"gc10_mini": "gc10_det/mini", "casting_billet_mini50": "casting_billet/mini50"}


@dataclass(frozen=True)
class ReportedRow:
    """One technique on one dataset, as the paper prints it.

    Attributes:
        dataset: This project's name of it.
        detector: Such as `yolov8`.
        backbone: `name:variant`.
        method: Such as `simmim`, or `-`.
        mode: Such as `scratch`.
        map50: mAP@.5 in percent.
        map50_95: mAP@.5:.95 in percent.
    """

    dataset: str
    detector: str
    backbone: str
    method: str
    mode: str
    map50: float
    map50_95: float


def reported_rows() -> list[ReportedRow]:
    """Returns the paper's Table 2, Table 3 and Figure 6e, in its order."""
    cells: dict[tuple[str, str, str, str, str], dict[str, float]] = {}
    with PAPER.open(encoding="utf-8", newline="") as file:
        for entry in csv.DictReader(file):
            if entry["table"] in _TABLES:
                dataset = _DATASETS.get(entry["dataset"], entry["dataset"])
                backbone = _BACKBONES[entry["backbone"]]
                cell = (dataset, entry["detector"], backbone, entry["method"], entry["mode"])
                cells.setdefault(cell, {})[entry["metric"]] = float(entry["value"])
    return [ReportedRow(*cell, values["map50"], values["map50_95"]) for cell, values in cells.items()]
