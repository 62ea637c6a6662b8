"""The conformance suite on ZeroMQ, between processes of this host, with each matchmaker."""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Iterator

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.check import Findings
from msgbus.conformance.suite import BusConformance, Conformance
from tests.conformance.documented import Documented
from tests.functional.brokers.redis import Redis
from tests.functional.zmq_conformance import CHECKS, FileBus, FileHarness
from tests.functional.zmq_faults import cut_connections, cut_tcp


class ZmqHarness(Harness):
    """A run directory of its own. There is no broker that could be stopped."""

    def __init__(self, run_dir: pathlib.Path) -> None:
        self._run_dir = run_dir
        self.url = f"zmq://{run_dir}"

    def cut(self) -> None:
        cut_connections(self._run_dir)

    def leftovers(self) -> set[str]:
        return set(os.listdir(self._run_dir)) - {"changes"}


class OnZmq:
    """Processes of this host."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, tmp_path_factory: pytest.TempPathFactory) -> Harness:
        return ZmqHarness(tmp_path_factory.mktemp("zmq"))


class TestZmq(OnZmq, Documented, Conformance):
    """Every check, with processes of its own."""

    column = "zmq"


@pytest.mark.soak
class TestZmqAsyncioClients(OnZmq, BusConformance):
    """Clients for asyncio, servers for threads."""

    clients = "asyncio"


class TestZmqAsyncioServers(OnZmq, BusConformance):
    """Clients for threads, servers for asyncio."""

    servers = "asyncio"


@pytest.mark.soak
class TestZmqAsyncio(OnZmq, BusConformance):
    """Clients and servers for asyncio."""

    clients = servers = "asyncio"


class RedisHarness(Harness):
    """Each transport has a run directory of its own, as if it were on another host: they meet over Redis and TCP."""

    def __init__(self, redis: Redis, folder: pathlib.Path) -> None:
        self._redis = redis
        self._folder = folder
        self._numbers = itertools.count()

    @property
    def url(self) -> str:  # type: ignore[override]  # a new one each time
        run_dir = self._folder / str(next(self._numbers))
        return f"zmq://{run_dir}?matchmaker=redis&redis_url={self._redis.url}&listen=tcp://127.0.0.1:*"

    def cut(self) -> None:
        cut_tcp(besides=self._redis.port)

    def leftovers(self) -> set[str]:
        return self._redis.keys() - {"msgbus:nodes"}


# `TestZmqFile`, test_zmq_redis.py and test_zmq_hosts.py are what the ordinary run has of that.
@pytest.mark.soak
class TestZmqRedis(Conformance):
    """Every check, between what may be different hosts."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Harness:
        return RedisHarness(redis, tmp_path_factory.mktemp("hosts"))


class TestZmqFile(*CHECKS):  # type: ignore[misc]  # they are listed in one place
    """The checks that start servers by name, which is what a file can know of."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, tmp_path_factory: pytest.TempPathFactory) -> Harness:
        return FileHarness(tmp_path_factory.mktemp("file") / "servers.json")

    @pytest.fixture
    def bus(self, harness: FileHarness, tmp_path: pathlib.Path) -> Iterator[FileBus]:
        """All that a check opens, which is closed at the end."""
        bus = FileBus(harness, tmp_path, Findings())
        yield bus
        bus.close()
