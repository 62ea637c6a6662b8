"""Service: a manager that serves a topic in all three ways."""

from __future__ import annotations

import logging
from typing import Any

from msgbus.exceptions import MessagingException
from msgbus.rpc import binding
from msgbus.rpc.connection import Connection
from msgbus.rpc.dispatcher import RpcDispatcher

LOG = logging.getLogger(__name__)


class Service:
    """Serves a manager's methods: as any one of the topic's servers, as the one on `host`, and as one of all.

    Args:
        host: the name of this server.
        topic: what it serves.
        manager: whose methods are run; None means the service's own. If it has an ``initialize_service_hook``, that is
            called with the service before requests arrive.
        serializer: as for `RpcDispatcher`.
    """

    def __init__(self, host: str, topic: str, manager: object | None = None, serializer: Any = None) -> None:
        self.host = host
        self.topic = topic
        self.serializer = serializer
        self.manager: object = self if manager is None else manager
        self.conn: Connection | None = None

    def start(self) -> None:
        """Begin to serve; returns when requests will arrive.

        Raises:
            As `Connection.consume_in_thread`.
        """
        self.conn = Connection(binding.transport())
        dispatcher = RpcDispatcher([self.manager], self.serializer)
        self.conn.create_consumer(self.topic, dispatcher, fanout=False)
        self.conn.create_consumer(f"{self.topic}.{self.host}", dispatcher, fanout=False)
        self.conn.create_consumer(self.topic, dispatcher, fanout=True)
        hook = getattr(self.manager, "initialize_service_hook", None)
        if callable(hook):
            hook(self)
        self.conn.consume_in_thread()

    def stop(self) -> None:
        """Take no more requests, and let those that run finish, as `Connection.close` does. Errors are logged."""
        if self.conn is None:
            return
        try:
            self.conn.close()
        except MessagingException:
            LOG.exception("service %s on %s was not stopped cleanly", self.topic, self.host)
