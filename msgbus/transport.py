"""get_rpc_transport, and Transport: a driver, the inbox of this process, and who waits for what comes to it."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from msgbus.closing import open_drivers
from msgbus.drivers.base import Address, Capability, Delivery, Depth, Driver, Inbox, Message, Sent
from msgbus.drivers.registry import load_driver_class
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import (
    CallCancelled,
    ConfigurationError,
    MessageDeliveryFailure,
    MessageUndeliverable,
    MessagingException,
    MessagingTimeout,
    SerializationError,
    TransportBlocked,
    TransportUnavailable,
)
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child
from msgbus.message import Control, Reply, call_ids_in, decode_inbox_frame, encode_control, new_id
from msgbus.patched import check_unpatched
from msgbus.replies import LOST_AFTER, REPEAT_AFTER, ReplyRouter
from msgbus.target import Target
from msgbus.url import TransportURL
from msgbus.window import SendWindow

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = get_logger(__name__)

RETRY_DELAY = 0.25
"""Seconds between two tries to deliver a message; less where its deadline is near."""
RETRY_DELAY_MIN = 0.01
"""Seconds: with less than twice that left, there is no further try."""
CONNECTION_CHECK = 0.5
"""Seconds between two looks at whether the connection has come back, while at_least_once requests are unanswered."""
CONTROL_TTL = 30.0
"""Seconds after which a control frame is worthless."""


class ControlHandler(Protocol):
    """What runs a request: it takes the client's control frames."""

    def on_control(self, control: Control) -> None:
        """Take in a frame. Must not block."""


def get_rpc_transport(
    conf: cfg.ConfigOpts, url: str | TransportURL | None = None, allowed_remote_exmods: Sequence[str] | None = None
) -> Transport:
    """Make a transport. Nothing is connected yet.

    What stands in a configuration file, is nobody's and is nearly an option of msgbus's is warned of in the log, as is
    what is an option of oslo.messaging's or stands in a wrong group.

    Args:
        conf: options are registered on it, and read from it.
        url: a transport URL; None means ``transport_url`` of the configuration, else the driver that ``rpc_backend``
            names.
        allowed_remote_exmods: modules whose exceptions may be made again in this process when a server raised them.

    Raises:
        InvalidTransportURL: the URL cannot be read.
        DriverLoadFailure: the driver is unknown or cannot be loaded.
        ConfigurationError: an option of the driver has a wrong name, or an option of the driver or of the core a wrong
            value; or no URL is given and `conf` has not been called; or gevent or eventlet has replaced this process's
            threads or sockets.
        TypeError: `conf` is no configuration, or `allowed_remote_exmods` no list.
    """
    from msgbus import configuration
    from msgbus.misspelt import warn_of_misspelt
    from msgbus.unread import warn_of_unread

    check_unpatched()
    if isinstance(allowed_remote_exmods, str):
        raise TypeError(f"allowed_remote_exmods is a list of the names of modules: [{allowed_remote_exmods!r}]")
    configuration.register(conf)
    if url is None and configuration.is_unread(conf):
        raise ConfigurationError(
            "no transport URL was given, and the configuration was never read: call conf(...) first, for example "
            "conf([], default_config_files=['service.conf'])"
        )
    parsed = url if isinstance(url, TransportURL) else TransportURL.parse(conf, url)
    configuration.check_core_options(conf)
    cls = load_driver_class(parsed.transport)
    loop = Loop(f"msgbus-{parsed.transport}")
    driver = cls(conf, parsed, loop)
    warn_of_misspelt(conf, cls.options()[0])
    warn_of_unread(conf, *cls.options(), by_default=url is None and not configuration.says_where(conf))
    return Transport(conf, parsed, driver, loop, allowed_remote_exmods)


class Transport:
    """The way to one message system. Shared by all clients and servers of a process; thread-safe.

    One that nobody refers to any more is closed in the background; a server refers to its transport, and goes on if it
    was started and not stopped. What is open when the program ends is closed then, within a few seconds. A forked
    child that inherits it connects anew when it uses it; calls and streams of its parent raise `CallCancelled` there.

    Attributes:
        conf: the configuration.
        url: where it leads.
        driver: what moves the bytes.
        router: the calls that wait for replies.
        loop: runs what is due later, and what the driver reads and writes.
        server_calls: the calls that this process's servers run, by call id.
        window: bounds the unfinished requests.
        lossy: the option ``rpc_json_lossy``.
        closed: `cleanup` has been called.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        url: TransportURL,
        driver: Driver,
        loop: Loop,
        allowed_remote_exmods: Sequence[str] | None = None,
    ) -> None:
        self.conf = conf
        self.url = url
        self.driver = driver
        self.loop = loop
        self.allowed_remote_exmods = frozenset(allowed_remote_exmods or ())
        self.closed = False
        self._options: dict[str, tuple[Any, Any]] = {}  # by name: the value as it stands, and as it was read
        self.lossy: bool = self.option("rpc_json_lossy")
        self._start_clean()
        call_in_child(self._forked)

    def _forked(self) -> None:
        """In a forked child: leave to the parent what is the parent's."""
        self._finalizer.detach()
        router = self.router
        self._start_clean()
        router.abandon(CallCancelled(f"the process forked: the call over {self.url} was left to the parent"))

    def _start_clean(self) -> None:
        """Have nothing but the driver. Also in a forked child, where the parent's threads and their locks are not."""
        self.router = ReplyRouter()
        self.server_calls: dict[str, ControlHandler] = {}
        self.window = SendWindow(self.option("rpc_send_window"))
        self._repeats: dict[_Repeat, None] = {}  # those that wait for their next try
        self._inbox_name: str | None = None
        self._inbox: Inbox | None = None
        self._opening_inbox = threading.Lock()
        self._first_up: float | None = None  # since when the first connection was up
        self._watching = False
        self._watch_lock = threading.Lock()
        self._used = False
        if not self.closed:
            self._finalizer = open_drivers.add(self, self.driver, self.loop.close)

    def option(self, name: str) -> Any:
        """The value of one of the core's options, as it is now.

        Raises:
            ConfigurationError: it does not fit; see `msgbus.configuration.read_option`.
        """
        try:
            value = self.conf[name]
        except Exception:  # `read_option` makes words of it.
            value = None
        known = self._options.get(name)
        if known is None or value is None or known[0] is not value:
            from msgbus.configuration import read_option  # With oslo.config, which takes its time.

            known = self._options[name] = (value, read_option(self.conf, name))
        return known[1]

    def address(self, target: Target) -> Address:
        """Where a request for `target` goes. The target has a topic: the caller has seen to it."""
        exchange, topic = target.exchange or self.option("control_exchange"), target.topic or ""
        if target.fanout:
            return Address("fanout", exchange, topic)
        if target.server:
            return Address("server", exchange, topic, target.server)
        return Address("topic", exchange, topic)

    def inbox(self, deadline: float) -> str:
        """The name of this process's inbox, which is opened when it is asked for the first time.

        Raises:
            TransportUnavailable: it could not be opened by `deadline` (seconds of `time.monotonic`).
            CallCancelled: the transport is closed.
            ConfigurationError: as for `send`.
        """
        if self._inbox_name is not None:
            return self._inbox_name
        inbox = self._inbox
        if inbox is None:
            if self.closed:
                raise CallCancelled(f"the transport to {self.url} is closed")
            check_unpatched()
            with self._opening_inbox:
                if self._inbox is None:
                    # The driver, which has threads, does not refer to this object: so it is collected once it is
                    # dropped, and its driver closed.
                    self._inbox = self.driver.open_inbox(_WeakInbox(self))
                inbox = self._inbox
        try:
            wait_for(inbox.ready, deadline, "cannot reach", self.driver)
        except MessagingException:
            if inbox.ready.done():  # It was refused; what was wrong may have been put right by the next time.
                self._inbox = None
                inbox.close()
            raise
        self._inbox_name = inbox.address.name
        return self._inbox_name

    def watch_connection(self) -> None:
        """Have the calls that wait checked when the connection has come back, for as long as any waits.

        What they wait for may have been lost with it; see `Pending.needs_repeat`.
        """
        with self._watch_lock:
            if self._watching:
                return
            self._watching = True
        self._check_connection(self.driver.up_since)

    @property
    def repeat_after(self) -> float:
        """Seconds that an unanswered at_least_once request waits for a sign of life after a reconnect."""
        return LOST_AFTER if Capability.DURABLE in self.driver.capabilities else REPEAT_AFTER

    def _check_connection(self, known: float | None) -> None:
        """Look every now and then; `known` is since when the connection was up at the last look."""
        up_since = self.driver.up_since
        if up_since is not None and up_since != known:
            self.loop.call_later(self.repeat_after, self.router.wake_all)
        with self._watch_lock:
            # Looked at under the lock: a call that is added from now on finds that nobody watches.
            self._watching = len(self.router) > 0
        if self._watching:
            self.loop.call_later(CONNECTION_CHECK, lambda: self._check_connection(up_since))

    def _note_first_connection(self) -> float | None:
        if self._first_up is None:
            self._first_up = self.driver.up_since
        return self._first_up

    def listeners_return_until(self) -> float:
        """Until when nobody's being there may only mean that others have not come back yet, as this side has.

        After a restart of the message system everybody reconnects, and one is the first. On the first connection, and
        while there is none, it is 0.
        """
        first, up_since = self._note_first_connection(), self.driver.up_since
        if up_since is None or up_since == first:
            return 0.0
        return up_since + float(self.option("rpc_reply_grace"))

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        """Send once.

        Raises:
            ConfigurationError: gevent or eventlet has replaced this process's threads or sockets meanwhile.
        """
        if not self._used:
            check_unpatched()
            self._used = True
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("sending %s to %s (%d bytes)", message.id, address, len(message.body))
        return self.driver.send(address, message, mandatory=mandatory)

    def send_request(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        """Send a client's request once: to the address, else to the server that its topic may name.

        Services of OpenStack write the server ``host1`` of the topic ``conductor`` as the topic ``conductor.host1``.
        Such a topic is its own first, for topics may hold dots. Where nobody listens there, and nothing is stored for
        it, it is that server; the first dot ends the topic, as a host may hold dots.
        """
        sent = self.send(address, message, mandatory=mandatory)
        server = server_named_by(address) if mandatory else None
        if server is None:
            return sent
        outcome: Future[Sent] = Future()

        def on_sent(first: Future[Sent]) -> None:
            error = first.exception()
            if isinstance(error, MessageUndeliverable):
                second = self.send(server, message, mandatory=True)
                second.add_done_callback(lambda second: _take_over(second, outcome, error))
            else:
                _take_over(first, outcome)

        sent.add_done_callback(on_sent)
        return outcome

    def send_until(
        self,
        deadline: float,
        address: Address,
        message: Message,
        *,
        mandatory: bool,
        on_outcome: Callable[[BaseException | None], None],
        retry_undeliverable: float | None = None,
        wanted: Callable[[], bool] | None = None,
        request: bool = False,
    ) -> None:
        """Send; after an unknown outcome, or a refusal that may pass, send again until it is known to have been taken.

        After an unknown outcome an error says nothing of the first try: that nobody is there may mean that the message
        has ended its server. So it is tried until the deadline, and the outcome is then `TransportUnavailable` with
        ``maybe_delivered=True``, whose text says what became of the first try and of the last.

        Args:
            deadline: seconds of `time.monotonic`. Where the message may wait for less, the tries end with that.
            address: where to.
            message: what.
            mandatory: as for `Driver.send`.
            on_outcome: called once, with None or why it could not be sent, on any thread; it must not block.
            retry_undeliverable: until that time nobody's being there is tried again even if the outcome of no try was
                unknown (a client that reconnects comes back soon), and after it no more, even if one was. Where it is
                None, that is tried again for `rpc_reply_grace` after this side's connection has come back.
            wanted: whether anybody still waits for what is sent; there is no further try where it says False.
            request: it is a client's request, see `send_request`.
        """
        self._note_first_connection()
        send = self.send_request if request else self.send
        repeat = _Repeat(self, send, deadline, address, message, mandatory, on_outcome, retry_undeliverable, wanted)
        send(address, message, mandatory=mandatory).add_done_callback(repeat.on_sent)

    def send_repeatedly(
        self,
        deadline: float,
        address: Address,
        message: Message,
        *,
        mandatory: bool,
        retry_undeliverable: float | None = None,
        wanted: Callable[[], bool] | None = None,
        request: bool = False,
    ) -> Future[Sent]:
        """As `send_until`, with a future for the outcome."""
        outcome: Future[Sent] = Future()

        def settle(error: BaseException | None) -> None:
            if error is None:
                outcome.set_result(Sent())
            else:
                outcome.set_exception(error)

        self.send_until(
            deadline,
            address,
            message,
            mandatory=mandatory,
            on_outcome=settle,
            retry_undeliverable=retry_undeliverable,
            wanted=wanted,
            request=request,
        )
        return outcome

    def send_control(self, inbox: str, control: Control, content_type: str) -> None:
        """Send a control frame to a server; nobody waits for it.

        It is repeated after an unknown outcome: to come twice does no harm.
        """
        message_id = f"{control.call_id}.{new_id()[:8]}.{control.kind}"
        message = Message(encode_control(control, content_type), content_type, message_id, CONTROL_TTL)
        end = time.monotonic() + CONTROL_TTL
        self.send_until(end, Address("inbox", name=inbox), message, mandatory=False, on_outcome=lambda _error: None)

    def inspect(self, address: Address, timeout: float) -> Depth | None:
        """What is known of an address, or None where that cannot be learnt within `timeout` seconds."""
        if Capability.INSPECT not in self.driver.capabilities:
            return None
        try:
            return self.driver.inspect(address).result(timeout)
        except MessageUndeliverable:
            server = server_named_by(address)
            return Depth(0, 0) if server is None else self.inspect(server, timeout)
        except (MessagingException, TimeoutError):
            return None

    def cleanup(self) -> None:
        """Close everything. Callers that still wait get `CallCancelled`. Idempotent."""
        self.closed = True
        self._finalizer.detach()
        error = CallCancelled(f"the transport to {self.url} was closed")
        self.router.fail_all(error)
        try:
            self.driver.close()
        finally:
            open_drivers.discard(self.driver)
        self.loop.close()
        for repeat in list(self._repeats):  # The loop would have tried them again.
            repeat.give_up(error)

    def _on_delivery(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            frame = decode_inbox_frame(message.body, message.content_type)
        except SerializationError as exc:
            self._on_unreadable(message, exc)
            return
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("received %s: %s for %s", message.id, frame.kind, frame.call_id)
        if isinstance(frame, Reply):
            if frame.confirm is not None:  # also where nobody waits any more: it would be sent again
                # First of all: once the caller has its answer, the program may end.
                self.send_control(frame.confirm, Control(frame.call_id, "confirm"), message.content_type)
            self.router.route(frame, time.monotonic())
        elif (handler := self.server_calls.get(frame.call_id)) is not None:
            handler.on_control(frame)
        else:
            LOG.debug("a control frame (%s) for call %s, which is not running here", frame.kind, frame.call_id)

    def _on_unreadable(self, message: Message, error: SerializationError) -> None:
        """End the call to which a frame that cannot be read belongs: nothing better will come."""
        ids = call_ids_in(message.body)
        calls = [pending for pending in self.router.waiting() if pending.id in ids]
        if len(calls) != 1:  # Of several, all but one would be mentioned in what another's server answered.
            LOG.warning("a message to the inbox that is not ours was dropped: %s", error)
            return
        pending = calls[0]
        text = f"{pending.describe}: the server has begun it, and what it sent {error}"
        LOG.warning("%s", text)
        pending.send_error = SerializationError(text)
        pending.wake()
        if pending.server_inbox is not None:
            self.send_control(pending.server_inbox, Control(pending.id, "cancel"), message.content_type)

    def __repr__(self) -> str:
        return f"<Transport {self.url}>"


def server_named_by(address: Address) -> Address | None:
    """The server that a topic with a dot may stand for: ``host1`` of ``conductor`` for ``conductor.host1``."""
    if address.kind != "topic":
        return None
    topic, _, server = address.topic.partition(".")
    return Address("server", address.exchange, topic, server) if topic and server else None


def _take_over(sent: Future[Sent], outcome: Future[Sent], first: MessageUndeliverable | None = None) -> None:
    """Give one future the outcome of another; `first` is why an earlier try came to nothing."""
    error = sent.exception()
    if error is None:
        outcome.set_result(sent.result())
    elif first is not None and isinstance(error, MessageUndeliverable):
        outcome.set_exception(MessageUndeliverable(f"{first}; nor does a server have that name: {error}"))
    else:
        outcome.set_exception(error)


class _WeakInbox:
    """Hands what comes to the inbox to a transport, for as long as that is there."""

    __slots__ = ("_transport",)

    def __init__(self, transport: Transport) -> None:
        self._transport = weakref.ref(transport)

    def __call__(self, delivery: Delivery) -> None:
        transport = self._transport()
        if transport is not None:
            transport._on_delivery(delivery)


class _Repeat:
    """A message that is sent until its outcome is known. Closures would do, but make garbage for the collector."""

    __slots__ = (
        "_address",
        "_deadline",
        "_first_at",
        "_first_unknown",
        "_last",
        "_mandatory",
        "_message",
        "_on_outcome",
        "_retry_until",
        "_send",
        "_transport",
        "_tries_until",
        "_wanted",
    )

    def __init__(
        self,
        transport: Transport,
        send: Callable[..., Future[Sent]],
        deadline: float,
        address: Address,
        message: Message,
        mandatory: bool,
        on_outcome: Callable[[BaseException | None], None],
        retry_until: float | None,
        wanted: Callable[[], bool] | None,
    ) -> None:
        self._transport = transport
        self._send = send
        self._deadline = deadline
        self._address = address
        self._message = message
        self._mandatory = mandatory
        self._on_outcome = on_outcome
        self._retry_until = retry_until
        self._wanted = wanted
        patience = message.patience
        self._tries_until = deadline if patience is None else min(deadline, time.monotonic() + patience)
        self._first_unknown: BaseException | None = None
        self._first_at = 0.0
        self._last: BaseException | None = None

    def on_sent(self, sent: Future[Sent]) -> None:
        """A try has ended."""
        self._last = error = sent.exception()
        if error is None:
            self._on_outcome(None)
            return
        now = time.monotonic()
        if self._first_unknown is None and getattr(error, "maybe_delivered", False):
            self._first_unknown, self._first_at = error, now
        left = self._worth_until(error) - now
        if left < 2 * RETRY_DELAY_MIN or self._transport.closed:
            self._on_outcome(self._explain(error))
            return
        LOG.debug("sending %s again: %s", self._message.id, error)
        self._wait(min(RETRY_DELAY, left / 2), error)

    def _wait(self, delay: float, error: BaseException) -> None:
        self._transport._repeats[self] = None
        try:
            self._transport.loop.call_later(delay, self._send_again)
        except TransportUnavailable:  # There can be no thread any more: the interpreter is ending.
            self.give_up(self._explain(error))
        if self._transport.closed:  # Looked at last: what closes it from now on finds this try.
            self.give_up(self._explain(error))

    def _worth_until(self, error: BaseException) -> float:
        """Until when there may be another try after this error."""
        if isinstance(error, MessageUndeliverable) and self._retry_until is not None:
            return self._retry_until
        may_pass = isinstance(error, MessageUndeliverable | TransportUnavailable | TransportBlocked)
        # A full queue has room again some time. (What is blocked for all has waited for that in the driver already.)
        if isinstance(error, TransportBlocked) or (may_pass and self._first_unknown is not None):
            return self._tries_until
        if isinstance(error, MessageUndeliverable):
            return min(self._tries_until, self._transport.listeners_return_until())
        return 0.0

    def _explain(self, last: BaseException) -> BaseException:
        """What is known at the end: the last error alone, or what the first unknown outcome was and what came since."""
        first = self._first_unknown
        if first is None or first is last or not isinstance(last, MessageDeliveryFailure):
            return last
        seconds = time.monotonic() - self._first_at
        error = TransportUnavailable(
            f"it may have been delivered, and may have run, {seconds:.1f} s ago: {first}. It has been sent again "
            f"since, and has not been taken: {last}",
            maybe_delivered=True,
        )
        error.__cause__ = last
        return error

    def _send_again(self) -> None:
        # None while it still waits. Taking it out is a single step: the loop and `give_up` never both act.
        if self._transport._repeats.pop(self, self) is not None:
            return  # It was given up.
        if self._wanted is not None and not self._wanted():
            assert self._last is not None
            self._on_outcome(self._explain(self._last))
            return
        message = self._message
        now = time.monotonic()
        ttl = None if message.ttl is None else max(self._deadline - now, 0.001)
        wait = max(self._tries_until - now, 0.001)
        again = Message(message.body, message.content_type, message.id, ttl, message.durable, wait)
        self._send(self._address, again, mandatory=self._mandatory).add_done_callback(self.on_sent)

    def give_up(self, error: BaseException) -> None:
        """There will be no further try."""
        if self._transport._repeats.pop(self, self) is None:
            self._on_outcome(error)


def check_transport(transport: object, whose: str) -> None:
    """See that a client or server is given a transport.

    Raises:
        TypeError: it is something else. That is not shown: it may be a URL with a password.
    """
    if not hasattr(transport, "driver"):
        raise TypeError(
            f"the first argument of a {whose} is a Transport, not {type(transport).__name__}: "
            "transport = get_rpc_transport(conf, url)"
        )


def wait_for(future: Future[object] | Future[None], deadline: float, what: str, driver: Driver) -> None:
    """Wait for a driver's future.

    Raises:
        TransportUnavailable: `deadline` (seconds of `time.monotonic`) came first; `what` begins the text.
        MessagingException: what the future failed with.
    """
    try:
        future.result(max(0.0, deadline - time.monotonic()))
    except MessagingTimeout:
        raise
    except TimeoutError:
        raise TransportUnavailable(f"{what} {driver.state}: gave up at the deadline") from None
