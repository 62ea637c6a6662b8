"""Connections of redis-py, with nothing that redis-py would do by itself: no retry, no reconnect, no health check.

`redis.asyncio`'s `Connection` connects again when something is sent after an error, unless one looks before: here each
is used until its first error only.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from msgbus.drivers.toolkit.aio import DriverEventLoop
from msgbus_redis import scripts
from msgbus_redis.scripts import Script

Link: TypeAlias = Connection | SSLConnection
OnAnswer: TypeAlias = Callable[[Any], None]
"""Gets what Redis answers, which may be a `ResponseError`."""

CONNECT_TIMEOUT: Final = 5.0
"""Seconds for each step of connecting."""

LOST: Final = (RedisError, OSError, EOFError, TimeoutError)
"""What redis-py and asyncio raise when a connection breaks or Redis refuses something."""


def eval_words(script: Script, keys: tuple[str, ...], *args: str | bytes | int) -> tuple[str | bytes | int, ...]:
    """The command that runs a script."""
    return ("EVALSHA", script.hash, len(keys), *keys, *args)


async def connect(link: Link) -> None:
    """Open a connection, and log in.

    Raises:
        RedisError, OSError, TimeoutError: that failed.
    """
    await link.connect()  # type: ignore[no-untyped-call]


async def ask(link: Link, seconds: float, *words: str | bytes | int) -> Any:
    """Send a command over a connection that nobody else uses, and wait for the answer.

    Args:
        link: the connection.
        seconds: in which the answer has to come.
        words: of the command.

    Raises:
        ResponseError: Redis refuses it.
        RedisError, OSError, TimeoutError: the connection is of no use any more.
    """
    if not link.is_connected:
        raise RedisConnectionError("the connection was closed")
    async with asyncio.timeout(seconds):
        await link.send_packed_command(link.pack_command(*words), check_health=False)
        return await link.read_response(disable_decoding=True)


async def load_scripts(link: Link) -> None:
    """Have Redis know the scripts."""
    for script in scripts.ALL:
        await ask(link, CONNECT_TIMEOUT, "SCRIPT", "LOAD", script.text)


async def close(*links: Link) -> None:
    """Close connections, without waiting for anything."""
    for link in links:
        await link.disconnect(nowait=True)


def abandon(link: Link) -> None:
    """In a forked child: let go of the parent's socket, without a word on it.

    asyncio's transport keeps the descriptor, and closes it when it is collected: so that becomes one of nothing.
    redis-py shows its socket nowhere.
    """
    writer = link._writer
    if writer is not None:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, writer.get_extra_info("socket").fileno())
        os.close(nothing)


class Pipe:
    """Many commands on their way over one connection, which are answered in their order. On the loop's thread."""

    def __init__(
        self,
        loop: DriverEventLoop,
        link: Link,
        on_lost: Callable[[BaseException], None],
        on_written: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._link = link
        self._on_lost = on_lost
        self._on_written = on_written
        self._asked: deque[OnAnswer] = deque()
        self._out: list[bytes] = []
        self._more = asyncio.Event()
        self._written = asyncio.Event()
        self.size = 0  # bytes that asyncio has not taken yet

    def start(self) -> None:
        """Begin to read and write."""
        self._loop.spawn(self._guard(self._write()))
        self._loop.spawn(self._guard(self._read()))

    def ask(self, on_answer: OnAnswer, *words: str | bytes | int) -> None:
        """Send a command soon; `on_answer` gets the answer, unless the connection is lost."""
        packed = self._link.pack_command(*words)
        self._asked.append(on_answer)
        self._out += packed
        self.size += sum(map(len, packed))
        self._more.set()

    async def call(self, *words: str | bytes | int) -> Any:
        """Send a command, and wait for the answer.

        Raises:
            ResponseError: Redis refuses it.
        """
        answered: asyncio.Future[Any] = self._loop.create_future()

        def on_answer(answer: Any) -> None:
            if not answered.done():
                answered.set_result(answer)

        self.ask(on_answer, *words)
        answer = await answered
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    async def drain(self) -> None:
        """Wait until all is written."""
        while self.size and self._link.is_connected:
            self._written.clear()
            await self._written.wait()

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            self._on_lost(RedisConnectionError("the program has cancelled what reads and writes"))
            raise
        except Exception as exc:
            self._on_lost(exc)

    async def _write(self) -> None:
        while await self._more.wait():
            self._more.clear()
            out, self._out = self._out, []
            if not self._link.is_connected:
                return  # `_read` has said so.
            await self._link.send_packed_command(out, check_health=False)
            self.size -= sum(map(len, out))
            self._written.set()
            self._on_written()

    async def _read(self) -> None:
        while True:
            try:
                answer = await self._link.read_response(disable_decoding=True)
            except ResponseError as exc:
                answer = exc
            self._asked.popleft()(answer)
