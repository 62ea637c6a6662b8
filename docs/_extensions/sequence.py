"""A directive that draws who sends what to whom, from top to bottom, by Graphviz.

Its first line names the participants, from left to right; each further line is a step:

    client | broker | server
    client -> broker: request       (an arrow; a slash between spaces breaks a line)
    server: the method runs         (a note)
    server dies: killed             (the end of its line)
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from sphinx.ext.graphviz import graphviz

STEP = re.compile(r"(?P<source>[^:]+?) -> (?P<target>[^:]+?): (?P<text>.+)")
DEATH = re.compile(r"(?P<source>[^:]+?) dies: (?P<text>.+)")
NOTE = re.compile(r"(?P<source>[^:]+?): (?P<text>.+)")

WIDTHS = {2: 180, 3: 155, 4: 125}
"""Points between two participants, by their number: so that the picture fits a narrow screen."""
HEIGHT = 40
"""Points between two steps."""

HEAD = """digraph {
    graph [bgcolor=transparent, inputscale=72, splines=line, outputorder=edgesfirst, pad=0.05];
    node [shape=box, style="rounded,filled", fillcolor="#f3f4f6", color="#6b7280", fontname="Helvetica", fontsize=12,
          height=0.34, margin="0.12,0.04"];
    edge [color="#2563eb", arrowsize=0.8, penwidth=1.4];
"""


def dot(lines: list[str]) -> str:
    """The picture as a graph whose nodes all have a place. Raises ValueError at a line that is no step."""
    names = [name.strip() for name in lines[0].split("|")]
    width = WIDTHS[len(names)]
    places = {name: column * width for column, name in enumerate(names)}
    ends: dict[str, tuple[int, str]] = {}
    drawn: list[str] = []
    for row, line in enumerate(lines[1:], 1):
        found = STEP.fullmatch(line) or DEATH.fullmatch(line) or NOTE.fullmatch(line)
        if found is None or not {found["source"], found.groupdict().get("target", names[0])} <= set(names):
            raise ValueError(f"not a step of {lines[0]!r}: {line!r}")
        x = places[found["source"]]
        if found.re is STEP:
            step = width if places[found["target"]] > x else -width
            drawn += _arrow(x, places[found["target"]], step, row, found["text"])
        elif found.re is DEATH:
            ends[found["source"]] = (row, found["text"])
        else:
            drawn.append(_node(f"note{row}", x, row, found["text"], 'fillcolor="#fef9c3", color="#ca8a04"'))
    return HEAD + "\n".join([*_lives(places, ends, len(lines)), *drawn]) + "\n}\n"


def _node(name: str, x: float, row: float, text: str, style: str) -> str:
    label = text.replace("\\", "\\\\").replace('"', '\\"').replace(" / ", "\\n")
    return f'{name} [label="{label}", pos="{x},{-row * HEIGHT}!", {style}];'


def _point(name: str, x: float, row: float) -> str:
    return _node(name, x, row, "", "shape=point, style=invis, width=0, height=0")


def _lives(places: dict[str, int], ends: dict[str, tuple[int, str]], rows: int) -> list[str]:
    """Each participant's name, and its line down to its end."""
    drawn = []
    for number, (name, x) in enumerate(places.items()):
        row, text = ends.get(name, (rows, ""))
        end = _node(f"end{number}", x, row, text, 'fillcolor="#fee2e2", color="#dc2626"')
        drawn += [
            _node(f"name{number}", x, 0, name, 'fillcolor="#dbeafe", color="#2563eb"'),
            end if text else _point(f"end{number}", x, row),
            f'name{number} -> end{number} [dir=none, style=dashed, color="#9ca3af", penwidth=1];',
        ]
    return drawn


def _arrow(source: int, target: int, step: int, row: int, text: str) -> list[str]:
    """An arrow, and its text above, between the sender and its neighbour."""
    return [
        _point(f"from{row}", source, row + 0.15),
        _point(f"to{row}", target, row + 0.15),
        f"from{row} -> to{row};",
        _node(f"text{row}", source + step / 2, row - 0.12, text, "shape=plaintext, style=solid, margin=0, height=0"),
    ]


class Sequence(Directive):
    """Draws its lines; the option alt says the same in words, for who cannot see it."""

    has_content = True
    option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012  (docutils has it so)

    def run(self) -> list[nodes.Node]:
        """The picture, for Graphviz."""
        lines = [line for line in self.content if line.strip()]
        try:
            code = dot(lines)
        except (LookupError, ValueError) as exc:
            raise self.error(str(exc)) from exc
        node = graphviz()
        node["code"] = code
        node["alt"] = self.options["alt"]
        node["options"] = {"docname": self.state.document.settings.env.docname, "graphviz_dot": "neato"}
        return [node]


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("sequence", Sequence)
    return {"parallel_read_safe": True}
