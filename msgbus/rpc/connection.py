"""Connection: the consumers of a service, which share the process's connection to the message system."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from msgbus.drivers.base import Address
from msgbus.rpc.common import InvalidRPCConnectionReuse
from msgbus.rpc.dispatcher import ProxyDispatcher
from msgbus.rpc.messages import split_topic
from msgbus.rpc.pool import Callback, PoolConsumer
from msgbus.server import RPCServer
from msgbus.target import Target
from msgbus.transport import Transport

LOG = logging.getLogger(__name__)


class _Consumer(Protocol):
    """What consumes: an `RPCServer`, or a `PoolConsumer`."""

    def start(self, timeout: float | None = None) -> None: ...

    def stop(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class Connection:
    """Create the consumers, then call `consume_in_thread`. Thread-safe. `msgbus.rpc.create_connection` makes it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._proxies: list[tuple[object, Address]] = []  # not started yet, like the following
        self._pools: list[tuple[Address, Callback, bool]] = []
        self._started: list[_Consumer] = []
        self._consuming = False
        self._closed = False

    def create_consumer(self, topic: str, proxy: object, fanout: bool = False) -> None:
        """Have `proxy` run the messages that come to a topic.

        If it has a method ``dispatch``, that is called as ``dispatch(context, version, method, namespace, **args)``
        (or without the namespace, if it takes none), else its public methods as ``method(context, **args)``. They run
        on threads, several at the same time.

        Args:
            topic: ``foo``: one of all its consumers gets each message. ``foo.host``: it gets those for this host.
            proxy: any object.
            fanout: every consumer gets each message that is cast to all.

        Raises:
            InvalidTarget: the topic is none.
            InvalidRPCConnectionReuse: the connection is closed.
            MessagingException: where `consume_in_thread` was called already, as for that.
        """
        base, host = (topic, None) if fanout else split_topic(topic)
        target = Target(topic=base, server=host, fanout=fanout or None)
        address = self._transport.address(target)
        self._add(lambda: self._proxies.append((proxy, address)))

    def create_worker(self, topic: str, proxy: object, pool_name: str) -> None:
        """Have `proxy` run messages to a topic that are shared by a pool: one of its members gets each message.

        Every pool of a topic gets a copy of its own, besides the consumers of the topic.

        Args:
            topic: taken as it is; no part of it names a host.
            proxy: as for `create_consumer`.
            pool_name: of the pool.

        Raises:
            As `create_consumer`.
        """
        address = self._pool(topic, pool_name, None)
        self._add(lambda: self._proxies.append((proxy, address)))

    def join_consumer_pool(
        self,
        callback: Callback,
        pool_name: str,
        topic: str,
        exchange_name: str | None = None,
        ack_on_error: bool = True,
    ) -> None:
        """Have `callback` called with each message to a topic, as a dict, as a member of a pool; see `create_worker`.

        The keys of a notification are those that it was sent with, ``_unique_id``, and ``_context_...`` for each key
        of the sender's context. A message is acknowledged after the callback has returned: if this process dies
        meanwhile it comes again, perhaps to another member of the pool.

        Args:
            callback: runs on threads, several at the same time.
            pool_name: of the pool.
            topic: taken as it is.
            exchange_name: None means the option ``control_exchange``.
            ack_on_error: if the callback raises, True drops the message (the error is logged), and False has it come
                again after a second.

        Raises:
            As `create_consumer`.
        """
        address = self._pool(topic, pool_name, exchange_name)
        self._add(lambda: self._pools.append((address, callback, ack_on_error)))

    def _pool(self, topic: str, name: str, exchange: str | None) -> Address:
        address = self._transport.address(Target(topic=topic, exchange=exchange, server=name))  # checks the names
        return address._replace(kind="pool", server="", name=name)

    def _add(self, add: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise InvalidRPCConnectionReuse("the connection is closed: create another one")
            add()
            consuming = self._consuming
        if consuming:
            self.consume_in_thread()

    def consume_in_thread(self) -> None:
        """Begin to consume, on threads of its own; returns when messages will arrive.

        Raises:
            TransportUnavailable: the message system could not be reached within ``rpc_response_timeout``.
            MessagingException: it refuses, for example for want of rights.
            InvalidRPCConnectionReuse: the connection is closed.
        """
        with self._lock:
            if self._closed:
                raise InvalidRPCConnectionReuse("the connection is closed: create another one")
            self._consuming = True
            end = time.monotonic() + self._transport.conf.rpc_response_timeout
            consumers: list[_Consumer] = self._servers()
            consumers += [PoolConsumer(self._transport, *pool) for pool in self._pools]
            try:
                for consumer in consumers:
                    consumer.start(max(0.0, end - time.monotonic()))
            except BaseException:  # All or none of them: it may be tried again.
                _end(consumers, end)
                raise
            self._started += consumers
            self._proxies, self._pools = [], []

    def _servers(self) -> list[_Consumer]:
        """One server for each proxy: what it listens to shares its threads, and it knows what it has run already."""
        by_proxy: dict[int, tuple[object, list[Address]]] = {}
        for proxy, address in self._proxies:
            addresses = by_proxy.setdefault(id(proxy), (proxy, []))[1]
            if address not in addresses:
                addresses.append(address)
        return [self._server(proxy, addresses) for proxy, addresses in by_proxy.values()]

    def _server(self, proxy: object, addresses: list[Address]) -> RPCServer:
        named = [address.server for address in addresses if address.kind == "server"]
        name = named[0] if named else f"{socket.gethostname()[:60]}-{os.getpid()}"
        addresses = [at._replace(server=name) if at.kind == "fanout" else at for at in addresses]
        target = Target(exchange=addresses[0].exchange, topic=addresses[0].topic, server=name)
        return RPCServer(self._transport, target, ProxyDispatcher(proxy), addresses=addresses)

    def close(self, timeout: float | None = None) -> None:
        """Take no more messages, let what runs finish and answer, and give back what has not been begun. Idempotent.

        The process's connection to the message system stays open; see `msgbus.rpc.cleanup`. Not to be called by what
        the connection itself runs: it would wait for its own end.

        Args:
            timeout: seconds for what runs; None means the option ``rpc_response_timeout``. What runs longer is
                abandoned, with a warning in the log.
        """
        with self._lock:
            self._closed = True
            started, self._started = self._started, []
        _end(started, time.monotonic() + (self._transport.conf.rpc_response_timeout if timeout is None else timeout))


def _end(consumers: Sequence[_Consumer], deadline: float) -> None:
    for consumer in consumers:
        consumer.stop()
    for consumer in consumers:
        consumer.wait(max(0.0, deadline - time.monotonic()))
