"""The driver of a broker, but for the broker's protocol: a driver adds how to connect, and a `Session`."""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from msgbus.drivers.base import Address, Depth, Inbox, Message, OnDelivery, Sent, Subscription
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
    """One connection to the broker. On the loop's thread, but for `publish` and `flush`.

    It says `Line.serve` when consuming can begin, `Line.sendable` when messages can go, `Line.block` when the broker
    takes no messages or takes them again, and `Line.lose` when the connection is of no use any more.
    """

    def start(self) -> None:
        """Begin to read and write. Called once, first of all."""
        raise NotImplementedError

    def publish(self, outgoing: Outgoing) -> Offer:
        """Send a message, if that is possible now: see `Offer`.

        On the loop's thread, or on any (`BrokerDriver.publishes_on_any_thread`), and then one at a time.

        Later `Outgoing.confirmed`, `undeliverable`, `blocked`, `failed` or `hold` is to be called.

        Raises:
            MessagingException: it cannot be sent; no byte of it was.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Have written what was published, soon. Any thread."""

    def declare(self, address: Address, declared: OnDeclared) -> None:
        """Declare what has to be there before a message is sent to an address, and then say how that ended.

        It is asked for what `publish` called undeclared.
        """
        raise NotImplementedError

    def consume(self, source: Source) -> Feed:
        """Begin to declare an address, and to consume from it."""
        raise NotImplementedError

    def remove(self, source: Source, removed: Callable[[], None]) -> None:
        """Remove what a source has left on the broker that was closed while it was not consumed from; see `leaves`.

        `removed` is to be called when that is done, or cannot be done.
        """
        removed()

    def inspect(self, address: Address, found: Future[Depth]) -> None:
        """Look at an address; see `Driver.inspect`."""
        raise NotImplementedError

    def why_blocked(self) -> str | None:
        """Why messages wait although the broker has not said that it takes none, or None."""
        return None

    def close(self) -> None:
        """Say good-bye, and write that."""

    def let_go(self) -> None:
        """Close what is left of the connection, without a word."""
        raise NotImplementedError

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connection without a word on it, and without closing it."""
        raise NotImplementedError


class Line:
    """One of the driver's connections, over all its sessions, and what consumes over it. On the loop's thread.

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
        """It can be consumed over the connection; `peer` says with whom it is, for the log."""
        self.connector.serve(peer)

    def sendable(self, sendable: bool = True) -> None:
        """Messages can go over it, or not any more."""
        self.is_sendable = sendable
        self._driver.check_release()

    def block(self, reason: str | None) -> None:
        """The broker takes no messages, for that reason; None: it takes them again."""
        if reason is not None:
            LOG.warning("%s takes no messages: %s", self._driver.name(), reason)
        elif self.blocked is not None:
            LOG.warning("%s takes messages again", self._driver.name())
        self.blocked = reason
        self._driver.check_release()

    def lose(self, reason: BaseException | str, *, move: bool = False) -> None:
        """The connection is of no use any more; see `Connector.lose`."""
        self.connector.lose(reason, move=move)

    # For `Connector`

    def dial(self, attempt: int) -> Any:
        return self._driver.dial(self._driver.host(attempt), self.purpose)

    def discard(self, connection: Any) -> None:
        self._driver.discard(connection)

    def explain(self, error: BaseException, attempt: int) -> tuple[str, bool]:
        text, permanent = self._driver.explain(error, self._driver.host(attempt))
        return f"{self._driver.name(attempt)}: {text}", permanent

    def on_connected(self, connection: Any) -> None:
        self.session = self._driver.open_session(self, connection)
        self.session.start()

    def on_up(self) -> None:
        session = self.session
        assert session is not None
        for consumer in list(self.leaving):
            self._remove(consumer, session)
        self._driver.on_up(self)
        for consumer in list(self.consumers):
            consumer.connected(session)

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
        session, self.session = self.session, None
        self.is_sendable = False
        self.blocked = None
        if session is not None:
            session.let_go()

    def on_lost(self, error: TransportUnavailable) -> None:
        self._driver.on_lost(self, error)
        for consumer in list(self.consumers):
            consumer.disconnected()

    def on_permanent(self, error: TransportUnavailable) -> None:
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

    Attributes:
        purposes: of its connections: one, or one for sending and inboxes and one for subscriptions.
        publishes_on_any_thread: `Session.publish` may be called on any thread; else it is called on the loop's.
        max_message_size: of a body, in bytes.
    """

    purposes: ClassVar[Sequence[str]] = ("",)
    publishes_on_any_thread: ClassVar[bool] = False
    max_message_size: int = 16 * 1024 * 1024

    def __init__(self, loop: Loop, hosts: Sequence[TransportHost]) -> None:
        """To be called by the driver's own constructor, when what `name` needs is there."""
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
        """Open a connection to a host, log in, and return it. May block: it has a thread of its own.

        Raises:
            Exception: it cannot be reached; `explain` makes words of it.
        """

    @abstractmethod
    def discard(self, connection: Any) -> None:
        """Close a connection that nobody needs any more. Any thread."""

    @abstractmethod
    def open_session(self, line: Line, connection: Any) -> Session:
        """Begin to use a connection. On the loop's thread."""

    @abstractmethod
    def explain(self, error: BaseException, host: TransportHost) -> tuple[str, bool]:
        """The one place that makes words of what a library and the operating system raise.

        Returns:
            what happened and what to check, without the name of the host, and whether the same would happen again at a
            second try.
        """

    @abstractmethod
    def describe(self, host: TransportHost) -> str:
        """The broker at a host, for errors: host, port and user, and never a password."""

    def check(self, address: Address) -> None:
        """See that an address has a name on the broker. Any thread.

        Raises:
            InvalidTarget: it cannot have one.
            CapabilityMissing: the driver cannot send to its kind.
        """

    def leaves(self, address: Address) -> bool:
        """Whether a consumer of this address that is closed while the connection is away leaves something behind.

        Then `Session.remove` is called when the connection is back.
        """
        return False

    def inbox_name(self) -> str:
        """The name of a new inbox."""
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
        """For `Consumer`."""
        if not self._closed:
            self.check_release()

    def on_up(self, line: Line) -> None:
        """A line is up: before its consumers are told."""
        if line is self.sending and line.session is not None:
            self.sender.connected(line.session)

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
            if not self.sending.up:
                if self._closed:
                    raise self.was_closed()
                self.sending.connector.open()
                self.check(address)
            outgoing = Outgoing(self.sender, address, message, mandatory)
            if self.publishes_on_any_thread:
                self.sender.send(outgoing)
            else:
                self.check(address)
                self.loop.call_for(outgoing.sent, self.sender.send, outgoing)
        except MessagingException as exc:
            return failed(exc)
        return outgoing.sent

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
            self.check(address)
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
        consumer.fail_ready(CallCancelled(f"what was to be opened on {self.name()} was closed"))
        if not self.loop.started:
            consumer.refuse(self.was_closed())
        elif not self._closed:
            self._futures.add(consumer.gone)
            self.loop.call_for(consumer.gone, self._end_consumer, consumer)
        return consumer.gone

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

    def inspect(self, address: Address) -> Future[Depth]:
        if self._closed:
            return failed(self.was_closed())
        self.check(address)
        return self.ask(self._inspect, address, self.loop.now() + INSPECT_CONNECT)

    def _inspect(self, address: Address, end: float, found: Future[Depth]) -> None:
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
                consumer.fail_ready(error)
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
        finish(gone, [consumer.gone for consumer in consumers])

    def _end(self, ended: Future[None]) -> None:
        self.sender.close(self.was_closed())
        for line in self.lines:
            line.close()
        finish(ended)

    def _abandon(self) -> Iterable[Future[Any]]:
        futures: list[Future[Any]] = [*self.sender.unfinished()]
        futures += [future for each in self._all_consumers() for future in (each.ready, each.stopped, each.gone)]
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
