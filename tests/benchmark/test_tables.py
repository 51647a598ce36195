"""Tables: the paper's own numbers and deltas, every format parsed again, hostile words escaped."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_compare import labels_of, store_row

from benchmark import compare, protocol
from benchmark.analysis import analyse
from benchmark.cli import run_app
from benchmark.rows import rows
from benchmark.tables import FORMATS, Line, Number, Table, build, to_csv, to_html, to_latex, to_markdown
from datasets_builders.errors import UserError

HOSTILE = "<script>|`x`&%$#_{}~^\\"


@pytest.fixture
def results(tmp_path) -> Path:
    store_row(tmp_path, "agssp", 0.9, dataset="casting_billet")
    store_row(tmp_path, "imagenet", 0.6, dataset="casting_billet")
    store_row(tmp_path, "agssp", 0.8, (0,), dataset="steel_pipe")
    return tmp_path


class Cells(HTMLParser):
    """Collects the text of every cell, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def line_of(table: Table, **words: str) -> Line:
    (found,) = [
        line for line in table.lines if all(line.fields[name] == word for name, word in words.items())
    ]
    return found


def test_measured_and_reported_stand_side_by_side_each_with_its_own_deltas(results) -> None:
    (table,) = build(rows(results))
    assert table.datasets == ("casting_billet", "steel_pipe")
    words = {"detector": "yolov8", "backbone": "swin:base", "method": "simmim", "mode": "agssp"}
    measured, reported = (line_of(table, source=source, **words) for source in ("measured", "reported"))
    assert abs(table.lines.index(measured) - table.lines.index(reported)) == 1
    means = {(row.mode, row.dataset): row for row in rows(results)}
    first, second = measured.numbers["casting_billet"]
    mine, base = means["agssp", "casting_billet"], means["imagenet", "casting_billet"]
    assert (first.value, first.error) == (mine.map50, mine.map50_error)
    assert first.delta == mine.map50 - base.map50
    assert second.delta == mine.map50_95 - base.map50_95
    assert measured.numbers["steel_pipe"][0].delta is None  # no baseline there
    # As printed in the paper's Table 2.
    assert [number.value for number in reported.numbers["casting_billet"]] == [78.8, 48.4]
    baseline = line_of(table, source="reported", **words | {"mode": "imagenet"})
    assert reported.numbers["casting_billet"][0].delta == pytest.approx(
        78.8 - baseline.numbers["casting_billet"][0].value
    )


def test_all_23_techniques_of_the_papers_table_2_are_there_in_its_order(results) -> None:
    (table,) = build(rows(results))
    reported = [
        line.fields
        for line in table.lines
        if line.fields["source"] == "reported" and line.fields["detector"] == "yolov8"
    ]
    assert len(reported) == 23
    backbones = list(dict.fromkeys(fields["backbone"] for fields in reported))
    assert backbones == ["csp_darknet:s", "resnet:50", "swin:base"]
    ladder = [fields["mode"] for fields in reported if fields["method"] == "simmim"]
    assert ladder == ["imagenet", "industrial", "agbp", "agssp"]


def test_procedural_rows_stand_alone(tmp_path) -> None:
    store_row(tmp_path, "agssp", 0.9, dataset="casting_billet")
    store_row(tmp_path, "agssp", 0.9, dataset="casting_billet_synthetic", procedural=True)
    tables = build(rows(tmp_path))
    assert [table.datasets for table in tables] == [("casting_billet",), ("casting_billet_synthetic",)]
    assert {line.fields["source"] for line in tables[1].lines} == {"measured"}
    assert "procedural" in tables[1].title


def test_tested_differences_are_marked(results, monkeypatch) -> None:
    monkeypatch.setattr(compare, "_labels", lambda dataset: labels_of(dataset.name))
    found = rows(results)
    (table,) = build(found, "imagenet", analyse(found, "imagenet").comparisons)
    assert line_of(table, source="measured", mode="agssp").numbers["casting_billet"][0].real
    assert line_of(table, source="measured", mode="agssp").fields["seeds"] == "1-3"
    assert re.search(r"\(\+[0-9.]+\\\*\)", to_markdown([table]))
    assert any("Holm" in note for note in table.notes)


def test_every_format_holds_the_same_numbers(results) -> None:
    tables = build(rows(results))
    value = f"{tables[0].lines[0].numbers['casting_billet'][0].value:.1f}"
    width = 7 + 2 * 2
    lines = [line for line in to_markdown(tables).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {width + 1}
    assert len(lines) == 2 + len(tables[0].lines)
    parsed = Cells()
    parsed.feed(to_html(tables))
    assert {len(row) for row in parsed.rows[2:]} == {width}
    latex = to_latex(tables)
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")].splitlines()
    body = [line for line in body if line != r"\midrule"]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {width - 1}
    assert value in lines[2]
    assert value in parsed.rows[2][7]
    assert value in body[0]
    exact = list(csv.DictReader(io.StringIO(to_csv(tables))))
    assert float(exact[0]["value"]) == tables[0].lines[0].numbers["casting_billet"][0].value
    assert len(exact) == 2 * sum(len(line.numbers) for line in tables[0].lines)


def test_hostile_words_stay_words() -> None:
    fields = dict.fromkeys(("detector", "backbone", "mode", "method", "source", "seeds"), "1")
    for maps in (HOSTILE, "=cmd()"):
        line = Line(
            {**fields, "maps": maps}, {"d": (Number(1.0, delta=-2.0, real=True), Number(2.0, error=0.1))}
        )
        table = Table("p", ("d",), (line,), tested=True)
        parsed = Cells()
        parsed.feed(to_html([table]))
        assert maps in parsed.rows[2]
        assert "script" not in parsed.tags
        assert "<" not in to_markdown([table])
        row = next(row for row in to_markdown([table]).splitlines() if "1.0" in row)
        assert len(re.findall(r"(?<!\\)\|", row)) == 7 + 2 + 1
        (entry, _) = csv.DictReader(io.StringIO(to_csv([table])))
        assert entry["maps"].lstrip("'") == maps
        assert entry["maps"][0] not in "=+-@"
    # Every character that LaTeX reads as a command is written as one that prints it.
    assert r"\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in to_latex(
        [Table(HOSTILE, (), (), tested=False)]
    )


@pytest.fixture
def mock_is_invalid(monkeypatch) -> str:
    reason = "the <border> was dark"
    monkeypatch.setattr(protocol, "_invalid", lambda: {"mock": {1: reason}})
    return reason


def test_rows_that_no_longer_count_are_dimmed_with_the_reason_and_not_compared(
    results, mock_is_invalid, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(compare, "_labels", lambda dataset: labels_of(dataset.name))
    store_row(results, "agssp", 0.9, dataset="casting_billet", protocol="mock")
    store_row(results, "imagenet", 0.5, dataset="casting_billet", protocol="mock")
    found = rows(results)
    assert {row.to_dict()["invalid"] for row in found} == {None, mock_is_invalid}
    invalid, valid = build(found)
    assert (invalid.title, valid.title) == ("mock-v1", "paper-v1")
    assert {line.fields["source"] for line in invalid.lines} == {"invalid", "reported"}
    assert {line.fields["source"] for line in valid.lines} == {"measured", "reported"}
    deltas = [
        line.numbers["casting_billet"][0].delta
        for line in invalid.lines
        if line.fields["source"] == "invalid"
    ]
    assert deltas == [None, None]
    assert any(mock_is_invalid in note for note in invalid.notes)
    page = to_html([invalid])
    assert page.count('<tr class="invalid') == 2
    assert "the &lt;border&gt; was dark" in page
    assert {entry.a.protocol for entry in analyse(found, "imagenet").comparisons} == {"paper-v1"}
    with pytest.raises(UserError, match="no longer counts: the <border> was dark"):
        compare.compare(results, "protocol=mock-v1,mode=agssp", "mode=imagenet")
    # Words that fit rows of both mean those that count.
    assert {row.protocol for row in compare.select(results, "mode=agssp")} == {"paper-v1"}
    assert run_app(["report", "--results", str(results)]) == 0
    assert capsys.readouterr().out.count(f"These rows no longer count: {mock_is_invalid}") == 1


@pytest.mark.parametrize("layout", sorted(FORMATS))
def test_the_command_prints_each_format(layout: str, results, capsys) -> None:
    assert run_app(["report", "--results", str(results), "--format", layout]) == 0
    assert "78.8" in capsys.readouterr().out
