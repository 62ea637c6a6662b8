"""Options that several commands have, and what they are turned into: a log, a configuration, a transport."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.transport import Transport
    from msgbus.url import TransportURL

F = TypeVar("F", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """A time, in seconds, as the value of an option."""

    name = "number of seconds"


LEVELS = ("debug", "info", "warning", "error", "critical")
_LEVEL = "msgbus.cli.level"
_JSON = "msgbus.cli.json"


def example(*lines: str) -> str:
    """The end of a command's help. Click keeps the lines of a paragraph that begins with a backspace."""
    return "\n".join(["\b", "Example:", *(f"  {line}" if line else "\n\b" for line in lines)])


class _Stderr(logging.StreamHandler[TextIO]):
    """Logs to what is stderr at the time: while progress is shown there, that is not what it was at the beginning."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """The base class sets it."""


def _set_level(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[_LEVEL] = value
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[_Stderr()])
    logging.getLogger().setLevel(ctx.meta.get(_LEVEL, "warning").upper())


def wants_traceback(ctx: click.Context) -> bool:
    """Whether errors are to be shown with their tracebacks."""
    return bool(ctx.meta.get(_LEVEL) == "debug")


def level_of(ctx: click.Context) -> str | None:
    """The log level that the user has chosen."""
    level: str | None = ctx.meta.get(_LEVEL)
    return level


def json_option(text: str = "") -> Callable[[F], F]:
    """Add --json; `text` says what is JSON then, besides errors. Without it nothing is, and the command is not told."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        expose_value=bool(text),
        help=f"{text} Errors are JSON, too." if text else "Errors are a line of JSON.",
    )


def note_json(ctx: click.Context, args: list[str]) -> None:
    """Remember whether the user wants JSON. It is read from the words of the command line, as they may be wrong."""
    ctx.meta[_JSON] = "--json" in args


def wants_json(ctx: click.Context) -> bool:
    """Whether the user wants JSON."""
    return bool(ctx.meta.get(_JSON))


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


def _beginnings_of_urls(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    from importlib.metadata import entry_points

    names = sorted(entry_points(group="msgbus.drivers").names)
    return [CompletionItem(f"{name}://") for name in names if f"{name}://".startswith(incomplete)]


def bus_options(func: F) -> F:
    """Add what says where the message system is."""
    url = click.option(
        "--url",
        envvar="MSGBUS_URL",
        show_envvar=True,
        metavar="URL",
        shell_complete=_beginnings_of_urls,
        help="The message system, for example rabbit://guest:guest@localhost:5672/. It wins over --config-file.",
    )
    files = click.option(
        "--config-file",
        "config_files",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False),
        help="A file with options such as transport_url. May be given more than once.",
    )
    exchange = click.option(
        "--exchange", metavar="NAME", help="The scope of the topic.  [default: the option control_exchange]"
    )
    return url(files(exchange(log_options(func))))


def load_configuration(files: tuple[str, ...]) -> cfg.ConfigOpts:
    """Read configuration files. Those that oslo.config would look for by itself are left out.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    from oslo_config import cfg

    from msgbus.exceptions import ConfigurationError

    conf = cfg.ConfigOpts()
    try:
        conf([], project="msgbus", prog="msgbus", default_config_files=list(files), default_config_dirs=[])
    except cfg.Error as exc:
        raise ConfigurationError(str(exc)) from exc
    return conf


def configured_url(url: str | None, config_files: tuple[str, ...]) -> TransportURL:
    """The URL that `open_transport` would use.

    Raises:
        ConfigurationError, InvalidTransportURL: the configuration is of no use.
    """
    from oslo_config import cfg

    from msgbus import options
    from msgbus.exceptions import ConfigurationError
    from msgbus.url import TransportURL

    conf = load_configuration(config_files)
    options.register(conf)
    try:
        return TransportURL.parse(conf, url)
    except cfg.Error as exc:
        raise ConfigurationError(str(exc)) from exc


@contextmanager
def open_transport(url: str | None, config_files: tuple[str, ...], *, quiet: bool = False) -> Iterator[Transport]:
    """A transport for the options of `bus_options`; it is closed at the end.

    Args:
        url: a transport URL.
        config_files: paths.
        quiet: the command ends with the first error: where that is a line of JSON, leave out the warnings of drivers.

    Raises:
        ConfigurationError, InvalidTransportURL, DriverLoadFailure: the configuration is of no use.
    """
    from oslo_config import cfg

    from msgbus.cli.progress import progress
    from msgbus.cli.telling import tell
    from msgbus.exceptions import ConfigurationError
    from msgbus.transport import get_rpc_transport

    drivers = logging.getLogger("msgbus.drivers")
    level = drivers.level
    ctx = click.get_current_context()
    if quiet and wants_json(ctx) and _LEVEL not in ctx.meta:
        drivers.setLevel(logging.ERROR)
    conf = load_configuration(config_files)
    try:
        transport = get_rpc_transport(conf, url or None)
        try:
            yield transport
        except (click.ClickException, click.exceptions.Exit, OSError, cfg.Error):  # others make words of them
            raise
        except Exception as exc:
            tell(exc)  # Now: closing the connection may take a few seconds.
            raise
        finally:
            with progress() as waiting, waiting("closing the connection"):
                transport.cleanup()
    except cfg.Error as exc:
        raise ConfigurationError(_readable(exc)) from exc
    finally:
        drivers.setLevel(level)


def _readable(error: cfg.Error) -> str:
    """The text of an error of oslo.config's, with the file's name in place of an object's repr."""
    return re.sub(r"LocationInfo\(location=<[^>]*>, detail='([^']*)'\)", r"\1", str(error))
