"""The configuration that `msgbus.rpc` works on, and the transports that it has opened for it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msgbus import options
from msgbus.exceptions import ConfigurationError
from msgbus.rpc.gone import warn_of_gone_options
from msgbus.transport import Transport, get_rpc_transport
from msgbus.url import TransportHost, TransportURL

if TYPE_CHECKING:
    from oslo_config import cfg

_SERVER_PARAMS = ("hostname", "port", "username", "password", "virtual_host")


class _Bound:
    """What the functions of a module have to remember. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.conf: cfg.ConfigOpts | None = None
        self.exchange: str | None = None
        self.transports: dict[str | None, Transport] = {}  # by URL; None is the configured one


_bound = _Bound()


def init(conf: cfg.ConfigOpts) -> None:
    """Have `msgbus.rpc` use a configuration, and register the options on it.

    May be called before the configuration is parsed, and again. What was open for another configuration is closed.
    """
    with _bound.lock:
        if _bound.conf is not None and _bound.conf is not conf:
            cleanup()
        options.register(conf)
        conf.register_opts(options.RPC_OPTS)
        if _bound.exchange is not None:
            conf.set_default("control_exchange", _bound.exchange)
        _bound.conf = conf


def set_defaults(control_exchange: str) -> None:
    """Set the default of the option ``control_exchange``, for a project that is used to another one.

    To be called before anything is sent, and before or after `init`.
    """
    with _bound.lock:
        _bound.exchange = control_exchange
        if _bound.conf is not None:
            _bound.conf.set_default("control_exchange", control_exchange)


def cleanup() -> None:
    """Close every connection that was opened. What is used again afterwards opens anew. Idempotent."""
    with _bound.lock:
        transports = list(_bound.transports.values())
        _bound.transports.clear()
    for transport in transports:
        transport.cleanup()


def _conf() -> cfg.ConfigOpts:
    if _bound.conf is None:
        from oslo_config import cfg

        init(cfg.CONF)
    assert _bound.conf is not None
    return _bound.conf


def transport(server_params: dict[str, Any] | None = None) -> Transport:
    """The transport to the configured message system, or to that of `server_params`. Opened when first asked for.

    Raises:
        InvalidTransportURL, DriverLoadFailure, ConfigurationError: the configuration or `server_params` is of no use.
    """
    url = None if server_params is None else _url(server_params)
    found = _bound.transports.get(url)
    if found is None:
        with _bound.lock:
            found = _bound.transports.get(url)
            if found is None:
                conf = _conf()
                if not _bound.transports:
                    warn_of_gone_options(conf)
                found = get_rpc_transport(conf, url, conf.allowed_rpc_exception_modules)
                _bound.transports[url] = found
    return found


def _url(server_params: dict[str, Any]) -> str:
    unknown = sorted(set(server_params) - set(_SERVER_PARAMS))
    if unknown or not server_params.get("hostname"):
        wrong = f"unknown are {', '.join(unknown)}" if unknown else "the hostname is missing"
        raise ConfigurationError(f"server_params: {wrong}; there are {', '.join(_SERVER_PARAMS)}")
    port = server_params.get("port")
    host = TransportHost(
        hostname=server_params["hostname"],
        port=None if port is None else int(port),
        username=server_params.get("username"),
        password=server_params.get("password"),
    )
    configured = TransportURL.parse(_conf())
    virtual_host = server_params.get("virtual_host", configured.virtual_host)
    return replace(configured, hosts=(host,), virtual_host=virtual_host).unmasked()
