"""With ``topology=oslo`` a stock oslo.messaging and msgbus understand each other's notifications.

The stock peer is the real one, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

import msgbus
from msgbus.notify.notification import PRIORITIES
from tests.functional.brokers.processes import poll
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.test_oslo_interop import transport_to
from tests.notify.support import Endpoint, listening

PEER = Path(__file__).with_name("stock_notifications.py")
DRIVERS = pytest.mark.parametrize("driver", ["messaging", "messagingv2"])


def command(role: str, broker: RabbitMQ, *args: str) -> list[str]:
    """What starts the stock peer."""
    return [sys.executable, "-W", "ignore", str(PEER), role, broker.url, *args]


def stock_notifies(broker: RabbitMQ, topic: str, driver: str) -> None:
    """Have a stock notifier send a notification of each level."""
    peer = subprocess.run(
        command("notify", broker, topic, driver), capture_output=True, text=True, timeout=90, check=False
    )
    assert peer.returncode == 0, peer.stderr


@contextmanager
def stock_listener(broker: RabbitMQ, topic: str) -> Iterator[IO[str]]:
    """A stock listener; each line of what it writes is a notification."""
    with subprocess.Popen(
        command("listen", broker, topic), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as peer:
        assert peer.stdout is not None
        assert json.loads(peer.stdout.readline()) == "ready"
        yield peer.stdout
        peer.communicate(timeout=30)


def new_topic() -> str:
    """A topic that no other test uses."""
    return f"stock-{uuid.uuid4().hex[:8]}"


@DRIVERS
@pytest.mark.parametrize("first", ["listener", "notifier"])
def test_our_listener_understands_a_stock_notifier(rabbitmq: RabbitMQ, driver: str, first: str) -> None:
    """Every level, with all that it says; also what was sent before anybody listened: the sender has made the queue."""
    topic, endpoint = new_topic(), Endpoint()
    with transport_to(rabbitmq) as transport:
        if first == "notifier":
            stock_notifies(rabbitmq, topic, driver)
        with listening(transport, endpoint, targets=[msgbus.Target(topic=topic)]):
            if first == "listener":
                stock_notifies(rabbitmq, topic, driver)
            found = {came[0]: came for came in (endpoint.next() for _ in PRIORITIES)}
        assert endpoint.came.empty()
    assert found.keys() == set(PRIORITIES)
    for level, (_, ctxt, publisher, event_type, payload, metadata) in found.items():
        assert {"user": "u"}.items() <= ctxt.items()
        assert (publisher, event_type, payload) == ("stock", f"stock.{level}", {"a": [1, "ü", None]})
        assert metadata.keys() == {"message_id", "timestamp"}


@DRIVERS
@pytest.mark.parametrize("first", ["listener", "notifier"])
def test_a_stock_listener_understands_our_notifier(rabbitmq: RabbitMQ, driver: str, first: str) -> None:
    """The other way round; and what it gives back it gets again."""
    topic = new_topic()
    with transport_to(rabbitmq) as transport:
        notifier = msgbus.Notifier(transport, "ours", driver=driver, topics=[topic])

        def notify() -> None:
            for level in PRIORITIES:
                getattr(notifier, level)({"user": "u"}, f"ours.{level}", {"a": [1, "ü", None]})

        if first == "notifier":
            notify()
        with stock_listener(rabbitmq, topic) as lines:
            if first == "listener":
                notify()
            found: dict[str, Any] = {came[0]: came for came in (json.loads(lines.readline()) for _ in PRIORITIES)}
            notifier.info({}, "again", {})
            again = [json.loads(lines.readline())[3] for _ in range(2)]
    assert again == ["again", "again"]
    assert found.keys() == set(PRIORITIES)
    for level, (_, ctxt, *rest) in found.items():
        assert {"user": "u"}.items() <= ctxt.items()
        assert rest == ["ours", f"ours.{level}", {"a": [1, "ü", None]}, ["message_id", "timestamp"]]


def test_a_pool_of_ours_gets_a_copy_beside_a_stock_listener(rabbitmq: RabbitMQ) -> None:
    """Of what either kind of notifier sends."""
    topic, endpoint = new_topic(), Endpoint()
    with (
        transport_to(rabbitmq) as transport,
        stock_listener(rabbitmq, topic) as lines,
        listening(transport, endpoint, targets=[msgbus.Target(topic=topic)], pool=f"pool-{topic}"),
    ):
        msgbus.Notifier(transport, driver="messagingv2", topics=[topic]).info({}, "e", {})
        assert endpoint.events(1) == ["e"]
        assert json.loads(lines.readline())[3] == "e"
        stock_notifies(rabbitmq, topic, "messagingv2")
        assert len(endpoint.events(len(PRIORITIES))) == len(PRIORITIES)
        assert len([lines.readline() for _ in PRIORITIES]) == len(PRIORITIES)


def test_a_batch_of_a_stock_notifier(rabbitmq: RabbitMQ) -> None:
    """Its notifications make batches of ours."""
    topic = new_topic()
    came: list[list[str]] = []

    class Batches:
        def info(self, notifications: list[dict[str, Any]]) -> None:
            came.append([one["event_type"] for one in notifications])

    with (
        transport_to(rabbitmq) as transport,
        listening(transport, Batches(), targets=[msgbus.Target(topic=topic)], batch_size=2),
    ):
        stock_notifies(rabbitmq, topic, "messaging")
        stock_notifies(rabbitmq, topic, "messagingv2")
        poll(lambda: came, 20, "a batch")
    assert came == [["stock.info", "stock.info"]]
