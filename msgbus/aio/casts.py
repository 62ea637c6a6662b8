"""AsyncCasts: many casts on their way at once, for `AsyncRPCClient.cast_many`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any

from msgbus.aio.transport import AsyncTransport
from msgbus.aio.waiting import Waiter
from msgbus.base_transport import INSPECT_TIMEOUT
from msgbus.casts import BaseCasts, CastRequest, Write, checked_request
from msgbus.drivers.base import Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import MessagingException

AT_ONCE = 100
"""Casts that are sent in one turn of the event loop: a few milliseconds."""

Intercept = Callable[[str, dict[str, Any], float], Awaitable[Message | None]]
"""As `msgbus.casts.Write`, by way of interceptors."""


class AsyncCasts(BaseCasts):
    """Casts for whose outcome a task waits."""

    _transport: AsyncTransport

    async def run(
        self,
        requests: Iterable[CastRequest] | AsyncIterable[CastRequest],
        write: Write,
        intercept: Intercept | None = None,
    ) -> int:
        """Send all requests, and return how many there were once all are confirmed; see `Casts.run`.

        `intercept`, if given, takes the place of `write`.
        """
        self._intercept = intercept
        self._waiter = Waiter(self._transport.deadlines)
        async with aclosing(_iterate(requests)) as iterator:
            await self._send_all(iterator, write)
        await self._wait(0)
        return self._result()

    async def _send_all(self, iterator: AsyncIterator[CastRequest], write: Write) -> None:
        """Send all, or all until one has failed."""
        while True:
            if len(self._in_flight) >= self._most:
                await self._wait(self._most // 2)
            if self._failed:
                break
            try:
                request = await anext(iterator)
            except StopAsyncIteration:
                break
            except Exception as exc:
                await self._wait(0)
                self._add_note(exc)
                raise
            if self._failed:  # It may have taken long to get that request.
                break
            deadline = self._next_deadline()
            try:
                checked = checked_request(request)
                await self._transport.slot(deadline, checked[0], self._address)
            except (MessagingException, TypeError) as exc:
                self._refuse(exc)
            else:
                if self._intercept is None:
                    self._send(checked, write, deadline)
                else:
                    await self._send_intercepted(checked, self._intercept, deadline)
            if self._begun % AT_ONCE == 0:
                await asyncio.sleep(0)  # Other tasks come in between, even if every cast is confirmed at once.

    async def _send_intercepted(self, request: CastRequest, intercept: Intercept, deadline: float) -> None:
        """Run the interceptors of a request that has a place in the window, and send what they proceed with."""
        try:
            message = await intercept(*request, deadline)
        except BaseException as exc:
            self._transport.window.release()
            if not isinstance(exc, Exception):
                raise
            self._refuse(exc)
            return
        self._send(request, lambda *_: message, deadline)

    def _wake(self) -> None:
        self._waiter.wake()

    async def _wait(self, most: int) -> None:
        """Wait until at most so many are in flight."""
        until = self._deadline + INSPECT_TIMEOUT
        self._awaited = most
        while len(self._in_flight) > most and Loop.now() < until:
            await self._waiter.wait(until)
        self._awaited = -1
        if len(self._in_flight) > most:
            self._give_up()


async def _iterate(requests: Iterable[CastRequest] | AsyncIterable[CastRequest]) -> AsyncGenerator[CastRequest, None]:
    if isinstance(requests, AsyncGenerator):
        async with aclosing(requests):  # Nobody else would before the garbage collector does.
            async for request in requests:
                yield request
    elif isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
