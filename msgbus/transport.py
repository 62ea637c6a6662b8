"""get_rpc_transport, and Transport: the connection to a message system, for threads that wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from msgbus.base_transport import INSPECT_TIMEOUT, BaseTransport, make_driver, send_error
from msgbus.closing import open_drivers
from msgbus.drivers.base import Address, Capability, Message, QueueInfo
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import CallCancelled, MessageUndeliverable, MessagingException
from msgbus.sending import server_named_by
from msgbus.window import SendWindow

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.url import TransportURL


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
    parsed, driver, loop = make_driver(conf, url, allowed_remote_exmods, Loop)
    return Transport(conf, parsed, driver, loop, allowed_remote_exmods)


def set_transport_defaults(control_exchange: str) -> None:
    """Set the default of the option ``control_exchange`` in this process, as services do that share a message system.

    To be called before the first transport is made. What a configuration says wins.

    Args:
        control_exchange: the exchange of targets that name none.
    """
    from oslo_config import cfg

    from msgbus.configuration import CORE_OPTS

    cfg.set_defaults(CORE_OPTS, control_exchange=control_exchange)


class Transport(BaseTransport):
    """The connection to one message system. Shared by all clients and servers of a process; thread-safe.

    A transport that is no longer referenced is closed in the background. But a server keeps a reference to its
    transport, and goes on until it is stopped. Open transports are closed at the end of the program, within a few
    seconds. A forked child that inherits a transport opens new connections when it uses it; calls and streams of its
    parent raise `CallCancelled` there.
    """

    def wait_for(self, future: Future[Any], until: float) -> bool:
        """Wait until a future of the driver is done, or `until` (seconds of `Loop.now`). Returns whether it is."""
        return self.loop.wait_for(future, until)

    def inbox(self, deadline: float, whose: object = "a request") -> str:
        """The name of this process's inbox, which is opened on the first call.

        Args:
            deadline: seconds of `Loop.now`.
            whose: who needs it, for the text of an error.

        Raises:
            TransportUnavailable: it could not be opened by `deadline`.
            CallCancelled: the transport is closed.
            SerializationError: the driver has given it a name that is too long to travel.
            ConfigurationError: as for `send`.
        """
        return self._inbox.name or self._open_inbox(deadline, whose)

    def _open_inbox(self, deadline: float, whose: object) -> str:
        if self.closed:
            raise CallCancelled(f"{whose}: the transport to {self.url} is closed")
        try:
            return self._inbox.open(self, deadline)
        except MessagingException as exc:
            raise self.inbox_failure(whose, exc) from exc.__cause__

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
        the deadline. The text of an error begins with `what` and the address.

        Raises:
            OutcomeUnknown: it may have been delivered, and is not sent again.
            MessagingException: why it was not taken.
        """
        drives = self.loop.take_turn()
        try:
            outcome = self.begin_send(
                address,
                message,
                deadline,
                mandatory=mandatory,
                repeat=repeat,
                fallback=fallback,
                retry_undeliverable=retry_undeliverable,
            )
            known = self.wait_for(outcome, max(deadline, Loop.now()) + INSPECT_TIMEOUT)
        finally:
            if drives:
                self.loop.give_turn()
        error = send_error(outcome) if known else self.unconfirmed()
        if error is not None:
            # Others may get the same error: their frames have no place in it.
            raise self.send_failure(f"{what} {address}", error, repeated=repeat).with_traceback(None)

    def slot(self, deadline: float, method: str, address: Address) -> SendWindow:
        """Take a place in the send window for a request: ``with transport.slot(...):`` gives it back.

        Raises:
            MessagingTimeout: there is no time left at all, or no place became free by `deadline` (seconds of
                `Loop.now`).
        """
        left = deadline - Loop.now()
        if left <= 0:
            raise self.no_time(method, address)
        if not self.window.acquire(left):
            raise self.window_full(method, address)
        return self.window

    def inspect(self, address: Address, timeout: float) -> QueueInfo | None:
        """What is known of an address, or None if there is no answer within `timeout` seconds."""
        if Capability.INSPECT not in self.driver.capabilities:
            return None
        try:
            found = self.driver.inspect(address)
            self.wait_for(found, Loop.now() + timeout)
            return found.result(0)
        except MessageUndeliverable:
            server = server_named_by(address)
            return QueueInfo(0, 0) if server is None else self.inspect(server, timeout)
        except (MessagingException, TimeoutError):
            return None

    def cleanup(self) -> None:
        """Close everything. Callers that still wait get `CallCancelled`. Idempotent."""
        self._begin_close()
        self.window.close()
        try:
            self.driver.close()
        finally:
            open_drivers.discard(self.driver)
        self.loop.close()
        self._end_close()


def check_transport(transport: object, whose: str) -> None:
    """Check that a client or server is given a transport.

    Raises:
        TypeError: it is something else. Its value is not shown: it may be a URL with a password.
    """
    if not hasattr(transport, "driver") or hasattr(transport, "aclose"):  # That is one of msgbus.aio.
        raise TypeError(
            f"the first argument of a {whose} is a Transport, not {type(transport).__name__}: "
            "transport = get_rpc_transport(conf, url)"
        )
