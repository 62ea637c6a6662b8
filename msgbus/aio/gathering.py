"""AsyncGathering: the iterator that `AsyncRPCClient.gather` returns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from msgbus.aio.transport import AsyncTransport
from msgbus.aio.waiting import Waiter
from msgbus.answers import Answer
from msgbus.base_transport import INSPECT_TIMEOUT
from msgbus.drivers.toolkit.loop import Loop
from msgbus.gathering import Gather


class AsyncGathering(AsyncIterator[Answer]):
    """Iterates over the answers of many servers, as they arrive. For one task; also an asynchronous context manager.

    The iteration ends when all servers that the message system knows have answered, or at the deadline. It also ends
    when it is closed, when its task is cancelled while it waits, or when it is dropped (within half a second). At its
    end, what servers still run for it is cancelled, and its place in the send window is free again.
    """

    def __init__(
        self, transport: AsyncTransport, gather: Gather, kwargs: dict[str, Any], *, takes_place: bool = True
    ) -> None:
        """Nothing is sent before the iteration begins. Without `takes_place` it does not count in the send window."""
        self._transport = transport
        self._gather = gather
        self._kwargs = kwargs
        self._takes_place = takes_place
        self._waiter = Waiter(transport.deadlines)
        self._begun = False
        self._closed = False
        self._waits = False  # a task waits for the beginning, or for an answer

    async def _begin(self) -> None:
        transport, gather = self._transport, self._gather
        transport.check_loop()
        self._begun = True
        if not gather.begin():
            self._closed = True
            return
        self._waits = True
        try:
            if self._takes_place:
                gather.slot.enter_context(await transport.slot(gather.deadline, *gather.asked))
            inbox = await transport.inbox(gather.deadline, gather.questions[0].pending)
            if not self._closed:  # Another task may have closed it.
                gather.send(inbox, self._kwargs, self._waiter.wake)
        except BaseException:
            self._close()
            raise
        finally:
            self._waits = False
            if self._closed:
                gather.slot.close()

    def __aiter__(self) -> AsyncGathering:
        return self

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._begun else "not begun"
        return f"<AsyncGathering, {self.answered} of {self.expected} answered, {state}>"

    @property
    def answered(self) -> int:
        """How many servers have answered so far; see `msgbus.Gathering.answered`."""
        return self._gather.answered

    @property
    def expected(self) -> int | None:
        """How many servers there are by what the message system knows; see `msgbus.Gathering.expected`."""
        return self._gather.expected

    async def __anext__(self) -> Answer:
        """Wait for the next answer.

        What `msgbus.RPCClient.gather` and `msgbus.Gathering.__next__` raise is raised here.

        Raises:
            StopAsyncIteration: all have answered, the deadline has passed, or it was closed.
            RuntimeError: another task waits for the next answer.
        """
        if self._waits:
            raise RuntimeError(f"{self!r} is for one task, and another task already waits for its next answer")
        if not self._begun and not self._closed:
            await self._begin()
        self._waits = True
        try:
            answer = await self._next()
        except BaseException:
            self._close()
            raise
        finally:
            self._waits = False
        if answer is None:
            raise StopAsyncIteration
        return answer

    async def _next(self) -> Answer | None:
        gather = self._gather
        while not self._closed:
            answer = gather.next_answer()
            if answer is not None:
                return answer
            if not gather.is_over():
                await self._waiter.wait(gather.next_check())
            elif not gather.has_more:
                await self._end()
        return None

    async def _end(self) -> None:
        end = Loop.now() + INSPECT_TIMEOUT
        for counted in self._gather.uncounted():
            await self._transport.wait_for(counted, end)
        self._close()
        error = self._gather.error()
        if error is not None:
            try:
                raise error.with_traceback(None)  # Others may get the same error, without our frames.
            finally:
                del error  # Its traceback refers to this frame.

    def _close(self) -> None:
        self._closed = True
        self._gather.close()
        self._waiter.wake()  # Another task may wait for an answer.

    async def aclose(self) -> None:
        """Cancel what servers still run for it, and drop the answers that have not been taken. Idempotent."""
        self._close()

    async def __aenter__(self) -> AsyncGathering:
        if not self._begun and not self._closed:
            await self._begin()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._close()

    def __del__(self) -> None:
        # The garbage collector may come at any moment: so this only leaves a note; the loop does the rest.
        if hasattr(self, "_gather"):
            self._gather.dropped = True
