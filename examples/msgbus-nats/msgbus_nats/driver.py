"""The driver ``nats``: NATS with JetStream.

nats-py is made for asyncio. It runs on the thread of the transport's loop, so that all of it is on one thread: on the
program's own event loop, or else on one that the transport's loop runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from msgbus.drivers.base import Capability
from msgbus.drivers.toolkit.broker import BrokerDriver
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.session import Line
from msgbus.options import connection_opts, hosts_of, read_driver_options
from msgbus.url import TransportHost, TransportURL
from msgbus_nats.connection import Connection
from msgbus_nats.errors import is_forbidden, reason_of
from msgbus_nats.session import NatsSession


class NatsDriver(BrokerDriver):
    """See the contract, `msgbus.drivers.base`.

    Attributes:
        ack_wait: seconds after which JetStream gives the messages of a server that died to others.
    """

    contract = (2, 0)
    capabilities = frozenset(
        {
            Capability.STORAGE,
            Capability.DURABLE,
            Capability.ORDERED,
            Capability.ATTEMPT_COUNT,
            Capability.INSPECT,
            Capability.REQUEUE,
        }
    )

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        defaults = {"hosts": ["localhost"], "port": 4222, "username": None, "password": None, "virtual_host": None}
        where = [opt for opt in connection_opts({}, defaults) if opt.dest != "virtual_host"]
        return "msgbus_nats", [
            cfg.FloatOpt(
                "ack_wait",
                default=10.0,
                min=1.0,
                help="Seconds after which JetStream gives the messages of a server that died to others. A server that "
                "lives says so four times in that time.",
            ),
            *where,
        ]

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, loop: Loop) -> None:
        options = read_driver_options(conf, *self.options(), url)
        self.ack_wait: float = options.ack_wait
        super().__init__(loop, hosts_of(options, url))

    def dial(self, host: TransportHost, purpose: str) -> Connection:
        connection = Connection(host, self.loop)
        connection.open()
        return connection

    def discard(self, connection: Connection) -> None:
        connection.close()

    def open_session(self, line: Line, connection: Connection) -> NatsSession:
        return NatsSession(self, line, connection)

    def explain(self, error: BaseException, host: TransportHost) -> tuple[str, bool]:
        if is_forbidden(error):
            return reason_of(error), True
        return f"{reason_of(error)}; check that it runs, with JetStream, and that host and port are right", False

    def describe(self, host: TransportHost) -> str:
        return f"NATS at {host} ({f'user {host.username}' if host.username else 'no user'})"
