"""Warnings about settings in configuration files that are meant for a message system, but are not read.

A file that was written for oslo.messaging, or in which the name of a group is misspelt, would silently have no effect:
TLS would be off, for example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msgbus import configuration
from msgbus.foreign import get_logger

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = get_logger(__name__)

_TLS = {name: name for name in ("ssl", "ssl_ca_file", "ssl_cert_file", "ssl_key_file")}

FOREIGN: dict[str, tuple[str, dict[str, str]]] = {
    "oslo_messaging_rabbit": (
        "msgbus_kombu",
        {
            **_TLS,
            "rabbit_use_ssl": "ssl",
            "kombu_ssl_ca_certs": "ssl_ca_file",
            "kombu_ssl_certfile": "ssl_cert_file",
            "kombu_ssl_keyfile": "ssl_key_file",
            "rabbit_host": "hosts",
            "rabbit_hosts": "hosts",
            "rabbit_port": "port",
            "rabbit_userid": "username",
            "rabbit_password": "password",
            "rabbit_virtual_host": "virtual_host",
            "rabbit_login_method": "login_method",
            "rabbit_quorum_queue": "quorum_queues",
            "rabbit_ha_queues": "quorum_queues",
            "heartbeat_timeout_threshold": "heartbeat",
        },
    ),
    "oslo_messaging_amqp": (
        "msgbus_qpid",
        {
            **_TLS,
            "username": "username",
            "password": "password",
            "sasl_mechanisms": "sasl_mechanisms",
            "idle_timeout": "heartbeat",
        },
    ),
    "oslo_messaging_zmq": (
        "msgbus_zmq",
        {
            "rpc_zmq_matchmaker": "matchmaker",
            "rpc_zmq_bind_address": "listen",
            "rpc_zmq_host": "advertise",
            "rpc_zmq_ipc_dir": "run_dir",
            "rpc_zmq_topic_backlog": "backlog",
        },
    ),
    "matchmaker_redis": ("msgbus_zmq", {"host": "redis_url", "port": "redis_url", "password": "redis_url"}),
}
"""Foreign group -> our group, and foreign option -> its name there."""

_warned: set[tuple[str, str, str]] = set()


def warn_of_unread(
    conf: cfg.ConfigOpts,
    group: str,
    opts: Sequence[cfg.Opt],
    *,
    by_default: bool,
    read: Mapping[str, frozenset[str]],
) -> None:
    """Log a warning, once in a process, of each group and option that is meant for us and is not read.

    Args:
        conf: its files are checked. A group that is registered on it belongs to other code.
        group: of the driver that is used.
        opts: that driver's options.
        by_default: no driver is configured.
        read: what the driver reads of the groups of other libraries; see `Driver.reads_of_others`.
    """
    tls = {opt.dest for opt in opts if opt.dest == "ssl" or opt.dest.startswith("ssl_")}
    core = {
        name for opt in configuration.CORE_OPTS for name in (opt.dest, *(old.name or "" for old in opt.deprecated_opts))
    }
    old = {old.name or "" for opt in opts for old in opt.deprecated_opts if old.group == "DEFAULT"}
    for path, groups in configuration.read_files(conf):
        if by_default:
            _warn_of_default_driver(path, groups)
        for name, values in groups.items():
            if name == "DEFAULT":
                if found := sorted(one for one in tls.intersection(values) - old if one not in conf):
                    _warn_once(path, name, f"{', '.join(found)} of [DEFAULT] is not read: it belongs in [{group}]")
            elif name.lower() in conf:
                continue
            elif name.lower() == "default" and (found := sorted((core | old).intersection(values))):
                text = f"the group [{name}] is not read: write [DEFAULT], in capital letters, for {', '.join(found)}"
                _warn_once(path, name, text)
            elif name.lower() in FOREIGN:
                ours, names = FOREIGN[name.lower()]
                of_group = read.get(name.lower(), frozenset())
                if found := sorted((names.keys() & values.keys()) - of_group):
                    meant = ", ".join(dict.fromkeys(names[one] for one in found))
                    what = f"the group [{name}] is not read"
                    if of_group:
                        what = f"of the group [{name}] only some options are read"
                    text = f"{what}: for {', '.join(found)} write {meant} in [{ours}]"
                    _warn_once(path, name, text)


def _warn_of_default_driver(path: str, groups: dict[str, dict[str, list[str]]]) -> None:
    """Warn of settings of RabbitMQ or Qpid while the default driver is used."""
    for driver, prefix in (("kombu", "rabbit_"), ("qpid", "qpid_")):
        found = sorted(name for name in groups.get("DEFAULT", ()) if name.startswith(prefix))
        found += [f"[{group}]" for group in groups if group.lower() == f"msgbus_{driver}"]
        if found:
            text = f"{', '.join(found)} has no effect, since the driver is zmq: set rpc_backend = {driver}"
            _warn_once(path, driver, text)


def _warn_once(path: str, group: str, text: str) -> None:
    if (path, group, text) not in _warned:
        _warned.add((path, group, text))
        LOG.warning("%s: %s", path, text)
