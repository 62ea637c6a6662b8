"""A directive that draws who sends what to whom, from top to bottom, by Graphviz.

Its first line names the participants, from left to right; each further line is a step:

    client | broker | server
    client -> broker: request       (an arrow)
    client -x broker: request       (an arrow that does not arrive)
    server: the method runs         (a note)
    server dies: killed             (the end of its line)
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from sphinx.ext.graphviz import graphviz

STEP = re.compile(r"(?P<source>[^:]+?) (?P<arrow>->|-x) (?P<target>[^:]+?): (?P<text>.+)")
DEATH = re.compile(r"(?P<source>[^:]+?) dies: (?P<text>.+)")
NOTE = re.compile(r"(?P<source>[^:]+?): (?P<text>.+)")

WIDTH = 155
"""Points between two participants."""
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
    ends: dict[str, tuple[int, str]] = {}
    drawn: list[str] = []
    for row, line in enumerate(lines[1:], 1):
        found = STEP.fullmatch(line) or DEATH.fullmatch(line) or NOTE.fullmatch(line)
        if found is None or not {found["source"], found.groupdict().get("target", names[0])} <= set(names):
            raise ValueError(f"not a step of {lines[0]!r}: {line!r}")
        column = names.index(found["source"])
        if found.re is STEP:
            drawn += _arrow(column, names.index(found["target"]), row, found["arrow"], found["text"])
        elif found.re is DEATH:
            ends[found["source"]] = (row, found["text"])
        else:
            drawn.append(_node(f"note{row}", column, row, found["text"], 'fillcolor="#fef9c3", color="#ca8a04"'))
    return HEAD + "\n".join([*_lives(names, ends, len(lines)), *drawn]) + "\n}\n"


def _node(name: str, column: float, row: float, text: str, style: str) -> str:
    label = text.replace("\\", "\\\\").replace('"', '\\"').replace(" / ", "\\n")
    return f'{name} [label="{label}", pos="{column * WIDTH},{-row * HEIGHT}!", {style}];'


def _point(name: str, column: float, row: float) -> str:
    return _node(name, column, row, "", "shape=point, style=invis, width=0, height=0")


def _lives(names: list[str], ends: dict[str, tuple[int, str]], rows: int) -> list[str]:
    """Each participant's name, and its line down to its end."""
    drawn = []
    for column, name in enumerate(names):
        row, text = ends.get(name, (rows, ""))
        end = _node(f"end{column}", column, row, text, 'fillcolor="#fee2e2", color="#dc2626"')
        drawn += [
            _node(f"name{column}", column, 0, name, 'fillcolor="#dbeafe", color="#2563eb"'),
            end if text else _point(f"end{column}", column, row),
            f'name{column} -> end{column} [dir=none, style=dashed, color="#9ca3af", penwidth=1];',
        ]
    return drawn


def _arrow(source: int, target: int, row: int, arrow: str, text: str) -> list[str]:
    """An arrow with its text above."""
    lost = arrow == "-x"
    stop = target if not lost else source + (target - source) * 0.7
    middle = (source + (target if abs(target - source) == 1 else source + (1 if target > source else -1))) / 2
    style = '[style=dashed, color="#dc2626", arrowhead=obox]' if lost else ""
    return [
        _point(f"from{row}", source, row + 0.15),
        _point(f"to{row}", stop, row + 0.15),
        f"from{row} -> to{row} {style};",
        _node(f"text{row}", middle, row - 0.12, text, "shape=plaintext, style=solid, margin=0, height=0"),
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
        except (IndexError, ValueError) as exc:
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
