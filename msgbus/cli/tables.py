"""Output for people, and for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec


def print_json(rows: Iterable[Any]) -> None:
    """Print each row as a line of JSON."""
    for row in rows:
        click.echo(msgspec.json.encode(row))


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: as wide as the terminal; into a file or pipe, as wide as it takes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*names, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: brackets in it are no markup
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = 1000
    console.print(table)
