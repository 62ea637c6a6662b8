"""The configuration that `msgbus.rpc` uses, and the transports that it has opened."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from msgbus import configuration
from msgbus.exceptions import ConfigurationError
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child
from msgbus.interceptors import Interceptor, checked_interceptors
from msgbus.rpc.removed import warn_of_removed_options
from msgbus.transport import Transport, get_rpc_transport
from msgbus.url import TransportHost, TransportURL

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = get_logger(__name__)

_SERVER_PARAMS = ("hostname", "port", "username", "password", "virtual_host")


class _Consuming(Protocol):
    """A `Connection`: what `cleanup` needs of it."""

    @property
    def consumes(self) -> bool: ...


class _Bound:
    """The state that the functions of `msgbus.rpc` share. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.conf: cfg.ConfigOpts | None = None
        self.exchange: str | None = None
        self.client_interceptors: tuple[Interceptor, ...] = ()
        self.server_interceptors: tuple[Interceptor, ...] = ()
        self.transports: dict[str | None, Transport] = {}  # by URL; None is the configured one
        self.connections: weakref.WeakSet[_Consuming] = weakref.WeakSet()

    def renew_lock(self) -> None:
        """In a forked child: a thread of the parent may have held it."""
        self.lock = threading.RLock()


_bound = _Bound()
call_in_child(_bound.renew_lock)


def remember(connection: _Consuming) -> None:
    """Register a connection, so that `cleanup` can warn if it closes the transport under it."""
    with _bound.lock:
        _bound.connections.add(connection)


def init(
    conf: cfg.ConfigOpts,
    client_interceptors: Sequence[Interceptor] = (),
    server_interceptors: Sequence[Interceptor] = (),
) -> None:
    """Set the configuration of `msgbus.rpc`, and register the options on it.

    May be called before the configuration is parsed, and again. What was open for another configuration is closed.

    Args:
        conf: the configuration.
        client_interceptors: functions ``(request, proceed)`` around all that is sent from now on; see
            ``docs/howto/interceptors.md``.
        server_interceptors: likewise, around all that consumers run which are created from now on.

    Raises:
        TypeError: `conf` is not a configuration, or an interceptor cannot be called, or is ``async``.
    """
    sending = checked_interceptors(client_interceptors, asynchronous=False, owner="msgbus.rpc")
    serving = checked_interceptors(server_interceptors, asynchronous=False, owner="msgbus.rpc")
    with _bound.lock:
        configuration.register(conf)
        configuration.register(conf, configuration.RPC_OPTS)
        if _bound.exchange is not None:
            conf.set_default("control_exchange", _bound.exchange)
        _bound.client_interceptors, _bound.server_interceptors = sending, serving
        before, _bound.conf = _bound.conf, conf
        opened = _take_transports() if before is not None and before is not conf else []
    _close(opened)


def client_interceptors() -> tuple[Interceptor, ...]:
    """Those of all that is sent."""
    return _bound.client_interceptors


def server_interceptors() -> tuple[Interceptor, ...]:
    """Those of consumers that are created now."""
    return _bound.server_interceptors


def set_defaults(control_exchange: str) -> None:
    """Set the default of the option ``control_exchange``.

    To be called before anything is sent, before or after `init`.
    """
    with _bound.lock:
        _bound.exchange = control_exchange
        if _bound.conf is not None:
            _bound.conf.set_default("control_exchange", control_exchange)


def cleanup() -> None:
    """Close all connections to message systems. Waiting calls raise `CallCancelled`. Idempotent.

    Later calls connect again. Close each `Connection` before: one that still consumes loses its connection, and cannot
    answer what it runs.
    """
    with _bound.lock:
        opened = _take_transports()
    _close(opened)


def _take_transports() -> list[Transport]:
    """Remove and return all transports. The caller holds the lock."""
    transports = list(_bound.transports.values())
    _bound.transports.clear()
    if any(connection.consumes for connection in _bound.connections):
        LOG.warning("rpc.cleanup() disconnects consumers that were not closed: call Connection.close() first")
    return transports


def _close(transports: list[Transport]) -> None:
    """Close them, without the lock: that may take seconds, and running methods may need it."""
    for transport in transports:
        try:
            transport.cleanup()
        except Exception:  # the others have to be closed too
            LOG.exception("%s was not closed cleanly", transport)


def _conf() -> cfg.ConfigOpts:
    if _bound.conf is None:
        from oslo_config import cfg

        init(cfg.CONF)
    assert _bound.conf is not None
    return _bound.conf


def transport() -> Transport:
    """The transport to the configured message system. Made when first asked for.

    Raises:
        InvalidTransportURL, DriverLoadFailure, ConfigurationError: the configuration cannot be used.
    """
    return _transport(None)


def transport_to(server_params: Mapping[str, Any]) -> Transport:
    """The transport to another message system; see `msgbus.rpc.cast_to_server`. Made when first asked for.

    Raises:
        InvalidTransportURL, DriverLoadFailure, ConfigurationError: the configuration or `server_params` cannot be
            used.
    """
    return _transport(_url(server_params))


def _transport(url: TransportURL | None) -> Transport:
    key = None if url is None else url.unmasked()
    found = _bound.transports.get(key)
    if found is None:
        with _bound.lock:
            found = _bound.transports.get(key)
            if found is None:
                conf = _conf()
                if not _bound.transports:
                    warn_of_removed_options(conf)
                found = get_rpc_transport(conf, url, configuration.read_option(conf, "allowed_rpc_exception_modules"))
                _bound.transports[key] = found
    return found


def forget(transport: Transport) -> None:
    """Close a transport to another message system than the configured one, if nothing else uses it."""
    with _bound.lock:
        keys = [key for key, known in _bound.transports.items() if known is transport and key is not None]
        if not keys or not transport.window.idle:
            return
        del _bound.transports[keys[0]]
    transport.cleanup()


def _url(server_params: Mapping[str, Any]) -> TransportURL:
    params = _checked(server_params)
    configured = TransportURL.parse(_conf())
    # What is not given is taken from the configured URL, or (None here) from the driver's options.
    usual = configured.hosts[0] if configured.hosts else TransportHost()
    host = TransportHost(
        hostname=params["hostname"],
        port=params.get("port", usual.port),
        username=params.get("username", usual.username),
        password=params.get("password", usual.password),
    )
    return replace(configured, hosts=(host,), virtual_host=params.get("virtual_host", configured.virtual_host))


def _checked(server_params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, checked, with the port as a number."""
    names = ", ".join(_SERVER_PARAMS)
    if not isinstance(server_params, Mapping):
        raise ConfigurationError(f"server_params is a dict with some of {names}, not {type(server_params).__name__}")
    if unknown := sorted(map(str, set(server_params) - set(_SERVER_PARAMS))):
        raise ConfigurationError(f"server_params: unknown: {', '.join(unknown)}; there are {names}")
    params = {name: value for name, value in server_params.items() if value is not None}
    if not params.get("hostname"):
        raise ConfigurationError(f"server_params: the hostname is missing; there are {names}")
    if any(c in "@/" or c.isspace() for c in str(params["hostname"])):  # It is not shown: it may hold a password.
        raise ConfigurationError(f"server_params: the hostname is not a plain host name; there are {names}")
    port = str(params.get("port", "1"))
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ConfigurationError("server_params: the port is invalid")
    for name, value in params.items():
        if name != "port" and not isinstance(value, str):
            raise ConfigurationError(f"server_params: the {name} is a string, not {type(value).__name__}")
    return {**params, "port": int(port)} if "port" in params else params
