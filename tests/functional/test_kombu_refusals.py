"""What the kombu driver does where RabbitMQ does not take a message, or somebody deletes what it needs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import amqp
import pytest

import msgbus
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Address, Delivery, Message
from msgbus.message import JSON
from tests.functional.brokers.proxy import Proxy
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.services import Connect, client_of, serving


@contextlib.contextmanager
def operator(broker: RabbitMQ) -> Iterator[Any]:
    """A channel of somebody who may do everything."""
    with amqp.Connection(f"127.0.0.1:{broker.port}") as connection:
        yield connection.channel()


# What somebody deletes


@pytest.mark.parametrize("verb", ["call", "cast"])
def test_a_deleted_exchange_is_made_again(rabbitmq: RabbitMQ, connect: Connect, verb: str) -> None:
    """An operator deletes the exchange under server and client: the next request makes it again, and is run."""
    with serving(connect(rabbitmq.url), f"unexchanged-{verb}") as endpoint:
        client = client_of(connect(rabbitmq.url), f"unexchanged-{verb}")
        assert client.call({}, "echo", value=0) == 0
        for value in (1, 2):
            with operator(rabbitmq) as channel:
                channel.exchange_delete("msgbus")
            getattr(client, verb)({}, "echo", value=value)
            until(partial(endpoint.runs.count, value), "it ran")
            assert endpoint.runs.count(value) == 1
            assert client.prepare(server="s1").call({}, "echo", value="named") == "named"


def test_a_deleted_binding_is_made_again(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """Likewise with the binding of the topic's queue, and of the server's own."""
    with serving(connect(rabbitmq.url), "unbound") as endpoint:
        client = client_of(connect(rabbitmq.url), "unbound")
        assert client.call({}, "echo", value=0) == 0
        for key, server in (("unbound", None), ("unbound/s1", "s1")):
            with operator(rabbitmq) as channel:
                channel.queue_unbind(f"msgbus/{key}", "msgbus", key)
            assert client.prepare(server=server).call({}, "echo", value=key) == key
        assert endpoint.runs == [0, "unbound", "unbound/s1"]


def test_a_fanout_comes_back_by_itself(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """Nobody who sends to all can know that a server is missing: each server binds its queue again now and then."""
    with serving(connect(rabbitmq.url), "fanned") as endpoint:
        client = client_of(connect(rabbitmq.url), "fanned")
        with operator(rabbitmq) as channel:
            channel.exchange_delete("msgbus")

        def arrived() -> bool:
            client.fanout_cast({}, "echo", value=1)
            return bool(endpoint.runs)

        until(arrived, "a request to all arrives", 30)


def test_a_queue_that_goes_without_a_word_comes_back(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """RabbitMQ may lose a queue and not tell who consumes from it. Each kind is missed and declared again.

    Here it forgets the queues of a server and the inboxes, while their processes live on with their consumers.
    """
    before = set(rabbitmq.queues())
    with serving(connect(rabbitmq.url), "forgotten") as endpoint:
        client = client_of(connect(rabbitmq.url), "forgotten", 30)
        assert client.call({}, "echo", value="first") == "first"
        found = set(rabbitmq.queues()) - before
        assert len(found) == 5, found
        for name in found:
            rabbitmq.forget_queue(name)
        until(lambda: found <= set(rabbitmq.queues()), "all queues are back", 30)
        assert client.call({}, "echo", value="any") == "any"
        assert client.prepare(server="s1").call({}, "echo", value="one") == "one"
        client.fanout_cast({}, "echo", value="all")
        until(lambda: "all" in endpoint.runs, "a request to all arrives")


def test_a_deleted_queue_of_dead_letters_is_made_again(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """A queue that the sender declares is declared again where somebody has deleted it: nothing is lost or refused."""
    driver = connect(rabbitmq.url).driver
    for kind, queue in (("dead", "msgbus/undead/!dead"), ("stored", "msgbus/undead")):
        address = Address(kind, "msgbus", "undead")  # type: ignore[arg-type]
        for number in range(2):
            driver.send(address, Message(b"{}", JSON, f"{kind}{number}", None, True, 20.0), mandatory=True).result(20)
            until(partial(_holds_one, rabbitmq, queue), "it is there")
            rabbitmq.delete_queue(queue)


def _holds_one(broker: RabbitMQ, queue: str) -> bool:
    return bool(broker.queues().get(queue, {}).get("messages") == 1)


def test_a_topic_without_servers_still_fails_at_once(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """Looking for a lost binding costs no time where there is no queue: MessageUndeliverable, and nothing is made."""
    client = client_of(connect(rabbitmq.url), "nobody-at-all", 60)
    with pytest.raises(msgbus.MessageUndeliverable, match="nobody listens"):
        Task(client.call, {}, "echo", value=1).result(10)
    assert "msgbus/nobody-at-all" not in rabbitmq.queues()


# What a queue does not take


@pytest.mark.parametrize("quorum", ["false", "true"])
def test_a_full_queue_is_named(rabbitmq: RabbitMQ, connect: Connect, quorum: str) -> None:
    """With overflow=reject-publish a full queue is an error with its name and length, until it has room."""
    topic = f"brimful-{quorum}"
    transport = connect(f"{rabbitmq.url}?quorum_queues={quorum}")
    with serving(transport, topic):
        pass
    rabbitmq.limit_queue(f"msgbus/{topic}", 3)
    client = client_of(transport, topic, timeout=15)

    def fill() -> str:
        try:
            client.cast({}, "echo", value=1)
        except msgbus.TransportBlocked as exc:
            return str(exc)
        return ""

    text = until(fill, "the queue is full", 40)
    assert "its queue is full" in text
    assert f"'msgbus/{topic}' holds" in text
    patient = Task(client.prepare(delivery="at_least_once", timeout=60).cast, {}, "echo", value=2)
    time.sleep(0.5)  # It may be refused a few times.
    assert not patient.done
    with serving(transport, topic) as endpoint:
        patient.result(40)
        until(lambda: 2 in endpoint.runs, "what waited for room is run", 40)
        assert endpoint.runs.count(2) == 1


@pytest.mark.parametrize("quorum", ["false", "true"])
def test_a_full_pool_does_not_have_the_topic_run_twice(rabbitmq: RabbitMQ, connect: Connect, quorum: str) -> None:
    """RabbitMQ refuses what one of two queues does not take: the other has it, so it is not sent to that again.

    It holds messages itself, and is not full.
    """
    topic = f"pooled-{quorum}"
    transport = connect(f"{rabbitmq.url}?quorum_queues={quorum}")
    held: list[Delivery] = []
    reader = transport.driver.subscribe([Address("pool", "msgbus", topic, name="p")], held.append, prefetch=1)
    reader.ready.result(20)
    with serving(transport, topic):
        pass
    rabbitmq.limit_queue(f"msgbus/{topic}/!pool/p", 2)
    client = client_of(transport, topic)
    sent: list[int] = []

    def refused() -> bool:
        sent.append(len(sent))
        try:
            client.cast({}, "echo", value=sent[-1])
        except msgbus.OutcomeUnknown:
            return True
        return False

    until(refused, "the pool is full", 40)
    with serving(transport, topic) as endpoint:
        until(lambda: len(endpoint.runs) >= len(sent), "the topic's server ran them all")
    assert sorted(endpoint.runs) == sent
    reader.close().result(20)


# A RabbitMQ that does not answer


@pytest.mark.parametrize("timeout", [0.05, 0.3, 1.0])
def test_a_frozen_rabbitmq_is_reported_at_the_deadline(rabbitmq: RabbitMQ, connect: Connect, timeout: float) -> None:
    """A cast that RabbitMQ does not confirm ends at its deadline, and says that it may have been delivered."""
    with serving(connect(rabbitmq.url), "frozen"):
        transport = connect(rabbitmq.url)
        client = client_of(transport, "frozen", timeout)
        client.prepare(timeout=20).call({}, "echo", value=0)

        def cast() -> None:
            client.cast({}, "echo", value=1)
            pytest.fail(f"it was confirmed; RabbitMQ is frozen: {rabbitmq.paused()}")

        rabbitmq.pause()
        try:
            for _ in range(3):
                with pytest.raises(msgbus.OutcomeUnknown, match="did not confirm"):
                    cast()
                with pytest.raises(msgbus.TransportUnavailable, match="did not confirm") as caught:
                    client.prepare(delivery="at_least_once").cast({}, "echo", value=2)
                assert caught.value.maybe_delivered
        finally:
            rabbitmq.resume()
        assert client.prepare(timeout=20).call({}, "echo", value=3) == 3


def test_a_frozen_rabbitmq_fails_a_send_at_its_own_deadline(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """Each message fails at its own send_timeout, whatever those of others are; the driver checks no more often."""
    driver = connect(rabbitmq.url).driver
    address = Address("inbox", name="reply_nobody")
    driver.send(address, Message(b"{}", JSON, "first", None, False, 20.0), mandatory=False).result(20)
    rabbitmq.pause()
    try:
        began = time.monotonic()
        ends: dict[float, float] = {}
        lock = threading.Lock()

        def note(seconds: float) -> Callable[[object], None]:
            def done(_: object) -> None:
                with lock:
                    ends[seconds] = time.monotonic() - began

            return done

        sends = {}
        for seconds in (2.5, 0.05, 1.0, 0.3):
            sends[seconds] = driver.send(
                address, Message(b"{}", JSON, str(seconds), None, False, seconds), mandatory=False
            )
            sends[seconds].add_done_callback(note(seconds))
        for seconds in sorted(sends):
            error = sends[seconds].exception(20)
            assert isinstance(error, msgbus.TransportUnavailable)
            assert error.maybe_delivered
        assert [ends[seconds] >= seconds for seconds in ends] == [True] * 4
        assert sorted(ends, key=lambda seconds: ends[seconds]) == [0.05, 0.3, 1.0, 2.5]
    finally:
        rabbitmq.resume()


def test_inspecting_a_frozen_rabbitmq_ends(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """Inspecting a queue of a RabbitMQ that answers nothing fails; it does not wait for ever, nor use up channels."""
    driver = connect(rabbitmq.url).driver
    with serving(connect(rabbitmq.url), "looked"):
        address = Address("topic", "msgbus", "looked")
        assert driver.inspect(address).result(20).consumers == 1
        rabbitmq.pause()
        try:
            looks = [driver.inspect(address) for _ in range(3000)]
            assert all(isinstance(look.exception(20), msgbus.TransportUnavailable) for look in looks)
        finally:
            rabbitmq.resume()
        until(lambda: _consumers(driver, address) == 1, "it can be inspected again", 20)


def _consumers(driver: Any, address: Address) -> int | None:
    try:
        found: int = driver.inspect(address).result(20).consumers
    except msgbus.MessagingException:
        return None
    return found


def test_a_connection_through_which_nothing_comes_ends_at_the_deadline(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """A first connection that opens and stays silent: a cast ends at its deadline, and says what is to be checked."""
    proxy = Proxy(rabbitmq.port)
    try:
        proxy.stall()
        url = rabbitmq.url.replace(f":{rabbitmq.port}/", f":{proxy.port}/")
        for timeout in (0.05, 0.5):
            with pytest.raises(msgbus.TransportUnavailable) as caught:
                client_of(connect(url), "stalled", timeout).cast({}, "echo", value=1)
            assert not caught.value.maybe_delivered
    finally:
        proxy.close()
