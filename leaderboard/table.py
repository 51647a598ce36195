"""The board's table: measured rows and the paper's, each against its baseline; filters, layouts and downloads of it."""

from __future__ import annotations

import functools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from benchmark.compare import baseline_of
from benchmark.reported import PAPER
from benchmark.submit.contamination import contamination
from datasets_builders import registry
from leaderboard.look import MODES, plain_cell

TECHNIQUE = ["trust", "protocol", "detector", "backbone", "method", "mode", "maps", "corpus", "submission"]
"""What a row is about, on whichever dataset."""
NUMBERS = [
    "map50",
    "map50_error",
    "map50_95",
    "map50_95_error",
    "best_map50",
    "parameters_m",
    "fps",
    "seconds",
]
COLUMNS = [
    *("row_id", *TECHNIQUE, "track", "dataset", "fingerprint", "train_images", "seeds", *NUMBERS),
    *("delta_map50", "delta_map50_error", "delta_map50_95", "delta_map50_95_error", "against"),
    *("created", "invalid_reason", "contamination"),
]
"""Of the board's table; see `whole_table`."""

METRICS = {"map50": "mAP@.5", "map50_95": "mAP@.5:.95"}
FILTERS = ["trust", "protocol", "dataset", "backbone", "detector", "method", "mode"]

_TABLE6 = {"csp_darknet:s": "csp_darknet_agssp", "swin:base": "swin_base_agssp"}
_BACKBONES = ("csp_darknet", "resnet", "swin")


def paper_entries(table: str) -> pd.DataFrame:
    """Returns one table of the paper: the columns of `benchmark.reported.PAPER`, `value` a number."""
    entries = pd.read_csv(PAPER, keep_default_na=False)
    entries = entries[entries["table"] == table]
    return entries.assign(value=pd.to_numeric(entries["value"]))


def whole_table(rows: pd.DataFrame, submissions: pd.DataFrame | None = None) -> pd.DataFrame:
    """Returns the board's rows for people, each with its difference to its baseline, in the paper's order.

    Args:
        rows: `leaderboard.data.Board.rows`.
        submissions: `leaderboard.data.Board.submissions`: gives a row the `contamination` that its sender stated; that
            of other rows follows from their corpus.

    Returns:
        `COLUMNS`. As there, but `backbone` is `name:variant`, `seeds` is how many (1 for reported rows), texts that are
        not there are empty, and `fps` is images a second: of reported rows, as their parameters, Table 6's of the same
        network, whatever its weights. `against`, `delta_map50` and `delta_map50_95`: as of `deltas`.
    """
    table = rows.assign(
        backbone=rows["backbone"] + ":" + rows["variant"],
        seeds=[max(1, len(seeds)) for seeds in rows["seeds"]],
        fps=rows["images_per_second"],
    )
    table = table.assign(contamination=_seen(table, submissions))
    table = _with_costs(table)
    places = [_place(entry) for entry in table.fillna({"maps": "", "submission": ""}).itertuples()]
    table = table.iloc[sorted(range(len(table)), key=places.__getitem__)].reset_index(drop=True)
    table = table.assign(submission=table["submission"].fillna(""))
    table = table.join(deltas(table)).reindex(columns=COLUMNS)
    texts = table.columns[table.dtypes == "object"]
    return table.assign(**{name: table[name].where(table[name].notna(), "") for name in texts})


def _seen(table: pd.DataFrame, submissions: pd.DataFrame | None) -> pd.Series:
    """Says of each row where its pretraining met images of its own dataset, or None.

    Of what somebody sent, as the sender stated; of what this project's stages pretrained, by its corpus.
    """
    sent = {} if submissions is None else dict(submissions[["slug", "contamination"]].to_numpy())
    cards = registry.cards()

    @functools.cache
    def found(corpus: str | None, dataset: str, slug: str | None) -> str | None:
        if slug is not None:
            stated = str(sent.get(slug) or "").split("; ")
            return "; ".join(part for part in stated if part.startswith(f"{dataset}: ")) or None
        if corpus is None or dataset not in cards:
            return None
        entries = contamination([corpus], [dataset])
        return "; ".join(f"{entry.dataset}: {entry.source}: {entry.reason}" for entry in entries) or None

    places = table[["corpus", "dataset", "submission_slug"]].itertuples(index=False, name=None)
    values = [found(*(None if pd.isna(value) else value for value in place)) for place in places]
    return pd.Series(values, index=table.index, dtype="object")


def _with_costs(table: pd.DataFrame) -> pd.DataFrame:
    """Gives reported rows the parameters and the speed of their network."""
    entries = paper_entries("table6")
    costs = entries.pivot_table(index="detector", columns="metric", values="value")
    networks = (
        table["backbone"].map(_TABLE6).where((table["trust"] == "reported") & (table["detector"] == "yolov8"))
    )
    return table.assign(
        parameters_m=table["parameters_m"].fillna(networks.map(costs["params_m"])),
        fps=table["fps"].fillna(networks.map(costs["fps"])),
    )


def deltas(table: pd.DataFrame, mode: str | None = None) -> pd.DataFrame:
    """Measures every row against its baseline.

    Args:
        table: Of `whole_table`.
        mode: Of the baselines; None takes `imagenet`, or `scratch` where the backbone has no such row.

    Returns:
        One line a row, with its index: `against` (the baseline's mode, empty where there is none), `delta_map50` and
        `delta_map50_95` in points, and `delta_map50_error` and `delta_map50_95_error`, the standard errors of these
        differences over the seeds of both rows. What somebody sent is no baseline: nobody moves others' numbers.
    """
    found: dict[Any, dict[str, Any]] = {}
    groups: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for entry in table.fillna({"fingerprint": ""}).itertuples():
        place = entry.protocol, entry.dataset, entry.fingerprint, entry.detector, entry.backbone
        groups[place].append(entry)
    for entries in groups.values():
        own = [entry for entry in entries if not entry.submission]
        wanted = mode or ("imagenet" if any(entry.mode == "imagenet" for entry in own) else "scratch")
        baselines = [entry for entry in own if entry.mode == wanted]
        for entry in entries:
            baseline = baseline_of(entry, baselines, wanted)
            if baseline is None:
                continue
            line: dict[str, Any] = {"against": wanted}
            for metric in METRICS:
                line[f"delta_{metric}"] = round(getattr(entry, metric) - getattr(baseline, metric), 9)
                errors = [getattr(one, f"{metric}_error") for one in (entry, baseline)]
                line[f"delta_{metric}_error"] = math.hypot(*errors)
            found[entry.Index] = line
    names = ["against", *(f"delta_{metric}{end}" for metric in METRICS for end in ("", "_error"))]
    lines = pd.DataFrame.from_dict(found, orient="index", columns=names).reindex(table.index)
    return lines.assign(against=lines["against"].fillna("")).astype(dict.fromkeys(names[1:], "float64"))


def _place(row: Any) -> tuple[Any, ...]:
    """The paper's order: by detector, backbone and method, and then up the ladder of modes."""
    family, _, variant = row.backbone.partition(":")
    method = "" if row.method in ("-", "detection") else row.method

    def position(order: Sequence[str], word: str) -> int:
        return order.index(word) if word in order else len(order)

    return (
        row.detector != "yolov8",
        row.detector,
        position(_BACKBONES, family),
        family,
        row.trust != "reported",
        variant,
        method,
        position(tuple(MODES), row.mode),
        row.protocol,
        row.submission,
        row.maps,
    )


def filtered(table: pd.DataFrame, chosen: Mapping[str, Sequence[str]], words: str = "") -> pd.DataFrame:
    """Returns the rows that a reader asked for.

    Args:
        table: Of `whole_table`.
        chosen: Column -> values that count; an empty choice takes all.
        words: Each must be part of a row's text columns, in whatever case.
    """
    keep = pd.Series(True, index=table.index)
    for column, values in chosen.items():
        if values:
            keep &= table[column].isin(list(values))
    if words.strip():
        columns = [*TECHNIQUE, "dataset", "row_id"]
        text = table[columns].astype(str).agg(" ".join, axis=1).str.lower()
        for word in words.lower().split():
            keep &= text.str.contains(word, regex=False)
    return table[keep]


def by_dataset(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Lays rows out as the paper's Table 2: a technique a line, a dataset a group of columns.

    Args:
        table: Of `whole_table`.
        metric: A key of `METRICS`.

    Returns:
        `TECHNIQUE`, parameters_m, fps, seeds (fewest), invalid_reason, contamination, and for each dataset `DATASET`,
        `DATASET ±` and `DATASET Δ`; the
        datasets of most rows come first. Of two rows of one technique on two versions of a dataset, each has a line.
    """
    fixed = [*TECHNIQUE, "parameters_m", "fps", "seeds", "invalid_reason", "contamination"]
    table = table.reset_index(drop=True)
    copy = table.groupby([*TECHNIQUE, "dataset"], sort=False, dropna=False).cumcount()
    line = table.assign(copy=copy).groupby([*TECHNIQUE, "copy"], sort=False, dropna=False).ngroup()
    # The first that is not empty counts: a technique may have met the images of one of its datasets alone.
    table = table.assign(contamination=table["contamination"].replace("", None)).set_index(
        line.rename("line")
    )
    first = [name for name in fixed if name != "seeds"]
    parts = [table.groupby("line").agg({**dict.fromkeys(first, "first"), "seeds": "min"})]
    for dataset in table["dataset"].value_counts(sort=True).index:
        columns = {metric: dataset, f"{metric}_error": f"{dataset} ±", f"delta_{metric}": f"{dataset} Δ"}
        parts.append(table.loc[table["dataset"] == dataset, list(columns)].rename(columns=columns))
    wide = pd.concat(parts, axis=1).reset_index(drop=True)
    wide = wide.assign(contamination=wide["contamination"].astype("object").fillna(""))
    return wide[[*fixed, *[name for name in wide.columns if name not in fixed]]]


def to_csv(table: pd.DataFrame) -> str:
    """Returns the rows as CSV, unrounded; texts that a spreadsheet would compute are quoted by an apostrophe."""
    safe = table.map(plain_cell).rename(columns={name: plain_cell(name) for name in table.columns})
    return str(safe.to_csv(index=False, lineterminator="\n"))


def to_json(table: pd.DataFrame) -> str:
    """Returns the rows as a JSON list of objects; an empty number is null."""
    plain = table.astype("object").where(table.notna(), None)
    return json.dumps(plain.to_dict(orient="records"), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
