"""One connection to the broker, and the line of those that follow each other.

A driver writes a `Session`, and speaks to its `Line`.
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

        Raises:
            MessagingException: it cannot be declared. The sends that wait for it fail with this.
        """
        raise NotImplementedError

    def consume(self, source: Source) -> Feed:
        """Make a `Feed` for a source, and return it. It begins when its `Feed.start` is called, right afterwards.

        Raises:
            MessagingException: it cannot be consumed from at present; it is tried again in a moment.
        """
        raise NotImplementedError

    def remove(self, source: Source, removed: Callable[[], None]) -> None:
        """Remove what a closed source has left on the broker, and call `removed` when that is done, or cannot be done.

        Only for addresses for which `BrokerDriver.leaves` is true, and for sources whose feed could not do it in
        `Feed.close`: there was none, since the connection was away or the address waited to be consumed from again, or
        the connection broke before it was done.
        """
        removed()

    def inspect(self, address: Address, found: Future[QueueInfo]) -> None:
        """Look at an address, and finish `found` (`finish`, `fail`) with what `Driver.inspect` says.

        Only where the driver declares `Capability.INSPECT`. A broker that may not answer needs a deadline here: 1 s.

        Raises:
            MessagingException: it cannot be looked at. `found` fails with this.
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


class Opener(Protocol):
    """What a line asks of its driver; see `BrokerDriver`."""

    loop: Loop

    def dial(self, host: TransportHost, purpose: str) -> Any:
        """Open a connection."""

    def discard(self, connection: Any) -> None:
        """Close one that is not needed any more."""

    def open_session(self, line: Line, connection: Any) -> Session:
        """Make the session of a connection."""

    def explain(self, error: BaseException, host: TransportHost) -> tuple[str, bool]:
        """Say what happened, and whether it is permanent."""

    def describe(self, host: TransportHost) -> str:
        """Name the broker at a host."""

    def leaves(self, address: Address) -> bool:
        """Whether a closed consumer of an address leaves something on the broker."""


class Line:
    """One of the driver's connections, over all its sessions, and what goes over it. On the loop's thread.

    A session calls `serve`, `sendable`, `block` and `lose`.

    Attributes:
        purpose: what it is for, in a word, where there are several.
        connector: opens the connection.
        session: the present one, or None.
        sender: has what is to be sent, of the line that sends.
        consumers: what consumes over it, or is closed and may have left something on the broker.
        is_sendable: messages can go, as far as the connection is concerned.
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
        """Whether it can be consumed over it."""
        return self.connector.up

    @property
    def up_session(self) -> Session | None:
        """The present session, where it can be consumed over it."""
        return self.session if self.connector.up else None

    @property
    def host(self) -> TransportHost:
        """The host that it is, or was last, connected to."""
        return self._host_of(self.connector.attempt)

    @property
    def trouble(self) -> str | None:
        """Why an address is not consumed from although the connection lives, or None. Any thread."""
        troubles = (consumer.trouble for consumer in list(self.consumers))
        return next((trouble for trouble in troubles if trouble is not None), None)

    def _host_of(self, attempt: int) -> TransportHost:
        return self._hosts[attempt % len(self._hosts)]

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
            self.sender.connected(self.session)
        self._release()

    def block(self, reason: str | None) -> None:
        """The broker takes no messages at present, though the connection lives (an alarm, a full disk).

        What is sent waits, and fails with `TransportBlocked` when its time is over.

        Args:
            reason: why, in the broker's own words, for the log and errors. None: it takes them again.
        """
        if reason is not None:
            LOG.warning("%s takes no messages: %s", self.name(), reason)
        elif self.blocked is not None:
            LOG.warning("%s takes messages again", self.name())
        self.blocked = reason
        self._release()

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

    def _release(self) -> None:
        """Let go what waits to be sent, once it can go and replies to it will arrive."""
        if not (self.up and self.is_sendable and self.blocked is None):
            self.sender.withhold()
            return
        inboxes = (consumer for consumer in self.consumers if not consumer.prefetch and not consumer.is_ending)
        if all(inbox.is_consuming or inbox.is_refused for inbox in inboxes):
            self.sender.release()

    # For `Connector`: see `Dialler`

    def dial(self, attempt: int) -> Any:
        """On a thread of its own."""
        return self._driver.dial(self._host_of(attempt), self.purpose)

    def discard(self, connection: Any) -> None:
        """Any thread."""
        self._driver.discard(connection)

    def explain(self, error: BaseException, attempt: int) -> tuple[str, bool]:
        """With the broker's name in front."""
        host = self._host_of(attempt)
        text, permanent = self._driver.explain(error, host)
        return f"{self._driver.describe(host)}: {text}", permanent

    def on_connected(self, connection: Any) -> None:
        """Make the session, and start it."""
        self.session = self._driver.open_session(self, connection)
        self.session.start()

    def on_up(self) -> None:
        """Remove what closed consumers have left, and bring back the others, inboxes first; then goes what waits."""
        for consumer in sorted(self.consumers, key=lambda each: (not each.is_ending, each.prefetch > 0)):
            consumer.connected()
        self._release()

    def let_go(self) -> None:
        """Drop the session. What it says meanwhile of declarations and feeds is about the connection's end."""
        session, self.session = self.session, None
        self.is_sendable = False
        self.blocked = None
        self.sender.detach()
        try:
            if session is not None:
                session.let_go()
        except Exception:  # The next connection is wanted all the same.
            LOG.exception("the connection to %s could not be let go of in good order", self.name())

    def on_lost(self, error: TransportUnavailable) -> None:
        """Fail what had no answer, and end the feeds."""
        self.sender.lost(error)
        for consumer in list(self.consumers):
            consumer.disconnected()

    def on_permanent(self, error: TransportUnavailable) -> None:
        """Fail what waits."""
        self.sender.fail_waiting(error)
        for consumer in list(self.consumers):
            consumer.fail_ready(error)

    # For `Sender`: see `Names`

    def name(self) -> str:
        """The broker that it is, or was last, connected to."""
        return self._driver.describe(self.host)

    def why_away(self) -> str:
        """Any thread."""
        if self.connector.error is not None:
            return str(self.connector.error)
        missing = "has not declared the inbox yet" if self.up else "is not connected yet"
        return self.trouble or f"{self.name()} {missing}"

    def why_blocked(self) -> str | None:
        """Any thread."""
        session = self.session
        return self.blocked or (session.why_blocked() if session is not None else None)

    # For `Consumer`: see `ConsumerOwner`

    def leaves(self, address: Address) -> bool:
        """See `BrokerDriver.leaves`."""
        return self._driver.leaves(address)

    def on_consumer_changed(self) -> None:
        """What waited for an inbox may go."""
        self._release()

    def on_closed(self, consumer: Consumer) -> None:
        """Forget a consumer."""
        if consumer in self.consumers:
            self.consumers.remove(consumer)

    # What the driver asks for

    def start(self, consumer: Consumer) -> None:
        """Consume, over this connection and those that follow it."""
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
