"""The kombu driver on a RabbitMQ that allows few channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import msgbus
from msgbus.conformance.waiting import Task
from msgbus.drivers.base import Address
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.services import Connect, Endpoint, client_of, serving

Allow = Callable[[int], None]


@pytest.fixture
def allow(rabbitmq: RabbitMQ) -> Iterator[Allow]:
    """Sets RabbitMQ's channel_max, for the connections that are opened from then on."""
    before = rabbitmq.eval("{ok, Most} = application:get_env(rabbit, channel_max), Most.")

    def set_channel_max(most: int) -> None:
        rabbitmq.eval(f"application:set_env(rabbit, channel_max, {most}).")

    yield set_channel_max
    set_channel_max(before)


def test_a_small_channel_max_is_enough_for_a_server(rabbitmq: RabbitMQ, connect: Connect, allow: Allow) -> None:
    """And for a client that asks much at once: RabbitMQ has no reason to close the connection."""
    allow(4)
    transport = connect(rabbitmq.url)
    with serving(transport, "few"):
        client = client_of(transport, "few")
        assert client.call({}, "echo", value=1) == 1
        found = [transport.driver.inspect(Address("topic", "msgbus", f"nobody-{number}")) for number in range(20)]
        assert {type(each.exception(20)) for each in found} == {msgbus.MessageUndeliverable}
        assert client.call({}, "echo", value=2) == 2


def test_a_server_for_which_no_channel_is_left(rabbitmq: RabbitMQ, connect: Connect, allow: Allow) -> None:
    """Its start says so, and what to do. The server that was there before goes on."""
    allow(4)
    transport = connect(rabbitmq.url)
    with serving(transport, "first"):
        client = client_of(transport, "first")
        assert client.call({}, "echo", value=1) == 1
        second = msgbus.get_rpc_server(transport, msgbus.Target(topic="second", server="s1"), [Endpoint()])
        with pytest.raises(msgbus.TransportUnavailable, match=r"A connection has 4 of them.*channel_max"):
            second.start(2)
        assert client.call({}, "echo", value=2) == 2


def test_a_channel_max_with_which_nothing_works(rabbitmq: RabbitMQ, connect: Connect, allow: Allow) -> None:
    """The first call says so at once."""
    allow(2)
    task = Task(client_of(connect(rabbitmq.url), "nobody", timeout=60).call, {}, "echo", value=1)
    with pytest.raises(msgbus.TransportUnavailable, match=r"its channel_max is 2, .* at least 3"):
        task.result(20)
