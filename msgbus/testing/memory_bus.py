"""MemoryBus: a message system in memory with what a test of a service needs around it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from msgbus.client import RPCClient, get_rpc_client
from msgbus.drivers.base import Delivery, Subscription
from msgbus.drivers.fake import get_bus
from msgbus.server import RPCServer, get_rpc_server
from msgbus.target import Target
from msgbus.testing.async_bus import AsyncMemoryBus
from msgbus.testing.canned import Canned, client_target
from msgbus.testing.faults import Faults
from msgbus.testing.sent import Sent
from msgbus.transport import get_rpc_transport

TIMEOUT = 5.0
"""Seconds: that of calls of clients that name none, and for which the end of a server waits for its methods."""

_numbers = itertools.count(1)


class MemoryBus:
    """A message system in memory, for one test, with all of its servers in this process. Any thread.

    ::

        with MemoryBus() as bus:
            bus.serve("hello", Hello())
            assert bus.client("hello").call({}, "greet", name="Ada") == "Hello, Ada"

    Code under test that makes a transport of its own takes `conf`, or `url`: it is then on the same message system.

    Args:
        options: options of the core, such as ``rpc_response_timeout=1``.

    Attributes:
        url: its transport URL, which no other has.
        conf: a configuration with that URL, which has read no file.
        transport: a transport to it, for threads.
        sent: the requests and notifications that were sent over it.
        faults: what goes wrong on demand.
    """

    def __init__(self, **options: Any) -> None:
        from oslo_config import cfg

        from msgbus import configuration

        self.url = f"fake://memory-{next(_numbers)}/"
        self.conf = cfg.ConfigOpts()
        self.conf([], project="msgbus-testing", default_config_files=[], default_config_dirs=[])
        configuration.register(self.conf)
        for name, value in {"transport_url": self.url, "rpc_response_timeout": TIMEOUT, **options}.items():
            self.conf.set_override(name, value)
        self._bus = get_bus(self.url)
        self.sent = Sent()
        self._bus.watch(self.sent.watch)
        self.faults = Faults(self._bus)
        self._ending = ExitStack()
        self.transport = get_rpc_transport(self.conf)
        self._ending.callback(self.transport.cleanup)

    def serve(self, topic: str, *endpoints: object, server: str = "test", **arguments: Any) -> RPCServer:
        """Start a server. It is stopped at the end, and then waits five seconds at most for what it runs.

        Args:
            topic: what it serves.
            endpoints: whose methods it runs.
            server: its name.
            arguments: further ones of `msgbus.get_rpc_server`, such as ``validate=True``.
        """
        made = get_rpc_server(self.transport, Target(topic=topic, server=server), endpoints, **arguments)
        made.start()
        self._ending.callback(_end, made)
        return made

    def answer(self, topic: str, answers: Mapping[str, Any], server: str = "test") -> RPCServer:
        """Start a server with prepared answers, in place of a service that is not under test.

        Args:
            topic: what it serves.
            answers: by the name of the method, what it returns. An exception is raised instead; a function is called
                with the arguments of the request, and its result returned.
            server: its name.
        """
        return self.serve(topic, Canned(answers), server=server)

    def silent(self, topic: str, server: str = "silent") -> Subscription:
        """Have a server that takes all requests of a topic, and never answers. Casts to it arrive, and nothing runs.

        Returns:
            its subscription; ``close()`` ends it, as the end of the test does.
        """
        at = self.transport.address(Target(topic=topic))
        addresses = [at, at._replace(kind="server", server=server), at._replace(kind="fanout", server=server)]
        subscription = self.transport.driver.subscribe(addresses, _accept, prefetch=1)
        self._ending.callback(subscription.close)
        return subscription

    def client(self, target: str | Target, **arguments: Any) -> RPCClient:
        """Make a client.

        Args:
            target: whom it addresses: a topic, or a target.
            arguments: further ones of `msgbus.get_rpc_client`.
        """
        return get_rpc_client(self.transport, client_target(target), **arguments)

    def aio(self) -> AsyncMemoryBus:
        """The same message system for a test on an event loop: ``async with bus.aio() as bus``."""
        return AsyncMemoryBus(self.conf, TIMEOUT)

    def close(self) -> None:
        """Stop the servers, and close the transport. May be called again."""
        self._ending.close()

    def __enter__(self) -> MemoryBus:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _end(server: RPCServer) -> None:
    server.stop()
    server.wait(TIMEOUT)


def _accept(delivery: Delivery) -> None:
    delivery.accept()
