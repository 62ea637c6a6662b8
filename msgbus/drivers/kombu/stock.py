"""The options of a stock oslo.messaging that say how things are declared in RabbitMQ, under that library's own names.

With ``topology = oslo`` all that is declared has to have the same properties as a stock peer's, or RabbitMQ refuses the
second declaration. So each option has to have the same value on both sides. It may be given in the transport URL, in
the driver's group, or where the stock library itself reads it, in the group ``oslo_messaging_rabbit``; the first of
these that has it wins.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from msgbus.drivers.kombu.compression import CONTENT_TYPES
from msgbus.exceptions import ConfigurationError
from msgbus.options import is_given, read_foreign_group

if TYPE_CHECKING:
    from msgbus.url import TransportURL

GROUP = "oslo_messaging_rabbit"
"""Where the stock library's own options are."""
_SSL = cfg.BoolOpt("ssl")
_ALL = "Only with topology = oslo, where it has to be as the stock peers have it."

OPTIONS: list[cfg.Opt] = [
    cfg.BoolOpt(
        "amqp_durable_queues",
        default=False,
        help=f"Exchanges and queues of topics, servers and notifications outlive a restart of RabbitMQ. {_ALL}",
    ),
    cfg.BoolOpt(
        "amqp_auto_delete",
        default=False,
        help="RabbitMQ deletes these exchanges and queues, with what is in them, when their last consumer leaves; so "
        f"requests are not kept for servers that are away. {_ALL}",
    ),
    cfg.BoolOpt(
        "rabbit_quorum_queue",
        default=False,
        help=f"Queues of topics, servers and notifications are quorum queues, and durable. {_ALL}",
    ),
    cfg.IntOpt(
        "rabbit_quorum_delivery_limit",
        default=0,
        min=0,
        help="How often a quorum queue delivers a message before it drops it. 0: RabbitMQ's own default, 20 in 4.x. "
        f"{_ALL}",
    ),
    cfg.IntOpt(
        "rabbit_quorum_max_memory_length",
        default=0,
        min=0,
        help=f"How many messages a quorum queue keeps in memory. 0: RabbitMQ's own default. {_ALL}",
    ),
    cfg.IntOpt(
        "rabbit_quorum_max_memory_bytes",
        default=0,
        min=0,
        help=f"How many bytes of messages a quorum queue keeps in memory. 0: RabbitMQ's own default. {_ALL}",
    ),
    cfg.BoolOpt(
        "rabbit_transient_quorum_queue",
        default=False,
        help=f"Queues of fanouts and of replies are quorum queues too. {_ALL}",
    ),
    cfg.IntOpt(
        "rabbit_transient_queues_ttl",
        default=1800,
        min=0,
        help="Seconds that the queue of a fanout or of replies is kept while its owner is away; with "
        f"rabbit_stream_fanout, that a fanout is kept in the stream. 0: forever. {_ALL}",
    ),
    cfg.BoolOpt(
        "rabbit_stream_fanout",
        default=False,
        help="All servers of a topic read fanouts from one stream. It needs rabbit_transient_quorum_queue. A server "
        f"reads what is sent after it has started. {_ALL}",
    ),
    cfg.StrOpt(
        "kombu_compression",
        choices=tuple(CONTENT_TYPES),
        help="Compress what is sent. What others have compressed is read in any case, up to max_message_size once it "
        "is decompressed. Peers may differ here. Only with topology = oslo.",
    ),
]


class StockOptions(SimpleNamespace):
    """The values of `OPTIONS`, by their names; see there."""

    amqp_durable_queues: bool
    amqp_auto_delete: bool
    rabbit_quorum_queue: bool
    rabbit_quorum_delivery_limit: int
    rabbit_quorum_max_memory_length: int
    rabbit_quorum_max_memory_bytes: int
    rabbit_transient_quorum_queue: bool
    rabbit_transient_queues_ttl: int
    rabbit_stream_fanout: bool
    kombu_compression: str | None

    @property
    def durable(self) -> bool:
        """Whether the queues of topics and servers, and their exchange, outlive a restart."""
        return self.amqp_durable_queues or self.rabbit_quorum_queue

    @property
    def survives_restart(self) -> bool:
        """Whether that is so of all that a call needs: the inbox is one of the transient queues."""
        return self.durable and self.rabbit_transient_quorum_queue and not self.amqp_auto_delete

    @property
    def quorum_arguments(self) -> dict[str, Any]:
        """The arguments of quorum queues."""
        limits = {
            "x-delivery-limit": self.rabbit_quorum_delivery_limit,
            "x-max-in-memory-length": self.rabbit_quorum_max_memory_length,
            "x-max-in-memory-bytes": self.rabbit_quorum_max_memory_bytes,
        }
        return {"x-queue-type": "quorum", **{name: limit for name, limit in limits.items() if limit}}


def read_stock_options(conf: cfg.ConfigOpts, group: str, given: SimpleNamespace, url: TransportURL) -> StockOptions:
    """The options of a driver with ``topology = oslo``.

    Args:
        conf: the configuration.
        group: the driver's.
        given: the values of the driver's options, these among them.
        url: the transport URL.

    Raises:
        ConfigurationError: a value in the stock library's group does not fit, two options contradict each other, or
            TLS is on for the stock library, and nothing says whether it is on here.
    """
    values = {opt.dest: getattr(given, opt.dest) for opt in OPTIONS}
    others = [opt for opt in OPTIONS if not is_given(conf, group, opt.dest, given, url)]
    stock = StockOptions(**(values | read_foreign_group(conf, GROUP, others)))
    if not is_given(conf, group, "ssl", given, url) and read_foreign_group(conf, GROUP, [_SSL]).get("ssl"):
        raise ConfigurationError(
            f"ssl is set in [{GROUP}], and not in [{group}]: set it there too (in a transport URL ?ssl=true), with "
            "ssl_ca_file and the like, or messages would be sent without TLS; if that is meant, set ssl = false in "
            f"[{group}] (?ssl=false)"
        )
    if stock.rabbit_stream_fanout and not stock.rabbit_transient_quorum_queue:
        raise ConfigurationError(
            "rabbit_stream_fanout needs rabbit_transient_quorum_queue, as it does with oslo.messaging: set both"
        )
    if stock.rabbit_quorum_queue and stock.amqp_auto_delete:
        raise ConfigurationError(
            "amqp_auto_delete and rabbit_quorum_queue are both set, and RabbitMQ has no quorum queues that are deleted "
            "automatically: unset one of them, for the stock peers too"
        )
    return stock


def refuse_without_topology(conf: cfg.ConfigOpts, group: str, given: SimpleNamespace, url: TransportURL) -> None:
    """Refuse these options in the URL or the driver's group while the topology is msgbus's own.

    Raises:
        ConfigurationError: one is set there.
    """
    for opt in OPTIONS:
        if is_given(conf, group, opt.dest, given, url):
            raise ConfigurationError(
                f"{opt.dest} is set, and has an effect only beside stock oslo.messaging peers: set topology = oslo in "
                f"[{group}] (in a transport URL ?topology=oslo), or remove {opt.dest}"
            )
