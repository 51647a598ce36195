"""The board's charts: tables in, Altair charts out. No colour speaks alone: shapes, positions and words say it too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import altair as alt
import pandas as pd

from leaderboard.look import MODES, faint, ink, mode_label, palette

alt.data_transformers.disable_max_rows()

_SHAPES = [
    "cross",
    "square",
    "triangle-up",
    "diamond",
    "triangle-down",
    "circle",
    "triangle-right",
    "triangle-left",
]
_MODES = list(MODES.values())
HEIGHT = 420
_ENTRY = 24
"""Pixels of a line of a legend below a chart: they are part of its height."""
Drawing: TypeAlias = alt.LayerChart | alt.FacetChart | alt.Chart


def _mode_colour(modes: Sequence[str], legend: bool = True) -> alt.Color:
    """The theme's colours in the order of the ladder; modes nobody knows follow."""
    others = sorted({mode for mode in modes if mode not in _MODES})
    return alt.Color(
        "mode:N",
        scale=alt.Scale(domain=[*_MODES, *others]),
        legend=alt.Legend(
            title=None, orient="top", columns=3, values=[m for m in [*_MODES, *others] if m in set(modes)]
        )
        if legend
        else None,
    )


def _mode_shape(modes: Sequence[str]) -> alt.Shape:
    others = sorted({mode for mode in modes if mode not in _MODES})
    domain = [*_MODES, *others]
    shapes = (_SHAPES * 3)[: len(domain)]
    return alt.Shape(
        "mode:N",
        scale=alt.Scale(domain=domain, range=shapes),
        legend=alt.Legend(title=None, orient="top", columns=3, values=[m for m in domain if m in set(modes)]),
    )


def _below() -> alt.Legend:
    """One name a line: on a phone a second column would be cut."""
    return alt.Legend(
        title=None, orient="bottom", columns=1, labelLimit=300, rowPadding=4, symbolStrokeWidth=3
    )


def _fill() -> alt.FillOpacity:
    """Measured marks are full, reported ones hollow."""
    return alt.FillOpacity(
        "source:N",
        scale=alt.Scale(domain=["measured", "reported"], range=[0.9, 0.0]),
        legend=None,
    )


def ranking(rows: pd.DataFrame, metric: str, title: str) -> Drawing:
    """Draws rows as dots with their standard error, best first.

    Args:
        rows: Columns label (distinct), mode (label), source (`measured` or `reported`), value and error (percent; NaN
            where there is none).
        metric: Name of the metric.
        title: Name of the dataset.
    """
    rows = rows.assign(low=rows["value"] - rows["error"], high=rows["value"] + rows["error"])
    order = rows.sort_values("value", ascending=False)["label"].tolist()
    y = alt.Y("label:N", sort=order, title=None, axis=None)
    low, high = rows[["value", "low"]].min().min(), rows[["value", "high"]].max().max()
    room = max((high - low) * 0.1, 1.0)
    words = f"{metric} on {title}, percent"
    scale = alt.Scale(domain=[max(0, low - room), min(100, high + room)], nice=False, zero=False)
    base = alt.Chart(rows).encode(y=y)
    bars = (
        base.transform_filter("isValid(datum.error)")
        .mark_rule(strokeWidth=2.5, opacity=0.7)
        .encode(x=alt.X("low:Q", title=words, scale=scale), x2="high:Q", color=_mode_colour(rows["mode"]))
    )
    dots = base.mark_point(size=95, strokeWidth=2, opacity=1).encode(
        x=alt.X("value:Q", title=words, scale=scale),
        color=_mode_colour(rows["mode"]),
        fill=_mode_colour(rows["mode"], legend=False),
        fillOpacity=_fill(),
        shape=_mode_shape(rows["mode"]),
        tooltip=[
            alt.Tooltip("label:N", title="row"),
            alt.Tooltip("value:Q", title=metric, format=".1f"),
            alt.Tooltip("error:Q", title="± standard error", format=".1f"),
            alt.Tooltip("source:N", title="source"),
        ],
    )
    # Names stand above their marks: beside them they would leave no room on a phone.
    names = base.mark_text(align="left", dy=-17, fontSize=12, color=ink()).encode(
        x=alt.value(2), text="label:N"
    )
    return alt.layer(names, bars, dots).properties(height=42 * len(rows) + 120)


def gains(rows: pd.DataFrame, metric: str) -> Drawing:
    """Draws the ladder of modes: from each backbone's first step to its last, as a slope over the modes.

    COCO is no step of it, since there the whole detector was trained with labels: no line leads to its dots.

    Args:
        rows: Columns backbone (label), mode (label), source, value, error.
        metric: Name of the y axis.
    """
    present = [mode for mode in _MODES if mode in set(rows["mode"])]
    x = alt.X("mode:N", sort=present, title=None, axis=alt.Axis(labelAngle=-35, ticks=False, grid=True))
    y = alt.Y("value:Q", title=f"{metric}, percent", scale=alt.Scale(zero=False, padding=12))
    names = sorted(rows["backbone"].unique())
    # Clicking a name in the legend brings its line forward.
    chosen = alt.selection_point(fields=["backbone"], bind="legend")
    colour = alt.Color(
        "backbone:N",
        scale=alt.Scale(domain=names, range=palette()),
        legend=_below(),
    )
    shape = alt.Shape("backbone:N", scale=alt.Scale(domain=names, range=(_SHAPES * 3)[: len(names)]))
    opacity = alt.condition(chosen, alt.value(1.0), alt.value(0.15))
    base = alt.Chart(rows)
    dash = alt.StrokeDash(
        "source:N", legend=None, scale=alt.Scale(domain=["measured", "reported"], range=[[1, 0], [5, 3]])
    )
    lines = (
        base.transform_filter(alt.datum.mode != MODES["coco"])
        .mark_line(strokeWidth=2.5)
        .encode(x=x, y=y, color=colour, detail="backbone:N", strokeDash=dash, opacity=opacity)
    )
    bars = (
        base.transform_calculate(low="datum.value - datum.error", high="datum.value + datum.error")
        .transform_filter("isValid(datum.error)")
        .mark_rule(strokeWidth=2)
        .encode(x=x, y=alt.Y("low:Q", title=f"{metric}, percent"), y2="high:Q", color=colour, opacity=opacity)
    )
    dots = base.mark_point(size=110, filled=True).encode(
        x=x,
        y=y,
        color=colour,
        shape=shape,
        opacity=opacity,
        tooltip=[
            alt.Tooltip("backbone:N"),
            alt.Tooltip("mode:N"),
            alt.Tooltip("value:Q", title=metric, format=".1f"),
            alt.Tooltip("error:Q", title="± standard error", format=".1f"),
            alt.Tooltip("source:N", title="source"),
        ],
    )
    return alt.layer(lines, bars, dots).add_params(chosen).properties(height=HEIGHT + _ENTRY * len(names))


def pareto(rows: pd.DataFrame, cost: str, cost_title: str, metric: str) -> Drawing:
    """Draws accuracy against a cost, and the front of rows that nothing beats in both.

    Args:
        rows: Columns label, mode, source, value, error, the cost's, and front (bool).
        cost: Column of the x axis, above 0.
        cost_title: Its name.
        metric: Name of the y axis.
    """
    low, high = rows[cost].min(), rows[cost].max()
    scale = alt.Scale(type="log", domain=[low / 1.7, high * 2.2], nice=False)
    x = alt.X(f"{cost}:Q", title=cost_title, scale=scale)
    y = alt.Y("value:Q", title=f"{metric}, percent", scale=alt.Scale(zero=False, padding=24))
    bars = (
        alt.Chart(rows)
        .transform_calculate(low="datum.value - datum.error", high="datum.value + datum.error")
        .transform_filter("isValid(datum.error)")
        .mark_rule(strokeWidth=2, opacity=0.7)
        .encode(
            x=x, y=alt.Y("low:Q", title=f"{metric}, percent"), y2="high:Q", color=_mode_colour(rows["mode"])
        )
    )
    front = rows[rows["front"]].sort_values(cost)
    step = alt.Chart(front).mark_line(strokeWidth=2, strokeDash=[6, 4], color=faint()).encode(x=x, y=y)
    dots = (
        alt.Chart(rows)
        .mark_point(size=120, strokeWidth=2, opacity=1)
        .encode(
            x=x,
            y=y,
            color=_mode_colour(rows["mode"]),
            fill=_mode_colour(rows["mode"], legend=False),
            fillOpacity=_fill(),
            shape=_mode_shape(rows["mode"]),
            tooltip=[
                alt.Tooltip("label:N", title="row"),
                alt.Tooltip(f"{cost}:Q", title=cost_title, format=".1f"),
                alt.Tooltip("value:Q", title=metric, format=".1f"),
                alt.Tooltip("source:N", title="source"),
            ],
        )
    )
    sides: list[tuple[pd.DataFrame, Literal["left", "right"], int]] = [
        (front.iloc[:1], "right", -8),
        (front.iloc[1:], "left", 10),
    ]
    words = [
        alt.Chart(part)
        .mark_text(align=align, dx=dx, dy=14, fontSize=12, color=ink())
        .encode(x=x, y=y, text="label:N")
        for part, align, dx in sides
    ]
    return alt.layer(step, bars, dots, *words).properties(height=HEIGHT + 40)


def curve(points: pd.DataFrame, metric: str) -> Drawing:
    """Draws a training: mAP over its epochs, a line a seed.

    Args:
        points: Columns epoch, seed (text), value.
        metric: Name of the y axis.
    """
    base = alt.Chart(points).encode(
        x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("value:Q", title=f"{metric}, percent"),
        color=alt.Color(
            "seed:N", scale=alt.Scale(range=palette()), legend=alt.Legend(title="seed", orient="top")
        ),
        tooltip=["epoch:Q", "seed:N", alt.Tooltip("value:Q", title=metric, format=".1f")],
    )
    return alt.layer(
        base.mark_line(strokeWidth=2.5),
        base.mark_point(filled=True, size=50, opacity=1).encode(shape="seed:N"),
    ).properties(height=320)


def losses(points: pd.DataFrame) -> Drawing:
    """Draws the losses of a training: columns epoch, seed, loss (name), value."""
    return (
        alt.Chart(points)
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title="loss, mean of the epoch", scale=alt.Scale(zero=True)),
            color=alt.Color(
                "loss:N",
                scale=alt.Scale(range=palette()),
                legend=alt.Legend(title=None, orient="top", columns=2),
            ),
            strokeDash=alt.StrokeDash("seed:N", legend=None),
            tooltip=["loss:N", "seed:N", "epoch:Q", alt.Tooltip("value:Q", format=".2f")],
        )
        .properties(height=320)
    )


def intervals(found: pd.DataFrame, title: str) -> Drawing:
    """Draws differences with their 95 % intervals around zero.

    Args:
        found: Columns name, value, low, high, verdict (`higher`, `lower` or `not told apart`).
        title: Of the x axis.
    """
    order = found["name"].tolist()
    y = alt.Y(
        "name:N",
        sort=order,
        title=None,
        axis=alt.Axis(labelLimit=260, labelOverlap=False, ticks=False, domain=False),
    )
    domain = ["higher", "lower", "not told apart"]
    base = alt.Chart(found).encode(
        y=y,
        color=alt.Color(
            "verdict:N",
            scale=alt.Scale(domain=domain, range=["#0f8fce", "#d9660f", faint()]),
            legend=alt.Legend(title=None, orient="top"),
        ),
    )
    zero = (
        alt.Chart(pd.DataFrame({"zero": [0.0]}))
        .mark_rule(color=faint(), strokeDash=[4, 3])
        .encode(x="zero:Q")
    )
    bars = base.mark_rule(strokeWidth=3, opacity=0.75).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    dots = base.mark_point(size=100, filled=True, opacity=1).encode(
        x=alt.X("value:Q", title=title),
        shape=alt.Shape(
            "verdict:N",
            scale=alt.Scale(domain=domain, range=["triangle-right", "triangle-left", "circle"]),
            legend=alt.Legend(title=None, orient="top"),
        ),
        tooltip=[
            "name:N",
            alt.Tooltip("value:Q", title="difference", format="+.1f"),
            alt.Tooltip("low:Q", format="+.1f"),
            alt.Tooltip("high:Q", format="+.1f"),
            "verdict:N",
        ],
    )
    return alt.layer(zero, bars, dots).properties(height=30 * len(found) + 120)


def precision_recall(points: pd.DataFrame) -> Drawing:
    """Draws precision over recall at IoU 0.5: columns side (text), recall, precision (0 to 1)."""
    sides = list(dict.fromkeys(points["side"]))
    return (
        alt.Chart(points)
        .mark_line(strokeWidth=2.5, interpolate="step-before")
        .encode(
            x=alt.X("recall:Q", title="recall", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("precision:Q", title="precision", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color(
                "side:N",
                scale=alt.Scale(domain=sides, range=palette()),
                legend=alt.Legend(title=None, orient="top", labelLimit=260),
            ),
            strokeDash=alt.StrokeDash("side:N", scale=alt.Scale(domain=sides), legend=None),
            tooltip=[
                "side:N",
                alt.Tooltip("recall:Q", format=".2f"),
                alt.Tooltip("precision:Q", format=".2f"),
            ],
        )
        .properties(height=400)
    )


def bars(table: pd.DataFrame, label: str, value: str, title: str, colour: str | None = None) -> Drawing:
    """Draws named numbers as bars with their values beside them.

    Args:
        table: One row a bar.
        label: Column of names, distinct.
        value: Column of numbers.
        title: Of the x axis.
        colour: Column of a category that colours them, or None.
    """
    # Vega reads a dot in a column's name as a path.
    table = pd.DataFrame(
        {"name": table[label], "value": table[value], "category": table[colour] if colour else "all"}
    )
    y = alt.Y(
        "name:N",
        sort=table["name"].tolist(),
        title=None,
        axis=alt.Axis(labelLimit=320, labelOverlap=False, ticks=False, domain=False),
    )
    # Room for the number after the longest bar; where all are zero, an axis all the same.
    most = table["value"].max()
    scale = alt.Scale(domain=[0, 1.08 * most if most > 0 else 1], nice=False)
    base = alt.Chart(table).encode(y=y, x=alt.X("value:Q", title=title, scale=scale))
    drawn = base.mark_bar(cornerRadiusEnd=4, height={"band": 0.7}, color=palette()[0])
    if colour:
        order = list(dict.fromkeys(table["category"]))
        legend = alt.Legend(title=None, orient="top")
        drawn = drawn.encode(
            color=alt.Color("category:N", sort=order, scale=alt.Scale(range=palette()), legend=legend)
        )
    form = ".1f" if table["value"].dtype.kind == "f" else ",d"
    texts = base.mark_text(align="left", dx=5, color=ink(), fontSize=12).encode(
        text=alt.Text("value:Q", format=form)
    )
    return alt.layer(drawn, texts).properties(height=28 * len(table) + (90 if colour else 60))


def sizes(rows: pd.DataFrame, metric: str) -> Drawing:
    """Draws what pretraining gains over the number of training images.

    Args:
        rows: Columns images, gain, error (NaN where not known), series (text), dataset (label), family (datasets that
            differ in size alone), source.
        metric: Whose gain.
    """
    low, high = rows["images"].min(), rows["images"].max()
    base = alt.Chart(rows).encode(
        x=alt.X(
            "images:Q",
            scale=alt.Scale(type="log", domain=[low / 1.3, high * 1.3], nice=False),
            title="labelled training images",
        ),
        y=alt.Y("gain:Q", title=f"gain of {metric}, points", scale=alt.Scale(padding=16)),
        color=alt.Color(
            "series:N",
            scale=alt.Scale(range=palette()),
            legend=_below(),
        ),
    )
    zero = (
        alt.Chart(pd.DataFrame({"zero": [0.0]}))
        .mark_rule(color=faint(), strokeDash=[4, 3])
        .encode(y="zero:Q")
    )
    dash = alt.StrokeDash(
        "source:N", legend=None, scale=alt.Scale(domain=["measured", "reported"], range=[[1, 0], [5, 3]])
    )
    lines = base.mark_line(strokeWidth=2.5).encode(detail=["series:N", "family:N"], strokeDash=dash)
    bars = (
        base.transform_calculate(low="datum.gain - datum.error", high="datum.gain + datum.error")
        .transform_filter("isValid(datum.error)")
        .mark_rule(strokeWidth=2)
        .encode(y=alt.Y("low:Q", title=f"gain of {metric}, points"), y2="high:Q")
    )
    dots = base.mark_point(filled=True, size=110, opacity=1).encode(
        shape=alt.Shape("series:N"),
        tooltip=[
            "series:N",
            "dataset:N",
            "images:Q",
            alt.Tooltip("gain:Q", format="+.1f"),
            alt.Tooltip("error:Q", title="± standard error", format=".1f"),
            "source:N",
        ],
    )
    # Sets that a line joins are named; the names of others would lie on each other.
    joined = rows.groupby(["series", "family"])["images"].transform("nunique") > 1
    best = rows[joined].sort_values("gain", ascending=False).drop_duplicates("dataset")
    names = (
        alt.Chart(best)
        .mark_text(align="left", dx=10, dy=-8, fontSize=11, color=faint())
        .encode(x="images:Q", y="gain:Q", text="dataset:N")
    )
    entries = _ENTRY * rows["series"].nunique()
    return alt.layer(zero, lines, bars, dots, names).properties(height=HEIGHT + entries)


def scatter_anomaly(rows: pd.DataFrame) -> Drawing:
    """Draws detectors of anomalies: image AUROC over pixel AUROC; columns label, detector, source, both numbers."""
    x = alt.X("pixel_auroc:Q", title="pixel AUROC, percent", scale=alt.Scale(zero=False, padding=20))
    y = alt.Y("image_auroc:Q", title="image AUROC, percent", scale=alt.Scale(zero=False, padding=20))
    base = alt.Chart(rows).encode(x=x, y=y)
    dots = base.mark_point(size=120, strokeWidth=2, opacity=1).encode(
        color=alt.Color(
            "detector:N",
            scale=alt.Scale(range=palette()),
            legend=alt.Legend(title=None, orient="top", columns=3),
        ),
        fill=alt.Fill("detector:N", scale=alt.Scale(range=palette()), legend=None),
        fillOpacity=_fill(),
        shape=alt.Shape("detector:N"),
        tooltip=[
            alt.Tooltip("label:N", title="row"),
            alt.Tooltip("image_auroc:Q", format=".1f"),
            alt.Tooltip("pixel_auroc:Q", format=".1f"),
            alt.Tooltip("source:N"),
        ],
    )
    best = rows.sort_values("image_auroc", ascending=False).head(1)
    name = (
        alt.Chart(best)
        .mark_text(align="right", dx=-10, dy=-10, fontSize=12, color=ink())
        .encode(x=x, y=y, text="label:N")
    )
    return alt.layer(dots, name).properties(height=HEIGHT)


def with_mode_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns rows with the words of charts: `mode` by its label, `source` measured or reported."""
    return rows.assign(
        mode=rows["mode"].map(mode_label),
        source=rows["trust"].map(lambda trust: "reported" if trust == "reported" else "measured"),
    )
