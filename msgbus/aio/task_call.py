"""TaskCall: a call for whose outcome a task waits."""

from __future__ import annotations

from msgbus.aio.transport import AsyncTransport
from msgbus.aio.waiting import Waiter
from msgbus.base_transport import INSPECT_TIMEOUT
from msgbus.client_call import ClientCall
from msgbus.drivers.base import Address
from msgbus.exceptions import MessagingTimeout
from msgbus.pending import Pending


class TaskCall(ClientCall):
    """A call for whose outcome one task waits."""

    __slots__ = ("_ended", "_waiter")

    transport: AsyncTransport

    def __init__(
        self, transport: AsyncTransport, pending: Pending, content_type: str, fallback: Address | None
    ) -> None:
        ClientCall.__init__(self, transport, pending, content_type, fallback)
        self._ended = False
        self._waiter = Waiter(transport.deadlines)
        pending.wake = self._waiter.wake

    async def wait(self, *, explain: bool = True) -> None:
        """Wait until `pending` is ready, or until `end_wait`; see `ThreadCall.wait`."""
        pending = self.pending
        while not pending.ready:
            await self._waiter.wait(pending.next_check())
            if self._ended:
                return
            if not pending.ready:
                error = self.check()
                if explain and type(error) is MessagingTimeout:
                    asks = not pending.servers
                    found = await self.transport.inspect(pending.address, INSPECT_TIMEOUT) if asks else None
                    error = self.explain_timeout(found)
                if error is not None:
                    try:
                        raise error.with_traceback(None)  # Others may get the same error, without our frames.
                    finally:
                        del error  # Its traceback refers to this frame.

    def end_wait(self) -> None:
        """Have `wait` return, now and from now on: nobody wants the outcome any more."""
        self._ended = True
        self._waiter.wake()
