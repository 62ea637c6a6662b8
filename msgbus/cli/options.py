"""Options that several commands have."""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

import click
from click.shell_completion import CompletionItem

from msgbus.cli.context import level_of, note_level

F = TypeVar("F", bound=Callable[..., Any])

WORLDS = ("threading", "asyncio")
"""What clients and servers run on, in the words of the argument `executor` of `msgbus.get_rpc_server`."""


class Seconds(click.FloatRange):
    """An option's value in seconds."""

    name = "number of seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it. "nan" is below and above no bound, and Python cannot wait for more than some 292 years."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds) or seconds > threading.TIMEOUT_MAX:
            self.fail(f"{value!r} is not a valid {self.name}.", param, ctx)
        return seconds


LEVELS = ("debug", "info", "warning", "error", "critical")


def example(*lines: str) -> str:
    """The end of a command's help. Click does not rewrap a paragraph that begins with a backspace."""
    return "\n".join(["\b", "Example:", *(f"  {line}" if line else "\n\b" for line in lines)])


class _Stderr(logging.StreamHandler[TextIO]):
    """Logs to the current `sys.stderr`, which is replaced while progress is shown."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """Ignore what the base class sets."""


def _set_level(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        note_level(ctx, value)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[_Stderr()])
    logging.getLogger().setLevel((level_of(ctx) or "warning").upper())


def json_option(text: str = "", *, quiet: bool = False) -> Callable[[F], F]:
    """Add --json.

    Args:
        text: says what is printed as JSON besides errors. Without it only errors are, and the command gets no argument.
        quiet: as for `open_transport`.
    """
    errors = "Errors are JSON, too" if text else "Errors are a line of JSON"
    warnings = "; the driver's warnings are left out." if quiet else "."
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        expose_value=bool(text),
        help=f"{text} {errors}{warnings}".lstrip(),
    )


def log_options(func: F) -> F:
    """Add --log-level and --debug."""
    level = click.option(
        "--log-level",
        type=click.Choice(LEVELS, case_sensitive=False),
        metavar="LEVEL",
        callback=_set_level,
        expose_value=False,
        help=f"What is logged to stderr: {', '.join(LEVELS)}.  [default: warning]",
    )
    debug = click.option(
        "--debug",
        flag_value="debug",
        default=None,
        callback=_set_level,
        expose_value=False,
        help="Log everything, and show the tracebacks of errors.",
    )
    return level(debug(func))


def beginnings_of_urls(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """The schemes that a URL can begin with, for the shell's completion."""
    from importlib.metadata import entry_points

    names = sorted(entry_points(group="msgbus.drivers").names)
    return [CompletionItem(f"{name}://") for name in names if f"{name}://".startswith(incomplete)]


def refuse_empty(_ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse an option whose value is empty, as of a variable that is not set: the default would be a surprise."""
    if value == "":
        raise click.BadParameter("it is empty; leave the option out for the default", param=param)
    return value


def bus_options(func: F) -> F:
    """Add the options that say where the message system is."""
    url = click.option(
        "--url",
        envvar="MSGBUS_URL",
        show_envvar=True,
        metavar="URL",
        shell_complete=beginnings_of_urls,
        callback=refuse_empty,
        help="The message system, for example rabbit://guest:guest@localhost:5672/. It overrides --config-file.",
    )
    files = click.option(
        "--config-file",
        "config_files",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False),
        help="A file with options such as transport_url. May be given more than once.",
    )
    exchange = click.option(
        "--exchange", metavar="NAME", help="The exchange of the topic.  [default: the option control_exchange]"
    )
    return url(files(exchange(log_options(func))))


def serializer_option(func: F) -> F:
    """Add --serializer."""
    return click.option(
        "--serializer",
        metavar="MODULE:CLASS",
        help="A subclass of msgbus.Serializer, which turns arguments and results into plain data and back; clients and "
        "servers need the same.",
    )(func)
