"""The sheet of `explain`: images with their objects, and of each record where it looks and what it detects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from agssp.drawing import (
    BACKGROUND,
    FAINT,
    GAP,
    MARGIN,
    TEXT,
    TILE,
    Pixels,
    Rectangle,
    colours,
    draw_labels,
    picture_tile,
    places_on_tile,
    shortened,
    typeface,
)

# Of the palette of Okabe and Ito, told apart with every kind of colour vision; missed objects are dashed as well.
RIGHT, WRONG, MISSED, OBJECT = "#56b4e9", "#d55e00", "#f0e442", "#eef2f6"
_HEADER, _CAPTION, _TITLE, _LEGEND = 88, 24, 58, 26
_DASH = 5
# Labels of more wrong detections would hide the image.
_NAMED_WRONG = 4


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image.

    Attributes:
        corners: (n, 4) x1, y1, x2, y2 in pixels of the image.
        labels: One text a box.
    """

    corners: NDArray[np.float32]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Answer:
    """What one record does with one image.

    Attributes:
        attention: Maps of the backbone's last stages, (h, w) in [0, 1]; empty where they are not drawn.
        right: Detections that find an object, highest score first.
        wrong: Detections that find none, highest score first.
        missed: Objects that no detection finds.
    """

    attention: tuple[NDArray[np.float32], ...]
    right: Boxes
    wrong: Boxes
    missed: Boxes

    @property
    def caption(self) -> str:
        """Its counts."""
        right, wrong, missed = len(self.right), len(self.wrong), len(self.missed)
        total = 2 * right + wrong + missed
        f1 = 2 * right / total if total else 1.0
        return f"TP {right}   FP {wrong}   FN {missed}   F1 {f1:.2f}"


@dataclass(frozen=True)
class Example:
    """One row of the sheet: an image, (H, W, 3) RGB, and what each record does with it."""

    name: str
    pixels: Pixels
    objects: Boxes
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Heading:
    """What stands above a record's columns: its name, and two lines of numbers."""

    title: str
    facts: tuple[str, str]


def sheet(
    examples: Sequence[Example],
    headings: Sequence[Heading],
    stages: Sequence[str],
    title: str,
    subtitle: str,
) -> Image.Image:
    """Draws the sheet.

    Args:
        examples: At least one.
        headings: One a record.
        stages: Names of the attention maps; empty where they are not drawn.
        title: Of the page.
        subtitle: Which images these are.
    """
    group = len(stages) + 1
    width = 2 * MARGIN + _left(1 + group * len(headings)) - GAP
    top = MARGIN + _TITLE + _LEGEND
    row_height = TILE + _CAPTION + GAP
    page = Image.new("RGB", (width, top + _HEADER + len(examples) * row_height + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(page)

    def write(text: str, place: tuple[int, int], size: int, room: int, colour: str = TEXT) -> None:
        pen.text(place, shortened(text, size, room), font=typeface(size), fill=colour)

    write(title, (MARGIN, MARGIN - 4), 22, width - 2 * MARGIN)
    write(subtitle, (MARGIN, MARGIN + 26), 13, width - 2 * MARGIN, FAINT)
    _legend(page, (MARGIN, MARGIN + _TITLE - 6), bool(stages))
    write("objects", (MARGIN, top + 62), 14, TILE)
    for number, heading in enumerate(headings):
        x, room = MARGIN + _left(1 + group * number), _left(group) - GAP
        pen.line((x, top + 2, x + room, top + 2), fill=FAINT)
        write(heading.title, (x, top + 6), 16, room)
        for line, fact in enumerate(heading.facts):
            write(fact, (x, top + 27 + 16 * line), 12, room, FAINT)
        for place, name in enumerate([*stages, "detections"]):
            write(name, (x + _left(place), top + 62), 14, TILE)
    for row, example in enumerate(examples):
        y = top + _HEADER + row * row_height
        for column, panel in enumerate(_panels(example)):
            page.paste(panel, (MARGIN + _left(column), y))
        write(example.name, (MARGIN, y + TILE + 4), 12, TILE, FAINT)
        for number, answer in enumerate(example.answers):
            below = MARGIN + _left(group * (number + 1)), y + TILE + 4
            write(answer.caption, below, 12, TILE, FAINT)
    return page


def _left(columns: int) -> int:
    """Returns how far right so many columns reach."""
    return columns * (TILE + GAP)


def _legend(page: Image.Image, place: tuple[int, int], attention: bool) -> None:
    """Draws a line of samples, with what each means."""
    pen = ImageDraw.Draw(page)
    x, y = place
    font = typeface(13)
    entries = [
        (RIGHT, "finds an object (TP)"),
        (WRONG, "finds none (FP)"),
        (MISSED, "object that is missed (FN)"),
    ]
    for colour, text in entries:
        box = (x, y + 2, x + 18, y + 14)
        if colour == MISSED:
            _dashed(pen, box, colour)
        else:
            pen.rectangle(box, outline=colour, width=2)
        pen.text((x + 25, y), text, font=font, fill=TEXT)
        x += 25 + int(font.getlength(text)) + 24
    if attention:
        ramp = Image.fromarray(
            colours(np.linspace(0, 1, 90, dtype=np.float32)[None].repeat(12, axis=0), 0, 1)
        )
        page.paste(ramp, (x, y + 2))
        pen.text((x + 97, y), "attention, 0 to the image's highest", font=font, fill=TEXT)


def _panels(example: Example) -> Iterator[Image.Image]:
    size = example.pixels.shape[1], example.pixels.shape[0]
    truth = picture_tile(example.pixels)
    places = places_on_tile(example.objects.corners, size)
    for place in places:
        ImageDraw.Draw(truth).rectangle(place, outline=OBJECT, width=2)
    draw_labels(truth, places, list(example.objects.labels), [OBJECT] * len(places))
    yield truth
    for answer in example.answers:
        for values in answer.attention:
            yield picture_tile(colours(values, 0, 1))
        yield _detections(example.pixels, answer)


def _detections(pixels: Pixels, answer: Answer) -> Image.Image:
    """Draws what was detected and what was missed, with the names of all but the less sure wrong ones."""
    tile = picture_tile(pixels)
    pen = ImageDraw.Draw(tile)
    size = pixels.shape[1], pixels.shape[0]
    right, wrong, missed = (
        places_on_tile(boxes.corners, size) for boxes in (answer.right, answer.wrong, answer.missed)
    )
    # What lies on top is what was found, the surest last, and what was missed, whose dashes hide little.
    for place in reversed(wrong):
        pen.rectangle(place, outline=WRONG, width=2)
    for place in reversed(right):
        pen.rectangle(place, outline=RIGHT, width=2)
    for place in missed:
        _dashed(pen, place, MISSED)
    named = wrong[:_NAMED_WRONG]
    draw_labels(
        tile,
        [*right, *missed, *named],
        [*answer.right.labels, *answer.missed.labels, *answer.wrong.labels[:_NAMED_WRONG]],
        [RIGHT] * len(right) + [MISSED] * len(missed) + [WRONG] * len(named),
    )
    return tile


def _dashed(pen: ImageDraw.ImageDraw, box: Rectangle, colour: str) -> None:
    """Draws a rectangle of dashes."""
    left, top, right, bottom = box
    for start in np.arange(left, right, 2 * _DASH).tolist():
        for y in (top, bottom):
            pen.line((start, y, min(start + _DASH, right), y), fill=colour, width=2)
    for start in np.arange(top, bottom, 2 * _DASH).tolist():
        for x in (left, right):
            pen.line((x, start, x, min(start + _DASH, bottom)), fill=colour, width=2)
