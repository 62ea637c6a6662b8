"""Output for people, and for programs. What servers answer is printed without the control characters that are in it."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from msgbus.foreign import printable, printable_json

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def print_json(rows: Iterable[Any]) -> None:
    """Print each row as a line of JSON."""
    for row in rows:
        click.echo(_json(row))


def _json(value: Any) -> str:
    # What a serializer has made of a result may be any object.
    return printable_json(msgspec.json.encode(value, enc_hook=str).decode())


def print_value(value: Any, *, as_json: bool, one_line: bool = False) -> None:
    """Print a value at once: as a line of JSON, or for people (as JSON too, but coloured).

    For people, a value that is wider than the terminal is laid out on several lines, unless `one_line`.
    """
    line = _json(value)
    if as_json or not sys.stdout.isatty():
        click.echo(line)
        return
    compact = _laid_out(line, None)
    fits = one_line or compact.cell_len <= shutil.get_terminal_size().columns
    print_rich(compact if fits else _laid_out(line, 2), soft_wrap=True)


def _laid_out(line: str, indent: int | None) -> Text:
    """Lay JSON out, in colours; rich's own class would undo the escapes."""
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    text = json.dumps(json.loads(line), indent=indent, ensure_ascii=False)
    coloured = Text("\n".join(map(printable_json, text.split("\n"))), no_wrap=True)
    JSONHighlighter().highlight(coloured)
    return coloured


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, as wide as it takes. On a terminal that is too narrow: each row as a paragraph."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        widths = [max(map(cell_len, column)) for column in zip(names, *rows, strict=True)]
        columns = shutil.get_terminal_size().columns
        if sum(widths) + 2 * (len(widths) - 1) > columns:
            _print_paragraphs(names, rows, columns)
            return
    table = Table(*names, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: brackets in it are no markup
    print_rich(table, width=1000)


def _print_paragraphs(names: Sequence[str], rows: Iterable[Sequence[str]], columns: int) -> None:
    """Print for each row a line with its first cell, and below it, indented, lines with the name and text of others."""
    from rich.text import Text

    for row in rows:
        lines = [Text(row[0], "bold")]
        for name, cell in zip(names[1:], row[1:], strict=True):
            text = textwrap.fill(
                f"{name}: {cell}",
                max(columns, 20),
                initial_indent="  ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            lines += map(Text, text.splitlines())
        print_rich(*lines, soft_wrap=True)


def print_rich(*things: RenderableType, width: int | None = None, soft_wrap: bool = False) -> None:
    """Print what rich can lay out; `width` is in columns, by default the terminal's."""
    from rich.console import Console

    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        for thing in things:
            console.print(thing, soft_wrap=soft_wrap)
    # rich itself would end the process where nobody reads the output, with an exit code of its own.
    click.echo("\n".join(text.rstrip(" ") for text in captured.get().split("\n")), nl=False, color=True)
