"""The driver of a broker, without the broker's protocol.

A driver subclasses `BrokerDriver`, for where the broker is and how to connect;
`msgbus.drivers.toolkit.session.Session`, one connection; and `msgbus.drivers.toolkit.consuming.Feed`, one address that
is consumed from. The rest is done here: messages wait for a connection, and fail at their deadlines; lost connections
are opened again, and inboxes and subscriptions restored, in this order; closing, forking, `inspect`, `state` and
`up_since`.
"""

from __future__ import annotations

import ssl
import sys
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
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
from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.consuming import Consumer
from msgbus.drivers.toolkit.futures import fail, failed, finish
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.sending import Outgoing
from msgbus.drivers.toolkit.session import Line, Session
from msgbus.drivers.toolkit.shell import DriverShell
from msgbus.exceptions import CallCancelled, MessageTooLarge, MessagingException, TransportUnavailable

if TYPE_CHECKING:
    from msgbus.url import TransportHost

CLOSE_TIMEOUT_MIN = 0.5
"""The least seconds for removing inboxes and subscriptions, even if `close_timeout` is used up."""
INSPECT_CONNECT = 0.9
"""Seconds that `inspect` waits for the first connection."""
CHECK_INTERVAL = 0.02
"""Seconds between two checks for that connection."""


class BrokerDriver(DriverShell):
    """The base class of drivers for brokers.

    A subclass implements `Driver.options`, a constructor, `dial`, `discard`, `open_session` and `describe`; `explain`
    for the errors of its library; and `check` if some addresses cannot have a name on the broker.

    Attributes:
        purposes: names of its connections, each of which has a `Line` and sessions. One; or two, of which the first has
            the sending and the inboxes, and the second the subscriptions. Use two if the broker, when it takes no
            messages, stops reading from connections that send.
        publishes_on_any_thread: `Session.publish` may be called on any thread, which saves a change of threads for each
            message; otherwise it is called on the loop's. If it is set, `publish` has to do what `check` does.
        max_message_size: the most bytes of a body: larger ones fail with `MessageTooLarge`. Set it in the constructor,
            if the driver has an option of this name. If only the broker knows it, `Session.publish` raises
            `MessageTooLarge`.
        connect_timeout: seconds that `dial` waits, for the text of `explain`; None: the text does not have it.
        hosts: where the broker is.
        lines: one for each purpose.
        sending: the line that sends.
        consuming: the line with the subscriptions; if there is only one line, that one.
        sender: has the messages that are to be sent.
    """

    purposes: ClassVar[Sequence[str]] = ("",)
    publishes_on_any_thread: ClassVar[bool] = False
    max_message_size: int = sys.maxsize
    connect_timeout: float | None = None

    def __init__(self, loop: Loop, hosts: Sequence[TransportHost]) -> None:
        """Call it at the end of the subclass's constructor, when `describe` has what it needs.

        Args:
            loop: the one that was passed to the driver.
            hosts: at least one; they are tried in turn. See `msgbus.options.hosts_of`.
        """
        self.hosts = list(hosts)
        super().__init__(loop)

    def _start_clean(self) -> None:
        super()._start_clean()
        self.lines = [Line(self, self.hosts, purpose) for purpose in self.purposes]
        self.sending, self.consuming = self.lines[0], self.lines[-1]
        self.sender = self.sending.sender

    # For a driver to implement

    @abstractmethod
    def dial(self, host: TransportHost, purpose: str) -> Any:
        """Open a connection to a host, and return it: a socket, several, or an object of a library.

        It runs on a separate thread and may block, but not for ever: give each step a timeout. It may log in, or leave
        that to the session. If it fails, it has to close what it has opened.

        Args:
            host: one of those that were passed to the constructor.
            purpose: one of `purposes`.

        Raises:
            Exception: the host cannot be reached. Any exception will do; `explain` turns it into a text.
        """

    @abstractmethod
    def discard(self, connection: Any) -> None:
        """Close a connection that `dial` has opened after the driver was closed. Any thread."""

    @abstractmethod
    def open_session(self, line: Line, connection: Any) -> Session:
        """Make the session of a connection that `dial` has returned. On the loop's thread. It must not raise."""

    def explain(self, error: BaseException, host: TransportHost) -> tuple[str, bool]:
        """Turn an error of a library or the operating system into a text. Only this does so. On the loop's thread.

        This method knows the errors of sockets and of TLS. A driver handles those of its library, and leaves the others
        to this one: ``return super().explain(error, host)``.

        Args:
            error: what `dial` raised, or was passed to `Line.lose`; a `ConnectionError` if that was a text.
            host: the host that was, or was to be, connected to.

        Returns:
            what happened and what to check, in one line without the name of the host (`Line` puts `describe` in front
            of it) and without a password; and whether the next try would fail in the same way, such as over a wrong
            password. If that is so of all hosts and there was no connection yet, waiting messages fail at once with
            `TransportUnavailable`; the tries still go on.
        """
        text = " ".join(str(error).split()) or type(error).__name__
        hint, permanent = "check that it runs and that host and port are right", False
        if isinstance(error, ssl.SSLCertVerificationError):
            text = f"its certificate is not trusted: {getattr(error, 'verify_message', text)}"
            hint, permanent = "check ssl_ca_file, and that the certificate was issued for this host name", True
        elif isinstance(error, ssl.SSLError):
            hint, permanent = "check that this port speaks TLS", True
        elif isinstance(error, TimeoutError):
            if text == "timed out" and self.connect_timeout is not None:
                text = f"{text} (no answer within {self.connect_timeout:g} s)"
            hint = "check that it runs, is not stuck, and that no firewall is in between"
        elif descriptors.is_shortage(error):
            hint = descriptors.HINT
        elif isinstance(error, UnicodeError):
            hint = "check the host name"
        return f"{text}; {hint}", permanent

    @abstractmethod
    def describe(self, host: TransportHost) -> str:
        """The broker at a host, for errors and `state`: host, port and user, and never a password. Any thread."""

    def check(self, address: Address) -> None:
        """Check that an address can have a name on the broker. Any thread; for each message, so it has to be quick.

        For addresses of the kinds stored and dead, `Capability.STORAGE` was checked before.

        Raises:
            InvalidTarget: it cannot: the name is too long, or has characters that cannot be escaped.
        """

    def leaves(self, address: Address) -> bool:
        """Whether a consumer of this address leaves something on the broker if it is closed without a connection.

        If so, `Session.remove` is called after the reconnect, and the consumer's `close` is done after that. The
        default is False: the broker itself removes what a lost connection had.
        """
        return False

    def inbox_name(self) -> str:
        """The name of a new inbox: globally unique, and the same after reconnects."""
        return uuid.uuid4().hex

    # Names and state

    def name(self) -> str:
        """The broker that it is, or was last, connected to. Any thread."""
        return self.sending.name()

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
        for line in self.lines:
            if (trouble := line.trouble) is not None:
                return trouble
        blocked = self.sending.blocked
        return self.name() if blocked is None else f"{self.name()}, which accepts no messages at present ({blocked})"

    def was_closed(self) -> CallCancelled:
        """The error of all methods of a closed driver."""
        return CallCancelled(f"the connection to {self.name()} was closed")

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
        consumer = Consumer(self.loop, line, addresses, on_delivery, prefetch)
        if self._closed:
            consumer.refuse(self.was_closed())
            return consumer
        self._futures.add(consumer.ready)
        self.loop.call_for(consumer.ready, self._start, line, consumer)
        return consumer

    def _start(self, line: Line, consumer: Consumer) -> None:
        if self._closed or consumer.is_ending:
            consumer.refuse(self.was_closed())
        else:
            line.start(consumer)

    def end(self, consumer: Consumer) -> Future[None]:
        """Close a consumer. Any thread."""
        fail(consumer.ready, CallCancelled(f"a subscription or inbox on {self.name()} was closed before it was ready"))
        self._call_on_loop(consumer.closed, self._end_consumer, consumer)
        return consumer.closed

    def _end_consumer(self, consumer: Consumer) -> None:
        line = self._line_of(consumer)
        if line is None:
            consumer.refuse(self.was_closed())
        else:
            line.end(consumer)

    def _line_of(self, consumer: Consumer) -> Line | None:
        """The line of a consumer. None: it has ended, never began, or belongs to the parent process."""
        return next((line for line in self.lines if consumer in line.consumers), None)

    def _call_on_loop(self, future: Future[None], func: Callable[[Consumer], None], consumer: Consumer) -> None:
        if not self.loop.started:
            consumer.refuse(self.was_closed())
        elif not self._closed:
            self._futures.add(future)
            self.loop.call_for(future, func, consumer)

    def stop(self, consumer: Consumer) -> Future[None]:
        """Stop a consumer. Any thread."""
        self._call_on_loop(consumer.stopped, self._stop_consumer, consumer)
        return consumer.stopped

    def _stop_consumer(self, consumer: Consumer) -> None:
        if self._line_of(consumer) is None:
            consumer.refuse(self.was_closed())
        else:
            consumer.stop()

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
        session = line.up_session
        if session is not None:
            try:
                session.inspect(address, found)
            except MessagingException as exc:
                fail(found, exc)
        elif line.connector.error is not None or self.loop.now() > end:
            fail(found, line.connector.error or TransportUnavailable(f"{self.name()} is not connected yet"))
        else:  # The first connection is being opened.
            self.loop.call_later(CHECK_INTERVAL, self._inspect, address, end, found)

    def _disconnect(self, error: CallCancelled, deadline: float) -> None:
        for consumer in self._consumers():
            fail(consumer.ready, error)
        # Asked on the loop: calls to it are in order, so it has everything that was sent before.
        self._wait(self._wait_for(deadline, self._find_unfinished) or (), deadline)
        ending = self._wait_for(deadline, self._end_all)
        if ending is not None:
            self._wait(ending, max(deadline, self.loop.now() + CLOSE_TIMEOUT_MIN))
        self._wait_for(self.loop.now() + self.close_timeout, self._end)

    def _find_unfinished(self, found: Future[list[Future[Sent]]]) -> None:
        finish(found, self.sender.unfinished())

    def _fail_unfinished(self, error: CallCancelled) -> None:
        self.sender.close(error)
        for consumer in self._consumers():
            consumer.refuse(error)

    def _consumers(self) -> list[Consumer]:
        return [consumer for line in self.lines for consumer in list(line.consumers)]

    def _end_all(self, ending: Future[list[Future[Any]]]) -> None:
        consumers = self._consumers()
        for consumer in consumers:
            self._end_consumer(consumer)
        finish(ending, [consumer.closed for consumer in consumers])

    def _end(self, ended: Future[None]) -> None:
        self.sender.close(self.was_closed())
        for line in self.lines:
            line.close()
        finish(ended)

    def _abandon(self) -> Iterable[Future[Any]]:
        futures: list[Future[Any]] = [*self.sender.unfinished()]
        futures += [future for each in self._consumers() for future in (each.ready, each.stopped, each.closed)]
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
