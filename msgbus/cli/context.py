"""How a command is to log and print, kept in click's context for as long as the command runs."""

from __future__ import annotations

import click

_LEVEL = "msgbus.cli.level"
_JSON = "msgbus.cli.json"


def note_level(ctx: click.Context, level: str) -> None:
    """Remember the log level that the user has chosen."""
    ctx.meta[_LEVEL] = level


def level_of(ctx: click.Context) -> str | None:
    """The log level that the user has chosen."""
    level: str | None = ctx.meta.get(_LEVEL)
    return level


def wants_traceback(ctx: click.Context) -> bool:
    """Whether the user wants errors shown with their tracebacks."""
    return bool(ctx.meta.get(_LEVEL) == "debug")


def note_json(ctx: click.Context, args: list[str]) -> None:
    """Remember whether the user wants JSON. Looked for in the raw arguments: click may find them to be wrong."""
    ctx.meta[_JSON] = "--json" in args


def wants_json(ctx: click.Context) -> bool:
    """Whether the user wants JSON."""
    return bool(ctx.meta.get(_JSON))
