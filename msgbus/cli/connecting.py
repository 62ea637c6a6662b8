"""The message system of a command: its configuration, its URL, and a transport that is closed at the end."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from msgbus.cli.context import level_of, wants_json
from msgbus.cli.errors import is_end_of_output
from msgbus.cli.progress import progress
from msgbus.cli.reporting import report

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.transport import Transport
    from msgbus.url import TransportURL

HELD = 0.5
"""Seconds for which a driver's warnings are held back: if the command fails by then, its error says the same."""


def load_configuration(files: tuple[str, ...]) -> cfg.ConfigOpts:
    """Read these configuration files, and none of those that oslo.config would look for by itself.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    from oslo_config import cfg

    from msgbus.exceptions import ConfigurationError

    conf = cfg.ConfigOpts()
    try:
        conf([], project="msgbus", prog="msgbus", default_config_files=list(files), default_config_dirs=[])
    except cfg.ConfigFileParseError as exc:  # Its text ends with the line, which may hold a password.
        raise ConfigurationError(re.sub(r": '.*", "", str(exc), flags=re.DOTALL)) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{', '.join(files)} cannot be read: it is not UTF-8") from None
    except cfg.Error as exc:
        raise ConfigurationError(str(exc)) from exc
    return conf


def configured_url(url: str | None, config_files: tuple[str, ...]) -> TransportURL:
    """The URL that `open_transport` would use.

    Raises:
        ConfigurationError, InvalidTransportURL: the configuration cannot be used.
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
    """Holds back what is logged in the first moment. Later records go to the root logger as usual."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[logging.LogRecord] | None = []
        self._timer = threading.Timer(HELD, self.release_all)
        self._timer.daemon = True

    def emit(self, record: logging.LogRecord) -> None:
        """Hold the record back, or pass it on. The caller holds the lock."""
        if self._kept is None:
            logging.getLogger().handle(record)
            return
        if not self._kept:
            self._timer.start()
        self._kept.append(record)

    def release_all(self, *, dropping: bool = False) -> None:
        """Pass on what was held back, or drop it; from now on hold nothing back."""
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
    """If `held`, drop a driver's warnings that are logged right before an error ends the block.

    The error says the same. Other warnings are shown if `shown`.
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
        handler.release_all(dropping=failed)
        drivers.removeHandler(handler)
        drivers.propagate = propagate
        drivers.setLevel(level)


@contextmanager
def open_transport(
    url: str | None,
    config_files: tuple[str, ...],
    *,
    quiet: bool = False,
    allowed: tuple[str, ...] = (),
    for_notifications: bool = False,
) -> Iterator[Transport]:
    """Open a transport for the options of `bus_options`, and close it at the end.

    Args:
        url: a transport URL.
        config_files: paths.
        allowed: modules whose exceptions may be rebuilt here.
        quiet: the command ends with the first error, which says what the driver's warnings say. Unless the user has
            chosen a log level, warnings right before the error are not shown; with errors as JSON, none are.
        for_notifications: the configuration may name another message system for these.

    Raises:
        ConfigurationError, InvalidTransportURL, DriverLoadFailure: the configuration cannot be used.
    """
    from oslo_config import cfg

    from msgbus.exceptions import ConfigurationError
    from msgbus.notify.options import get_notification_transport
    from msgbus.transport import get_rpc_transport

    ctx = click.get_current_context()
    conf = load_configuration(config_files)
    if wants_json(ctx):
        for name in ("msgbus.misspelt", "msgbus.unread"):
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        make = get_notification_transport if for_notifications else get_rpc_transport
        transport = make(conf, url, allowed)
        try:
            with _warnings_of_drivers(held=quiet and level_of(ctx) is None, shown=not wants_json(ctx)):
                yield transport
        except (click.ClickException, click.exceptions.Exit, cfg.Error):  # reported elsewhere
            raise
        except Exception as exc:
            if not is_end_of_output(exc):
                report(exc)  # Now, and not at the end: closing the connection may take a few seconds.
            raise
        finally:
            with progress() as waiting, waiting("closing the connection"):
                transport.cleanup()
    except cfg.Error as exc:
        raise ConfigurationError(str(exc)) from exc
