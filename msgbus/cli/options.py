"""Options that several commands have, and what they are turned into: a log, a configuration, a transport."""

from __future__ import annotations

import logging
import re
import sys
import threading
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
HELD = 0.5
"""Seconds for which a driver's warning is held back: if the command fails by then, its error says the same."""
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


def json_option(text: str = "", *, quiet: bool = False) -> Callable[[F], F]:
    """Add --json; `text` says what is JSON then, besides errors. Without it nothing is, and the command is not told.

    `quiet` is what `open_transport` is told.
    """
    errors = "Errors are JSON, too" if text else "Errors are a line of JSON"
    warnings = "; what the driver warns of is left out." if quiet else "."
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        expose_value=bool(text),
        help=f"{text} {errors}{warnings}".lstrip(),
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


def beginnings_of_urls(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """What a URL may begin with: for the shell's completion."""
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
        shell_complete=beginnings_of_urls,
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


def serializer_option(func: F) -> F:
    """Add --serializer."""
    return click.option(
        "--serializer",
        metavar="MODULE:CLASS",
        help="A subclass of msgbus.Serializer, which turns arguments and results into plain data and back; clients and "
        "servers need the same.",
    )(func)


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
    except cfg.ConfigFileParseError as exc:  # Its text ends with the line, in which a password may be.
        raise ConfigurationError(re.sub(r": '.*", "", str(exc), flags=re.DOTALL)) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{', '.join(files)} cannot be read: it is not UTF-8") from None
    except cfg.Error as exc:
        raise ConfigurationError(str(exc)) from exc
    return conf


def configured_url(url: str | None, config_files: tuple[str, ...]) -> TransportURL:
    """The URL that `open_transport` would use.

    Raises:
        ConfigurationError, InvalidTransportURL: the configuration is of no use.
    """
    from oslo_config import cfg

    from msgbus import configuration
    from msgbus.exceptions import ConfigurationError
    from msgbus.url import TransportURL

    conf = load_configuration(config_files)
    configuration.register(conf)
    try:
        return TransportURL.parse(conf, url)
    except cfg.Error as exc:
        raise ConfigurationError(str(exc)) from exc


class _Held(logging.Handler):
    """Keeps back what is logged in the first moment. What comes later goes to the root logger as ever."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[logging.LogRecord] | None = []
        self._timer = threading.Timer(HELD, self.let_go)
        self._timer.daemon = True

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, or pass it on. The caller holds the lock."""
        if self._kept is None:
            logging.getLogger().handle(record)
            return
        if not self._kept:
            self._timer.start()
        self._kept.append(record)

    def let_go(self, *, dropping: bool = False) -> None:
        """Pass on what was kept, or forget it; keep nothing any more."""
        self.acquire()
        try:
            kept, self._kept = self._kept, None
        finally:
            self.release()
        for record in () if dropping else kept or ():
            logging.getLogger().handle(record)
        self._timer.cancel()


@contextmanager
def _warnings_of_drivers(*, held: bool, shown: bool) -> Iterator[None]:
    """Where they are `held`: an error that ends the block within a moment takes the place of a driver's warnings.

    Those that come earlier or later are shown, or not.
    """
    if not held:
        yield
        return
    drivers = logging.getLogger("msgbus.drivers")
    level, propagate = drivers.level, drivers.propagate
    handler = _Held()
    if shown:
        drivers.addHandler(handler)
        drivers.propagate = False
    else:
        drivers.setLevel(logging.ERROR)
    failed = True
    try:
        yield
        failed = False
    finally:
        handler.let_go(dropping=failed)
        drivers.removeHandler(handler)
        drivers.propagate = propagate
        drivers.setLevel(level)


@contextmanager
def open_transport(
    url: str | None, config_files: tuple[str, ...], *, quiet: bool = False, allowed: tuple[str, ...] = ()
) -> Iterator[Transport]:
    """A transport for the options of `bus_options`; it is closed at the end.

    Args:
        url: a transport URL.
        config_files: paths.
        allowed: modules whose exceptions may be made again here.
        quiet: the command ends with the first error, which says what a driver's warnings say. Unless the user has
            chosen a log level, leave out those that come right before it, or all where errors are JSON.

    Raises:
        ConfigurationError, InvalidTransportURL, DriverLoadFailure: the configuration is of no use.
    """
    from oslo_config import cfg

    from msgbus.cli.errors import is_end_of_output
    from msgbus.cli.progress import progress
    from msgbus.cli.telling import tell
    from msgbus.exceptions import ConfigurationError
    from msgbus.transport import get_rpc_transport

    ctx = click.get_current_context()
    conf = load_configuration(config_files)
    if wants_json(ctx):
        for name in ("msgbus.misspelt", "msgbus.unread"):
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        transport = get_rpc_transport(conf, url or None, allowed)
        try:
            with _warnings_of_drivers(held=quiet and _LEVEL not in ctx.meta, shown=not wants_json(ctx)):
                yield transport
        except (click.ClickException, click.exceptions.Exit, cfg.Error):  # others make words of them
            raise
        except Exception as exc:
            if not is_end_of_output(exc):
                tell(exc)  # Now: closing the connection may take a few seconds.
            raise
        finally:
            with progress() as waiting, waiting("closing the connection"):
                transport.cleanup()
    except cfg.Error as exc:
        raise ConfigurationError(str(exc)) from exc
