"""Dead letters: look at what the servers of a topic have given up, send it again, or remove it.

They are read from the topic's ``dead`` address with nothing but the driver contract. A reader takes all letters, looks
at them, and gives back those that are to stay, in their old order. While it has them (for a moment) no other reader
gets them; if it dies, the message system gives them back. Letters that another reader has are not seen.

Every function may be called from any thread. It blocks for at most `timeout` seconds, plus the time that sending takes.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from msgbus.deadline import checked_seconds, wait_for
from msgbus.drivers.base import Address, Capability, Delivery, Message, QueueInfo, Sent
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import decode_dead_letter, encode_again
from msgbus.exceptions import (
    CapabilityMissing,
    InvalidTarget,
    MessageUndeliverable,
    MessagingException,
    MessagingTimeout,
    SerializationError,
    TransportUnavailable,
)
from msgbus.message import DeadLetter
from msgbus.target import Target
from msgbus.transport import Transport

TIMEOUT = 10.0
"""Seconds that reading may take, if the caller does not say."""
MAX_LETTERS = 10_000
"""How many letters are read at a time: they are all in memory."""
END_AFTER = 3.0
"""Seconds without a further letter after which another reader is assumed to have those that are missing."""
END_AFTER_ALL = 1.0
"""The same, if the message system counts as many as were found."""
POLL_INTERVAL = 0.25
"""Seconds between two checks whether letters still wait, while none comes."""


@dataclass(frozen=True)
class Stored:
    """A dead letter in the message system.

    Attributes:
        id: of the message. If several servers have given up one request, their letters have the same id.
        letter: what it says, or None where it cannot be read.
        error: why it cannot be read, or could not be sent again; None where all is well.
    """

    id: str
    letter: DeadLetter | None
    error: MessagingException | None = None


class Letters(list[Stored]):
    """A list of dead letters.

    Attributes:
        expected: how many the message system said there are, or None where it does not say. There may be more than were
            found: 10,000 are read at a time, and another reader may have some.
    """

    def __init__(self, found: Collection[Stored], info: QueueInfo | None) -> None:
        super().__init__(found)
        self.expected = None if info is None or info.messages is None else max(info.messages, len(self))


def look(transport: Transport, target: Target, timeout: float = TIMEOUT) -> Letters:
    """The dead letters of a topic, the oldest first. They stay where they are, in their order.

    Args:
        transport: where they are stored.
        target: its topic, and its exchange if that is not the configured one.
        timeout: seconds.

    Raises:
        CapabilityMissing: the message system stores nothing.
        InvalidTarget: the target has no topic.
        TransportUnavailable: the message system could not be reached in that time, or the connection broke.
        ValueError: `timeout` is not a number.
    """
    with _held(transport, target, timeout) as (deliveries, info):
        return Letters([_read(delivery) for delivery in deliveries], info)


def requeue(
    transport: Transport, target: Target, ids: Collection[str] | None = None, timeout: float = TIMEOUT
) -> Letters:
    """Send dead letters' requests again, and remove each letter once the message system has taken the request.

    A request is sent to its old destination: the topic, or one server. A request from a fanout goes only to the server
    that has given it up. It is a new request: without a deadline, and with an id that is made from the letter, since
    servers drop the ids that they have seen. Sending the same letter twice (when the first outcome was unknown) gives
    the same id, so a server that has run the request drops the second copy.

    What a server gave up because it may have run before may run a second time.

    Args:
        transport: as for `look`.
        target: likewise.
        ids: which letters; None means all.
        timeout: as for `look`; sending may take as long again.

    Returns:
        the letters that were asked for. Where `Stored.error` is set, the letter is still there.

    Raises:
        CapabilityMissing, InvalidTarget, TransportUnavailable, ValueError: as for `look`; nothing was sent.
        TypeError: `ids` is a string, and not a collection of strings.
    """
    timeout, wanted = checked_seconds(timeout), _wanted(ids)
    with _held(transport, target, timeout) as (deliveries, info):
        chosen = [delivery for delivery in deliveries if wanted is None or delivery.message.id in wanted]
        sent = [_send_again(transport, delivery, _read(delivery), timeout) for delivery in chosen]
        end = Loop.now() + timeout
        done = [
            stored if stored.error is not None else _finish(transport, delivery, stored, future, end)
            for delivery, (stored, future) in zip(chosen, sent, strict=True)
        ]
    return Letters(done, info)


def purge(
    transport: Transport, target: Target, ids: Collection[str] | None = None, timeout: float = TIMEOUT
) -> Letters:
    """Remove dead letters for good, readable or not.

    The arguments are those of `requeue`. Returns the letters that were removed.

    Raises:
        CapabilityMissing, InvalidTarget, TransportUnavailable, ValueError: as for `look`; nothing was removed.
        TypeError: as for `requeue`.
    """
    wanted = _wanted(ids)
    with _held(transport, target, timeout) as (deliveries, info):
        chosen = [delivery for delivery in deliveries if wanted is None or delivery.message.id in wanted]
        return Letters([_read(delivery) for delivery in chosen if delivery.accept()], info)


def _wanted(ids: Collection[str] | None) -> frozenset[str] | None:
    """The ids of the letters that are asked for.

    Raises:
        TypeError: they are a string. Each id that is a part of it would be one of them.
    """
    if isinstance(ids, str):
        raise TypeError(f"ids are a list or a set of ids, not a string: write [{ids!r}]")
    return None if ids is None else frozenset(ids)


def _address(transport: Transport, target: Target) -> Address:
    if not target.topic:
        raise InvalidTarget("dead letters belong to a topic, and the target has none", target)
    if Capability.STORAGE not in transport.driver.capabilities:
        raise CapabilityMissing(
            f"this message system ({type(transport.driver).__name__}) does not store dead letters: servers log them, "
            "and pass them to the hook on_dead_letter of get_rpc_server"
        )
    return transport.address(Target(exchange=target.exchange, topic=target.topic))._replace(kind="dead")


def _queue_info(transport: Transport, address: Address, end: float) -> QueueInfo | None:
    """What is known of the address, or None where the message system does not say.

    Raises:
        MessageUndeliverable: there has never been a letter, so the address does not exist.
        TransportUnavailable: it could not be inspected until `end`.
    """
    if Capability.INSPECT not in transport.driver.capabilities:
        return None
    while True:
        try:
            return transport.driver.inspect(address).result(max(0.1, end - Loop.now()))
        except (TransportUnavailable, TimeoutError) as exc:
            if Loop.now() >= end:
                error = f"{address} cannot be inspected: {transport.driver.state}"
                raise TransportUnavailable(error) from exc
        time.sleep(POLL_INTERVAL)


class _Reader:
    """Gathers deliveries: `on_delivery` is called by the driver, on any thread."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.changed = threading.Condition()

    def on_delivery(self, delivery: Delivery) -> None:
        with self.changed:
            self.deliveries.append(delivery)
            self.changed.notify()


@contextlib.contextmanager
def _held(transport: Transport, target: Target, timeout: float) -> Iterator[tuple[list[Delivery], QueueInfo | None]]:
    """Hold all dead letters of a topic, and the address's `QueueInfo`. Letters that are not accepted are given back."""
    end = Loop.now() + checked_seconds(timeout)
    address = _address(transport, target)
    try:
        info = _queue_info(transport, address, end)
    except MessageUndeliverable:  # Subscribing would create the address.
        yield [], QueueInfo(0, 0)
        return
    reader = _Reader()
    subscription = transport.driver.subscribe([address], reader.on_delivery, prefetch=MAX_LETTERS)
    try:
        wait_for(transport.loop, subscription.ready, end, f"{address}: cannot reach", transport.driver)
        up_since = transport.driver.up_since
        _gather(transport, address, reader, end)
        if transport.driver.up_since != up_since:  # The letters are given back, and delivered a second time.
            raise TransportUnavailable(f"the connection was lost while {address} were read; nothing was changed")
        # Some message systems move letters to the end when another reader gives them back.
        yield sorted(reader.deliveries[:MAX_LETTERS], key=_written), info
    finally:
        with contextlib.suppress(MessagingException, TimeoutError):
            subscription.close().result(max(1.0, min(5.0, end - Loop.now())))


def _gather(transport: Transport, address: Address, reader: _Reader, end: float) -> None:
    """Wait until no more letters come.

    The count at the beginning is not enough: letters that were just given back may not be counted yet. And some message
    systems also count the letters that are held here.
    """
    last = Loop.now()
    while (now := Loop.now()) < end and now - last < END_AFTER:
        with reader.changed:
            before = len(reader.deliveries)
            reader.changed.wait_for(lambda before=before: len(reader.deliveries) > before, POLL_INTERVAL)  # type: ignore[misc]
            found = len(reader.deliveries)
        if found >= MAX_LETTERS:
            return
        if found > before:
            last = Loop.now()
            continue
        info = transport.inspect(address, POLL_INTERVAL)
        silent = Loop.now() - last
        if info is not None and (info.messages == 0 or (info.messages == found and silent >= END_AFTER_ALL)):
            return


def _written(delivery: Delivery) -> float:
    """When a letter was written; an unreadable one counts as the newest."""
    letter = _read(delivery).letter
    return float("inf") if letter is None else letter.at


def _read(delivery: Delivery) -> Stored:
    message = delivery.message
    try:
        return Stored(message.id, decode_dead_letter(message.body))
    except SerializationError as exc:
        return Stored(message.id, None, exc)


def _send_again(
    transport: Transport, delivery: Delivery, stored: Stored, timeout: float
) -> tuple[Stored, Future[Sent] | None]:
    """Send the request of a letter; if it cannot be sent, return the letter with the error."""
    letter = stored.letter
    if letter is None:
        return stored, None
    try:
        address = _destination(delivery.address, letter)
        request_id = hashlib.blake2b(f"{stored.id} {letter.server} {letter.at}".encode(), digest_size=16).hexdigest()
        body = encode_again(letter.body, letter.content_type, request_id)
        message = Message(body, letter.content_type, request_id, None, True, timeout)
        return stored, transport.send(address, message, mandatory=True)
    except MessagingException as exc:
        return Stored(stored.id, letter, exc), None


def _destination(dead: Address, letter: DeadLetter) -> Address:
    """Where the request of a letter is to go."""
    if letter.kind == "pool":
        raise InvalidTarget(
            f"it came through {letter.address}, and requests cannot be sent to a pool", Target(topic=dead.topic)
        )
    if letter.kind in ("server", "fanout"):
        return Address("server", dead.exchange, dead.topic, letter.server)
    return Address("topic", dead.exchange, dead.topic)


def _finish(transport: Transport, delivery: Delivery, stored: Stored, sent: Future[Sent] | None, end: float) -> Stored:
    """Wait until the request has been taken, and remove its letter."""
    assert sent is not None
    try:
        sent.result(max(0.0, end - Loop.now()) + POLL_INTERVAL)
    except MessagingException as exc:
        return Stored(stored.id, stored.letter, exc)
    except TimeoutError:
        error = MessagingTimeout(f"{transport.driver.state} did not confirm it in time")
        return Stored(stored.id, stored.letter, error)
    if not delivery.accept():
        error_text = "it was sent again, and its letter is still there, since the connection was lost; purge it"
        return Stored(stored.id, stored.letter, TransportUnavailable(error_text, maybe_delivered=True))
    return stored
