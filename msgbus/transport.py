"""get_rpc_transport, and Transport: a driver, this process's inbox, and the calls that wait for replies."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from msgbus.closing import open_drivers
from msgbus.drivers.base import (
    Address,
    Capability,
    Driver,
    Message,
    QueueInfo,
    Sent,
)
from msgbus.drivers.registry import load_driver_class
from msgbus.drivers.toolkit.futures import LightFuture
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import (
    CallCancelled,
    ConfigurationError,
    MessageUndeliverable,
    MessagingException,
    MessagingTimeout,
    TransportUnavailable,
)
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child
from msgbus.inbox import ControlHandler, ProcessInbox
from msgbus.message import LOST_AFTER
from msgbus.patched import check_unpatched
from msgbus.replies import REPEAT_AFTER, Pending, ReplyRouter
from msgbus.sending import OnOutcome, Sending, ignore, or_else, server_named_by
from msgbus.target import Target
from msgbus.url import TransportURL
from msgbus.window import SendWindow

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = get_logger(__name__)

CONNECTION_CHECK = 0.5
"""Seconds between two checks whether the connection has come back, while at_least_once requests are unanswered."""
INSPECT_TIMEOUT = 0.5
"""Seconds that may be spent after a timeout on finding out more for its text."""


def get_rpc_transport(
    conf: cfg.ConfigOpts, url: str | TransportURL | None = None, allowed_remote_exmods: Sequence[str] | None = None
) -> Transport:
    """Make a transport. Nothing is connected yet.

    A warning is logged for each unregistered name in a configuration file that looks like a misspelt option of msgbus,
    for options of oslo.messaging, and for options in a wrong group.

    Args:
        conf: options are registered on it, and read from it.
        url: a transport URL; None means ``transport_url`` of the configuration, else the driver that ``rpc_backend``
            names.
        allowed_remote_exmods: modules whose exceptions may be rebuilt in this process when a server raised them.

    Raises:
        InvalidTransportURL: the URL cannot be read.
        DriverLoadFailure: the driver is unknown or cannot be loaded.
        ConfigurationError: an option of the driver has a wrong name, or an option of the driver or of the core a wrong
            value; or no URL is given and `conf` has not been called; or gevent or eventlet has replaced this process's
            threads or sockets.
        TypeError: `conf` is not a configuration, or `allowed_remote_exmods` not a list.
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
    warn_of_unread(conf, *cls.options(), by_default=url is None and not configuration.has_message_system(conf))
    return Transport(conf, parsed, driver, loop, allowed_remote_exmods)


class Transport:
    """The connection to one message system. Shared by all clients and servers of a process; thread-safe.

    A transport that is not referenced any more is closed in the background; but a server keeps its transport
    referenced, and goes on until it is stopped. Transports that are open when the program ends are closed then, within
    a few seconds. A forked child that inherits a transport connects anew when it uses it; calls and streams of its
    parent raise `CallCancelled` there.

    Attributes:
        conf: the configuration.
        url: what it was made from.
        driver: sends and receives the messages.
        router: the calls that wait for replies.
        loop: runs timers, and the driver's I/O.
        server_calls: the calls that this process's servers run, by call id.
        window: bounds the unfinished requests.
        retries: the messages that wait to be sent again.
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
        self._options: dict[str, tuple[Any, Any]] = {}  # by name: the value in `conf`, and the checked one
        self.lossy: bool = self.option("rpc_json_lossy")
        self.window = SendWindow(self.option("rpc_send_window"))
        self._start_clean()
        call_in_child(self._forked)

    def _forked(self) -> None:
        """In a forked child: drop what belongs to the parent."""
        self._finalizer.detach()
        router = self.router
        self._start_clean()
        router.abandon(CallCancelled(f"the process forked: the call over {self.url} belongs to the parent"))

    def _start_clean(self) -> None:
        """Make everything new but the driver. Also in a forked child, where the parent's threads do not exist."""
        self.router = ReplyRouter()
        self.server_calls: dict[str, ControlHandler] = {}
        self.window.start_clean()
        self.retries: dict[Sending, None] = {}
        self._inbox = ProcessInbox(self, self.driver, self.router, self.server_calls)
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

    def inbox(self, deadline: float) -> str:
        """The name of this process's inbox, which is opened on the first call.

        Raises:
            TransportUnavailable: it could not be opened by `deadline` (seconds of `Loop.now`).
            CallCancelled: the transport is closed.
            SerializationError: the driver has given it a name that is too long to travel.
            ConfigurationError: as for `send`.
        """
        name = self._inbox.name
        if name is not None:
            return name
        if self.closed:
            raise CallCancelled(f"the transport to {self.url} is closed")
        return self._inbox.open(deadline)

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
        if until is not None:
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

    def send_and_wait(
        self,
        address: Address,
        message: Message,
        deadline: float,
        *,
        what: str,
        mandatory: bool,
        repeat: bool,
        fallback: Address | None = None,
        retry_undeliverable: float | None = None,
    ) -> None:
        """Send a message, and return when the message system has taken it.

        Arguments that are not described here are those of `send`. The driver itself knows best why a message was not
        sent by the deadline (seconds of `Loop.now`), and gets a moment to say so. With `repeat` it is sent again, until
        the deadline. The text of a timeout begins with `what` and the address.

        Raises:
            TransportUnavailable: its outcome is not known: it may have been delivered.
            MessagingException: why it was not taken.
        """
        repeated: Future[BaseException | None] | None = LightFuture() if repeat else None
        drives = self.loop.take_turn()
        try:
            sent = self.send(
                address,
                message,
                mandatory=mandatory,
                fallback=fallback,
                until=deadline if repeat else None,
                retry_undeliverable=retry_undeliverable,
                on_outcome=ignore if repeated is None else repeated.set_result,
            )
            outcome: Future[Any] = sent if repeated is None else repeated
            known = self.loop.wait_for(outcome, max(deadline, Loop.now()) + INSPECT_TIMEOUT)
        finally:
            if drives:
                self.loop.give_turn()
        if not known:
            raise self.unconfirmed(what, address)
        error = sent.exception() if repeated is None else repeated.result()
        if error is not None:
            raise error

    def unconfirmed(self, what: str, address: Address) -> TransportUnavailable:
        """The error for a message whose outcome the driver did not report in time."""
        return TransportUnavailable(
            f"{what} {address}: {self.driver.state} did not confirm it by the deadline; it may or may not have "
            "been delivered",
            maybe_delivered=True,
        )

    def slot(self, deadline: float) -> SendWindow:
        """Take a place in the send window: ``with transport.slot(deadline):`` gives it back.

        Raises:
            MessagingTimeout: there is no time left at all, or no place became free by `deadline` (seconds of
                `Loop.now`).
        """
        left = deadline - Loop.now()
        if left <= 0:
            raise MessagingTimeout(
                "nothing was sent: the deadline has already passed (this call's own, or the one inherited from the "
                "request being handled)"
            )
        if not self.window.acquire(left):
            raise MessagingTimeout(
                f"{self.window.size} requests of this process (option rpc_send_window) were still unfinished at the "
                "deadline; nothing was sent"
            )
        return self.window

    def inspect(self, address: Address, timeout: float) -> QueueInfo | None:
        """What is known of an address, or None if there is no answer within `timeout` seconds."""
        if Capability.INSPECT not in self.driver.capabilities:
            return None
        try:
            found = self.driver.inspect(address)
            self.loop.wait_for(found, Loop.now() + timeout)
            return found.result(0)
        except MessageUndeliverable:
            server = server_named_by(address)
            return QueueInfo(0, 0) if server is None else self.inspect(server, timeout)
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
        for sending in list(self.retries):  # The loop would have sent them again.
            sending.give_up(error)

    def __repr__(self) -> str:
        return f"<Transport {self.url}>"


def check_transport(transport: object, whose: str) -> None:
    """Check that a client or server is given a transport.

    Raises:
        TypeError: it is something else. Its value is not shown: it may be a URL with a password.
    """
    if not hasattr(transport, "driver"):
        raise TypeError(
            f"the first argument of a {whose} is a Transport, not {type(transport).__name__}: "
            "transport = get_rpc_transport(conf, url)"
        )
