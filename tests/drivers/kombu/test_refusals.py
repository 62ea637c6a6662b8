"""What becomes of a message that RabbitMQ did not take, while RabbitMQ is asked why."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from amqp.serialization import dumps

from msgbus import TransportBlocked, TransportUnavailable
from msgbus.drivers.base import Address, Message
from msgbus.drivers.kombu import frames
from msgbus.drivers.kombu.refusals import WHY_TIMEOUT, Refusals
from msgbus.drivers.kombu.topology import NativeTopology
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.sending import Outgoing
from msgbus.message import JSON
from tests.drivers.kombu.test_session import Still

SERVER = Address("server", "msgbus", "t", "s1")
TOPIC = Address("topic", "msgbus", "t")


class Refused:
    """A message for which RabbitMQ has said basic.nack, with the clock in the test's hands."""

    def __init__(self, still: Still, monkeypatch: pytest.MonkeyPatch, address: Address, *, quorum: bool) -> None:
        self._still = still
        self._now = Loop.now()
        monkeypatch.setattr(Loop, "now", staticmethod(lambda: self._now))
        driver: Any = still.transport.driver
        self.outgoing = Outgoing(driver.sender, address, Message(b"{}", JSON, "m1", 60.0), True)
        topology = NativeTopology(quorum=quorum, server_expires=0, queue_expires=0)
        Refusals(still.session, topology.route, lambda: None).on_refused(self.outgoing)
        self.asked_on = self._channel_of_question()

    def _channel_of_question(self) -> int:
        self._still.session.send_all()
        data = self._still.received()
        while data[7:11] != frames.CHANNEL_OPEN:  # before it the close of the last question's channel is confirmed
            (size,) = struct.unpack_from("!I", data, 3)
            data = data[8 + size :]
        return int.from_bytes(data[1:3])

    def wait(self, seconds: float) -> None:
        """Have so many seconds pass."""
        self._now += seconds
        self._still.loop.step()

    def answer_no_pools(self) -> None:
        """Have RabbitMQ answer that the topic has no pools, which has it asked for the queue."""
        closing = dumps("BsBB", (404, "NOT_FOUND - no exchange 'msgbus/t/!pools' in vhost '/'", 0, 0))
        self._still.session._reader.feed(frames.method(self.asked_on, frames.CHANNEL_CLOSE, closing))
        self.asked_on = self._channel_of_question()

    def answer(self, messages: int) -> None:
        """Have RabbitMQ answer how many messages the queue holds."""
        declared = b"\x01q" + struct.pack("!II", messages, 0)
        self._still.session._reader.feed(frames.method(self.asked_on, frames.QUEUE_DECLARE_OK, declared))


def test_a_busy_rabbitmq_may_take_its_time(still: Still, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes after seconds says just as well that the queue is full, and the message not delivered."""
    refused = Refused(still, monkeypatch, SERVER, quorum=False)
    refused.wait(WHY_TIMEOUT - 0.1)
    assert not refused.outgoing.sent.done()
    refused.answer(3)
    error = refused.outgoing.sent.exception(0)
    assert isinstance(error, TransportBlocked)
    assert "'msgbus/t/s1' holds 3 messages" in str(error)
    assert not error.maybe_delivered


def test_a_rabbitmq_that_does_not_answer_leaves_the_outcome_unknown(
    still: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classic queue's node may have failed after it had taken the message: the error says so, and what to look at."""
    refused = Refused(still, monkeypatch, SERVER, quorum=False)
    refused.wait(WHY_TIMEOUT + 0.1)
    error = refused.outgoing.sent.exception(0)
    assert isinstance(error, TransportUnavailable)
    assert error.maybe_delivered
    assert "list_queues --offline" in str(error)


def test_a_busy_rabbitmq_may_take_its_time_to_say_that_there_are_no_pools(
    still: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the topic has the one queue that is asked for, and the message was not delivered."""
    refused = Refused(still, monkeypatch, TOPIC, quorum=False)
    refused.wait(WHY_TIMEOUT - 0.1)
    refused.answer_no_pools()
    refused.answer(3)
    error = refused.outgoing.sent.exception(0)
    assert isinstance(error, TransportBlocked)
    assert not error.maybe_delivered


@pytest.mark.parametrize("quorum", [False, True])
def test_a_deadline_while_it_is_asked_for_pools(still: Still, monkeypatch: pytest.MonkeyPatch, quorum: bool) -> None:
    """The queue of a pool may have taken the message: the error does not say that it was not delivered."""
    error = Refused(still, monkeypatch, TOPIC, quorum=quorum).outgoing.refusal
    assert isinstance(error, TransportUnavailable)
    assert error.maybe_delivered
    assert "the others may have it" in str(error)
