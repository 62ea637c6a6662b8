"""Configuration of Sphinx. Build with: tox -e lint, or sphinx-build -W docs docs/_build."""

from __future__ import annotations

import html
import pathlib
import re
import sys
from importlib.metadata import version as installed_version
from typing import Any

from docutils import nodes

project = "msgbus"
author = "The msgbus authors"
project_copyright = author
release = version = installed_version("msgbus")

sys.path.append(str(pathlib.Path(__file__).parent / "_extensions"))

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.graphviz",
    "sphinx.ext.napoleon",
    "sphinx_click",
    # the options, from the entry point that oslo-config-generator reads too
    "oslo_config.sphinxext",
    # docs/_extensions
    "sequence",
]
exclude_patterns = [
    "_build",
    # parts of pages
    "openstack/figures.md",
    "performance/explanation.md",
    "qpid_broker.md",
]

# Pictures are drawn at the build, by the command dot of Graphviz: so no page waits for a network.
graphviz_output_format = "svg"

# Links to a heading of a page: #what-it-says
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# In docstrings, single backticks name classes, methods and functions.
# As it is typed: a command's -- is no dash.
smartquotes = False
default_role = "py:obj"

# A link is to a page, or to what autodoc describes.
myst_ref_domains = ["std", "py"]

nitpicky = True
# What this documentation does not have: other projects' names, and (in lower case) parameters and attributes.
nitpick_ignore_regex = [
    ("py:.*", r"(asyncio|collections|concurrent|threading|_thread|types|typing|queue|os|time|sys)\..*"),
    ("py:.*", r"(cfg|oslo_config|msgspec|opentelemetry|pytest)\..*"),
    (
        "py:.*",
        r"(Any|Callable|Future|Iterator|Generator|Sequence|TracebackType|OnDeadLetter|Policy|None|P|R|T|optional)",
    ),
    ("py:.*", r"[A-Z][A-Za-z]*(Error|Exception|Iteration)"),
    ("py:class", r"msgbus\.(pending\.Pending|base_transport\.BaseTransport)"),  # They are the core's own.
    ("py:class", r"msgbus\.(drivers\.toolkit\.futures\.T|base_client\.Api)"),
    ("py:obj", r"[a-z_.]+"),
]

html_theme = "furo"
html_title = f"msgbus {release}"
html_static_path = ["_static"]
html_css_files = ["msgbus.css"]


def _find(app: Any, env: Any, node: Any, contnode: nodes.Element) -> nodes.Element | None:
    """Find what a docstring names without its module, as users of the package do; and each name in a list of them."""
    target: str = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target:
        return None
    python = env.get_domain("py")
    found = nodes.inline()
    for name in target.split(", "):
        if found.children:
            found += nodes.Text(", ")
        hits = python.find_obj(env, "msgbus", None, name, "obj", 1)
        if len({entry.node_id for _, entry in hits}) != 1:
            return None
        hit, entry = hits[0]
        text = contnode if name == target else nodes.literal(text=name)
        uri = app.builder.get_relative_uri(env.docname, entry.docname)
        found += nodes.reference("", "", text, internal=True, refuri=f"{uri}#{entry.node_id}", reftitle=hit)
    return found


def _say_what_is_raised(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Keep a sentence of a section "Raises", such as "As `call`.", from being taken for the name of an exception."""
    inside = False
    for at, line in enumerate(lines):
        if line.strip() == "Raises:":
            inside = True
            if lines[at + 1].strip().startswith("As "):
                lines[at] = ""
        elif inside and line.strip().startswith("As "):
            lines[at] = ":Raises: " + line.strip()
        elif not line.strip():
            inside = False


def _label_cells(_app: Any, _page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Write a column's heading into each cell, as data-label: msgbus.css shows it on narrow screens."""

    def label_table(table: re.Match[str]) -> str:
        found = re.findall(r"<th\b[^>]*>(.*?)</th>", table[0], re.DOTALL)
        labels = [" ".join(re.sub(r"<[^>]+>", "", text).split()) for text in found]

        def label_row(row: re.Match[str]) -> str:
            columns = iter(labels)
            return re.sub(r"<td\b", lambda _: _cell(next(columns, "")), row[0])

        return re.sub(r"<tr\b.*?</tr>", label_row, table[0], flags=re.DOTALL)

    if "body" in context:
        tables = r'<table class="docutils.*?</table>'
        context["body"] = re.sub(tables, label_table, context["body"], flags=re.DOTALL)


def _cell(label: str) -> str:
    """The beginning of a cell of a column."""
    return f'<td data-label="{html.escape(html.unescape(label))}"' if label else "<td"


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", _find)
    app.connect("html-page-context", _label_cells)
    app.connect("autodoc-process-docstring", _say_what_is_raised, priority=400)  # before napoleon
