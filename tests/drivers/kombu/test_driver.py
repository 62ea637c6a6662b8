"""What the kombu driver declares of itself, without a RabbitMQ."""

from __future__ import annotations

import socket

import pytest

from msgbus.drivers.base import Capability
from tests.support import new_transport

ALL = frozenset(Capability)
TRANSIENT = "rabbit_transient_quorum_queue=true"
HOSTS = "rabbit://a:pw@one:5672,a:pw@two:5672,a:pw@three:5672/"


@pytest.mark.parametrize(
    ("url", "lacking"),
    [
        ("rabbit://one/", {Capability.ATTEMPT_COUNT}),
        ("rabbit://one/?quorum_queues=true", set()),
        (f"{HOSTS}?quorum_queues=true", set()),
        (HOSTS, {Capability.ATTEMPT_COUNT, Capability.INBOX_STORAGE}),
        ("rabbit://one/?topology=oslo", {Capability.ATTEMPT_COUNT, Capability.DURABLE}),
        (f"{HOSTS}?topology=oslo", {Capability.ATTEMPT_COUNT, Capability.DURABLE, Capability.INBOX_STORAGE}),
        ("rabbit://one/?topology=oslo&quorum_queues=true", {Capability.ATTEMPT_COUNT, Capability.DURABLE}),
        ("rabbit://one/?topology=oslo&amqp_durable_queues=true", {Capability.ATTEMPT_COUNT, Capability.DURABLE}),
        (f"rabbit://one/?topology=oslo&amqp_durable_queues=true&{TRANSIENT}", {Capability.ATTEMPT_COUNT}),
        (f"{HOSTS}?topology=oslo&rabbit_quorum_queue=true&{TRANSIENT}", set()),
        (
            f"{HOSTS}?topology=oslo&rabbit_quorum_queue=true",
            {Capability.ATTEMPT_COUNT, Capability.DURABLE, Capability.INBOX_STORAGE},
        ),
        (
            "rabbit://one/?topology=oslo&amqp_durable_queues=true&amqp_auto_delete=true",
            {Capability.ATTEMPT_COUNT, Capability.DURABLE, Capability.STORAGE},
        ),
    ],
)
def test_capabilities(url: str, lacking: set[Capability]) -> None:
    """Only quorum queues count deliveries, and are there on the next host.

    Those of stock peers outlive a restart only if all are durable, and keep nothing for servers that are away if they
    are deleted with their last consumer.
    """
    assert new_transport(url).driver.capabilities == ALL - lacking


def test_a_connection_that_is_not_needed_any_more_is_closed_without_waiting() -> None:
    """The end of TLS would wait for RabbitMQ's answer, and it may be a program's event loop that drops it."""
    near, far = socket.socketpair()
    blocking: list[bool] = []

    class Transport:
        sock = near

        def close(self) -> None:
            blocking.append(near.getblocking())
            near.close()

    class Connection:
        transport = Transport()

    new_transport("rabbit://localhost/").driver.discard(Connection())  # type: ignore[attr-defined]
    far.close()
    assert blocking == [False]
