"""Options of drivers: the common ones, reading them from the configuration and the URL, and the list of all options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from oslo_config import cfg, types

from msgbus.configuration import (
    CORE_OPTS,
    NOTIFICATION_OPTS,
    NOTIFICATIONS,
    RPC_OPTS,
    in_words,
    names_in_files,
    read_files,
    read_value,
    refuse_nan,
)
from msgbus.drivers.registry import installed_drivers
from msgbus.exceptions import ConfigurationError, InvalidTransportURL
from msgbus.url import TransportHost, TransportURL, host_named_twice, parse_host

CONNECTION_NAMES = ("hosts", "port", "username", "password", "virtual_host")
"""The options of `connection_opts`. In a URL they have places of their own."""


def connection_opts(old_names: dict[str, tuple[str, ...]], defaults: dict[str, Any]) -> list[cfg.Opt]:
    """The options of a driver that say where its message system is, for configurations without a ``transport_url``.

    Args:
        old_names: for each of `CONNECTION_NAMES`, the options of group DEFAULT that said so in older systems.
        defaults: by name; if there is none for the hosts, it is localhost.
    """
    deprecated = {
        name: [cfg.DeprecatedOpt(old, group="DEFAULT") for old in old_names.get(name, ())] for name in CONNECTION_NAMES
    }
    wins = "The transport_url, if it names a host, wins."
    return [
        cfg.ListOpt(
            "hosts",
            default=defaults.get("hosts", ["localhost"]),
            deprecated_opts=deprecated["hosts"],
            help=f"Where the message system is: HOST or HOST:PORT, one or more. {wins}",
        ),
        cfg.PortOpt(
            "port",
            default=defaults.get("port"),
            deprecated_opts=deprecated["port"],
            help="The port of hosts without a port. Default: the message system's default.",
        ),
        cfg.StrOpt(
            "username", default=defaults.get("username"), deprecated_opts=deprecated["username"], help="The user name."
        ),
        cfg.StrOpt(
            "password",
            default=defaults.get("password"),
            secret=True,
            deprecated_opts=deprecated["password"],
            help="The user's password.",
        ),
        cfg.StrOpt(
            "virtual_host",
            default=defaults.get("virtual_host"),
            deprecated_opts=deprecated["virtual_host"],
            help="The virtual host, if the message system has virtual hosts. One in the transport_url overrides it.",
        ),
    ]


def hosts_of(options: SimpleNamespace, url: TransportURL) -> tuple[TransportHost, ...]:
    """The hosts of the URL, else of `connection_opts`; a port, user or password that one lacks comes from the options.

    Raises:
        ConfigurationError: a host of the options is invalid or empty, there is none, or one is named twice.
    """
    found = url.hosts or tuple(map(_host, options.hosts))
    if not found:
        raise ConfigurationError("the option hosts is empty: it names the hosts of the message system")
    hosts = tuple(
        replace(
            host,
            port=options.port if host.port is None else host.port,
            username=options.username if host.username is None else host.username,
            password=options.password if host.password is None else host.password,
        )
        for host in found
    )
    if twice := host_named_twice(hosts):
        raise ConfigurationError(f"the host {twice} is named twice, in the transport URL or in the option hosts")
    return hosts


def _host(text: str) -> TransportHost:
    if not text.strip():
        raise ConfigurationError("the option hosts contains an empty host: there is a comma too many")
    if "@" in text:  # The rest is not shown: it may hold a password.
        raise ConfigurationError("the option hosts contains an @: use the options username and password")
    try:
        return parse_host(text, text)
    except InvalidTransportURL as exc:
        raise ConfigurationError(f"the option hosts: {exc}") from None


def list_opts() -> list[tuple[str | None, list[cfg.Opt]]]:
    """All options of msgbus and of the installed drivers, for oslo-config-generator."""
    found: dict[str | None, list[cfg.Opt]] = {None: [*CORE_OPTS, *RPC_OPTS], NOTIFICATIONS: NOTIFICATION_OPTS}
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
            (with the nearest one that it has), or a value that does not fit. Where the driver has the option ``ssl``:
            another one whose name begins with ``ssl_`` is set, and ``ssl`` is not true.
    """
    _register_group(conf, group, opts)
    by_name = {opt.dest: opt for opt in opts}
    in_files = {name for opt in opts for name in (opt.dest, opt.name)}
    in_files |= {old.name for opt in opts for old in opt.deprecated_opts if old.name and old.group in (None, group)}
    for name, path in names_in_files(conf, group).items():
        _refuse_unknown([name], in_files, f"group [{group}] of {path}")
    if misplaced := sorted(set(url.query).intersection(CONNECTION_NAMES).intersection(by_name)):
        # The URL is not shown: what is misplaced may be the password.
        raise ConfigurationError(
            f"{misplaced[0]} is written before the question mark in a transport URL: "
            "DRIVER://USERNAME:PASSWORD@HOST:PORT/VIRTUAL_HOST"
        )
    # Without its query: the value of a misspelt option may be a password.
    _refuse_unknown(url.query, by_name, f"the transport URL {replace(url, query={})}")
    values = SimpleNamespace()
    for name, opt in by_name.items():
        if name in url.query:
            setattr(values, name, _read_from_url(opt, url))
        else:
            setattr(values, name, read_value(conf, group, opt))
    if "ssl" in by_name:
        _refuse_settings_without_tls(conf, group, values, url)
    return values


def _refuse_settings_without_tls(conf: cfg.ConfigOpts, group: str, values: SimpleNamespace, url: TransportURL) -> None:
    """Refuse options of TLS while it is off: an operator who sets one believes that it is on."""
    given = [name for name in vars(values) if name.startswith("ssl_") and is_given(conf, group, name, values, url)]
    if given and not values.ssl:
        raise ConfigurationError(
            f"{given[0]} is set, but TLS is off, so it would have no effect: set ssl = true in [{group}] (in a "
            f"transport URL ?ssl=true), or remove {given[0]}"
        )


def is_given(conf: cfg.ConfigOpts, group: str, name: str, values: SimpleNamespace, url: TransportURL) -> bool:
    """Whether an option of a driver was set, even to its default. An empty value counts as not set."""
    if getattr(values, name) in (None, ""):
        return False
    found = conf.get_location(name, group)
    by_default = found is None or found.location in (cfg.Locations.opt_default, cfg.Locations.set_default)
    return name in url.query or not by_default


def read_foreign_group(conf: cfg.ConfigOpts, group: str, opts: Sequence[cfg.Opt]) -> dict[str, Any]:
    """What is configured in the group of another library, for those of `opts` that are set there.

    Nothing is registered: if that library registered its own definitions later, oslo.config would raise
    DuplicateOptError. If it has registered them, these are read, with what the program has set; else the files are.

    Raises:
        ConfigurationError: a value does not fit.
    """
    in_files = {
        name: (values[-1], path)
        for path, groups in read_files(conf)
        for found, names in groups.items()
        if found.lower() == group
        for name, values in names.items()
    }
    values: dict[str, Any] = {}
    for opt in opts:
        where = f"[{group}]"
        try:
            if group in conf and opt.dest in conf[group]:
                value = conf[group][opt.dest]
            elif opt.dest in in_files:
                value, path = in_files[opt.dest]
                where += f" of {path}"
            else:
                continue
            if value not in (None, ""):
                values[opt.dest] = refuse_nan(opt.type(value))
        except (ValueError, cfg.Error) as exc:
            raise ConfigurationError(f"option {opt.dest} of {where}: {in_words(exc)}") from None
    return values


def _register_group(conf: cfg.ConfigOpts, group: str, opts: Sequence[cfg.Opt]) -> None:
    for opt in opts:
        try:
            conf.register_opt(opt, group=group)
        except cfg.DuplicateOptError:
            raise ConfigurationError(
                f"another part of this program has registered the option {opt.dest} of [{group}] with another "
                "definition: the group is reserved for the driver"
            ) from None


def _read_from_url(opt: cfg.Opt, url: TransportURL) -> Any:
    if opt.dest in url.repeated and not isinstance(opt.type, types.List):
        raise ConfigurationError(f"option {opt.dest} of the transport URL: it is given twice")
    try:
        return refuse_nan(opt.type(url.query[opt.dest]))
    except ValueError as exc:
        why = "it cannot be read" if opt.secret else in_words(exc)
        raise ConfigurationError(f"option {opt.dest} of the transport URL: {why}") from None


def _refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    known = sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise ConfigurationError(f"unknown option {name!r} in {where}; {hint}")
