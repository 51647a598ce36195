from __future__ import annotations

from pathlib import Path

import pytest
from made_raw import voc_xml

from datasets_builders.raw_formats import FormatError, read_voc

BOMB = """<?xml version="1.0"?>
<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY c "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><filename>&c;</filename></annotation>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<annotation><filename>&a;</filename></annotation>"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.xml"
    path.write_text(text)
    return path


def test_voc_is_read_as_edges(tmp_path: Path) -> None:
    voc = read_voc(
        write(tmp_path, voc_xml("ä b.jpg", [("scratch", (1, 2.5, 11, 12.5)), ("pit", (3, 4, 5, 6))]))
    )
    assert (voc.filename, voc.size) == ("ä b.jpg", (40, 32))
    assert [(o.category, o.bbox) for o in voc.objects] == [
        ("scratch", (1, 2.5, 10, 10)),
        ("pit", (3, 4, 2, 2)),
    ]


def test_voc_without_objects_is_an_image_without_defects(tmp_path: Path) -> None:
    assert read_voc(write(tmp_path, voc_xml("x.jpg", []))).objects == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not XML"),
        ("<annotation><object>", "not XML"),
        ("<annotation><object><name>a</name></object></annotation>", "no xmin"),
        (voc_xml("x.jpg", [("a", ("left", 0, 1, 1))]), "left"),
        (voc_xml("x.jpg", [], size=("wide", 3)), "wide"),
        ('<?xml version="1.0" encoding="no-such-thing"?><annotation/>', "encoding"),
        (BOMB, "entity definitions are refused"),
        (OUTSIDE, "entity definitions are refused"),
    ],
)
def test_broken_or_hostile_xml_is_refused_with_a_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        read_voc(write(tmp_path, text))


def test_oversized_xml_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    with path.open("wb") as file:
        file.truncate(20_000_000)
    with pytest.raises(FormatError, match="larger than"):
        read_voc(path)
