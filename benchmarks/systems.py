"""The message systems of a run: brokers that it starts on free ports and stops again, or those of given URLs."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from benchmarks import proc


class SystemMissing(Exception):
    """A message system cannot be had here; the text says why."""


class System(NamedTuple):
    """A message system that can be used.

    Attributes:
        url: of transports.
        broker: what the broker is, with its version; "" if there is none.
        pids: the broker's processes on this machine. Without them its CPU is not known.
    """

    url: str
    broker: str
    pids: frozenset[int] = frozenset()


@contextlib.contextmanager
def running(name: str, url: str | None = None) -> Iterator[System]:
    """A message system while the block runs.

    Args:
        name: as in transport URLs.
        url: where one runs already; None starts one.

    Raises:
        SystemMissing: its broker or driver is not installed.
    """
    if name not in {entry.name for entry in entry_points(group="msgbus.drivers")}:
        raise SystemMissing(f"the driver {name} is not installed (see examples/msgbus-{name})")
    if url is not None:
        yield System(url, f"the broker of --url {name}://" if name not in ("zmq", "fake") else "")
        return
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        if name == "zmq":
            yield System(f"zmq://{folder}/run", "")
        elif name == "fake":
            yield System("fake://", "")
        else:
            with _broker(name, pathlib.Path(folder) / "broker") as system:
                yield system


@contextlib.contextmanager
def _broker(name: str, folder: pathlib.Path) -> Iterator[System]:
    from tests.functional.brokers.processes import BrokerMissing

    try:
        broker, text = _make(name, folder)
    except (BrokerMissing, ImportError) as exc:
        raise SystemMissing(str(exc)) from exc
    before = proc.children(os.getpid())
    try:
        try:
            broker.start()
        except BrokerMissing as exc:
            raise SystemMissing(str(exc)) from exc
        url = f"{broker.url}?durable=false" if name == "qpid" else broker.url  # It keeps nothing on disk.
        yield System(url, text, frozenset(proc.children(os.getpid()) - before))
    finally:
        broker.close()


def _make(name: str, folder: pathlib.Path) -> tuple[Any, str]:
    """A broker as the functional tests start them, and what to call it."""
    if name == "rabbit":
        from tests.functional.brokers.rabbitmq import RabbitMQ

        node = RabbitMQ("3.10", folder)
        return node, f"RabbitMQ {node.release}"
    if name == "qpid":
        from tests.functional.brokers.qpid import Qpid

        return Qpid(folder), "Apache Qpid Broker-J 10.1.0, in memory"
    if name == "nats":
        from tests.functional.brokers.nats import Nats

        return Nats(folder), "nats-server with JetStream"
    if name == "redis":
        from tests.functional.brokers.redis import Redis

        return Redis(folder, keeps=True), "Redis with an append-only file"
    raise SystemMissing(f"there is no message system {name!r}")
