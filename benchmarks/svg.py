"""Draws two kinds of plots as SVG: bars, and lines over a logarithmic axis.

That is all the page needs, so no library draws it. The files are small, and the same for the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from benchmarks.text import number

WIDTH = 760
_ROW = 24
_LABELS = 150
_STYLE = """
text { font: 13px sans-serif; fill: #333 }
.title { font-weight: bold }
.small { font-size: 11px }
.axis { stroke: #999; stroke-width: 1; fill: none }
.grid { stroke: #ddd; stroke-width: 1 }
.spread { stroke: #333; stroke-width: 1.5 }
"""
_COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d")
_OURS, _OTHERS = _COLOURS[0], "#9ca3af"


class Bar(NamedTuple):
    """A bar, and the spread around its end."""

    label: str
    value: float
    low: float
    high: float
    ours: bool = False


def bars(title: str, unit: str, values: Sequence[Bar]) -> str:
    """Bars from the left, one below the other."""
    height = 64 + _ROW * len(values)
    drawing = _drawing(height, title)
    top = max(bar.high for bar in values)
    room = WIDTH - _LABELS - 90
    for at, bar in enumerate(values):
        y = 40 + at * _ROW
        end = _LABELS + room * bar.value / top
        _text(drawing, _LABELS - 8, y + 14, bar.label, anchor="end")
        colour = _OURS if bar.ours else _OTHERS
        _add(drawing, "rect", x=_LABELS, y=y, width=max(end - _LABELS, 1), height=_ROW - 6, fill=colour)
        _line(drawing, _LABELS + room * bar.low / top, y + 9, _LABELS + room * bar.high / top, y + 9, "spread")
        _text(drawing, _LABELS + room * bar.high / top + 8, y + 14, number(bar.value))
    _text(drawing, _LABELS, height - 10, unit, cls="small")
    return _written(drawing)


def lines(
    title: str,
    x_name: str,
    y_name: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    logarithmic: bool,
) -> str:
    """Lines through points (x, y) with y from 0 on, and x from the least to the most.

    Raises:
        ValueError: there is no point.
    """
    points = [point for found in series.values() for point in found]
    if not points:
        raise ValueError(f"nothing to draw: {title}")
    height, left, right, bottom, above = 350, 70, WIDTH - 150, 300, 60
    least, most = min(x for x, _ in points), max(x for x, _ in points)
    top = _round_up(max(y for _, y in points))

    def across(x: float) -> float:
        if most == least:
            return (left + right) / 2
        share = math.log(x / least) / math.log(most / least) if logarithmic else (x - least) / (most - least)
        return left + (right - left) * share

    def up(y: float) -> float:
        return bottom - (bottom - above) * y / top

    drawing = _drawing(height, title)
    for step in range(5):
        y = top * step / 4
        _line(drawing, left, up(y), right, up(y), "grid")
        _text(drawing, left - 8, up(y) + 4, number(y), anchor="end", cls="small")
    marks = sorted({x for x, _ in points})
    for x in marks if len(marks) <= 12 else (least, most):
        _text(drawing, across(x), bottom + 18, f"{x:,.0f}", anchor="middle", cls="small")
    _add(drawing, "path", d=f"M{left},{above} V{bottom} H{right}", **{"class": "axis"})
    _text(drawing, (left + right) / 2, bottom + 38, x_name, anchor="middle")
    _text(drawing, left, above - 8, y_name, cls="small")
    for at, (name, found) in enumerate(series.items()):
        colour = _COLOURS[at % len(_COLOURS)]
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in found)
        _add(drawing, "polyline", points=path, fill="none", stroke=colour, **{"stroke-width": 2})
        for x, y in found if len(found) <= 20 else ():
            _add(drawing, "circle", cx=across(x), cy=up(y), r=3, fill=colour)
        _add(drawing, "rect", x=right + 16, y=above + at * 20, width=12, height=12, fill=colour)
        _text(drawing, right + 34, above + at * 20 + 11, name, cls="small")
    return _written(drawing)


def _drawing(height: int, title: str) -> Element:
    drawing = Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height}", role="img")
    drawing.set("width", str(WIDTH))
    drawing.set("height", str(height))
    SubElement(drawing, "title").text = title
    SubElement(drawing, "style").text = _STYLE
    _add(drawing, "rect", width=WIDTH, height=height, fill="white")  # readable on a dark page too
    _text(drawing, 8, 20, title, cls="title")
    return drawing


def _add(drawing: Element, tag: str, **attributes: object) -> Element:
    return SubElement(drawing, tag, {name: _attribute(value) for name, value in attributes.items()})


def _attribute(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _line(drawing: Element, x1: float, y1: float, x2: float, y2: float, cls: str) -> None:
    _add(drawing, "line", x1=x1, y1=y1, x2=x2, y2=y2, **{"class": cls})


def _text(drawing: Element, x: float, y: float, text: str, *, anchor: str = "start", cls: str = "") -> None:
    attributes: dict[str, object] = {"x": x, "y": y, "text-anchor": anchor}
    _add(drawing, "text", **attributes, **({"class": cls} if cls else {})).text = text


def _written(drawing: Element) -> str:
    indent(drawing, " ")
    return tostring(drawing, encoding="unicode") + "\n"


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8 times a power of ten: the end of an axis in four steps."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps: Iterable[float] = (1, 2, 4, 6, 8, 10)
    return next(step * power for step in steps if step * power >= value * 0.9999)
