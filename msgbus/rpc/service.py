"""Service: serves a topic in all three ways."""

from __future__ import annotations

from typing import Any

from msgbus.awaitables import refuse_async, refuse_awaitable
from msgbus.rpc import binding
from msgbus.rpc.connection import Connection
from msgbus.rpc.dispatcher import RpcDispatcher


class Service:
    """Serves a manager's methods: as one of the topic's servers, as the one on `host`, and for casts to all.

    Args:
        host: the name of this server.
        topic: what it serves.
        manager: the object whose methods are run; None means the service itself. If it has an
            ``initialize_service_hook``, that is called with the service before requests arrive.
        serializer: as for `RpcDispatcher`.
    """

    def __init__(self, host: str, topic: str, manager: object | None = None, serializer: Any = None) -> None:
        self.host = host
        self.topic = topic
        self.serializer = serializer
        self.manager: object = self if manager is None else manager
        self.conn: Connection | None = None

    def start(self) -> None:
        """Begin to serve; returns when requests will arrive. Does nothing if it serves already.

        Raises:
            As `Connection.create_consumer` and `Connection.consume_in_thread`, and what the manager's hook raises. Then
            nothing is served, and it may be started again.
        """
        if self.conn is not None and self.conn.is_here:
            return
        self.conn = conn = Connection(binding.transport())
        try:
            dispatcher = RpcDispatcher([self.manager], self.serializer)
            conn.create_consumer(self.topic, dispatcher, fanout=False)
            conn.create_consumer(f"{self.topic}.{self.host}", dispatcher, fanout=False)
            conn.create_consumer(self.topic, dispatcher, fanout=True)
            hook = getattr(self.manager, "initialize_service_hook", None)
            if callable(hook):
                refuse_async(f"initialize_service_hook of {type(self.manager).__name__}", hook)
                refuse_awaitable("initialize_service_hook returned", hook(self))
            conn.consume_in_thread()
        except BaseException:
            self.conn = None
            conn.close()
            raise

    def stop(self) -> None:
        """Take no more requests, and let the running ones finish, as `Connection.close`. It may be started again."""
        if self.conn is not None:
            self.conn.close()
            self.conn = None
