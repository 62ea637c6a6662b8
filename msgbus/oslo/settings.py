"""The settings of a service: its transport URL and its options of oslo.messaging, as msgbus's drivers take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oslo_config import cfg, types

from msgbus import ConfigurationError, TransportHost, TransportURL
from msgbus.foreign import get_logger
from msgbus.lowlevel import load_driver_class

LOG = get_logger(__name__)

RABBIT = frozenset({"rabbit", "kombu", "amqp", "rabbits", "kombus", "amqps"})
"""The names in URLs of the driver for RabbitMQ."""
GROUP = "oslo_messaging_rabbit"
"""The options of oslo.messaging for RabbitMQ."""
RENAMED = {"heartbeat_timeout_threshold": "heartbeat", "rabbit_login_method": "login_method"}
"""What an option of that group is called in the driver, if not the same."""
PREFETCH, RETRY_INTERVAL, REPLY_TIMEOUT = (
    "rabbit_qos_prefetch_count",
    "rabbit_retry_interval",
    "kombu_missing_consumer_retry_timeout",
)
"""Options of that group that say something of this driver itself, on every message system."""

MAX_PREFETCH = 65_535
"""The most that RabbitMQ's protocol has a number for."""

_named: set[str] = set()


@dataclass(frozen=True)
class Settings:
    """What a driver for oslo.messaging is made from.

    Attributes:
        url: of the message system.
        stock_names: everything there is named as by a stock oslo.messaging.
        prefetch: how many messages of an address a listener holds without having acknowledged them.
        retry_interval: seconds that a retry of a send counts as.
        reply_timeout: seconds for which a reply is tried whose client is away.
    """

    url: TransportURL
    stock_names: bool
    prefetch: int = 64
    retry_interval: float = 1.0
    reply_timeout: float = 60.0


def read_settings(conf: cfg.ConfigOpts, url: Any) -> Settings:
    """Read the settings.

    Args:
        conf: the service's configuration. The driver's own group is registered on it, and for RabbitMQ the group of
            oslo.messaging.
        url: a transport URL of oslo.messaging, parsed by that.

    Raises:
        MessagingException: the URL or an option is wrong, or the driver cannot be loaded.
        ValueError, cfg.Error: an option of oslo.messaging is wrong.
    """
    name = url.transport.partition("+")[2].lower()
    query = dict(url.query)
    if not name:
        raise ConfigurationError("transport_url begins with msgbus+DRIVER://, for example msgbus+rabbit://")
    own: dict[str, Any] = {}
    topology = ""
    if name in RABBIT:
        topology = _choose_topology(conf, query)
        own = _map_rabbit_options(conf, query, topology, tls=name.endswith("s"))
    hosts = tuple(TransportHost(host.hostname, host.port, host.username, host.password) for host in url.hosts)
    # Written and read again, so that it is checked as any other, and the names with an s at the end mean TLS.
    text = TransportURL(name, url.virtual_host or None, hosts, query).unmasked()
    found = {
        # 0, oslo.messaging's default, is no limit there, nor is what is below it.
        "prefetch": min(own[PREFETCH], MAX_PREFETCH) if own.get(PREFETCH, 0) > 0 else None,
        "retry_interval": own.get(RETRY_INTERVAL),
        "reply_timeout": own.get(REPLY_TIMEOUT),
    }
    return Settings(
        TransportURL.parse(conf, text),
        stock_names=topology == "oslo",
        **{name: value for name, value in found.items() if value is not None},
    )


def _choose_topology(conf: cfg.ConfigOpts, query: dict[str, str]) -> str:
    """The topology that is in effect. Where neither the query nor the driver's own group has one, the query gets it."""
    group, opts = load_driver_class("rabbit").options()
    conf.register_opts(list(opts), group=group)
    if "topology" not in query and _is_set(conf, group, "topology"):
        return str(conf[group].topology)
    return query.setdefault("topology", "oslo")


def _map_rabbit_options(conf: cfg.ConfigOpts, query: dict[str, str], topology: str, *, tls: bool) -> dict[str, Any]:
    """Put what is set of oslo.messaging's options into the query, under the names of msgbus's driver.

    What the query or the driver's own group says already is left as it is. `tls` is whether the URL's scheme says TLS.

    Returns:
        those options that are not the driver's.
    """
    group, opts = load_driver_class("rabbit").options()
    ours = {opt.dest for opt in opts}
    own: dict[str, Any] = {}
    mapped: dict[str, str] = {}
    without_effect = []
    for opt in _rabbit_opts(conf):
        name = opt.dest
        if name in query and name in ours:
            continue
        if name in query:
            value = opt.type(query.pop(name))
        elif _is_set(conf, GROUP, name):
            value = conf[GROUP][name]
        else:
            continue
        target = name if name in ours else RENAMED.get(name)
        if name in (PREFETCH, RETRY_INTERVAL, REPLY_TIMEOUT):
            own[name] = value
        elif target is None:
            without_effect.append(name)
        elif target == name and topology != "oslo" and not name.startswith("ssl"):
            # Of the names that both have, these say how stock peers declare. The driver refuses them here.
            without_effect.append(f"{name} (topology is {topology})")
        elif target not in query and not _is_set(conf, group, target):
            mapped[target] = str(value).lower() if isinstance(value, bool) else str(value)
    if not tls and not _has_tls(query.get("ssl", mapped.get("ssl")), conf[group].ssl):
        # oslo.messaging does not look at these without TLS; msgbus's drivers refuse them.
        for name in [name for name in mapped if name.startswith("ssl_")]:
            del mapped[name]
            without_effect.append(f"{name} (ssl is off)")
    query.update(mapped)
    _name_once(without_effect)
    return own


def _has_tls(text: str | None, default: bool) -> bool:
    """Whether the option ssl is on: its text, or the default where it has none."""
    if text is None:
        return default
    try:
        return bool(types.Boolean()(text))
    except ValueError as exc:
        raise ConfigurationError(f"the option ssl in transport_url: {exc}") from None


def _rabbit_opts(conf: cfg.ConfigOpts) -> list[cfg.Opt]:
    """The options of oslo.messaging for RabbitMQ, registered as its own driver registers them."""
    from oslo_messaging._drivers import amqp, impl_rabbit

    opts: list[cfg.Opt] = [*impl_rabbit.rabbit_opts, *amqp.amqp_opts]
    conf.register_opts(opts, group=GROUP)
    return opts


def _is_set(conf: cfg.ConfigOpts, group: str, name: str) -> bool:
    """Whether an option is set, by a file, the environment or code, even to its default."""
    found = conf.get_location(name, group)
    return found is not None and found.location not in (cfg.Locations.opt_default, cfg.Locations.set_default)


def _name_once(names: list[str]) -> None:
    """Say in the log, once in a process, which options have no effect."""
    new = sorted(set(names) - _named)
    _named.update(new)
    if new:
        LOG.warning(
            "options of oslo.messaging's driver for RabbitMQ that are set and have no effect with msgbus: %s",
            ", ".join(new),
        )
