"""Connection: the consumers of a service. They share the process's connection to the message system."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from msgbus.awaitables import refuse_async
from msgbus.base_listener import process_name
from msgbus.deadline import checked_seconds
from msgbus.drivers.base import Address
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import CallCancelled, InvalidTarget, MessagingException
from msgbus.rpc import binding
from msgbus.rpc.dispatcher import ProxyDispatcher
from msgbus.rpc.messages import split_topic
from msgbus.rpc.pool import Callback, PoolConsumer
from msgbus.server import RPCServer
from msgbus.target import Target
from msgbus.transport import Transport


class InvalidRPCConnectionReuse(MessagingException):
    """A `Connection` was used after it had been closed."""


class _Consumer(Protocol):
    """An `RPCServer` or a `PoolConsumer`."""

    def start(self, timeout: float | None = None) -> None: ...

    def stop(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class _Served(NamedTuple):
    """An address, and the proxy that runs its requests."""

    proxy: object
    dispatcher: ProxyDispatcher
    address: Address


class _Pooled(NamedTuple):
    """An address, and the callback that gets its messages."""

    address: Address
    callback: Callback
    ack_on_error: bool


class Connection:
    """Create the consumers, then call `consume_in_thread`. Thread-safe. `msgbus.rpc.create_connection` makes it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._interceptors = binding.server_interceptors()
        self._pid = os.getpid()
        self._lock = threading.RLock()  # A signal handler may close what its own thread is starting.
        self._waiting: list[_Served | _Pooled] = []  # for `consume_in_thread`
        self._consumers: list[_Consumer] = []
        self._consuming = False
        self._closed = False
        binding.remember(self)

    @property
    def is_here(self) -> bool:
        """Whether it was made in this process, and not inherited from the parent by a fork."""
        return self._pid == os.getpid()

    @property
    def consumes(self) -> bool:
        """Whether it has consumers in this process that were started and not closed."""
        return bool(self._consumers) and self.is_here

    def create_consumer(self, topic: str, proxy: object, fanout: bool = False) -> None:
        """Have `proxy` run the messages of a topic.

        If it has a method ``dispatch``, that is called as ``dispatch(context, version, method, namespace, **args)``
        (without the namespace, if it does not take one); else its public methods are, as ``method(context, **args)``.
        They run on threads, several at the same time.

        Args:
            topic: ``foo``: one of all its consumers gets each message. ``foo.host``: it gets those for this host.
            proxy: any object.
            fanout: every consumer gets each message that is cast to all.

        Raises:
            InvalidTarget: the topic is invalid.
            TypeError: the proxy has a ``dispatch`` with another signature, an invalid version, or a public method that
                is ``async``.
            InvalidRPCConnectionReuse: the connection is closed, or was inherited by a fork.
            MessagingException: if `consume_in_thread` was called before, as for that.
        """
        base, host = (topic, None) if fanout else split_topic(topic)
        address = self._transport.address(Target(topic=base, server=host, fanout=fanout or None))
        self._add(_Served(proxy, ProxyDispatcher(proxy), address))

    def create_worker(self, topic: str, proxy: object, pool_name: str) -> None:
        """Have `proxy` run the messages of a topic as a member of a pool: one of the members gets each message.

        Each pool of a topic gets a copy of every message, and so do the topic's own consumers; a call is run once in
        each of them, and the first answer counts. A pool with the topic's name is the topic's own consumers.

        Args:
            topic: no part of it is taken for a host.
            proxy: as for `create_consumer`.
            pool_name: the name of the pool.

        Raises:
            As `create_consumer`.
        """
        self._add(_Served(proxy, ProxyDispatcher(proxy), self._pool(topic, pool_name, None)))

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
        before, it is delivered again, perhaps to another member of the pool.

        Args:
            callback: runs on threads, several at the same time.
            pool_name: the name of the pool.
            topic: no part of it is taken for a host.
            exchange_name: None means the option ``control_exchange``.
            ack_on_error: if the callback raises, True drops the message (the error is logged), and False calls it
                again after a second. Others come meanwhile.

        Raises:
            As `create_consumer`.
        """
        if not callable(callback):
            raise TypeError(f"the callback {callback!r} is not callable")
        refuse_async(f"the callback {getattr(callback, '__qualname__', callback)}", callback)
        self._add(_Pooled(self._pool(topic, pool_name, exchange_name), callback, ack_on_error))

    def _pool(self, topic: str, name: str, exchange: str | None) -> Address:
        if not isinstance(name, str):
            raise InvalidTarget(f"the name of a pool must be a string, not {type(name).__name__}", name)
        address = self._transport.address(Target(topic=topic, exchange=exchange, server=name))  # which checks the names
        if name == topic:  # It is the topic's own consumers.
            return address._replace(kind="topic", server="")
        return address._replace(kind="pool", server="", name=name)

    def _add(self, consumer: _Served | _Pooled) -> None:
        with self._lock:
            self._check()
            if not self._consuming:
                self._waiting.append(consumer)
                return
        self._start([consumer])

    def _check(self) -> None:
        if self._closed or self._transport.closed or not self.is_here:
            raise InvalidRPCConnectionReuse("the connection is closed, or was inherited by a fork: create another one")

    def consume_in_thread(self) -> None:
        """Begin to consume, on threads of its own; returns when messages will arrive.

        If it raises, nothing is consumed, and it may be called again.

        Raises:
            TransportUnavailable: the message system could not be reached within ``rpc_response_timeout``.
            MessagingException: the message system refuses, for example because of missing rights.
            InvalidRPCConnectionReuse: the connection is closed, or is closed while this waits.
        """
        while True:
            with self._lock:
                self._check()
                waiting, self._waiting = self._waiting, []
                if not waiting:
                    self._consuming = True
                    return
            try:
                self._start(waiting)
            except BaseException:
                with self._lock:
                    self._waiting[:0] = waiting
                raise

    def _start(self, wanted: Sequence[_Served | _Pooled]) -> None:
        end = Loop.now() + self._transport.option("rpc_response_timeout")
        consumers = self._servers([one for one in wanted if isinstance(one, _Served)])
        consumers += [
            PoolConsumer(self._transport, *one, self._interceptors) for one in wanted if isinstance(one, _Pooled)
        ]
        with self._lock:
            self._check()
            self._consumers += consumers  # From now on `close` ends them.
        try:
            for consumer in consumers:
                consumer.start(max(0.0, end - Loop.now()))
                self._check()
        except BaseException as exc:  # Either all of them are started, or none.
            with self._lock:
                self._consumers = [consumer for consumer in self._consumers if consumer not in consumers]
            _end(consumers, Loop.now())
            if isinstance(exc, CallCancelled):
                self._check()
            raise

    def _servers(self, wanted: Sequence[_Served]) -> list[_Consumer]:
        """One server for each proxy and topic: its addresses share its threads and its record of what was run."""
        groups: dict[tuple[int, str, str], list[_Served]] = {}
        for one in wanted:
            groups.setdefault((id(one.proxy), one.address.exchange, one.address.topic), []).append(one)
        return [self._server(group) for group in groups.values()]

    def _server(self, group: Sequence[_Served]) -> RPCServer:
        named = [one.address.server for one in group if one.address.kind == "server"]
        name = named[0] if named else process_name()
        addresses = [one.address for one in group]
        addresses = [at._replace(server=name) if at.kind == "fanout" else at for at in addresses]
        target = Target(exchange=addresses[0].exchange, topic=addresses[0].topic, server=name)
        addresses = list(dict.fromkeys(addresses))
        dispatcher, interceptors = group[0].dispatcher, self._interceptors
        return RPCServer(self._transport, target, dispatcher, addresses=addresses, interceptors=interceptors)

    def close(self, timeout: float | None = None) -> None:
        """Take no more messages, let running ones finish and answer, and give back those not begun. Idempotent.

        The process's connection to the message system stays open; see `msgbus.rpc.cleanup`. A method that this
        connection runs may call it: then it does not wait for that method. In a forked child it does nothing.

        Args:
            timeout: seconds for running messages; None means the option ``rpc_response_timeout``. Those that run longer
                are abandoned, with a warning in the log.

        Raises:
            ValueError: `timeout` is not a number.
        """
        if not self.is_here:  # Its threads are in the parent, and one of them may hold the lock.
            return
        seconds = checked_seconds(self._transport.option("rpc_response_timeout") if timeout is None else timeout)
        with self._lock:
            self._closed = True
            consumers, self._consumers = self._consumers, []
        _end(consumers, Loop.now() + seconds)


def _end(consumers: Sequence[_Consumer], deadline: float) -> None:
    for consumer in consumers:
        consumer.stop()
    for consumer in consumers:
        consumer.wait(max(0.0, deadline - Loop.now()))
