"""The driver of a broker, but for the broker's protocol.

A driver subclasses `BrokerDriver`, to say where the broker is and how to connect; `Session`, which is one connection;
and `msgbus.drivers.toolkit.consuming.Feed`, which is one address that is consumed from. All else is here: what is sent
waits for a connection and its deadlines are kept, connections come back, and with them inboxes and subscriptions, in
this order; closing, forking, `inspect`, `state` and `up_since`.
"""

from __future__ import annotations

import sys
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from msgbus.drivers.base import (
    Address,
    Capability,
    Inbox,
    Message,
    OnDelivery,
    QueueInfo,
    Sent,
    Subscription,
    raise_missing,
)
from msgbus.drivers.toolkit.connecting import Connector
from msgbus.drivers.toolkit.consuming import Consumer, Feed, Source
from msgbus.drivers.toolkit.futures import fail, failed, finish
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.sending import Offer, OnDeclared, Outgoing, Sender
from msgbus.drivers.toolkit.shell import DriverShell
from msgbus.exceptions import CallCancelled, MessageTooLarge, MessagingException, TransportUnavailable
from msgbus.foreign import get_logger

if TYPE_CHECKING:
    from msgbus.url import TransportHost

LOG = get_logger(__name__)

CLOSE_TIMEOUT_MIN = 0.5
"""Seconds of `close_timeout` at least for removing inboxes and subscriptions."""
INSPECT_CONNECT = 0.9
"""Seconds that `inspect` waits for the first connection."""
LOOK_AGAIN = 0.02
"""Seconds between two looks at whether that is there."""


class Session:
    """One connection to the broker. A driver subclasses it; `BrokerDriver.open_session` makes one for each connection.

    All methods are called on the loop's thread, but for `publish` and `flush`, see there. None may block.

    What happens in which order:

    1. `start`: it begins to read and write. It is not yet used for anything.
    2. It calls `Line.serve` when the broker has answered so that consuming can begin. Then `consume` is called for each
       inbox and each subscription, and again for new ones.
    3. It calls `Line.sendable` when messages can go. When also all inboxes consume, `publish` is called for what waits,
       and then for each message that is sent.
    4. `close`, in most cases, when the driver is closed: the feeds were closed before, one by one, if there was time.
    5. `let_go`, always, and once: when the session or the driver has called `Line.lose`, or after `close`. Each feed's
       `Feed.end` follows.

    After `let_go` nothing of it is called any more, and it may not speak to its `Line`, which may have the next
    session: what comes late (an answer, a timer) has to see that and return.
    """

    def start(self) -> None:
        """Begin to read and write, mostly by `Loop.watch`. Called once, first of all.

        Where logging in is part of it, set a deadline by `Loop.call_later`: if `Line.serve` was not called by then,
        `Line.lose`.
        """
        raise NotImplementedError

    def publish(self, outgoing: Outgoing) -> Offer:
        """Give a message to the connection, if that is possible now.

        On the loop's thread; or on any (`BrokerDriver.publishes_on_any_thread`), and then one at a time. A lock is
        held: it may not block, nor call a method of the `Outgoing`, nor finish any future. So mostly it appends bytes
        to a buffer, notes the `Outgoing` under a number that the broker's answer will name, and returns ``Offer.SENT``.

        Later, when the answer comes, call `Outgoing.confirmed`, `undeliverable`, `blocked`, `failed` or `hold`.

        Returns:
            what became of it, see `Offer`.

        Raises:
            MessagingException: it cannot be sent, and the connection has no byte of it. The send fails with this.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Have written what `publish` has gathered, now or soon. On the thread of `publish`, after one or more of it.

        If the socket breaks here, it is `Line.lose` that says so, on the loop's thread.
        """

    def declare(self, address: Address, declared: OnDeclared) -> None:
        """Declare what has to be there before a message is sent to an address, and then say how that ended.

        Called once for all messages to an address for which `publish` returned ``Offer.UNDECLARED``. While it is under
        way these wait, and others overtake them. Call `declared` when the broker has answered, or at once.
        """
        raise NotImplementedError

    def consume(self, source: Source) -> Feed:
        """Make a `Feed` for a source, and return it. It begins when its `Feed.start` is called, right afterwards.

        Raises:
            MessagingException: it cannot be consumed from at present; it is tried again in a moment.
        """
        raise NotImplementedError

    def remove(self, source: Source, removed: Callable[[], None]) -> None:
        """Remove what a source has left on the broker that was closed while the connection was away.

        Only for addresses for which `BrokerDriver.leaves` is true, and for sources that are closed while they wait to
        be consumed from again. Call `removed` when that is done, or cannot be done.
        """
        removed()

    def inspect(self, address: Address, found: Future[QueueInfo]) -> None:
        """Look at an address, and finish `found` (`finish`, `fail`) with what `Driver.inspect` says.

        Only where the driver declares `Capability.INSPECT`. A broker that may not answer needs a deadline here: 1 s.
        """
        raise NotImplementedError

    def why_blocked(self) -> str | None:
        """Why messages wait although the connection lives and `Line.block` was not called, or None. Any thread.

        For the errors of those whose time ends meanwhile: they are `TransportBlocked`, with this in the text.
        """
        return None

    def close(self) -> None:
        """Say good-bye to the broker, and write that without waiting. `let_go` follows at once."""

    def let_go(self) -> None:
        """Undo `Loop.watch`, and close the socket or whatever the connection is, without a word to the broker."""
        raise NotImplementedError

    def abandon(self) -> None:
        """In a forked child: drop the parent's connection without a word on it, and without ending it.

        On the child's only thread. For a socket: ``os.close(sock.detach())``; with TLS, do not shut it down.
        """
        raise NotImplementedError


class Line:
    """One of the driver's connections, over all its sessions, and what consumes over it. On the loop's thread.

    A session calls `serve`, `sendable`, `block` and `lose`.

    Attributes:
        purpose: what it is for, in a word, where there are several.
        connector: opens the connection.
        session: the present one, or None.
        consumers: what consumes over it; inboxes first.
        leaving: what was closed while there was no connection, and has left something on the broker.
        is_sendable: messages can go, as far as the connection is concerned.
        blocked: why the broker takes no messages, in its own words, or None.
    """

    def __init__(self, driver: BrokerDriver, hosts: int, purpose: str) -> None:
        self.purpose = purpose
        self.connector = Connector(driver.loop, self, hosts, purpose)
        self.session: Session | None = None
        self.consumers: list[Consumer] = []
        self.is_sendable = False
        self.blocked: str | None = None
        self.leaving: list[Consumer] = []
        self._driver = driver

    @property
    def up(self) -> bool:
        """Whether it can be consumed over it."""
        return self.connector.up

    # What the session says

    def serve(self, peer: str) -> None:
        """The broker has answered: it can be consumed over the connection. Once for each session.

        Within it `Session.consume` is called for all inboxes and subscriptions.

        Args:
            peer: with whom the connection is, for the log, such as ``10.0.0.5:6379``; see `peer_of`.
        """
        self.connector.serve(peer)

    def sendable(self, sendable: bool = True) -> None:
        """Messages can go over it, or not any more. Also to be called after ``Offer.FULL``, when it takes more.

        Within it `Session.publish` may be called for all that waits. Only for the line that sends: where a driver has
        two (`BrokerDriver.purposes`) the first.
        """
        self.is_sendable = sendable
        if sendable and self.session is not None:
            self._driver.on_sendable(self, self.session)
        self._driver.check_release()

    def block(self, reason: str | None) -> None:
        """The broker takes no messages at present, though the connection lives (an alarm, a full disk).

        What is sent waits, and fails with `TransportBlocked` when its time is over.

        Args:
            reason: why, in the broker's own words, for the log and errors. None: it takes them again.
        """
        if reason is not None:
            LOG.warning("%s takes no messages: %s", self._driver.name(), reason)
        elif self.blocked is not None:
            LOG.warning("%s takes messages again", self._driver.name())
        self.blocked = reason
        self._driver.check_release()

    def lose(self, reason: BaseException | str, *, move: bool = False) -> None:
        """The connection is of no use any more: it broke, or the broker is silent. It comes back by itself.

        Within it `Session.let_go` is called, then `Feed.end` of all feeds; what was sent and has no answer fails with
        ``maybe_delivered=True``. If `serve` was not called before, it is one more try to connect that has failed.

        Args:
            reason: an error, of which `BrokerDriver.explain` makes words; or words, which say what happened and, with
                `BrokerDriver.name`, to which broker.
            move: come back to the next host first, and not to the first one.
        """
        self.connector.lose(reason, move=move)

    # For `Connector`

    def dial(self, attempt: int) -> Any:
        """See `Dialler`; so of those that follow."""
        return self._driver.dial(self._driver.host(attempt), self.purpose)

    def discard(self, connection: Any) -> None:
        """Any thread."""
        self._driver.discard(connection)

    def explain(self, error: BaseException, attempt: int) -> tuple[str, bool]:
        """With the broker's name in front."""
        text, permanent = self._driver.explain(error, self._driver.host(attempt))
        return f"{self._driver.name(attempt)}: {text}", permanent

    def on_connected(self, connection: Any) -> None:
        """Make the session, and start it."""
        self.session = self._driver.open_session(self, connection)
        self.session.start()

    def on_up(self) -> None:
        """Bring back what consumes, and let go what waits to be sent."""
        session = self.session
        assert session is not None
        for consumer in list(self.leaving):
            self._remove(consumer, session)
        for consumer in list(self.consumers):
            consumer.connected(session)
        self._driver.check_release()

    def _remove(self, consumer: Consumer, session: Session) -> None:
        missing = set(consumer.sources)

        def removed(source: Source) -> None:
            missing.discard(source)
            if not missing and consumer in self.leaving and session is self.session:
                self.leaving.remove(consumer)
                consumer.close()

        for source in consumer.sources:
            session.remove(source, partial(removed, source))

    def let_go(self) -> None:
        """Drop the session."""
        session, self.session = self.session, None
        self.is_sendable = False
        self.blocked = None
        if session is not None:
            session.let_go()

    def on_lost(self, error: TransportUnavailable) -> None:
        """Fail what had no answer, and end the feeds."""
        self._driver.on_lost(self, error)
        for consumer in list(self.consumers):
            consumer.disconnected()

    def on_permanent(self, error: TransportUnavailable) -> None:
        """Fail what waits."""
        self._driver.on_permanent(self, error)
        for consumer in list(self.consumers):
            consumer.fail_ready(error)

    # What the driver asks for

    def start(self, consumer: Consumer) -> None:
        """Consume, over this connection and those that follow it."""
        self.consumers.append(consumer)
        if self.up and self.session is not None:
            consumer.connected(self.session)
        else:
            self.connector.open()

    def end(self, consumer: Consumer) -> bool:
        """Close a consumer. False: it is none of this connection's."""
        if consumer not in self.consumers:
            return False
        self.consumers.remove(consumer)
        if not self.up and self.connector.generation and any(map(self._driver.leaves, consumer.addresses)):
            consumer.stop()
            self.leaving.append(consumer)
        else:
            consumer.close()
        return True

    def close(self) -> None:
        """Say good-bye, and open nothing more."""
        self.connector.close()
        if self.session is not None:
            if self.up:
                self.session.close()
            self.connector.lose("the connection was closed")

    def abandon(self) -> None:
        """In a forked child."""
        if self.session is not None:
            self.session.abandon()


class BrokerDriver(DriverShell):
    """A driver that has only to say how to connect, and what a `Session` does.

    A driver of its own implements `Driver.options`, a constructor, `dial`, `discard`, `open_session`, `explain` and
    `describe`; `check` where not every address has a name on the broker.

    Attributes:
        purposes: of its connections, each of which has a `Line` and sessions: one; or two, of which the first sends and
            has the inboxes, and the second has the subscriptions. Two where a broker that takes no messages stops
            reading from those who send.
        publishes_on_any_thread: `Session.publish` may be called on any thread, which saves a change of threads for each
            message; else it is called on the loop's. Then `publish` has to see to what `check` would.
        max_message_size: of a body, in bytes: what is larger fails with `MessageTooLarge`. Set it in the constructor,
            where the driver has an option of this name. Where only the broker knows it, `Session.publish` raises
            `MessageTooLarge`.
        lines: one for each purpose.
        sending: the line on which is sent.
        consuming: the line with the subscriptions; the same one where there is only one.
        sender: has what is to be sent.
    """

    purposes: ClassVar[Sequence[str]] = ("",)
    publishes_on_any_thread: ClassVar[bool] = False
    max_message_size: int = sys.maxsize

    def __init__(self, loop: Loop, hosts: Sequence[TransportHost]) -> None:
        """To be called at the end of the driver's own constructor, when what `describe` needs is there.

        Args:
            loop: as it was given to the driver.
            hosts: at least one; they are tried in turn. See `msgbus.options.hosts_of`.
        """
        self._hosts = list(hosts)
        super().__init__(loop)

    def _start_clean(self) -> None:
        super()._start_clean()
        lines = [Line(self, len(self._hosts), purpose) for purpose in self.purposes]
        self.lines = lines
        self.sending, self.consuming = lines[0], lines[-1]
        self.sender = Sender(self.loop, self)
        self._inboxes: list[Consumer] = []

    # What a driver adds

    @abstractmethod
    def dial(self, host: TransportHost, purpose: str) -> Any:
        """Open a connection to a host, and return it: a socket, several, or what a library has for it.

        It has a thread of its own and may block, but not for ever: give each step a timeout. It may log in, or leave
        that to the session. If it fails it has to close what it has opened.

        Args:
            host: one of those that were given to the constructor.
            purpose: one of `purposes`.

        Raises:
            Exception: it cannot be reached; `explain` makes words of it. Any exception will do.
        """

    @abstractmethod
    def discard(self, connection: Any) -> None:
        """Close a connection that `dial` has opened and that came too late: the driver was closed. Any thread."""

    @abstractmethod
    def open_session(self, line: Line, connection: Any) -> Session:
        """Make the session of a connection, which `dial` has returned. On the loop's thread. It may not fail."""

    @abstractmethod
    def explain(self, error: BaseException, host: TransportHost) -> tuple[str, bool]:
        """The one place that makes words of what a library and the operating system raise. On the loop's thread.

        Args:
            error: what `dial` raised, or `Line.lose` was given; a `ConnectionError` where that was given words.
            host: to which the connection was, or was to be.

        Returns:
            what happened and what to check, in one line without the name of the host (the shell puts `describe` in
            front of it) and without a password; and whether the same would happen again at a second try, such as a
            wrong password. Where that is so of all hosts and there was no connection yet, what waits fails at once with
            `TransportUnavailable`; the tries go on all the same.
        """

    @abstractmethod
    def describe(self, host: TransportHost) -> str:
        """The broker at a host, for errors and `state`: host, port and user, and never a password. Any thread."""

    def check(self, address: Address) -> None:
        """See that an address has a name on the broker. Any thread; for each message, so it has to be quick.

        That `Capability.STORAGE` is declared, for an address of the kinds stored and dead, was seen to before.

        Raises:
            InvalidTarget: it cannot have one: it is too long, or holds what cannot be escaped.
        """

    def leaves(self, address: Address) -> bool:
        """Whether a consumer of this address that is closed while the connection is away leaves something behind.

        Then `Session.remove` is called when the connection is back, and its `close` is done after that. Where the
        broker removes by itself what a lost connection had, nothing is left: the default.
        """
        return False

    def inbox_name(self) -> str:
        """The name of a new inbox: nobody else in the world has it, and it stays the same over reconnects."""
        return uuid.uuid4().hex

    # Words

    def host(self, attempt: int) -> TransportHost:
        """The host of the n-th try."""
        return self._hosts[attempt % len(self._hosts)]

    def name(self, attempt: int | None = None) -> str:
        """The broker that is, or was last, connected to, or that of the n-th try."""
        return self.describe(self.host(self.sending.connector.attempt if attempt is None else attempt))

    def why_away(self) -> str:
        """For `Sender`."""
        if self.sending.connector.error is not None:
            return str(self.sending.connector.error)
        missing = "has not declared the inbox yet" if self.sending.up else "is not connected yet"
        return self.trouble or f"{self.name()} {missing}"

    def why_blocked(self) -> str | None:
        """For `Sender`."""
        line = self.sending
        return line.blocked or (line.session.why_blocked() if line.session is not None else None)

    @property
    def trouble(self) -> str | None:
        """Why an address is not consumed from although the connection lives, or None."""
        troubles = (consumer.trouble for line in self.lines for consumer in list(line.consumers))
        return next((trouble for trouble in troubles if trouble is not None), None)

    @property
    def up_since(self) -> float | None:
        connector = self.sending.connector
        return connector.up_since if connector.up else None

    @property
    def state(self) -> str:
        if self._closed:
            return f"{self.name()}: closed"
        for line in self.lines:
            if line.connector.error is not None:
                return str(line.connector.error)
        if (trouble := self.trouble) is not None:
            return trouble
        blocked = self.sending.blocked
        return self.name() if blocked is None else f"{self.name()}, which takes no messages at present ({blocked})"

    def was_closed(self) -> CallCancelled:
        """What each verb of a closed driver fails with."""
        return CallCancelled(f"the connection to {self.name()} was closed")

    # What the lines say: the loop's thread

    def check_release(self) -> None:
        """Let go what waits to be sent, once it can go and replies to it will arrive."""
        line = self.sending
        ready = line.up and line.is_sendable and line.blocked is None
        if ready and all(inbox.is_consuming or inbox.is_refused for inbox in self._inboxes):
            self.sender.release()
        elif not ready:
            self.sender.withhold()

    def on_consumer_changed(self) -> None:
        """A consumer consumes now, or was refused: called by it."""
        if not self._closed:
            self.check_release()

    def on_sendable(self, line: Line, session: Session) -> None:
        """Messages can go over a line."""
        if line is self.sending:
            self.sender.connected(session)

    def on_lost(self, line: Line, error: TransportUnavailable) -> None:
        """A line is lost: before its consumers are told."""
        if line is self.sending:
            self.sender.lost(error)

    def on_permanent(self, line: Line, error: TransportUnavailable) -> None:
        """A line will never be up: before its consumers are told."""
        if line is self.sending:
            self.sender.fail_waiting(error)

    # The contract

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        if len(message.body) > self.max_message_size:
            return failed(self._too_large(address, message))
        try:
            if not self.sending.connector.up:
                if self._closed:
                    raise self.was_closed()
                self.sending.connector.open()
                self._check(address)
            outgoing = Outgoing(self.sender, address, message, mandatory)
            if self.publishes_on_any_thread:
                self.sender.send(outgoing)
            else:
                self._check(address)
                self.loop.call_for(outgoing.sent, self.sender.send, outgoing)
        except MessagingException as exc:
            return failed(exc)
        return outgoing.sent

    def _check(self, address: Address) -> None:
        if address.kind in ("stored", "dead") and Capability.STORAGE not in self.capabilities:
            raise_missing(self, Capability.STORAGE)
        self.check(address)

    def _too_large(self, address: Address, message: Message) -> MessageTooLarge:
        size, limit, group = len(message.body), self.max_message_size, self.options()[0]
        return MessageTooLarge(
            f"a message of {size} bytes to {address}; {self.name()} takes at most {limit} bytes (option "
            f"max_message_size of [{group}])"
        )

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        return _BrokerSubscription(self, self._consume(self.consuming, addresses, on_delivery, prefetch))

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        address = Address("inbox", name=self.inbox_name())
        return _BrokerInbox(self, self._consume(self.sending, [address], on_delivery, 0))

    def _consume(self, line: Line, addresses: Sequence[Address], on_delivery: OnDelivery, prefetch: int) -> Consumer:
        for address in addresses:
            self._check(address)
        consumer = Consumer(self.loop, self, addresses, on_delivery, prefetch, uuid.uuid4().hex[:16])
        if self._closed:
            consumer.refuse(self.was_closed())
            return consumer
        self._futures.add(consumer.ready)
        self.loop.call_for(consumer.ready, self._start, line, consumer)
        return consumer

    def _start(self, line: Line, consumer: Consumer) -> None:
        if self._closed or consumer.is_ending:
            consumer.refuse(self.was_closed())
            return
        if not consumer.prefetch:
            self._inboxes.append(consumer)
        line.start(consumer)

    def end(self, consumer: Consumer) -> Future[None]:
        """Close a consumer. Any thread."""
        fail(consumer.ready, CallCancelled(f"what was to be opened on {self.name()} was closed"))
        if not self.loop.started:
            consumer.refuse(self.was_closed())
        elif not self._closed:
            self._futures.add(consumer.closed)
            self.loop.call_for(consumer.closed, self._end_consumer, consumer)
        return consumer.closed

    def _end_consumer(self, consumer: Consumer) -> None:
        if consumer in self._inboxes:
            self._inboxes.remove(consumer)
        if not any(line.end(consumer) for line in self.lines):
            consumer.close()
        self.check_release()

    def stop(self, consumer: Consumer) -> Future[None]:
        """Stop a consumer. Any thread."""
        if not self._closed:
            self._futures.add(consumer.stopped)
            self.loop.call_for(consumer.stopped, consumer.stop)
        return consumer.stopped

    def inspect(self, address: Address) -> Future[QueueInfo]:
        if Capability.INSPECT not in self.capabilities:
            raise_missing(self, Capability.INSPECT)
        if self._closed:
            return failed(self.was_closed())
        self._check(address)
        return self.ask(self._inspect, address, self.loop.now() + INSPECT_CONNECT)

    def _inspect(self, address: Address, end: float, found: Future[QueueInfo]) -> None:
        line = self.sending
        line.connector.open()
        if line.up and line.session is not None:
            line.session.inspect(address, found)
        elif line.connector.error is not None or self.loop.now() > end:
            fail(found, line.connector.error or TransportUnavailable(f"{self.name()} is not connected yet"))
        else:  # The first connection is being opened.
            self.loop.call_later(LOOK_AGAIN, self._inspect, address, end, found)

    def _disconnect(self, error: CallCancelled, deadline: float) -> None:
        for line in self.lines:
            for consumer in list(line.consumers):
                fail(consumer.ready, error)
        # Asked of the loop, which has been handed all that was sent before.
        self._wait(self._wait_for(deadline, self._find_unfinished) or (), deadline)
        ending = self._wait_for(deadline, self._end_all)
        if ending is not None:
            self._wait(ending, max(deadline, self.loop.now() + CLOSE_TIMEOUT_MIN))
        self._wait_for(self.loop.now() + self.close_timeout, self._end)

    def _find_unfinished(self, found: Future[list[Future[Sent]]]) -> None:
        finish(found, self.sender.unfinished())

    def _fail_unfinished(self, error: CallCancelled) -> None:
        self.sender.close(error)
        for consumer in self._all_consumers():
            consumer.refuse(error)

    def _all_consumers(self) -> list[Consumer]:
        return [consumer for line in self.lines for consumer in (*line.consumers, *line.leaving)]

    def _end_all(self, gone: Future[list[Future[Any]]]) -> None:
        consumers = self._all_consumers()
        for consumer in [consumer for line in self.lines for consumer in list(line.consumers)]:
            self._end_consumer(consumer)
        finish(gone, [consumer.closed for consumer in consumers])

    def _end(self, ended: Future[None]) -> None:
        self.sender.close(self.was_closed())
        for line in self.lines:
            line.close()
        finish(ended)

    def _abandon(self) -> Iterable[Future[Any]]:
        futures: list[Future[Any]] = [*self.sender.unfinished()]
        futures += [future for each in self._all_consumers() for future in (each.ready, each.stopped, each.closed)]
        for line in self.lines:
            line.abandon()
        return futures


class _BrokerSubscription(Subscription):
    def __init__(self, driver: BrokerDriver, consumer: Consumer) -> None:
        self._driver = driver
        self._consumer = consumer
        self.ready = consumer.ready

    def stop(self) -> Future[None]:
        return self._driver.stop(self._consumer)

    def close(self) -> Future[None]:
        return self._driver.end(self._consumer)


class _BrokerInbox(Inbox):
    def __init__(self, driver: BrokerDriver, consumer: Consumer) -> None:
        self._driver = driver
        self._consumer = consumer
        self.address = consumer.addresses[0]
        self.ready = consumer.ready

    def close(self) -> Future[None]:
        return self._driver.end(self._consumer)
