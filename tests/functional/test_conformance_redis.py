"""The conformance suite on Redis, with the driver of examples/msgbus-redis."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.suite import BusConformance, Conformance
from tests.conformance.documented import Documented
from tests.functional.brokers.proxy import Proxy
from tests.functional.brokers.redis import Redis

OWN = ("msgbus:queue:inbox:", "msgbus:queue:fanout:", "msgbus:lease:inbox:", "msgbus:lease:fanout:", "msgbus:fanouts:")


class RedisHarness(Harness):
    """One Redis behind a proxy, which can cut all its connections, and let none through."""

    def __init__(self, server: Redis, proxy: Proxy) -> None:
        self.url = f"redis://:s3cret@127.0.0.1:{proxy.port}/0"
        self._server = server
        self._proxy = proxy

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        self._server.kill()

    def cut(self) -> None:
        self._proxy.cut()

    def pause(self) -> None:
        self._server.pause()

    def resume(self) -> None:
        self._server.resume()

    def partition(self) -> None:
        self._proxy.refuse()
        self._proxy.cut()

    def heal(self) -> None:
        self._proxy.accept()

    def leftovers(self) -> set[str]:
        if not self._server.alive():  # a check that stopped it has failed
            self._server.start()
        count = self._server.connections("msgbus")
        keys = self._server.keys()
        found = {key for key in keys if key.startswith(OWN)}
        return found | ({f"{count} connections"} if count else set())


class OnRedis:
    """A Redis behind a proxy."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, lasting_redis: Redis) -> Iterator[Harness]:
        with contextlib.closing(Proxy(lasting_redis.port)) as proxy:
            yield RedisHarness(lasting_redis, proxy)


@pytest.mark.soak  # Of the two example drivers the ordinary run has the one for NATS.
class TestRedis(OnRedis, Documented, Conformance):
    """Every check, with processes of its own."""

    column = "redis"


@pytest.mark.soak
class TestRedisAsyncioClients(OnRedis, BusConformance):
    """Clients for asyncio, servers for threads."""

    clients = "asyncio"


@pytest.mark.soak
class TestRedisAsyncioServers(OnRedis, BusConformance):
    """Clients for threads, servers for asyncio."""

    servers = "asyncio"


@pytest.mark.soak
class TestRedisAsyncio(OnRedis, BusConformance):
    """Clients and servers for asyncio."""

    clients = servers = "asyncio"
