"""One session with Redis: a connection for all commands, and one for each address that is consumed from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from msgbus.drivers.base import Address, QueueInfo, Sent
from msgbus.drivers.toolkit.consuming import Feed, Source
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.drivers.toolkit.loop import FOREVER
from msgbus.drivers.toolkit.sending import Offer, Outgoing
from msgbus.drivers.toolkit.session import Line, Session
from msgbus.exceptions import MessageUndeliverable, TransportBlocked, TransportUnavailable
from msgbus.foreign import get_logger
from msgbus_redis import connection, scripts
from msgbus_redis.connection import CONNECT_TIMEOUT, Link, Pipe, eval_words
from msgbus_redis.errors import refusal
from msgbus_redis.feed import BEAT, OWN, RETRY, RedisFeed, feed_for
from msgbus_redis.names import Keys, queue_of, target_of
from msgbus_redis.scripts import Script

if TYPE_CHECKING:
    from msgbus_redis.driver import Dialled, RedisDriver

LOG = get_logger(__name__)

SILENCE: Final = 15.0  # seconds without an answer, after which the connection is given up
MUCH: Final = 1 << 20  # bytes that may wait for the socket before no message is added
TTL_MAX: Final = 10 * 365 * 86400.0  # seconds; what lives longer has no limit
INSPECT_TIMEOUT: Final = 1.0
PROMPT: Final = 0.5  # seconds in which an answer has to come whose time is believed
GOODBYE: Final = 1.0  # seconds for the last words to be written


class RedisSession(Session):
    """One session."""

    def __init__(self, driver: RedisDriver, line: Line, dialled: Dialled) -> None:
        self.loop = driver.loop
        self._driver = driver
        self._line = line
        self._dialled = dialled
        self._pipe = Pipe(dialled.loop, dialled.link, self.lose, self._on_written)
        self._readers: set[Link] = set()
        self._feeds: set[RedisFeed] = set()
        self.alive = True
        self._full = False
        self._heard = self.loop.now()
        self._clock = dialled.clock  # Redis's, in seconds, when that of the loop is 0

    @property
    def name(self) -> str:
        """The broker."""
        return self._driver.name()

    def start(self) -> None:
        self._dialled.loop.attach()
        self._pipe.start()
        self._tick()
        self._line.serve(self._dialled.peer)
        if self.alive:
            self._line.sendable()

    def _tick(self) -> None:
        if not self.alive:
            return
        if self.loop.now() - self._heard > SILENCE:
            self.lose(TimeoutError(f"it was silent for {SILENCE:g} s"))
            return
        for feed in list(self._feeds):
            feed.beat()
        self._pipe.ask(partial(self._on_time, self.loop.now()), "TIME")
        self.loop.call_later(BEAT, self._tick)

    def _on_time(self, asked: float, answer: Any) -> None:
        self._heard = self.loop.now()
        if not isinstance(answer, ResponseError) and self._heard - asked < PROMPT:
            self._clock = int(answer[0]) + int(answer[1]) / 1e6 - self._heard

    def seconds_until(self, milliseconds: int) -> float:
        """How long it is until a time of Redis's clock."""
        return milliseconds / 1000 - self._clock - self.loop.now()

    # Sending

    def publish(self, outgoing: Outgoing) -> Offer:
        if self._pipe.size > MUCH:
            self._full = True
            return Offer.FULL
        address, message = outgoing.address, outgoing.message
        left = outgoing.expires - self.loop.now()
        ttl = "" if outgoing.expires == FOREVER or left > TTL_MAX else max(1, round(left * 1000))
        makes = int(address.kind in ("stored", "dead"))
        args = (makes, self._driver.max_queue_length, ttl, message.id, message.content_type, message.body)
        self._pipe.ask(partial(self._on_sent, outgoing), *eval_words(scripts.SEND, target_of(address), *args))
        return Offer.SENT

    def _on_sent(self, outgoing: Outgoing, answer: Any) -> None:
        if isinstance(answer, ResponseError):
            error, may_be_offered = refusal(answer, self.name)
            (outgoing.hold if may_be_offered else outgoing.failed)(error)
            self._see_to(answer)
        elif answer[0] < 0:
            most = self._driver.max_queue_length
            why = f"{outgoing.address} on {self.name} is full: {most} messages (max_queue_length) are in {answer[1]!r}"
            outgoing.hold(TransportBlocked(why))
        elif answer[0] == 0 and outgoing.mandatory:
            outgoing.undeliverable(f"nobody listens at {outgoing.address} on {self.name}")
        else:
            outgoing.confirmed(Sent(answer[0]))

    def _see_to(self, error: ResponseError) -> None:
        """Connect anew where that mends what Redis refuses: the scripts are gone, or it is a replica now."""
        if isinstance(error, NoScriptError | ReadOnlyError) and self.alive:
            self._line.lose(error, move=isinstance(error, ReadOnlyError))

    def _on_written(self) -> None:
        if self._full and self.alive and self._pipe.size <= MUCH:
            self._full = False
            self._line.sendable()

    def inspect(self, address: Address, found: Any) -> None:
        def on_look(answer: Any) -> None:
            if isinstance(answer, ResponseError):
                fail(found, TransportUnavailable(f"{self.name} cannot look at {address}: {answer}"))
            elif not answer:
                fail(found, MessageUndeliverable(f"there is no {address} on {self.name}"))
            else:
                finish(found, QueueInfo(*answer))

        keys = queue_of(address)
        self._pipe.ask(on_look, *eval_words(scripts.INSPECT, (keys.stream, keys.lease)))
        late = TransportUnavailable(f"{self.name} did not answer within {INSPECT_TIMEOUT:g} s")
        self.loop.call_later(INSPECT_TIMEOUT, fail, found, late)

    # Consuming

    def consume(self, source: Source) -> Feed:
        feed = feed_for(self, source)
        self._feeds.add(feed)
        return feed

    def forget(self, feed: RedisFeed) -> None:
        """It has ended."""
        self._feeds.discard(feed)

    def remove(self, source: Source, removed: Callable[[], None]) -> None:
        own = round(OWN * 1000) if source.address.kind in ("fanout", "inbox") else 0
        keys = queue_of(source.address, source.unique)
        self.ask(lambda _answer: removed(), scripts.LEAVE, keys, f"{source.unique}.", own)

    async def open_reader(self) -> tuple[Link, int]:
        """Open one more connection; return it with the number by which Redis knows it."""
        link = self._driver.link_to(self._dialled.host)
        self._readers.add(link)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connection.connect(link)
            return link, await connection.ask(link, CONNECT_TIMEOUT, "CLIENT", "ID")
        except BaseException:
            await self.close_reader(link)
            raise

    async def close_reader(self, link: Link) -> None:
        """Close one of those connections."""
        self._readers.discard(link)
        await connection.close(link)

    def unblock(self, client: int) -> None:
        """Have Redis end a read that waits for messages, on a connection of that number."""
        self._pipe.ask(lambda _answer: None, "CLIENT", "UNBLOCK", client)

    def spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run a coroutine, until the session ends."""
        return self._dialled.loop.spawn(work)

    def ask(self, on_answer: Callable[[Any], None], script: Script, keys: Keys, *args: str | bytes | int) -> None:
        """Run a script on a queue; `on_answer` gets what it returns, or a `ResponseError`."""
        self._pipe.ask(on_answer, *eval_words(script, keys, *args))

    async def call(self, script: Script, keys: Keys, *args: str | bytes | int) -> Any:
        """Run a script on a queue, and wait for what it returns."""
        return await self._pipe.call(*eval_words(script, keys, *args))

    def settle(self, script: Script, keys: Keys, *args: str | bytes | int) -> None:
        """Say what became of a message, again and again until Redis has noted it or the session ends."""

        def on_answer(answer: Any) -> None:
            if isinstance(answer, ResponseError) and not str(answer).startswith("NOGROUP"):
                LOG.debug("%s does not note what became of a message, and is told again: %s", self.name, answer)
                self._see_to(answer)
                self.loop.call_later(RETRY, again)

        def again() -> None:
            if self.alive:
                self.ask(on_answer, script, keys, *args)

        again()

    # The connection

    def lose(self, reason: BaseException) -> None:
        """The session is of no use any more."""
        if self.alive:
            self._line.lose(reason)

    def let_go(self) -> None:
        self.alive = False
        self._dialled.loop.end(self._say_goodbye(), GOODBYE)

    async def _say_goodbye(self) -> None:
        await self._pipe.drain()
        await connection.close(self._dialled.link, *self._readers)

    def abandon(self) -> None:
        for link in (self._dialled.link, *self._readers):
            connection.abandon(link)
