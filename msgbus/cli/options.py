"""Options that several commands have, and what they are turned into: a log, a configuration, a transport."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.transport import Transport

F = TypeVar("F", bound=Callable[..., Any])

LEVELS = ("debug", "info", "warning", "error", "critical")
_LEVEL = "msgbus.cli.level"


def example(*lines: str) -> str:
    """The end of a command's help. Click keeps the lines of a paragraph that begins with a backspace."""
    return "\n".join(["\b", "Example:", *(f"  {line}" if line else "\n\b" for line in lines)])


def _set_level(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[_LEVEL] = value
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger().setLevel(ctx.meta.get(_LEVEL, "warning").upper())


def wants_traceback(ctx: click.Context) -> bool:
    """Whether errors are to be shown with their tracebacks."""
    return bool(ctx.meta.get(_LEVEL) == "debug")


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


def bus_options(func: F) -> F:
    """Add what says where the message system is."""
    url = click.option(
        "--url",
        envvar="MSGBUS_URL",
        show_envvar=True,
        metavar="URL",
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


@contextmanager
def open_transport(url: str | None, config_files: tuple[str, ...], *, quiet: bool = False) -> Iterator[Transport]:
    """A transport for the options of `bus_options`; it is closed at the end.

    Args:
        url: a transport URL.
        config_files: paths.
        quiet: the command ends with the first error, which says what a driver's warnings say: leave those out, unless
            the user has chosen a log level.

    Raises:
        ConfigurationError, InvalidTransportURL, DriverLoadFailure: the configuration is of no use.
    """
    from oslo_config import cfg

    from msgbus.exceptions import ConfigurationError
    from msgbus.transport import get_rpc_transport

    drivers = logging.getLogger("msgbus.drivers")
    level = drivers.level
    if quiet and _LEVEL not in click.get_current_context().meta:
        drivers.setLevel(logging.ERROR)
    conf = load_configuration(config_files)
    try:
        transport = get_rpc_transport(conf, url or None)
        try:
            yield transport
        finally:
            transport.cleanup()
    except cfg.Error as exc:
        raise ConfigurationError(str(exc)) from exc
    finally:
        drivers.setLevel(level)
