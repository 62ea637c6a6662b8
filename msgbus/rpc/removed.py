"""Options of older systems that have no effect any more: a warning says so for each that is in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgbus.configuration import names_in_files
from msgbus.foreign import get_logger

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = get_logger(__name__)

REMOVED = {
    "rpc_conn_pool_size": "all threads share one connection",
    "rpc_cast_timeout": "rpc_response_timeout bounds casts too",
    "fake_rabbit": "use rpc_backend = fake",
    "amqp_rpc_single_reply_queue": "each process has exactly one inbox",
    "rabbit_retry_interval": "msgbus reconnects by itself; each message waits until its own deadline",
    "rabbit_retry_backoff": "msgbus reconnects by itself, with a growing delay",
    "rabbit_max_retries": "msgbus reconnects by itself; each message waits until its own deadline",
    "kombu_reconnect_delay": "msgbus reconnects by itself, with a growing delay",
    "kombu_ssl_version": "the best version that both sides support is used",
    "rabbit_durable_queues": "queues are durable, and durability is set for each message",
    "amqp_durable_queues": "queues are durable, and durability is set for each message",
    "amqp_auto_delete": "see queue_expires and server_expires of [msgbus_kombu]",
    "rabbit_ha_queues": "RabbitMQ no longer has mirrored queues; see quorum_queues of [msgbus_kombu]",
    "rpc_zmq_ipc_dir": "see run_dir of [msgbus_zmq]",
    "rpc_zmq_bind_address": "see listen of [msgbus_zmq]",
    "rpc_zmq_port": "see listen of [msgbus_zmq]",
    "rpc_zmq_host": "see listen of [msgbus_zmq]",
    "rpc_zmq_matchmaker": "see matchmaker of [msgbus_zmq]",
    "matchmaker_ringfile": "see matchmaker of [msgbus_zmq]",
    "matchmaker_heartbeat_freq": "nodes do that by themselves",
    "matchmaker_heartbeat_ttl": "nodes do that by themselves",
    "rpc_zmq_contexts": "one I/O thread serves a process",
    "rpc_zmq_topic_backlog": "rpc_send_window and rpc_prefetch limit the waiting requests",
}
"""Name in group DEFAULT -> what holds instead."""


def warn_of_removed_options(conf: cfg.ConfigOpts) -> None:
    """Log a warning for each of `REMOVED` that is in group DEFAULT of the configuration files."""
    for name in sorted(names_in_files(conf, "DEFAULT").keys() & set(REMOVED)):
        LOG.warning("the option %s of the configuration no longer has an effect: %s", name, REMOVED[name])
