"""The options of notifications, and the transport that they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from msgbus.transport import Transport, get_rpc_transport

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.url import TransportURL

T = TypeVar("T")


def read_notification_option(conf: cfg.ConfigOpts, name: str) -> Any:
    """The value of an option of ``[oslo_messaging_notifications]``; all are registered on `conf` before.

    Raises:
        ConfigurationError: it is invalid.
    """
    from msgbus.configuration import NOTIFICATION_OPTS, NOTIFICATIONS, read_value, register

    register(conf, NOTIFICATION_OPTS, NOTIFICATIONS)
    found = {opt.dest: opt for opt in NOTIFICATION_OPTS}
    return read_value(conf, NOTIFICATIONS, found[name])


def make_notification_transport(
    make: Callable[[cfg.ConfigOpts, str | TransportURL | None, Sequence[str] | None], T],
    conf: cfg.ConfigOpts,
    url: str | TransportURL | None,
    allowed_remote_exmods: Sequence[str] | None,
) -> T:
    """Make a transport for notifications by `make`; see `get_notification_transport`."""
    from msgbus.configuration import NOTIFICATION_OPTS, NOTIFICATIONS
    from msgbus.misspelt import warn_of_misspelt_in

    configured = read_notification_option(conf, "transport_url")
    transport = make(conf, url or configured, allowed_remote_exmods)
    warn_of_misspelt_in(conf, NOTIFICATIONS, NOTIFICATION_OPTS)
    return transport


def get_notification_transport(
    conf: cfg.ConfigOpts, url: str | TransportURL | None = None, allowed_remote_exmods: Sequence[str] | None = None
) -> Transport:
    """Make a transport for notifications. Nothing is connected yet.

    It is like one for requests, and either can be used for both.

    Args:
        conf: options are registered on it, and read from it.
        url: a transport URL; None means ``transport_url`` of ``[oslo_messaging_notifications]``, else what
            `get_rpc_transport` would use.
        allowed_remote_exmods: as for `get_rpc_transport`.

    Raises:
        ConfigurationError, InvalidTransportURL, DriverLoadFailure, TypeError: as for `get_rpc_transport`.
    """
    return make_notification_transport(get_rpc_transport, conf, url, allowed_remote_exmods)
