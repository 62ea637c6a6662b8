"""One connection to the broker, and the line of successive connections for one purpose.

A driver subclasses `Session`, which calls its `Line`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from msgbus.drivers.base import Address, QueueInfo
from msgbus.drivers.toolkit.connecting import Connector
from msgbus.drivers.toolkit.consuming import Consumer, Feed, Source
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.sending import Offer, OnDeclared, Outgoing, Sender
from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msgbus.url import TransportHost

LOG = get_logger(__name__)


class Session:
    """One connection to the broker. A driver subclasses it; `BrokerDriver.open_session` makes one for each connection.

    All methods are called on the loop's thread, except `publish` and `flush` (see there). None may block.

    Its life:

    1. `start`. It begins to read and write. It is not used for messages yet.
    2. It calls `Line.serve` when the broker's answers allow consuming to begin. Then `consume` is called for each inbox
       and each subscription, and later for new ones.
    3. It calls `Line.sendable` when messages can be sent. When all inboxes consume too, `publish` is called for the
       waiting messages, and then for each new one.
    4. `close`, in most cases, when the driver is closed. If there was time, the feeds were closed before, one by one.
    5. `let_go`, always, and once: after the session or the driver has called `Line.lose`, or after `close`. Then
       `Feed.end` of each feed is called.

    After `let_go` none of its methods is called, and it must not call its `Line`, which may have the next session:
    callbacks that come late (of an answer, a timer) have to check that and return.
    """

    def start(self) -> None:
        """Begin to read and write, mostly by `Loop.watch`. Called once, first of all.

        If the session logs in, set a deadline by `Loop.call_later`: if `Line.serve` was not called by then, call
        `Line.lose`.
        """
        raise NotImplementedError

    def publish(self, outgoing: Outgoing) -> Offer:
        """Write a message to the connection, if that is possible now.

        On the loop's thread; or on any thread (`BrokerDriver.publishes_on_any_thread`), but never on two at once. It is
        called with a lock held: it must not block, call a method of the `Outgoing`, or finish a future. So mostly it
        appends bytes to a buffer, notes the `Outgoing` under the number that the broker's answer will have, and returns
        ``Offer.SENT``.

        When the answer comes, call `Outgoing.confirmed`, `undeliverable`, `blocked`, `failed` or `hold`.

        Returns:
            whether it was sent, see `Offer`.

        Raises:
            MessagingException: it cannot be sent, and no byte of it was written. The send fails with this error.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Write what `publish` has buffered, now or soon. Called on the thread of `publish`, after one or more calls.

        If the socket breaks here, call `Line.lose` on the loop's thread.
        """

    def declare(self, address: Address, declared: OnDeclared) -> None:
        """Declare what has to exist before a message is sent to an address, and then call `declared` with the outcome.

        Called once for all messages to an address for which `publish` returned ``Offer.UNDECLARED``. These wait until
        it is done, and others overtake them. Call `declared` when the broker has answered, or at once.

        Raises:
            MessagingException: it cannot be declared. The sends that wait for it fail with this error.
        """
        raise NotImplementedError

    def consume(self, source: Source) -> Feed:
        """Make a `Feed` for a source, and return it. Its `Feed.start` is called right afterwards.

        Raises:
            MessagingException: it cannot be consumed from at present; it is tried again in a moment.
        """
        raise NotImplementedError

    def remove(self, source: Source, removed: Callable[[], None]) -> None:
        """Remove what a closed source has left on the broker, and call `removed` when that is done, or cannot be done.

        Called only for addresses for which `BrokerDriver.leaves` returns True, and if `Feed.close` could not do it:
        there was no feed, since there was no connection or the address waited to be consumed from again; or the
        connection broke before it was done.
        """
        removed()

    def inspect(self, address: Address, found: Future[QueueInfo]) -> None:
        """Inspect an address, and finish `found` (`finish`, `fail`) as `Driver.inspect` describes.

        Called only if the driver declares `Capability.INSPECT`. If the broker may not answer, set a deadline of 1 s.

        Raises:
            MessagingException: it cannot be inspected. `found` fails with this error.
        """
        raise NotImplementedError

    def why_blocked(self) -> str | None:
        """Why messages wait although the connection is up and `Line.block` was not called, or None. Any thread.

        Messages whose time ends meanwhile fail with `TransportBlocked`, with this in the text.
        """
        return None

    def close(self) -> None:
        """Tell the broker that the connection ends, without waiting for an answer. `let_go` is called right after."""

    def let_go(self) -> None:
        """Undo `Loop.watch`, and close the socket (or what else the connection is) without notifying the broker."""
        raise NotImplementedError

    def abandon(self) -> None:
        """In a forked child: drop the parent's connection without writing to it, and without ending it.

        Called on the child's only thread. For a socket: ``os.close(sock.detach())``; with TLS, do not shut it down.
        """
        raise NotImplementedError


class Opener(Protocol):
    """What a line uses of its driver; see `BrokerDriver`."""

    loop: Loop

    def dial(self, host: TransportHost, purpose: str) -> Any:
        """Open a connection."""

    def discard(self, connection: Any) -> None:
        """Close a connection that is not needed any more."""

    def open_session(self, line: Line, connection: Any) -> Session:
        """Make the session of a connection."""

    def explain(self, error: BaseException, host: TransportHost) -> tuple[str, bool]:
        """What happened, and whether it is permanent."""

    def describe(self, host: TransportHost) -> str:
        """The broker at a host, for errors."""

    def leaves(self, address: Address) -> bool:
        """Whether a closed consumer of an address leaves something on the broker."""


class Line:
    """One of the driver's connections, over all its sessions. On the loop's thread.

    It keeps what outlives a session: unsent messages, inboxes and subscriptions.
    A session calls `serve`, `sendable`, `block` and `lose`.

    Attributes:
        purpose: what it is for, in a word, if there are several.
        connector: opens the connection.
        session: the present one, or None.
        sender: has the messages that are to be sent, if this is the line that sends.
        consumers: the inboxes and subscriptions, and closed ones that may have left something on the broker.
        is_sendable: the session can send messages.
        blocked: why the broker takes no messages, in its own words, or None.
    """

    def __init__(self, driver: Opener, hosts: Sequence[TransportHost], purpose: str) -> None:
        self.purpose = purpose
        self.connector = Connector(driver.loop, self, len(hosts), purpose)
        self.session: Session | None = None
        self.sender = Sender(driver.loop, self)
        self.consumers: list[Consumer] = []
        self.is_sendable = False
        self.blocked: str | None = None
        self._driver = driver
        self._hosts = hosts

    @property
    def up(self) -> bool:
        """Whether consuming is possible, as it is from `serve` until the connection is lost."""
        return self.connector.up

    @property
    def up_session(self) -> Session | None:
        """The present session if consuming is possible, else None."""
        return self.session if self.connector.up else None

    @property
    def host(self) -> TransportHost:
        """The host that it is, or was last, connected to."""
        return self._host_of(self.connector.attempt)

    @property
    def trouble(self) -> str | None:
        """Why an address is not consumed from although the connection is up, or None. Any thread."""
        troubles = (consumer.trouble for consumer in list(self.consumers))
        return next((trouble for trouble in troubles if trouble is not None), None)

    def _host_of(self, attempt: int) -> TransportHost:
        return self._hosts[attempt % len(self._hosts)]

    # For the session

    def serve(self, peer: str) -> None:
        """The broker has answered: consuming can begin. Call it once for each session.

        It calls `Session.consume` for all inboxes and subscriptions.

        Args:
            peer: the other end of the connection, for the log, such as ``10.0.0.5:6379``; see `peer_of`.
        """
        self.connector.serve(peer)

    def sendable(self, sendable: bool = True) -> None:
        """Messages can be sent, or not any more. Call it also after ``Offer.FULL``, when the connection takes more.

        It may call `Session.publish` for all waiting messages. Only for the line that sends: the first one, if a driver
        has two (`BrokerDriver.purposes`).
        """
        self.is_sendable = sendable
        if sendable and self.session is not None:
            self.sender.connected(self.session)
        self._release()

    def block(self, reason: str | None) -> None:
        """The broker takes no messages at present, though the connection is up (an alarm, a full disk).

        Messages wait, and fail with `TransportBlocked` when their time ends.

        Args:
            reason: why, in the broker's own words, for the log and errors. None: it takes them again.
        """
        if reason is not None:
            LOG.warning("%s accepts no messages: %s", self.name(), reason)
        elif self.blocked is not None:
            LOG.warning("%s accepts messages again", self.name())
        self.blocked = reason
        self._release()

    def lose(self, reason: BaseException | str, *, move: bool = False) -> None:
        """The connection is unusable: it broke, or the broker is silent. It is opened again automatically.

        It calls `Session.let_go`, then `Feed.end` of all feeds. Messages that were sent and have no answer fail with
        ``maybe_delivered=True``. If `serve` was not called before, this counts as a failed try to connect.

        Args:
            reason: an error, which `BrokerDriver.explain` turns into a text; or a text that says what happened and,
                with `BrokerDriver.name`, which broker it was.
            move: try the next host first, and not the first one.
        """
        self.connector.lose(reason, move=move)

    def _release(self) -> None:
        """Let waiting messages be sent, once the connection can send them and replies to them will arrive."""
        if not (self.up and self.is_sendable and self.blocked is None):
            self.sender.withhold()
            return
        inboxes = (consumer for consumer in self.consumers if not consumer.prefetch and not consumer.is_ending)
        if all(inbox.is_consuming or inbox.is_refused for inbox in inboxes):
            self.sender.release()

    # For `Connector`: see `Dialler`

    def dial(self, attempt: int) -> Any:
        """Called on a separate thread."""
        return self._driver.dial(self._host_of(attempt), self.purpose)

    def discard(self, connection: Any) -> None:
        """Called on any thread."""
        self._driver.discard(connection)

    def explain(self, error: BaseException, attempt: int) -> tuple[str, bool]:
        """As `BrokerDriver.explain`, with the broker's name in front."""
        host = self._host_of(attempt)
        text, permanent = self._driver.explain(error, host)
        return f"{self._driver.describe(host)}: {text}", permanent

    def on_connected(self, connection: Any) -> None:
        """Make the session, and start it."""
        self.session = self._driver.open_session(self, connection)
        self.session.start()

    def on_up(self) -> None:
        """Remove what closed consumers have left, restore the others, inboxes first, and then send waiting messages."""
        for consumer in sorted(self.consumers, key=lambda each: (not each.is_ending, each.prefetch > 0)):
            consumer.connected()
        self._release()

    def let_go(self) -> None:
        """Drop the session. What it still reports of declarations and feeds is due to the end of the connection."""
        session, self.session = self.session, None
        self.is_sendable = False
        self.blocked = None
        self.sender.detach()
        try:
            if session is not None:
                session.let_go()
        except Exception:  # The next connection has to be opened nevertheless.
            LOG.exception("an error while the connection to %s was closed", self.name())

    def on_lost(self, error: TransportUnavailable) -> None:
        """Fail the messages that had no answer, and end the feeds."""
        self.sender.lost(error)
        for consumer in list(self.consumers):
            consumer.disconnected()

    def on_permanent(self, error: TransportUnavailable) -> None:
        """Fail everything that waits for a connection."""
        self.sender.fail_waiting(error)
        for consumer in list(self.consumers):
            consumer.fail_ready(error)

    # For `Sender`: see `Names`

    def name(self) -> str:
        """The broker that it is, or was last, connected to."""
        return self._driver.describe(self.host)

    def why_away(self) -> str:
        """Why messages wait for the connection. Any thread."""
        if self.connector.error is not None:
            return str(self.connector.error)
        missing = "has not declared the inbox yet" if self.up else "is not connected yet"
        return self.trouble or f"{self.name()} {missing}"

    def why_blocked(self) -> str | None:
        """Why messages wait although the connection is up, or None. Any thread."""
        session = self.session
        return self.blocked or (session.why_blocked() if session is not None else None)

    # For `Consumer`: see `ConsumerOwner`

    def leaves(self, address: Address) -> bool:
        """See `BrokerDriver.leaves`."""
        return self._driver.leaves(address)

    def on_consumer_changed(self) -> None:
        """Send the messages that waited for an inbox, if it consumes now."""
        self._release()

    def on_closed(self, consumer: Consumer) -> None:
        """Forget a consumer."""
        if consumer in self.consumers:
            self.consumers.remove(consumer)

    # For the driver

    def start(self, consumer: Consumer) -> None:
        """Consume, over this connection and later ones."""
        self.consumers.append(consumer)
        if self.up_session is not None:
            consumer.connected()
        else:
            self.connector.open()

    def end(self, consumer: Consumer) -> None:
        """Close a consumer."""
        consumer.close()
        self._release()

    def close(self) -> None:
        """Close the connection, and open no other."""
        self.connector.close()
        if self.session is not None:
            if self.up:
                self.session.close()
            self.connector.lose("the connection was closed")

    def abandon(self) -> None:
        """In a forked child."""
        if self.session is not None:
            self.session.abandon()
