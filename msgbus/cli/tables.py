"""Output for people and for programs. Control characters in what servers answer are escaped."""

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
from msgbus.values import JSON_VALUES, is_plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text


def print_json(rows: Iterable[Any]) -> None:
    """Print each row as a line of JSON."""
    for row in rows:
        click.echo(json_text(row))


def json_text(value: Any) -> str:
    """Write a value as a line of JSON. What JSON lacks is written as text or by its name: NaN, not null."""
    try:
        if is_plain((value,), JSON_VALUES):
            return printable_json(msgspec.json.encode(value).decode())
    except UnicodeError:  # a lone surrogate, which only an escape sequence can show
        pass
    return printable_json(json.dumps(value, default=_text_of, separators=(",", ":"), ensure_ascii=False))


def _text_of(value: Any) -> Any:
    """The text of what JSON lacks; of bytes it is base64."""
    try:
        return msgspec.to_builtins(value)
    except TypeError:
        return str(value)


def print_value(value: Any, *, as_json: bool, one_line: bool = False) -> None:
    """Print a value: as a line of JSON, or for people (JSON too, but in colours).

    For people, a value that is wider than the terminal is laid out on several lines, unless `one_line`.
    """
    line = json_text(value)
    if as_json or not sys.stdout.isatty():
        click.echo(line)
        return
    compact = _laid_out(line, None)
    fits = one_line or compact.cell_len <= shutil.get_terminal_size().columns
    print_rich(compact if fits else _laid_out(line, 2), soft_wrap=True)


def print_document(value: Any) -> None:
    """Print a value as JSON that is laid out on several lines; on a terminal in colours."""
    line = json_text(value)
    if sys.stdout.isatty():
        print_rich(_laid_out(line, 2), soft_wrap=True)
    else:
        click.echo(_indented(line, 2))


def print_named_value(name: str, value: Any) -> None:
    """Print a value as a line of JSON, after a name; on a terminal in colours."""
    line = json_text(value)
    if not sys.stdout.isatty():
        click.echo(f"{printable(name)}: {line}")
        return
    from rich.text import Text

    print_rich(Text.assemble((printable(name), "bold"), ": ", _laid_out(line, None)), soft_wrap=True)


def _laid_out(line: str, indent: int | None) -> Text:
    """Lay JSON out, in colours. Not with rich's own JSON class, which would undo the escapes."""
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    coloured = Text(_indented(line, indent), no_wrap=True)
    JSONHighlighter().highlight(coloured)
    return coloured


def _indented(line: str, indent: int | None) -> str:
    text = json.dumps(json.loads(line), indent=indent, ensure_ascii=False)
    return "\n".join(map(printable_json, text.split("\n")))


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; on a terminal that is too narrow for it, each row as a paragraph."""
    from rich.cells import cell_len

    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        widths = [max(map(cell_len, column)) for column in zip(names, *rows, strict=True)]
        columns = shutil.get_terminal_size().columns
        if sum(widths) + 2 * (len(widths) - 1) > columns:
            _print_paragraphs(names, rows, columns)
            return
    print_rich(make_table(names, rows), width=1000)


def make_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table, for `print_rich`."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*names, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in table.columns:
        column.overflow = "fold"  # Where it is too narrow, nothing is left out.
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # Text: brackets in it are no markup
    return table


def _print_paragraphs(names: Sequence[str], rows: Iterable[Sequence[str]], columns: int) -> None:
    """Print for each row a line with its first cell, and below it, indented, the other cells with their names."""
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
    # Not by rich: if nobody reads the output, it would end the process with an exit code of its own.
    click.echo("\n".join(text.rstrip(" ") for text in captured.get().split("\n")), nl=False, color=True)
