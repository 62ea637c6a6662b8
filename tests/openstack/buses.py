"""The message systems, as the configuration of a service names them."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ

STOCK, MSGBUS = "stock", "msgbus"
"""The driver that comes with oslo.messaging, and ours."""


class Bus(NamedTuple):
    """A message system that runs.

    Attributes:
        name: the heading of its results.
        urls: driver, `STOCK` or `MSGBUS` -> its ``transport_url``. Stock knows RabbitMQ alone.
        port: where the broker listens; None without one.
    """

    name: str
    urls: dict[str, str]
    port: int | None

    def through(self, port: int) -> Bus:
        """The same broker, reached through a proxy that listens on a port."""
        return self._replace(
            urls={driver: url.replace(f":{self.port}/", f":{port}/") for driver, url in self.urls.items()}, port=port
        )


def rabbitmq(node: RabbitMQ) -> Bus:
    """A RabbitMQ of the tests."""
    return Bus(f"RabbitMQ {node.version}", {STOCK: node.url, MSGBUS: f"msgbus+{node.url}"}, node.port)


def qpid(broker: Qpid) -> Bus:
    """A Broker-J of the tests that keeps everything in memory."""
    return Bus("Qpid in memory", {MSGBUS: f"msgbus+{broker.url}?durable=false"}, broker.port)


def qpid_on_disk(broker: Qpid) -> Bus:
    """A Broker-J of the tests that keeps everything on disk."""
    return Bus("Qpid", {MSGBUS: f"msgbus+{broker.url}"}, broker.port)


def zmq(folder: pathlib.Path) -> Bus:
    """ZeroMQ between the processes of this host, which meet in a folder."""
    return Bus("ZeroMQ", {MSGBUS: f"msgbus+zmq://{folder}"}, None)
