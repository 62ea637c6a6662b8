"""Reports errors to the user: one line on stderr, as text or as JSON."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Any

import click

from msgbus.cli.context import wants_json, wants_traceback
from msgbus.cli.errors import details_of, is_named, json_line
from msgbus.foreign import printable, printable_json, printable_lines, traceback_of

LONGEST = 10_000
"""The most characters of a message that are shown."""
_REPORTED = "msgbus.cli.reported"


def report(exc: Exception) -> None:
    """Report what a command raised, unless that has been done."""
    ctx = click.get_current_context()
    if ctx.meta.get(_REPORTED) is exc:
        return
    ctx.meta[_REPORTED] = exc
    details = details_of(exc)
    who = f"msgbus {ctx.find_root().invoked_subcommand}"
    # With its name, the error can be found in the tables of the documentation.
    print_error(ctx, f"{who}: {details['error']}" if is_named(exc) else who, details, exc)


def print_error(
    ctx: click.Context, who: str, details: dict[str, Any], exc: BaseException | None, hint: str = ""
) -> None:
    """Print an error.

    Args:
        ctx: the command's.
        who: begins the line.
        details: what `details_of` returns.
        exc: its traceback is printed too, if the user wants tracebacks; or None.
        hint: ends the line.
    """
    trace = ""
    if exc is not None and wants_traceback(ctx):
        trace = "".join(traceback_of(exc))
    if wants_json(ctx):
        click.echo(printable_json(json_line({**details, "traceback": trace} if trace else details)), err=True)
        return
    message = printable(" ".join(details["message"].split()), LONGEST)
    line = f"{who}: {message}{hint}"
    if sys.stderr.isatty():
        columns = max(shutil.get_terminal_size().columns, 20)
        line = textwrap.fill(line, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    click.echo(f"{printable_lines(trace)}{line}", err=True)
