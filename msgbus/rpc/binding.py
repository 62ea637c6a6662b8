"""The configuration that `msgbus.rpc` works on, and the transports that it has opened for it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from msgbus import configuration
from msgbus.exceptions import ConfigurationError
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child
from msgbus.rpc.gone import warn_of_gone_options
from msgbus.transport import Transport, get_rpc_transport
from msgbus.url import TransportHost, TransportURL

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = get_logger(__name__)

_SERVER_PARAMS = ("hostname", "port", "username", "password", "virtual_host")


class _Consuming(Protocol):
    """A `Connection`, as far as `cleanup` has to know it."""

    @property
    def consumes(self) -> bool: ...


class _Bound:
    """What the functions of a module have to remember. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.conf: cfg.ConfigOpts | None = None
        self.exchange: str | None = None
        self.transports: dict[str | None, Transport] = {}  # by URL; None is the configured one
        self.connections: weakref.WeakSet[_Consuming] = weakref.WeakSet()

    def renew_lock(self) -> None:
        """In a forked child: a thread of the parent's may hold it."""
        self.lock = threading.RLock()


_bound = _Bound()
call_in_child(_bound.renew_lock)


def remember(connection: _Consuming) -> None:
    """Know a connection, in order to say so if it is cut off."""
    with _bound.lock:
        _bound.connections.add(connection)


def init(conf: cfg.ConfigOpts) -> None:
    """Have `msgbus.rpc` use a configuration, and register the options on it.

    May be called before the configuration is parsed, and again. What was open for another configuration is closed.

    Raises:
        TypeError: `conf` is no configuration.
    """
    with _bound.lock:
        configuration.register(conf)
        configuration.register(conf, configuration.RPC_OPTS)
        if _bound.exchange is not None:
            conf.set_default("control_exchange", _bound.exchange)
        before, _bound.conf = _bound.conf, conf
        opened = _take_transports() if before is not None and before is not conf else []
    _close(opened)


def set_defaults(control_exchange: str) -> None:
    """Set the default of the option ``control_exchange``, for a project that is used to another one.

    To be called before anything is sent, and before or after `init`.
    """
    with _bound.lock:
        _bound.exchange = control_exchange
        if _bound.conf is not None:
            _bound.conf.set_default("control_exchange", control_exchange)


def cleanup() -> None:
    """Close what was opened to message systems. Calls that wait end with `CallCancelled`. Idempotent.

    What is called afterwards opens anew. A `Connection` is to be closed before: one that still consumes is cut off, and
    what it runs cannot be answered.
    """
    with _bound.lock:
        opened = _take_transports()
    _close(opened)


def _take_transports() -> list[Transport]:
    """The transports, which from now on are nobody's; the lock is held."""
    transports = list(_bound.transports.values())
    _bound.transports.clear()
    if any(connection.consumes for connection in _bound.connections):
        LOG.warning("rpc.cleanup() cuts off consumers that were not closed: close their connections before")
    return transports


def _close(transports: list[Transport]) -> None:
    """Close them; the lock is not held, as that may take seconds, and methods that run may need it."""
    for transport in transports:
        try:
            transport.cleanup()
        except Exception:  # the others have to be closed all the same
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
        InvalidTransportURL, DriverLoadFailure, ConfigurationError: the configuration is of no use.
    """
    return _transport(None)


def transport_to(server_params: Mapping[str, Any]) -> Transport:
    """The transport to another message system; see `msgbus.rpc.cast_to_server`. Made when first asked for.

    Raises:
        InvalidTransportURL, DriverLoadFailure, ConfigurationError: the configuration or `server_params` is of no use.
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
                    warn_of_gone_options(conf)
                found = get_rpc_transport(conf, url, configuration.read_option(conf, "allowed_rpc_exception_modules"))
                _bound.transports[key] = found
    return found


def forget(transport: Transport) -> None:
    """Close a transport to another message system than the configured one, if nothing else goes over it."""
    with _bound.lock:
        keys = [key for key, known in _bound.transports.items() if known is transport and key is not None]
        if not keys or not transport.window.idle:
            return
        del _bound.transports[keys[0]]
    transport.cleanup()


def _url(server_params: Mapping[str, Any]) -> TransportURL:
    params = _checked(server_params)
    configured = TransportURL.parse(_conf())
    # What is not given is as configured: in the URL, or (what is None here) in the driver's options.
    usual = configured.hosts[0] if configured.hosts else TransportHost()
    host = TransportHost(
        hostname=params["hostname"],
        port=params.get("port", usual.port),
        username=params.get("username", usual.username),
        password=params.get("password", usual.password),
    )
    return replace(configured, hosts=(host,), virtual_host=params.get("virtual_host", configured.virtual_host))


def _checked(server_params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, in the types that they should have."""
    names = ", ".join(_SERVER_PARAMS)
    if not isinstance(server_params, Mapping):
        raise ConfigurationError(f"server_params is a dict with some of {names}, not {type(server_params).__name__}")
    if unknown := sorted(map(str, set(server_params) - set(_SERVER_PARAMS))):
        raise ConfigurationError(f"server_params: unknown are {', '.join(unknown)}; there are {names}")
    params = {name: value for name, value in server_params.items() if value is not None}
    if not params.get("hostname"):
        raise ConfigurationError(f"server_params: the hostname is missing; there are {names}")
    if any(c in "@/" or c.isspace() for c in str(params["hostname"])):  # It is not shown: it may hold a password.
        raise ConfigurationError(f"server_params: the hostname is no host name alone; there are {names}")
    port = str(params.get("port", "1"))
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigurationError("server_params: the port is none")
    for name, value in params.items():
        if name != "port" and not isinstance(value, str):
            raise ConfigurationError(f"server_params: the {name} is a string, not {type(value).__name__}")
    return {**params, "port": int(port)} if "port" in params else params
