"""The core's oslo.config options, and reading them and the configuration files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from math import isnan
from typing import Any

from oslo_config import cfg, types

from msgbus.exceptions import ConfigurationError
from msgbus.foreign import get_logger
from msgbus.message import AT_MOST_ONCE, POLICIES

LOG = get_logger(__name__)

BUILT_IN = ("describe", "stats")
"""The methods in the namespace ``msgbus`` that a server may leave out."""

CORE_OPTS: list[cfg.Opt] = [
    cfg.StrOpt(
        "rpc_backend", default="zmq", help="The driver: kombu (or rabbit), qpid, zmq, fake, or a plug-in's name."
    ),
    cfg.StrOpt(
        "transport_url",
        secret=True,
        sample_default="rabbit://guest:guest@localhost:5672/",
        help="Driver, hosts and options in one: rabbit://user:password@host:5672/vhost?option=value. rabbits:// is "
        "the same with TLS. It overrides rpc_backend.",
    ),
    cfg.FloatOpt(
        "rpc_response_timeout",
        default=60.0,
        min=0.001,
        help="Seconds that a call waits for its answer if the caller gives no timeout.",
    ),
    cfg.StrOpt("control_exchange", default="msgbus", help="The exchange of targets that do not name one."),
    cfg.IntOpt(
        "executor_thread_pool_size",
        default=64,
        min=1,
        deprecated_name="rpc_thread_pool_size",
        help="The most requests that a server runs at the same time on threads.",
    ),
    cfg.IntOpt(
        "executor_tasks",
        default=1000,
        min=1,
        help="The most requests that a server of msgbus.aio, or one with async methods, runs at the same time, "
        "including plain methods and open streams.",
    ),
    cfg.IntOpt(
        "rpc_prefetch",
        default=64,
        min=1,
        max=65_535,  # what RabbitMQ's protocol has a number for
        help="The most requests that a server holds for each of its addresses without having begun (at_most_once) or "
        "finished (at_least_once) them.",
    ),
    cfg.StrOpt(
        "rpc_delivery",
        default=AT_MOST_ONCE,
        choices=POLICIES,
        help="The delivery policy of calls and casts that do not name one. Servers also use it for requests that "
        "carry no policy.",
    ),
    cfg.StrOpt(
        "rpc_codec",
        default="json",
        choices=("json", "msgpack"),
        help="The format of requests. Stock oslo.messaging peers can read json; msgpack can also carry binary data, "
        "NaN and infinity.",
    ),
    cfg.BoolOpt(
        "rpc_json_lossy",
        default=False,
        help="Whether values that JSON does not have are converted: NaN and infinity to null, bytes to base64 text, "
        "and numbers that are keys of a dict to strings. The receiver cannot tell that they were converted. "
        "Otherwise they raise SerializationError at the sender. Use it only for services that send such values "
        "to a stock oslo.messaging and cannot be changed.",
    ),
    cfg.IntOpt(
        "rpc_send_window",
        default=1000,
        min=1,
        help="The most unfinished requests of one transport, including open streams. Further requests wait, within "
        "their deadline.",
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
        help="How often a server repeats an at_least_once cast that raises, before the cast goes to the dead letters.",
    ),
    cfg.BoolOpt(
        "rpc_ping_enabled",
        default=True,
        help="Whether a server answers pings, those of oslo.messaging (oslo_rpc_server_ping) among them.",
    ),
    cfg.ListOpt(
        "rpc_built_in_methods",
        default=list(BUILT_IN),
        item_type=types.String(choices=BUILT_IN),
        help="The methods that a server has in the namespace msgbus, besides ping, for everybody who may send "
        "requests to its topic. describe returns its methods, with their signatures, docstrings and types "
        "(msgbus describe, msgbus stub); stats returns what it runs and has run, with names of methods and ids "
        "of requests. Empty: none.",
    ),
]

RPC_OPTS: list[cfg.Opt] = [
    cfg.ListOpt(
        "allowed_rpc_exception_modules",
        default=[],
        help="Modules whose exceptions are rebuilt in this process if a server raises them. For services that use "
        "msgbus.rpc; others pass allowed_remote_exmods in their code.",
    ),
]
"""What `msgbus.rpc` adds."""

NOTIFICATIONS = "oslo_messaging_notifications"
"""The group of `NOTIFICATION_OPTS`: the one that a file for oslo.messaging has them in."""

NOTIFICATION_OPTS: list[cfg.Opt] = [
    cfg.MultiStrOpt(
        "driver",
        default=[],
        help="How notifications are sent, a line for each way: messaging, messagingv2, log, routing, test, noop, or a "
        "plug-in's name. None: they are not sent.",
    ),
    cfg.StrOpt(
        "transport_url",
        secret=True,
        sample_default="rabbit://guest:guest@localhost:5672/",
        help="The message system for notifications, if it is another one than that of requests.",
    ),
    cfg.ListOpt(
        "topics",
        default=["notifications"],
        help="The topics that notifications are sent to; each goes to TOPIC.LEVEL, such as notifications.info.",
    ),
    cfg.IntOpt(
        "retry",
        default=-1,
        min=-1,
        help="How often a notification is sent again if the message system did not take it; -1: again and again. It is "
        "given up after rpc_response_timeout in any case.",
    ),
    cfg.StrOpt(
        "routing_config",
        default="",
        help="The file with the rules of the driver routing: YAML, or JSON if its name ends with .json.",
    ),
]
"""What notifiers add."""

SERVER_OPTIONS = ("executor_thread_pool_size", "executor_tasks", "rpc_prefetch")
"""The core's options that only servers read."""

_OPTIONS = {opt.dest: opt for opt in (*CORE_OPTS, *RPC_OPTS)}


def register(conf: cfg.ConfigOpts, opts: Sequence[cfg.Opt] = CORE_OPTS, group: str | None = None) -> None:
    """Register options, the core's, on `conf`, in a group or in DEFAULT. May be called again.

    If other code has already registered an option of that name (oslo.messaging, or the service itself), that definition
    is used, with its own default.

    Raises:
        TypeError: `conf` is no configuration.
    """
    if not hasattr(conf, "register_opt"):
        raise TypeError(
            f"the first argument is an oslo.config ConfigOpts, not {type(conf).__name__}; a transport URL is the second"
        )
    for opt in opts:
        try:
            conf.register_opt(opt, group=group)
        except cfg.DuplicateOptError:
            LOG.debug("the option %s was registered by other code, whose definition is used", opt.dest)


def read_option(conf: cfg.ConfigOpts, name: str) -> Any:
    """The value of one of the core's options, converted to its type even if other code registered it.

    All options are read through this function rather than from `conf`. So every error in a configuration is an error of
    msgbus, which names the option and the file, and never shows a password.

    Raises:
        ConfigurationError: the value is invalid, or has a dollar sign that refers to an option which cannot be read.
    """
    return read_value(conf, None, _OPTIONS[name])


def check_core_options(conf: cfg.ConfigOpts) -> None:
    """Check the core's options before they are needed.

    Not those that say where the message system is, and not those that only servers read: oslo.config would warn about
    their deprecated names in clients too.

    Raises:
        ConfigurationError: as for `read_option`.
    """
    for opt in CORE_OPTS:
        if opt.dest not in ("rpc_backend", "transport_url", *SERVER_OPTIONS):
            read_option(conf, opt.dest)


def has_message_system(conf: cfg.ConfigOpts) -> bool:
    """Whether ``rpc_backend`` or ``transport_url`` is set by anything but its default."""
    where = (conf.get_location(name) for name in ("rpc_backend", "transport_url"))
    return any(found is not None and found.location is not cfg.Locations.opt_default for found in where)


def is_unread(conf: cfg.ConfigOpts) -> bool:
    """Whether `conf` has not been called, so that it has read no file, and nothing says where the message system is."""
    return not hasattr(conf, "config_file") and not has_message_system(conf)  # That option is registered by the call.


def read_value(conf: cfg.ConfigOpts, group: str | None, opt: cfg.Opt) -> Any:
    """The value of an option that is registered on `conf`; `group` is None for group DEFAULT.

    Raises:
        ConfigurationError: as for `read_option`.
    """
    try:
        if group is not None:
            return refuse_nan(conf[group][opt.dest])
        value = conf[opt.dest]
        # If other code registered the option, it has that code's type and default.
        return opt.default if value is None else refuse_nan(opt.type(value))
    except (ValueError, TypeError, RecursionError, cfg.Error) as exc:
        # A dollar sign begins the name of another option: the text of the error may hold a part of the password.
        refers = isinstance(exc, RecursionError | cfg.NoSuchOptError | cfg.TemplateSubstitutionError)
        why = "it cannot be read" if refers or opt.secret else in_words(exc)
        if refers or opt.secret:
            percent = " (or, in a URL, %24)" if opt.dest == "transport_url" else ""
            why += f"; a dollar sign in a value is written twice, $${percent}: it begins the name of another option"
    name = "DEFAULT" if group is None else group
    path = names_in_files(conf, name).get(opt.dest)
    where = f"[{name}]" if path is None else f"[{name}] in {path}"
    raise ConfigurationError(f"option {opt.dest} of {where}: {why}")


def refuse_nan(value: Any) -> Any:
    """Return an option's value, unless it is NaN: that is within any bounds, and no wait of NaN seconds ever ends.

    Raises:
        ValueError: it is NaN.
    """
    if isinstance(value, float) and isnan(value):
        raise ValueError("'nan' is not a number")
    return value


def in_words(exc: Exception) -> str:
    """The reason in an error of oslo.config or Python, without the option's name, which the caller adds."""
    text = str(exc).rpartition(" is not valid: ")[2]
    text = re.sub(r"could not convert string to float: ('.*?')", r"\1 is not a number", text)
    return re.sub(r"invalid literal for int\(\) with base 10: ('.*?')", r"\1 is not a whole number", text)


def names_in_files(conf: cfg.ConfigOpts, group: str) -> dict[str, str]:
    """The names in a group of the configuration files, registered options or not, each with its file.

    oslo.config turns the names of groups into lower case, except DEFAULT.
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
            # oslo.config has read it before. Since then the working directory, the user or the file may have changed.
            LOG.debug("%s cannot be checked for wrong names: %s", path, type(exc).__name__)
        yield path, groups
