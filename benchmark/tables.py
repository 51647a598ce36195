"""Rows as tables in the layout of the paper's Table 2, with what the paper reports beside what was measured."""

from __future__ import annotations

import csv
import html
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmark.compare import METRICS, Comparison, baseline_of
from benchmark.modes import MODES
from benchmark.reported import ReportedRow, reported_rows
from benchmark.rows import Row
from benchmark.submit.texts import for_spreadsheet

_FIELDS = ("detector", "backbone", "mode", "method", "maps", "source", "seeds")
_BACKBONES = ("csp_darknet", "resnet", "swin")
"""In the paper's order; others follow."""


@dataclass(frozen=True)
class Number:
    """One metric of a line on one dataset.

    Attributes:
        value: Percent.
        error: Standard error over seeds; None with one seed, or where only the paper knows.
        delta: Less the baseline's, in points; None where there is no baseline.
        real: Whether the difference is one, after Holm's correction; None where it was not tested.
    """

    value: float
    error: float | None = None
    delta: float | None = None
    real: bool | None = None


@dataclass(frozen=True)
class Line:
    """One technique over the datasets.

    Attributes:
        fields: By the names detector, backbone, mode, method, maps, source (`reported`, `measured`, or `invalid` where
            that no longer counts), seeds (how many, or from how few to how many).
        numbers: By dataset: mAP@.5 and mAP@.5:.95.
    """

    fields: Mapping[str, str]
    numbers: Mapping[str, tuple[Number, Number]]

    @property
    def block(self) -> tuple[str, str]:
        """Detector and backbone: the paper rules its tables off between them."""
        return self.fields["detector"], self.fields["backbone"]


@dataclass(frozen=True)
class Table:
    """All techniques under one protocol.

    Attributes:
        title: Its protocol.
        datasets: Columns.
        lines: The paper's next to the measured ones of the same technique.
        tested: Whether differences were tested.
        invalid: Why its measured rows no longer count; None where they do.
    """

    title: str
    datasets: tuple[str, ...]
    lines: tuple[Line, ...]
    tested: bool
    invalid: str | None = None

    @property
    def notes(self) -> list[str]:
        """What a reader must know."""
        notes = [
            "Percent. Measured: last epoch, mean ± standard error over seeds. Reported: the paper's single runs.",
            "In parentheses: difference to the baseline of the same detector and backbone, in points.",
        ]
        if self.invalid is not None:
            notes.append(f"Invalid rows no longer count and are compared with nothing: {self.invalid}")
        elif self.tested:
            notes.append("*: a difference at the 5 % level after Holm's correction over the whole report.")
        return notes


def build(
    found: Sequence[Row], against: str | None = None, comparisons: Sequence[Comparison] = ()
) -> list[Table]:
    """Lays rows out.

    Procedural datasets have a table of their own: such numbers never stand beside real ones.

    Args:
        found: Rows of a results folder.
        against: Mode of the baseline; None takes `imagenet`, or `scratch` where a backbone has no such row.
        comparisons: Differences to the baseline that were tested.
    """
    tested = {id(entry.a): entry for entry in comparisons}
    result = []
    for protocol, procedural in sorted({(row.protocol, row.procedural) for row in found}):
        rows = [row for row in found if (row.protocol, row.procedural) == (protocol, procedural)]
        datasets = tuple(dict.fromkeys(row.dataset for row in rows))
        lines: dict[tuple[str, ...], Line] = {}
        invalid = rows[0].invalid
        for row in rows:
            kin = [] if invalid else [other for other in rows if other.block == row.block]
            numbers = _measured(row, baseline_of(row, kin, against), tested.get(id(row)))
            source = "invalid" if invalid else "measured"
            _add(lines, row.dataset, numbers, _described(row, source, str(len(row.seeds)), row.maps or "-"))
        paper = [entry for entry in reported_rows() if entry.dataset in datasets and not procedural]
        for entry in paper:
            printed = [other for other in paper if other.dataset == entry.dataset]
            numbers = _reported(entry, baseline_of(entry, printed, against))
            _add(lines, entry.dataset, numbers, _described(entry, "reported", "1", "-"))
        title = f"{protocol}, procedural images" if procedural else protocol
        ordered = tuple(sorted(lines.values(), key=_place))
        result.append(Table(title, datasets, ordered, bool(comparisons), invalid))
    return result


def _place(line: Line) -> tuple[object, ...]:
    """The paper's order: by detector, backbone, method, and then up the ladder of modes."""
    fields = line.fields

    def position(order: Sequence[str], word: str) -> int:
        return order.index(word) if word in order else len(order)

    family, _, variant = fields["backbone"].partition(":")
    method = "" if fields["method"] in ("-", "detection") else fields["method"]
    mode = position(tuple(MODES), fields["mode"])
    return (
        fields["detector"] != "yolov8",
        fields["detector"],
        position(_BACKBONES, family),
        family,
        variant,
        method,
        mode,
        fields["source"] != "reported",
        fields["maps"],
    )


def _described(row: Row | ReportedRow, source: str, seeds: str, maps: str) -> dict[str, str]:
    values = (row.detector, row.backbone, row.mode, row.method, maps, source, seeds)
    return dict(zip(_FIELDS, values, strict=True))


def _add(
    lines: dict[tuple[str, ...], Line],
    dataset: str,
    numbers: tuple[Number, Number],
    fields: dict[str, str],
) -> None:
    """Adds numbers to the line of their technique; a second row of it on one dataset begins another line."""
    for copy in itertools.count():
        key = (*(fields[name] for name in _FIELDS if name != "seeds"), str(copy))
        line = lines.setdefault(key, Line(fields, {}))
        if dataset not in line.numbers:
            counts = sorted({*line.fields["seeds"].split("-"), fields["seeds"]}, key=int)
            seeds = "-".join((counts[0], counts[-1])) if len(counts) > 1 else counts[0]
            lines[key] = Line({**fields, "seeds": seeds}, {**line.numbers, dataset: numbers})
            return


def _measured(row: Row, baseline: Row | None, found: Comparison | None) -> tuple[Number, Number]:
    def number(name: str) -> Number:
        value, error = getattr(row, name), getattr(row, f"{name}_error")
        delta = value - getattr(baseline, name) if baseline else None
        return Number(value, error, delta, found.differs(name) if found else None)

    return number("map50"), number("map50_95")


def _reported(row: ReportedRow, baseline: ReportedRow | None) -> tuple[Number, Number]:
    def number(name: str) -> Number:
        value = getattr(row, name)
        return Number(value, delta=value - getattr(baseline, name) if baseline else None)

    return number("map50"), number("map50_95")


def to_markdown(tables: Sequence[Table]) -> str:
    """Returns GitHub's Markdown."""
    parts = []
    for table in tables:
        head = [
            *_FIELDS,
            *(f"{dataset} {metric}" for dataset in table.datasets for metric in METRICS.values()),
        ]
        rule = ["---"] * len(_FIELDS) + ["---:"] * (len(head) - len(_FIELDS))
        body = [head, rule, *_cells(table)]
        parts.append(f"### {_markdown(table.title)}\n")
        parts += ["| " + " | ".join(map(_markdown, line)) + " |" for line in body]
        parts += ["", *(f"- {_markdown(note)}" for note in table.notes), ""]
    return "\n".join(parts)


def to_latex(tables: Sequence[Table]) -> str:
    """Returns LaTeX for the packages booktabs and graphicx."""
    parts = []
    for table in tables:
        groups = "".join(rf" & \multicolumn{{2}}{{c}}{{{_latex(dataset)}}}" for dataset in table.datasets)
        head = [*_FIELDS, *(metric for _ in table.datasets for metric in METRICS.values())]
        body = []
        for cells, first in zip(_cells(table), _first_of_blocks(table), strict=True):
            body += [r"\midrule"] if first else []
            body.append(" & ".join(_latex(cell).replace("(-", "($-$") for cell in cells) + r" \\")
        parts += [
            r"\begin{table*}",
            rf"\caption{{{_latex(table.title)}. {_latex(' '.join(table.notes))}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{'l' * len(_FIELDS)}{'rr' * len(table.datasets)}}}",
            r"\toprule",
            " & ".join([""] * len(_FIELDS)) + groups + r" \\",
            " & ".join(map(_latex, head)) + r" \\",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    return "\n".join(parts)


def to_html(tables: Sequence[Table]) -> str:
    """Returns a page that needs nothing else, bright or dark as its reader's system is; every text is escaped."""
    parts = [_PAGE]
    for table in tables:
        groups = "".join(
            f'<th colspan="{len(METRICS)}" scope="colgroup">{html.escape(dataset)}</th>'
            for dataset in table.datasets
        )
        first = "".join(f'<th rowspan="2" scope="col">{name}</th>' for name in _FIELDS)
        second = "".join(
            f'<th scope="col">{metric}</th>' for _ in table.datasets for metric in METRICS.values()
        )
        body = "\n".join(
            f'<tr class="{html.escape(line.fields["source"])}{" first" if first_of_block else ""}">'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + "</tr>"
            for line, cells, first_of_block in zip(
                table.lines, _cells(table), _first_of_blocks(table), strict=True
            )
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
        parts.append(
            f"<table>\n<caption>{html.escape(table.title)}</caption>\n<thead>\n<tr>{first}{groups}</tr>\n"
            f"<tr>{second}</tr>\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n<ul>{notes}</ul>\n"
        )
    return "\n".join(parts)


_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>AGSSP-Bench</title>
<style>
:root { color-scheme: light dark; }
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em; }
table { border-collapse: collapse; }
caption { font-size: 1.2em; font-weight: bold; text-align: left; padding: 0.5em 0; }
th, td { padding: 0.2em 0.8em 0.2em 0; text-align: left; white-space: nowrap; }
.first { border-top: 1px solid; }
td:nth-child(n+7), th:nth-child(n+7), tr + tr th { text-align: right; font-variant-numeric: tabular-nums; }
.reported { font-style: italic; }
.invalid { opacity: 0.5; }
ul { padding-left: 1.2em; }
</style>
"""


def to_csv(tables: Sequence[Table]) -> str:
    """Returns one line a number, unrounded; texts that a spreadsheet would compute are quoted by an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["protocol", *_FIELDS, "dataset", "metric", "value", "error", "delta", "real"])
    for table in tables:
        for line in table.lines:
            texts = [
                for_spreadsheet(text) for text in (table.title, *(line.fields[name] for name in _FIELDS))
            ]
            for dataset, numbers in line.numbers.items():
                for metric, number in zip(METRICS, numbers, strict=True):
                    values = (number.value, number.error, number.delta, number.real)
                    writer.writerow([*texts, dataset, metric, *("" if v is None else v for v in values)])
    return out.getvalue()


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "html": to_html,
}
"""Each turns tables into text."""


def _first_of_blocks(table: Table) -> list[bool]:
    blocks = [line.block for line in table.lines]
    return [above != block for above, block in zip([None, *blocks], blocks, strict=False)]


def _cells(table: Table) -> list[list[str]]:
    return [
        [
            *(line.fields[name] for name in _FIELDS),
            *(
                _shown(number)
                for dataset in table.datasets
                for number in line.numbers.get(dataset, (None, None))
            ),
        ]
        for line in table.lines
    ]


def _shown(number: Number | None) -> str:
    if number is None:
        return ""
    text = f"{number.value:.1f}"
    if number.error is not None:
        text += f" ± {number.error:.1f}"
    if number.delta is not None:
        text += f" ({number.delta:+.1f}{'*' if number.real else ''})"
    return text


_LATEX = {character: rf"\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _markdown(text: str) -> str:
    escaped = html.escape(text, quote=False)
    return "".join(f"\\{character}" if character in "\\|`*[]" else character for character in escaped)
