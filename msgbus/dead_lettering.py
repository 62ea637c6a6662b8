"""Sends requests that a server gives up as dead letters. `msgbus.dead_letters` lets operators handle them later."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msgbus import forking
from msgbus.awaitables import refuse_async, refuse_awaitable
from msgbus.base_transport import BaseTransport
from msgbus.closing import end_child
from msgbus.drivers.base import Address, Capability, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import encode_dead_letter
from msgbus.foreign import get_logger, printable, printable_lines
from msgbus.message import JSON, DeadLetter
from msgbus.server_call import ServerCall

LOG = get_logger(__name__)

OnDeadLetter = Callable[[DeadLetter], None]


class DeadLetterSender:
    """Sends dead letters to the server's hook, and to the topic's address for them. Thread-safe."""

    def __init__(self, transport: BaseTransport, hook: OnDeadLetter | None, grace: float) -> None:
        """`grace`: seconds that sending one may take; it has at least one.

        Raises:
            TypeError: `hook` is ``async``.
        """
        refuse_async("on_dead_letter", hook)
        self._transport = transport
        self._hook = hook
        self._seconds = max(grace, 1.0)

    def send(
        self, call: ServerCall, reason: str, attempts: int, traceback: Sequence[str], on_end: Callable[[], None]
    ) -> None:
        """Send a dead letter, then call `on_end`: the request must not be run again, whether or not it was stored."""
        delivery, message = call.delivery, call.delivery.message
        letter = DeadLetter(
            printable(reason),
            printable(str(delivery.address)),
            call.server,
            attempts,
            time.time(),
            printable_lines("".join(traceback)).splitlines(keepends=True),
            printable(message.content_type),
            message.body,
            delivery.address.kind,
        )
        if self._hook is not None:
            try:
                refuse_awaitable("the hook returned", self._hook(letter))
            except BaseException:  # sys.exit() too: the request has to be settled
                LOG.exception("the hook for dead letters raised")
            if call.owner.forks != forking.forks:  # In a forked child: the parent stores it.
                end_child(None)
        if Capability.STORAGE not in self._transport.driver.capabilities:
            on_end()
            return

        def on_outcome(error: BaseException | None) -> None:
            if error is not None:
                LOG.error("the dead letter of %s could not be stored, and is only in this log: %s", message.id, error)
            on_end()

        end = Loop.now() + self._seconds
        address = Address("dead", delivery.address.exchange, delivery.address.topic)
        try:
            stored = Message(encode_dead_letter(letter), JSON, message.id, None, durable=True)
            self._transport.send(address, stored, mandatory=False, until=end, on_outcome=on_outcome)
        except Exception as exc:
            on_outcome(exc)
