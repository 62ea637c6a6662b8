"""BaseTransport: a driver, this process's inbox, and the calls that wait for replies. Nothing here waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from msgbus.closing import open_drivers
from msgbus.drivers.base import (
    Address,
    Capability,
    Driver,
    Message,
    Sent,
)
from msgbus.drivers.registry import load_driver_class
from msgbus.drivers.toolkit.futures import LightFuture
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import (
    CallCancelled,
    ConfigurationError,
    MessagingException,
    MessagingTimeout,
    OutcomeUnknown,
    TransportUnavailable,
)
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child
from msgbus.inbox import ControlHandler, ProcessInbox
from msgbus.message import CONTENT_TYPES, LOST_AFTER, Control
from msgbus.patched import check_unpatched
from msgbus.pending import REPEAT_AFTER, Pending
from msgbus.replies import ReplyRouter
from msgbus.sending import OnOutcome, Sending, ignore, or_else, send_control
from msgbus.target import Target
from msgbus.url import TransportURL
from msgbus.window import SendWindow

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = get_logger(__name__)

LoopType = TypeVar("LoopType", bound=Loop)
Error = TypeVar("Error", bound=BaseException)

CONNECTION_CHECK = 0.5
"""Seconds between two checks whether the connection has come back, while at_least_once requests are unanswered."""
INSPECT_TIMEOUT = 0.5
"""Seconds that may be spent after a timeout on finding out more for its text."""


def make_driver(
    conf: cfg.ConfigOpts,
    url: str | TransportURL | None,
    allowed_remote_exmods: Sequence[str] | None,
    make_loop: Callable[[str], LoopType],
) -> tuple[TransportURL, Driver, LoopType]:
    """Make a driver, and the loop for it; the arguments and errors are those of `msgbus.get_rpc_transport`."""
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
    driver, loop = open_driver(conf, parsed, make_loop)
    warn_of_misspelt(conf, driver.options()[0])
    by_default = url is None and not configuration.has_message_system(conf)
    warn_of_unread(conf, *driver.options(), by_default=by_default, read=driver.reads_of_others)
    return parsed, driver, loop


def open_driver(
    conf: cfg.ConfigOpts, url: TransportURL, make_loop: Callable[[str], LoopType]
) -> tuple[Driver, LoopType]:
    """Make the driver that a URL names, and the loop for it.

    Args:
        conf: the driver's own options are registered on it, and read from it.
        url: names the driver and where its message system is.
        make_loop: makes the loop, of a name.

    Raises:
        DriverLoadFailure, InvalidTransportURL, ConfigurationError: as for `msgbus.get_rpc_transport`.
    """
    cls = load_driver_class(url.transport)
    loop = make_loop(f"msgbus-{url.transport}")
    return cls(conf, url, loop), loop


class BaseTransport:
    """What the transports for threads and for asyncio have in common: all that does not wait.

    Attributes:
        conf: the configuration.
        url: what it was made from.
        driver: sends and receives the messages.
        router: the calls that wait for replies.
        loop: runs timers, and the driver's I/O.
        server_calls: the calls that this process's servers run, by call id.
        further_calls: those of an id that another server of this process runs too, by call id and the server's name.
        window: bounds the unfinished requests.
        retries: the messages that wait to be sent again.
        lossy: the option ``rpc_json_lossy``.
        closed: it is closed, or is being closed.
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
        self._options: dict[str, tuple[Any, Any]] = {}  # by name: the value in `conf`, and the checked one
        self.lossy: bool = self.option("rpc_json_lossy")
        self.window = self._make_window(self.option("rpc_send_window"))
        self._start_clean()
        call_in_child(self._forked)

    def _make_window(self, size: int) -> SendWindow:
        return SendWindow(size)

    def _forked(self) -> None:
        """In a forked child: drop what belongs to the parent."""
        self._finalizer.detach()
        router = self.router
        self._start_clean()
        router.abandon(f"the process forked, and a call over {self.url} belongs to the parent")

    def _start_clean(self) -> None:
        """Make everything new but the driver. Also in a forked child, where the parent's threads do not exist."""
        self.router = ReplyRouter()
        self.server_calls: dict[str, ControlHandler] = {}
        self.window.start_clean()
        self.retries: dict[Sending, None] = {}
        self.further_calls: dict[tuple[str, str], ControlHandler] = {}
        self._inbox = ProcessInbox(self, self.driver, self.router, self.server_calls, self.further_calls)
        self._first_up: float | None = None  # since when the first connection was up
        self._watching = False
        self._watch_lock = threading.Lock()
        self._used = False
        if not self.closed:
            self._finalizer = open_drivers.add(self, self.driver, self.loop.close)

    def option(self, name: str) -> Any:
        """The current value of one of the core's options.

        Raises:
            ConfigurationError: it is invalid; see `msgbus.configuration.read_option`.
        """
        try:
            value = self.conf[name]
        except Exception:  # `read_option` explains it.
            value = None
        known = self._options.get(name)
        if known is None or value is None or known[0] is not value:
            from msgbus.configuration import read_option  # It imports oslo.config, which is slow.

            known = self._options[name] = (value, read_option(self.conf, name))
        return known[1]

    def address(self, target: Target) -> Address:
        """Where a request for `target` goes. The caller has checked that the target has a topic."""
        exchange, topic = target.exchange or self.option("control_exchange"), target.topic or ""
        if target.fanout:
            return Address("fanout", exchange, topic)
        if target.server:
            return Address("server", exchange, topic, target.server)
        return Address("topic", exchange, topic)

    @property
    def inbox_name(self) -> str:
        """The name of this process's inbox, which is open: servers open it before they take requests.

        Raises:
            TransportUnavailable: it is not open.
        """
        name = self._inbox.name
        if name is None:
            raise TransportUnavailable(f"the inbox of the transport to {self.url} is not open")
        return name

    def watch_connection(self) -> None:
        """Have the waiting calls checked after each reconnect, for as long as there are any.

        What they wait for may have been lost with the connection; see `Pending.needs_repeat`.
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
        """Check repeatedly; `known` is since when the connection was up at the last check."""
        up_since = self.driver.up_since
        if up_since is not None and up_since != known:
            self.loop.call_later(self.repeat_after, self.router.wake_all)
        with self._watch_lock:
            # Checked under the lock: a call that is added after this starts a new watch.
            self._watching = len(self.router) > 0
        if self._watching:
            self.loop.call_later(CONNECTION_CHECK, lambda: self._check_connection(up_since))

    def _note_first_connection(self) -> float | None:
        if self._first_up is None:
            self._first_up = self.driver.up_since
        return self._first_up

    def listeners_return_until(self) -> float:
        """Until when an undeliverable message may only mean that its receivers have not reconnected yet.

        After a restart of the message system all peers reconnect, some later than this side. It is 0 on the first
        connection, and while there is no connection.
        """
        first, up_since = self._note_first_connection(), self.driver.up_since
        if up_since is None or up_since == first:
            return 0.0
        return up_since + float(self.option("rpc_reply_grace"))

    def send(
        self,
        address: Address,
        message: Message,
        *,
        mandatory: bool,
        fallback: Address | None = None,
        until: float | None = None,
        retry_undeliverable: float | None = None,
        pending: Pending | None = None,
        on_outcome: OnOutcome = ignore,
    ) -> Future[Sent]:
        """Send a message, once, or (with `until`) again after an unknown outcome or a refusal that may pass.

        Once the outcome of a try is unknown, a later error says nothing about that try: the message may be
        undeliverable now because it crashed its server. So it is sent again until `until`; then the outcome is
        `TransportUnavailable` with ``maybe_delivered=True``, and its text gives the first and the last error.

        Args:
            address: where to.
            message: what to send. If its `publish_within` ends before `until`, there is no try after that.
            mandatory: as for `Driver.send`.
            fallback: another address, for each try that finds nobody at the first.
            until: seconds of `Loop.now`; None for a single try; then the arguments below have no effect.
            retry_undeliverable: seconds of `Loop.now`. Until then an undeliverable message is sent again, even if no
                try had an unknown outcome (a client that reconnects comes back soon); after it no more, even if one
                had. None: it is sent again for `rpc_reply_grace` after this side has reconnected.
            pending: the call whose request it is: once the call has ended there is no further try.
            on_outcome: called once, with None or why it could not be sent, on any thread; it must not block.

        Returns:
            a future for the first try.

        Raises:
            ConfigurationError: gevent or eventlet has replaced this process's threads or sockets meanwhile.
        """
        if not self._used:
            check_unpatched()
            self._used = True
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("sending %s to %s (%d bytes)", message.id, address, len(message.body))
        if until is not None and self._first_up is None:
            self._note_first_connection()
        sent = self.driver.send(address, message, mandatory=mandatory)
        if fallback is not None:
            sent = or_else(sent, lambda: self.send(fallback, message, mandatory=mandatory))
        if until is not None:
            sending = Sending(
                self, address, message, mandatory, fallback, until, retry_undeliverable, pending, on_outcome
            )
            sent.add_done_callback(sending.on_sent)
        return sent

    def begin_send(
        self,
        address: Address,
        message: Message,
        deadline: float,
        *,
        mandatory: bool,
        repeat: bool,
        fallback: Address | None = None,
        retry_undeliverable: float | None = None,
    ) -> Future[Any]:
        """Send a message; with `repeat`, again, until the deadline.

        Arguments that are not described here are those of `send`.

        Returns:
            a future, which is done when the message system has taken the message or it will not be sent any more: see
            `send_error`.
        """
        repeated: Future[BaseException | None] | None = LightFuture() if repeat else None
        sent = self.send(
            address,
            message,
            mandatory=mandatory,
            fallback=fallback,
            until=deadline if repeat else None,
            retry_undeliverable=retry_undeliverable,
            on_outcome=ignore if repeated is None else repeated.set_result,
        )
        return sent if repeated is None else repeated

    def unconfirmed(self) -> TransportUnavailable:
        """The error for a message whose outcome the driver did not report in time."""
        return TransportUnavailable(
            f"{self.driver.state} did not confirm it by the deadline, and may or may not have taken it",
            maybe_delivered=True,
        )

    def about(self, subject: object, error: Error) -> Error:
        """An error of the driver, with what it is about, and this transport, before its text.

        A driver does not know for which method it sends a message.

        Args:
            subject: for example the method and the address of a request.
            error: it is not changed, since others may get the same one.

        Returns:
            a copy. The error itself, if it is not a `MessagingException`, or its class writes its own text.
        """
        cls = type(error)
        if not isinstance(error, MessagingException) or cls.__str__ is not BaseException.__str__:
            return error
        named = cls.__new__(cls, f"{subject} over {self.url}: {error}")
        named.__dict__.update(error.__dict__)
        named.__cause__ = error.__cause__
        return named

    def send_failure(self, subject: str, error: Error, *, repeated: bool) -> Error | OutcomeUnknown:
        """The error for who sent a message that was not taken, or may not have been.

        Args:
            subject: what was sent, and where to.
            error: the driver's.
            repeated: after an unknown outcome it was sent again. Otherwise the outcome remains unknown.
        """
        if isinstance(error, TransportUnavailable) and error.maybe_delivered and not repeated:
            unknown = OutcomeUnknown(f"{subject} over {self.url}: it may or may not have been delivered: {error}")
            unknown.__cause__ = error
            return unknown
        return self.about(subject, error)

    def inbox_failure(self, whose: object, error: Error) -> Error:
        """The error for who needs this process's inbox, which could not be opened because of `error`."""
        return self.about(f"{whose}: cannot open the inbox of this process", error)

    def no_time(self, method: str, address: Address) -> MessagingTimeout:
        """The error for a request whose deadline is over before it asks for a place in the send window."""
        return MessagingTimeout(
            f"{method!r} on {address} over {self.url}: nothing was sent: the deadline has already passed (this call's "
            "own, or the one inherited from the request being handled)"
        )

    def window_full(self, method: str, address: Address) -> MessagingTimeout:
        """The error for a request that got no place in the send window by its deadline."""
        return MessagingTimeout(
            f"{method!r} on {address} over {self.url}: {self.window.size} requests of this process (option "
            "rpc_send_window) were still unfinished at the deadline; nothing was sent"
        )

    def _cancel_running(self) -> None:
        """Cancel the calls of this side that servers have said to run: nobody will take the answers."""
        content_type = CONTENT_TYPES[self.option("rpc_codec")]
        for pending in self.router.waiting():
            for inbox in list(pending.servers):
                try:
                    send_control(self, inbox, Control(pending.id, "cancel"), content_type)
                except MessagingException as exc:
                    LOG.debug("%s could not be cancelled at inbox %s: %s", pending.describe, inbox, exc)

    @property
    def closed_reason(self) -> str:
        """What the errors of whoever waits say when the transport is closed."""
        return f"the transport to {self.url} was closed"

    def _begin_close(self) -> None:
        """Fail all that waits. Closing the driver and the loop has to follow, and then `_end_close`."""
        self.closed = True
        self._finalizer.detach()
        self.router.fail_all(self.closed_reason)

    def _end_close(self) -> None:
        for sending in list(self.retries):  # The loop would have sent them again.
            sending.give_up(CallCancelled(f"to {sending.address}: {self.closed_reason}"))

    def __repr__(self) -> str:
        return f"<Transport {self.url}>"


def send_error(outcome: Future[Any]) -> BaseException | None:
    """Why a message was not sent, or None: how the future of `BaseTransport.begin_send` has ended."""
    error = outcome.exception()
    if error is not None:
        return error
    result = outcome.result()
    return result if isinstance(result, BaseException) else None
