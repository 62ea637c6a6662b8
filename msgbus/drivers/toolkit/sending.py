"""Messages that a driver sends, from `Driver.send` until the message system's answer.

A driver gets each message as an `Outgoing` in `Session.publish`, returns an `Offer`, and later reports the outcome to
the `Outgoing`. The rest is for `msgbus.drivers.toolkit.broker`.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from enum import Enum, auto
from functools import partial
from typing import Protocol

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.toolkit.futures import LightFuture, fail
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.drivers.toolkit.send_errors import Names, as_our_error, cut_off, not_confirmed, not_declared, not_sent
from msgbus.exceptions import MessageUndeliverable, MessagingException, TransportBlocked, TransportUnavailable

HOLD_FIRST, HOLD_MAX = 0.1, 1.0
"""Seconds until a message that the message system did not take is offered again: at first, and at most."""
CHECK_INTERVAL = 0.01
"""The least seconds between two checks of deadlines."""
CHECK_TOLERANCE = 0.001
"""Seconds by which a check may be early."""
_SENT = Sent()


class Offer(Enum):
    """What `Session.publish` returns: whether it took the message."""

    SENT = auto()
    """At least a byte of it may have been passed to the connection. If the connection breaks now, or the broker does
    not answer in time, the send fails with ``maybe_delivered=True``."""
    FULL = auto()
    """The connection takes no message at present, and has no byte of this one. This message and all later ones wait
    until `Line.sendable` is called."""
    UNDECLARED = auto()
    """Something has to be declared first, and the connection has no byte of the message. `Session.declare` is called
    once for all messages to the address; then they are passed to `Session.publish` again."""


class OnDeclared(Protocol):
    """Is called when a declaration has ended, on the loop's thread.

    It need not be called if the connection was lost meanwhile; then it changes nothing.
    """

    def __call__(self, refusal: MessagingException | None = None, *, hold: bool = False) -> None:
        """Report how the declaration has ended.

        Args:
            refusal: why it could not be made: the messages that wait for it fail with that. None: it was made, and
                `Session.publish` gets the messages again, and must not return ``Offer.UNDECLARED`` for them.
            hold: the refusal may be temporary: the messages are offered again in a moment, until their time ends.
        """


class Outlet(Protocol):
    """A connection over which messages go."""

    def publish(self, outgoing: Outgoing) -> Offer:
        """Send a message, if that is possible now. `Sender`'s lock is held.

        Raises:
            MessagingException: the message cannot be sent; no byte of it was.
        """

    def declare(self, address: Address, declared: OnDeclared) -> None:
        """Declare what has to be there before a message is sent to an address. On the loop's thread."""

    def flush(self) -> None:
        """Have written what was published, soon. Any thread."""


class _State(Enum):
    WAITING = auto()
    DECLARING = auto()
    SENT = auto()
    HELD = auto()


class Outgoing:
    """A message on its way, and the future of its sender.

    When `Session.publish` has returned ``Offer.SENT`` and the broker has answered, call one of `confirmed`,
    `undeliverable`, `blocked`, `failed` and `hold`, on any thread. Only the first call counts: later calls, and calls
    after the message's time has ended, change nothing. Do not call them within `Session.publish`, where a lock is held:
    to refuse a message there, raise.

    The driver does not have to bound the wait by the message's deadline, nor to fail sent messages when the connection
    is lost.

    Attributes:
        address, message, mandatory: as for `Driver.send`.
        sent: the future.
        expires: when it is worthless, in seconds of `Loop.now`; infinite if it has no ttl. The seconds that it has left
            are ``outgoing.expires - Loop.now()``; ``message.ttl`` is what was left when it was passed to the driver.
        send_until: until when it may wait for the broker's answer, likewise.
        refusal: the error for its sender at that time, if the broker is known not to have taken it.
        notes: for the driver's use, for example what it has tried already.
    """

    __slots__ = (
        "_delay",
        "_sender",
        "_state",
        "address",
        "expires",
        "mandatory",
        "message",
        "notes",
        "refusal",
        "send_until",
        "sent",
    )

    def __init__(self, sender: Sender, address: Address, message: Message, mandatory: bool) -> None:
        self.address = address
        self.message = message
        self.mandatory = mandatory
        self.sent: Future[Sent] = LightFuture()
        now = Loop.now()
        self.expires = FOREVER if message.ttl is None else now + message.ttl
        self.send_until = self.expires if message.send_timeout is None else now + message.send_timeout
        self.refusal: MessagingException | None = None
        self.notes: object = None
        self._sender = sender
        self._state = _State.WAITING
        self._delay = HOLD_FIRST

    def confirmed(self, outcome: Sent = _SENT) -> None:
        """The broker has taken responsibility for it.

        Args:
            outcome: how many subscribers it reached, if the broker says.
        """
        self._sender._unfinished.pop(self, None)
        try:
            self.sent.set_result(outcome)
        except InvalidStateError:
            pass  # Its time has ended.

    def undeliverable(self, why: str) -> None:
        """Nobody subscribes to its address, and nothing is stored for it. Only for a `mandatory` message.

        The send fails with `MessageUndeliverable`. One that is not mandatory is `confirmed`, as ``Sent(0)``.
        """
        self.failed(MessageUndeliverable(why))

    def blocked(self, why: str) -> None:
        """The broker is known not to have taken it, since it is full. The send fails with `TransportBlocked`."""
        self.failed(TransportBlocked(why))

    def failed(self, error: BaseException) -> None:
        """It was not sent, or the broker refuses it, or its outcome is unknown: the error says which.

        Args:
            error: one of `Driver.send`; `MessageDeliveryFailure` for a refusal that fits none of them. If the broker
                may have taken the message it is a `TransportUnavailable` with ``maybe_delivered=True``.
        """
        self._sender.remove(self)
        fail(self.sent, error)

    def expect_word_within(self, seconds: float) -> None:
        """Wait only so long for the broker's answer, even if the sender would wait longer. In ``publish`` only."""
        self._sender.expect_word_by(self, Loop.now() + seconds)

    def set_aside(self, refusal: MessagingException) -> None:
        """The broker did not take it, and the driver asks why: `hold`, `failed` or another has to follow.

        If the connection is lost meanwhile, the message counts as not sent.

        Args:
            refusal: what the send fails with if the message's time ends first.
        """
        self._sender.set_aside(self, refusal)

    def hold(self, refusal: MessagingException) -> None:
        """The broker is known not to have taken any part of it: it is passed to `Session.publish` again in a moment.

        After 0.1 s at first, then with growing pauses of up to 1 s, until its time is over. Later messages overtake it.

        Args:
            refusal: what the send fails with when its time is over.
        """
        self._sender.hold(self, refusal)


class Sender:
    """All messages that are to be sent, with or without a connection. Thread-safe, unless a method says otherwise.

    Messages keep their order, but one that is held, or for which something is declared, is overtaken.

    `BrokerDriver.sender` is one, and is called by the driver and its lines. A driver may need `go_on` and
    `disconnected` itself, if messages are sent on something that can be lost without the connection, such as an AMQP
    channel.
    """

    def __init__(self, loop: Loop, names: Names) -> None:
        """Make one without a connection."""
        self._loop = loop
        self._names = names
        self._lock = threading.Lock()
        self._outlet: Outlet | None = None
        self._released = False
        self._closed: MessagingException | None = None
        self._unfinished: dict[Outgoing, None] = {}
        self._waiting: deque[Outgoing] = deque()
        self._declaring: dict[Address, list[Outgoing]] = {}
        self._next_check = FOREVER

    # Any thread

    def send(self, outgoing: Outgoing) -> None:
        """Send a message now if that is possible, or keep it until it is.

        Raises:
            BaseException: a handler of a signal has raised it, before the message was sent or after that.
        """
        outlet = None
        # An exception in the middle would leave a part of the message, or a lock that is held, to all later ones.
        holds = self._loop.hold_signals()
        try:
            try:
                with self._lock:
                    if self._closed is not None:
                        raise self._closed
                    self._unfinished[outgoing] = None
                    if outgoing.send_until < self._next_check:
                        self._schedule_check(outgoing.send_until)
                    if self._released and not self._waiting:
                        outlet = self._outlet
                        self._offer(outgoing)
                    else:
                        self._waiting.append(outgoing)
            except Exception as exc:
                outgoing.failed(as_our_error(exc, outgoing.address))
                return
            if outlet is not None:
                outlet.flush()
        finally:
            if holds:
                self._loop.release_signals()

    def remove(self, outgoing: Outgoing) -> None:
        """Forget a message: its outcome is known."""
        self._unfinished.pop(outgoing, None)

    def expect_word_by(self, outgoing: Outgoing, when: float) -> None:
        """See `Outgoing.expect_word_within`. The lock is held."""
        outgoing.send_until = min(outgoing.send_until, when)
        if outgoing.send_until < self._next_check:
            self._schedule_check(outgoing.send_until)

    def set_aside(self, outgoing: Outgoing, refusal: MessagingException) -> None:
        """See `Outgoing.set_aside`."""
        with self._lock:
            outgoing.refusal = refusal
            outgoing._state = _State.HELD

    def hold(self, outgoing: Outgoing, refusal: MessagingException) -> None:
        """See `Outgoing.hold`."""
        if outgoing.sent.done() or self._closed is not None:
            return
        self.set_aside(outgoing, refusal)
        self._loop.call_later(outgoing._delay, self._offer_again, outgoing)
        outgoing._delay = min(2 * outgoing._delay, HOLD_MAX)

    def _offer_again(self, outgoing: Outgoing) -> None:
        with self._lock:
            if outgoing._state is not _State.HELD or outgoing.sent.done():
                return
            outgoing._state = _State.WAITING
        self._offer_all([outgoing])

    def _offer(self, outgoing: Outgoing) -> bool:
        """Give a message to the connection. The lock is held. False: the connection takes no more at present."""
        outlet = self._outlet
        assert outlet is not None
        outgoing._state = _State.SENT
        offer = outlet.publish(outgoing)
        if offer is Offer.SENT:
            return True
        if offer is Offer.FULL:
            outgoing._state = _State.WAITING
            self._waiting.appendleft(outgoing)
            return False
        outgoing._state = _State.DECLARING
        waiting = self._declaring.setdefault(outgoing.address, [])
        waiting.append(outgoing)
        if len(waiting) == 1:
            self._loop.call(self._declare, outlet, outgoing.address)
        return True

    def unfinished(self) -> list[Future[Sent]]:
        """The futures of all messages without an outcome."""
        return [outgoing.sent for outgoing in list(self._unfinished)]

    # On the loop's thread: what the connection says

    def connected(self, outlet: Outlet) -> None:
        """There is a connection; messages are sent when `release` is called."""
        with self._lock:
            self._outlet = outlet

    def release(self) -> None:
        """Messages may be sent: the connection takes them, and replies to them will arrive."""
        with self._lock:
            if self._outlet is None or self._closed is not None:
                return
            self._released = True
        self.go_on()

    def withhold(self) -> None:
        """Messages may not be sent at present: keep them."""
        with self._lock:
            self._released = False

    def go_on(self) -> None:
        """Send the waiting messages, as far as the connection takes them: after ``Offer.FULL``."""
        with self._lock:  # Another thread may be about to make its message wait.
            if not self._waiting:
                return
        self._offer_all([])

    def _offer_all(self, outgoings: list[Outgoing]) -> None:
        """Offer these and the waiting messages, as far as the connection takes them."""
        with self._lock:
            self._waiting.extendleft(reversed(outgoings))
            failed = self._offer_waiting() if self._released else []
            outlet = self._outlet
        if outlet is not None:
            outlet.flush()
        for outgoing, error in failed:
            outgoing.failed(error)

    def _offer_waiting(self) -> list[tuple[Outgoing, BaseException]]:
        """The lock is held, so that no new message overtakes. Returns the messages that cannot be sent, and why."""
        now = Loop.now()
        failed: list[tuple[Outgoing, BaseException]] = []
        while self._waiting:
            outgoing = self._waiting.popleft()
            if outgoing.sent.done():
                continue
            if outgoing.send_until <= now:
                failed.append((outgoing, self._explain(outgoing)))
                continue
            try:
                if not self._offer(outgoing):
                    break
            except Exception as exc:
                failed.append((outgoing, as_our_error(exc, outgoing.address)))
        return failed

    def _declare(self, outlet: Outlet, address: Address) -> None:
        if outlet is not self._outlet:
            return
        declared = partial(self._on_declared, outlet, address)
        try:
            outlet.declare(address, declared)
        except Exception as exc:
            declared(as_our_error(exc, address))

    def _on_declared(
        self, outlet: Outlet, address: Address, refusal: MessagingException | None = None, *, hold: bool = False
    ) -> None:
        if outlet is not self._outlet:
            return  # All of them wait for the next connection.
        with self._lock:
            outgoings = self._declaring.pop(address, [])
        for outgoing in outgoings:
            outgoing._state = _State.WAITING
        if refusal is None:
            self._offer_all(outgoings)
            return
        for outgoing in outgoings:
            if hold:
                outgoing.hold(refusal)
            else:
                outgoing.failed(refusal)

    def detach(self) -> None:
        """The connection is being dropped: what it says of declarations from now on is about its own end alone."""
        with self._lock:
            self._outlet = None
            self._released = False

    def lost(self, error: TransportUnavailable) -> None:
        """The connection has broken: fail the messages that were sent and not answered. The others wait."""
        for outgoing in self.disconnected():
            outgoing.failed(cut_off(outgoing.address, error))

    def disconnected(self) -> list[Outgoing]:
        """Messages cannot be sent any more; the driver has to finish those that are returned. On the loop's thread.

        `Line.sendable` has to be called again. `Line.lose` does this when the whole connection is lost.

        Returns:
            the messages with ``Offer.SENT`` and no answer yet. The others wait for `Line.sendable`.
        """
        with self._lock:
            self._outlet = None
            self._released = False
            self._declaring.clear()
            lost, waiting = [], deque[Outgoing]()
            for outgoing in list(self._unfinished):
                if outgoing._state is _State.SENT:
                    lost.append(outgoing)
                elif outgoing._state is not _State.HELD:
                    outgoing._state = _State.WAITING
                    waiting.append(outgoing)
            self._waiting = waiting
        return lost

    def fail_waiting(self, error: MessagingException) -> None:
        """Fail the waiting messages: there will be no connection."""
        with self._lock:
            left = [outgoing for outgoing in list(self._unfinished) if outgoing._state is not _State.SENT]
            self._waiting.clear()  # Nobody else would, as long as there is no connection.
        for outgoing in left:
            outgoing.failed(error)

    def close(self, error: MessagingException) -> None:
        """Fail all unfinished messages, and all later ones."""
        with self._lock:
            self._closed = error
            self._released = False
            left = list(self._unfinished)
            self._waiting.clear()
            self._declaring.clear()
        for outgoing in left:
            outgoing.failed(error)

    # Deadlines

    def _schedule_check(self, when: float) -> None:
        """Have `_check_deadlines` called at that time. The lock is held."""
        self._loop.call_later(max(0.0, when - Loop.now()), self._check_deadlines)
        self._next_check = when

    def _check_deadlines(self) -> None:
        """Fail the messages that the message system has not answered in time: it may be frozen, or unreachable."""
        now = Loop.now() + CHECK_TOLERANCE
        with self._lock:
            if now < self._next_check:
                return  # There will be a later check, or there was an earlier one.
            unfinished = list(self._unfinished)
            expired = [outgoing for outgoing in unfinished if outgoing.send_until <= now]
            later = min((out.send_until for out in unfinished if out.send_until > now), default=FOREVER)
            self._next_check = FOREVER
            if later < FOREVER:
                self._schedule_check(max(later, now + CHECK_INTERVAL))
            errors = [(outgoing, self._explain(outgoing)) for outgoing in expired]
            for outgoing in expired:
                self._unfinished.pop(outgoing, None)
            if any(outgoing._state is _State.WAITING for outgoing in expired):
                removed = set(expired)
                self._waiting = deque(outgoing for outgoing in self._waiting if outgoing not in removed)
        for outgoing, error in errors:
            outgoing.failed(error)

    def _explain(self, outgoing: Outgoing) -> MessagingException:
        """Why the message system has not answered a message in time."""
        if outgoing._state is _State.SENT:
            return not_confirmed(self._names, outgoing.address)
        if outgoing.refusal is not None:
            return outgoing.refusal
        if outgoing._state is _State.DECLARING:
            return not_declared(self._names, outgoing.address)
        return not_sent(self._names, outgoing.address, outgoing.message)
