"""The core's oslo.config options, and reading a driver's options from the configuration and the URL."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from msgbus.exceptions import ConfigurationError
from msgbus.message import AT_MOST_ONCE, POLICIES

if TYPE_CHECKING:
    from msgbus.url import TransportURL

CORE_OPTS: list[cfg.Opt] = [
    cfg.StrOpt(
        "rpc_backend", default="zmq", help="The driver: kombu (or rabbit), qpid, zmq, fake, or a plug-in's name."
    ),
    cfg.StrOpt(
        "transport_url",
        secret=True,
        help="Driver, hosts and options in one: rabbit://user:password@host:5672/vhost?option=value. It wins over "
        "rpc_backend.",
    ),
    cfg.FloatOpt(
        "rpc_response_timeout",
        default=60.0,
        min=0.001,
        help="Seconds that a call waits for its answer where the caller names no timeout.",
    ),
    cfg.StrOpt("control_exchange", default="msgbus", help="The exchange of targets that name none."),
    cfg.IntOpt(
        "executor_thread_pool_size",
        default=64,
        min=1,
        deprecated_name="rpc_thread_pool_size",
        help="The most requests that a server runs at the same time.",
    ),
    cfg.IntOpt(
        "rpc_prefetch",
        default=64,
        min=1,
        help="The most requests that a server holds for each of its addresses without having begun (at_most_once) or "
        "finished (at_least_once) them.",
    ),
    cfg.StrOpt(
        "rpc_delivery",
        default=AT_MOST_ONCE,
        choices=POLICIES,
        help="The delivery policy of calls and casts that name none: the client's default, and what a server assumes "
        "of requests that do not say.",
    ),
    cfg.StrOpt(
        "rpc_codec",
        default="json",
        choices=("json", "msgpack"),
        help="How requests are written: json is read by stock oslo.messaging peers too; msgpack carries binary data.",
    ),
    cfg.IntOpt(
        "rpc_send_window",
        default=1000,
        min=1,
        help="The most unfinished requests of one transport; a further one waits, within its deadline.",
    ),
    cfg.FloatOpt(
        "rpc_reply_grace",
        default=10.0,
        min=0.0,
        help="Seconds that a server tries to deliver an answer to a client that is away, and that a client waits for a "
        "sign of life after the outcome of its request has become uncertain.",
    ),
    cfg.IntOpt(
        "rpc_cast_retries",
        default=3,
        min=0,
        help="How often a server runs an at_least_once cast again that raised, before it goes to the dead letters.",
    ),
    cfg.BoolOpt("rpc_ping_enabled", default=True, help="Whether a server answers pings."),
]


def register(conf: cfg.ConfigOpts) -> None:
    """Register the core's options on `conf`. May be called again."""
    conf.register_opts(CORE_OPTS)


def list_opts() -> list[tuple[str | None, list[cfg.Opt]]]:
    """All options of msgbus and of the installed drivers, for oslo-config-generator."""
    from msgbus.transport import installed_drivers

    found: dict[str | None, list[cfg.Opt]] = {None: list(CORE_OPTS)}
    for driver in installed_drivers().values():
        group, opts = driver.options()
        found[group] = list(opts)
    return list(found.items())


def read_driver_options(
    conf: cfg.ConfigOpts, group: str, opts: Sequence[cfg.Opt], url: TransportURL
) -> SimpleNamespace:
    """The values of a driver's options: from the URL's query, else from the configuration, else the default.

    Raises:
        ConfigurationError: a name in the query or in the group of a configuration file that the driver does not have
            (with the nearest one that it has), or a value that does not fit.
    """
    conf.register_opts(opts, group=group)
    by_name = {opt.dest: opt for opt in opts}
    in_files = {
        name for opt in opts for name in (opt.dest, opt.name, *(old.name for old in opt.deprecated_opts)) if name
    }
    _refuse_unknown(_names_in_files(conf, group), in_files, f"group [{group}] of the configuration")
    _refuse_unknown(url.query, by_name, f"the transport URL {url}")
    values = SimpleNamespace()
    for name, opt in by_name.items():
        try:
            value: Any = opt.type(url.query[name]) if name in url.query else conf[group][name]
        except (ValueError, cfg.ConfigFileValueError) as exc:
            raise ConfigurationError(f"option {name} of [{group}] or of the transport URL: {exc}") from exc
        setattr(values, name, value)
    return values


def _names_in_files(conf: cfg.ConfigOpts, group: str) -> set[str]:
    names: set[str] = set()
    paths = list(getattr(conf, "config_file", None) or ())
    for folder in getattr(conf, "config_dir", None) or ():
        paths += sorted(glob.glob(os.path.join(folder, "*.conf")))
    for path in paths:
        sections: dict[str, dict[str, list[str]]] = {}
        cfg.ConfigParser(path, sections).parse()
        names.update(sections.get(group, ()))
    return names


def _refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    known = sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise ConfigurationError(f"unknown option {name!r} in {where}; {hint}")
