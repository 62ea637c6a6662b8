"""The core's oslo.config options, and reading a driver's options from the configuration and the URL."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from oslo_config import cfg, types

from msgbus.exceptions import ConfigurationError
from msgbus.foreign import get_logger
from msgbus.message import AT_MOST_ONCE, POLICIES

if TYPE_CHECKING:
    from msgbus.url import TransportHost, TransportURL

LOG = get_logger(__name__)

CORE_OPTS: list[cfg.Opt] = [
    cfg.StrOpt(
        "rpc_backend", default="zmq", help="The driver: kombu (or rabbit), qpid, zmq, fake, or a plug-in's name."
    ),
    cfg.StrOpt(
        "transport_url",
        secret=True,
        sample_default="rabbit://guest:guest@localhost:5672/",
        help="Driver, hosts and options in one: rabbit://user:password@host:5672/vhost?option=value. rabbits:// is the "
        "same with TLS. It wins over rpc_backend.",
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
        help="How requests are written: json is read by stock oslo.messaging peers too; msgpack carries binary data, "
        "NaN and infinity.",
    ),
    cfg.BoolOpt(
        "rpc_json_lossy",
        default=False,
        help="Whether values that JSON does not have are sent as something else, which the receiver cannot tell from "
        "what they became: NaN and infinity as null, bytes as base64 text, and numbers that are keys of a dict as "
        "strings. Otherwise they are a SerializationError at the sender. For services that send such values to a stock "
        "oslo.messaging, and cannot be changed.",
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

RPC_OPTS: list[cfg.Opt] = [
    cfg.ListOpt(
        "allowed_rpc_exception_modules",
        default=[],
        help="Modules whose exceptions may be made again in this process when a server raised them. For services that "
        "use msgbus.rpc; others say it in their code.",
    ),
]
"""What `msgbus.rpc` adds."""

SERVER_OPTIONS = ("executor_thread_pool_size", "rpc_prefetch")
"""The core's options that only servers read."""

_OPTIONS = {opt.dest: opt for opt in (*CORE_OPTS, *RPC_OPTS)}


CONNECTION_NAMES = ("hosts", "port", "username", "password", "virtual_host")
"""The options of `connection_opts`. In a URL they have places of their own."""


def connection_opts(old_names: dict[str, tuple[str, ...]], defaults: dict[str, Any]) -> list[cfg.Opt]:
    """The options of a driver that say where its message system is, for configurations without a ``transport_url``.

    Args:
        old_names: for each of `CONNECTION_NAMES`, the options of group DEFAULT that said so in older systems.
        defaults: for each of them.
    """
    deprecated = {
        name: [cfg.DeprecatedOpt(old, group="DEFAULT") for old in old_names.get(name, ())] for name in CONNECTION_NAMES
    }
    wins = "The transport_url, if it names a host, wins."
    return [
        cfg.ListOpt(
            "hosts",
            default=defaults["hosts"],
            deprecated_opts=deprecated["hosts"],
            help=f"Where the message system is: HOST or HOST:PORT, one or more. {wins}",
        ),
        cfg.PortOpt(
            "port",
            default=defaults["port"],
            deprecated_opts=deprecated["port"],
            help="The port of those hosts that name none. Default: the message system's own.",
        ),
        cfg.StrOpt(
            "username", default=defaults["username"], deprecated_opts=deprecated["username"], help="Who logs in."
        ),
        cfg.StrOpt(
            "password",
            default=defaults["password"],
            secret=True,
            deprecated_opts=deprecated["password"],
            help="That user's password.",
        ),
        cfg.StrOpt(
            "virtual_host",
            default=defaults["virtual_host"],
            deprecated_opts=deprecated["virtual_host"],
            help="The virtual host, where the message system has such. The transport_url, if it names one, wins.",
        ),
    ]


def hosts_of(options: SimpleNamespace, url: TransportURL) -> tuple[TransportHost, ...]:
    """The hosts of the URL, else of `connection_opts`; what one lacks, port, user or password, is of the options.

    Raises:
        ConfigurationError: a host of the options is invalid or empty, there is none, or one is named twice.
    """
    from msgbus.url import host_named_twice

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
    from msgbus.exceptions import InvalidTransportURL
    from msgbus.url import parse_host

    if not text.strip():
        raise ConfigurationError("the option hosts has an empty host in it: there is a comma too many")
    if "@" in text:  # The rest is not shown: it may hold a password.
        raise ConfigurationError("the option hosts holds an @: users have the options username and password")
    try:
        return parse_host(text, text)
    except InvalidTransportURL as exc:
        raise ConfigurationError(f"the option hosts: {exc}") from None


def register(conf: cfg.ConfigOpts, opts: Sequence[cfg.Opt] = CORE_OPTS) -> None:
    """Register options, the core's, on `conf`. May be called again.

    Where somebody has registered an option of that name already (oslo.messaging, or the service itself), that one
    counts, with its own default.

    Raises:
        TypeError: `conf` is no configuration.
    """
    if not hasattr(conf, "register_opt"):
        raise TypeError(
            f"the first argument is an oslo.config ConfigOpts, not {type(conf).__name__}; a transport URL is the second"
        )
    for opt in opts:
        try:
            conf.register_opt(opt)
        except cfg.DuplicateOptError:
            LOG.debug("somebody else has registered the option %s: theirs counts", opt.dest)


def list_opts() -> list[tuple[str | None, list[cfg.Opt]]]:
    """All options of msgbus and of the installed drivers, for oslo-config-generator."""
    from msgbus.transport import installed_drivers

    found: dict[str | None, list[cfg.Opt]] = {None: [*CORE_OPTS, *RPC_OPTS]}
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
            f"{misplaced[0]} has a place of its own in a transport URL, before the question mark: "
            "DRIVER://USERNAME:PASSWORD@HOST:PORT/VIRTUAL_HOST"
        )
    _refuse_unknown(url.query, by_name, f"the transport URL {url}")
    values = SimpleNamespace()
    for name, opt in by_name.items():
        if name in url.query:
            setattr(values, name, _read_from_url(opt, url))
        else:
            setattr(values, name, _read(conf, group, opt))
    if "ssl" in by_name:
        _refuse_settings_without_tls(conf, group, values, url)
    return values


def check_tls_files(options: SimpleNamespace, url: TransportURL) -> None:
    """See that the files of a driver's options for TLS can be read, and belong together.

    Raises:
        InvalidTransportURL: one cannot be read.
        ConfigurationError: there is the key of a certificate and no certificate.
    """
    from msgbus.exceptions import InvalidTransportURL

    for name in ("ssl_ca_file", "ssl_cert_file", "ssl_key_file"):
        path = getattr(options, name)
        if path and not os.access(path, os.R_OK):
            raise InvalidTransportURL(str(url), f"{name}: {path} cannot be read")
    if options.ssl_key_file and not options.ssl_cert_file:
        raise ConfigurationError("ssl_key_file has no effect without ssl_cert_file, the certificate whose key it is")


def _refuse_settings_without_tls(conf: cfg.ConfigOpts, group: str, values: SimpleNamespace, url: TransportURL) -> None:
    """Whoever sets an option of TLS believes that it is on."""
    given = [name for name in vars(values) if name.startswith("ssl_") and _is_given(conf, group, name, values, url)]
    if given and not values.ssl:
        raise ConfigurationError(
            f"{given[0]} is set, and TLS is off, so that it would have no effect: set ssl = true in [{group}] (in a "
            f"transport URL ?ssl=true), or remove {given[0]}"
        )


def _is_given(conf: cfg.ConfigOpts, group: str, name: str, values: SimpleNamespace, url: TransportURL) -> bool:
    """Whether somebody has set an option, even to its default; to set it to nothing is to leave it out."""
    if getattr(values, name) in (None, ""):
        return False
    found = conf.get_location(name, group)
    by_default = found is None or found.location in (cfg.Locations.opt_default, cfg.Locations.set_default)
    return name in url.query or not by_default


def _register_group(conf: cfg.ConfigOpts, group: str, opts: Sequence[cfg.Opt]) -> None:
    for opt in opts:
        try:
            conf.register_opt(opt, group=group)
        except cfg.DuplicateOptError:
            raise ConfigurationError(
                f"another part of this program has registered the option {opt.dest} of [{group}] in a way of its own: "
                f"the group is for the driver alone"
            ) from None


def _read_from_url(opt: cfg.Opt, url: TransportURL) -> Any:
    if opt.dest in url.repeated and not isinstance(opt.type, types.List):
        raise ConfigurationError(f"option {opt.dest} of the transport URL: it is given twice")
    try:
        return opt.type(url.query[opt.dest])
    except ValueError as exc:
        why = "it cannot be read" if opt.secret else _in_words(exc)
        raise ConfigurationError(f"option {opt.dest} of the transport URL: {why}") from None


def read_option(conf: cfg.ConfigOpts, name: str) -> Any:
    """The value of one of the core's options, as its type says, whoever has registered it.

    Each of them is read by this function, and not from `conf` itself: so every fault of a configuration is an error of
    msgbus, which names the option and the file, and never a password.

    Raises:
        ConfigurationError: the value does not fit, or refers by a dollar sign to what cannot be read.
    """
    return _read(conf, None, _OPTIONS[name])


def check_core_options(conf: cfg.ConfigOpts) -> None:
    """See that the core's options can be read, before they are needed.

    Left out are those that say where the message system is, and those of servers alone: oslo.config would warn of the
    old name of one of these in clients too.

    Raises:
        ConfigurationError: as for `read_option`.
    """
    for opt in CORE_OPTS:
        if opt.dest not in ("rpc_backend", "transport_url", *SERVER_OPTIONS):
            read_option(conf, opt.dest)


def says_where(conf: cfg.ConfigOpts) -> bool:
    """Whether anybody has set where the message system is."""
    where = (conf.get_location(name) for name in ("rpc_backend", "transport_url"))
    return any(found is not None and found.location is not cfg.Locations.opt_default for found in where)


def is_unread(conf: cfg.ConfigOpts) -> bool:
    """Whether nobody has called `conf`, so that it has read no file, and nobody has set where the message system is."""
    return not hasattr(conf, "config_file") and not says_where(conf)  # That option is registered by the call.


def _read(conf: cfg.ConfigOpts, group: str | None, opt: cfg.Opt) -> Any:
    try:
        if group is not None:
            return conf[group][opt.dest]
        value = conf[opt.dest]
        # Where somebody else has registered the option, it is of their type, and may have a default that is not ours.
        return opt.default if value is None else opt.type(value)
    except (ValueError, TypeError, RecursionError, cfg.Error) as exc:
        # A dollar sign begins the name of another option: the text of the error may hold a part of the password.
        refers = isinstance(exc, RecursionError | cfg.NoSuchOptError | cfg.TemplateSubstitutionError)
        why = "it cannot be read" if refers or opt.secret else _in_words(exc)
        if refers or opt.secret:
            percent = " (or, in a URL, %24)" if opt.dest == "transport_url" else ""
            why += f"; a dollar sign in a value is written twice, $${percent}: it begins the name of another option"
    name = "DEFAULT" if group is None else group
    path = names_in_files(conf, name).get(opt.dest)
    where = f"[{name}]" if path is None else f"[{name}] in {path}"
    raise ConfigurationError(f"option {opt.dest} of {where}: {why}")


def _in_words(exc: Exception) -> str:
    """What oslo.config and Python say of a wrong value, without what the caller says himself."""
    text = str(exc).rpartition(" is not valid: ")[2]
    text = re.sub(r"could not convert string to float: ('.*?')", r"\1 is not a number", text)
    return re.sub(r"invalid literal for int\(\) with base 10: ('.*?')", r"\1 is not a whole number", text)


def names_in_files(conf: cfg.ConfigOpts, group: str) -> dict[str, str]:
    """The names that stand in a group of the configuration files, whether they are options or not, and in which.

    oslo.config reads the name of a group in small letters, but that of DEFAULT.
    """
    return {
        name: path
        for path, groups in read_files(conf)
        for found, names in groups.items()
        if found == group or (found != "DEFAULT" and found.lower() == group)
        for name in names
    }


def read_files(conf: cfg.ConfigOpts) -> Iterator[tuple[str, dict[str, dict[str, list[str]]]]]:
    """Each of the configuration files: its path, and the values by group and name, whether they are options or not."""
    paths = list(getattr(conf, "config_file", None) or ())
    for folder in getattr(conf, "config_dir", None) or ():
        paths += sorted(glob.glob(os.path.join(folder, "*.conf")))
    for path in paths:
        groups: dict[str, dict[str, list[str]]] = {}
        try:
            cfg.ConfigParser(path, groups).parse()
        except (OSError, ValueError, cfg.ParseError) as exc:
            # It has been read; since then the process may have changed its folder or its user, or somebody the file.
            LOG.debug("%s cannot be looked at for wrong names: %s", path, type(exc).__name__)
        yield path, groups


def _refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    known = sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise ConfigurationError(f"unknown option {name!r} in {where}; {hint}")
