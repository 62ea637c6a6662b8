"""Output for people, and for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import RenderableType


def print_json(rows: Iterable[Any]) -> None:
    """Print each row as a line of JSON."""
    for row in rows:
        click.echo(msgspec.json.encode(row))


def print_value(value: Any, *, as_json: bool) -> None:
    """Print a value at once: as a line of JSON, or for people (as JSON too, but laid out and coloured)."""
    line = msgspec.json.encode(value)
    if as_json or not sys.stdout.isatty():
        click.echo(line)
        return
    from rich.json import JSON

    print_rich(JSON(line.decode()), soft_wrap=True)


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: as wide as the terminal; into a file or pipe, as wide as it takes."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*names, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: brackets in it are no markup
    print_rich(table, width=None if sys.stdout.isatty() else 1000)


def print_rich(*things: RenderableType, width: int | None = None, soft_wrap: bool = False) -> None:
    """Print what rich can lay out; `width` is in columns, by default the terminal's."""
    from rich.console import Console

    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        for thing in things:
            console.print(thing, soft_wrap=soft_wrap)
    # rich itself would end the process where nobody reads the output, with an exit code of its own.
    click.echo(captured.get(), nl=False, color=True)
