"""One address that is consumed from, over one connection to Redis that does nothing but read."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from msgbus.drivers.base import Message
from msgbus.drivers.toolkit.consuming import Feed, Outcome, Source
from msgbus.foreign import get_logger
from msgbus_redis import connection, scripts
from msgbus_redis.connection import LOST, Link
from msgbus_redis.errors import reason
from msgbus_redis.names import GROUP, queue_of

if TYPE_CHECKING:
    from msgbus_redis.session import RedisSession

LOG = get_logger(__name__)

CHUNK: Final = 16  # messages that are read at once, so that idle consumers share what there is
BLOCK: Final = 5.0  # seconds that Redis waits for a message before it says that there is none
PATIENCE: Final = 15.0  # seconds after that in which it has to say so
UNBLOCK: Final = 0.05  # seconds until a reader that does not stop is asked again
BEAT: Final = 2.0  # seconds between two signs of life of a consumer
LEASE: Final = 9.0  # seconds without one, after which a consumer's open messages go to others
OWN: Final = 65.0  # likewise, after which inboxes and the queues of fanouts are removed
RETRY: Final = 1.0  # seconds until Redis is told again what became of a message, if it could not note it

_numbers = itertools.count(1)


class RedisFeed(Feed):
    """What both kinds of feeds do: `QueueFeed` and `InboxFeed`."""

    def __init__(self, session: RedisSession, source: Source) -> None:
        self._session = session
        self._source = source
        self._keys = queue_of(source.address, source.unique)
        # Each connection has a name of its own: what Redis still hands to the last one is nobody's then, and is found.
        self._consumer = f"{source.unique}.{next(_numbers)}"
        self._own = round(OWN * 1000) if source.address.kind in ("fanout", "inbox") else 0
        self._alive = True
        self._stopping = False
        self._wake = asyncio.Event()  # there is room, or it stops
        self._stopped = asyncio.Event()  # it reads no more
        self._link: Link | None = None
        self._client = 0  # by which Redis knows that connection

    def start(self) -> None:
        self._task = self._session.spawn(self._run())

    async def _run(self) -> None:
        try:
            if await self._begin():
                await self._read_on()
        finally:
            self._stopped.set()
            if self._link is not None:
                await self._session.close_reader(self._link)

    async def _begin(self) -> bool:
        words = (self._consumer, f"{self._source.unique}.", round(LEASE * 1000), self._own)
        try:
            self._link, self._client = await self._session.open_reader()
            answer = await self._session.call(scripts.START, self._keys, *words)
        except LOST as exc:
            if self._end():
                why = f"{self._session.name} does not let {self._source.address} be consumed from: {reason(exc)}"
                self._source.refused(self, why, permanent=False)
            return False
        if self._alive:
            self._source.active(self)
            self._on_started(*answer)
        return True

    def _on_started(self, last: bytes, open_: list[Any]) -> None:
        raise NotImplementedError

    def _room(self) -> int:
        raise NotImplementedError

    def _words(self, count: int) -> tuple[str | bytes | int, ...]:
        """The command that reads."""
        raise NotImplementedError

    def _on_entries(self, entries: list[Any]) -> None:
        raise NotImplementedError

    async def _read_on(self) -> None:
        assert self._link is not None
        while not self._stopping:
            room = self._room()
            if room <= 0:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                answer = await connection.ask(self._link, BLOCK + PATIENCE, *self._words(min(room, CHUNK)))
            except ResponseError as exc:
                self._lose(f"{self._session.name} delivers no more: {exc}")
                return
            except LOST as exc:
                self._session.lose(exc)
                return
            for _stream, entries in answer or ():
                self._on_entries(entries)

    def _message_of(self, fields: list[bytes]) -> tuple[Message, int] | None:
        """A message and how often it was delivered before; None where it has expired, or is none."""
        try:
            names = dict(zip(fields[::2], fields[1::2], strict=True))
            expires, count = int(names[b"x"]), int(names[b"n"])
            ttl = self._session.seconds_until(expires) if expires else None
            message = Message(names[b"b"], names[b"t"].decode(), names[b"i"].decode(), ttl)
        except (LookupError, ValueError):
            LOG.warning("what somebody put into %s is no message of msgbus, and is dropped", self._keys.stream)
            return None
        return None if ttl is not None and ttl <= 0 else (message, count)

    def beat(self) -> None:
        """Say to Redis that this consumer is still there."""
        if self._alive:
            words = (self._consumer, round(LEASE * 1000), self._own)
            self._session.ask(self._on_beat, scripts.BEAT, self._keys, *words)

    def _on_beat(self, answer: Any) -> None:
        if answer == 0 or (isinstance(answer, ResponseError) and str(answer).startswith("NOGROUP")):
            self._task.cancel()
            self._lose(f"somebody has removed {self._keys.stream} from {self._session.name}")

    def _lose(self, why: str) -> None:
        """Redis does not deliver to this address any more."""
        if self._end():
            self._source.lost(self, why)

    def _end(self) -> bool:
        """From now on this feed says nothing. False: so it was already."""
        was_alive, self._alive = self._alive, False
        self._session.forget(self)
        return was_alive

    def cancel(self) -> None:
        self._session.spawn(self._cancel())

    async def _cancel(self) -> None:
        await self._stop()
        self._source.cancelled(self)

    async def _stop(self) -> None:
        """Have Redis end the read that waits, and take what it has delivered until then."""
        self._stopping = True
        self._wake.set()
        while not self._stopped.is_set():
            if self._client:
                self._session.unblock(self._client)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), UNBLOCK)

    def close(self) -> None:
        self._session.loop.call(self._leave)  # after what other threads have settled

    def _leave(self) -> None:
        self.end()
        if self._session.alive:
            self._session.spawn(self._close())

    async def _close(self) -> None:
        await self._stop()
        with contextlib.suppress(ResponseError):  # What is left is taken back when the lease ends.
            await self._session.call(scripts.LEAVE, self._keys, f"{self._source.unique}.", self._own)
        self._source.closed(self)

    def end(self) -> None:
        self._end()


class QueueFeed(RedisFeed):
    """The queue of a topic, server, pool, fanout or of dead letters: shared by the consumers of a group."""

    def __init__(self, session: RedisSession, source: Source) -> None:
        super().__init__(session, source)
        self._open: dict[bytes, bool] = {}

    def _on_started(self, last: bytes, open_: list[Any]) -> None:
        for id_, fields, count in open_:
            self._deliver(id_, fields, count)

    def _room(self) -> int:
        return self._source.prefetch - len(self._open)

    def _words(self, count: int) -> tuple[str | bytes | int, ...]:
        which = ("GROUP", GROUP, self._consumer, "COUNT", count, "BLOCK", round(BLOCK * 1000))
        return ("XREADGROUP", *which, "STREAMS", self._keys.stream, ">")

    def _on_entries(self, entries: list[Any]) -> None:
        for id_, fields in entries:
            self._deliver(id_, fields, 0)

    def _deliver(self, id_: bytes, fields: list[bytes], count: int) -> None:
        if not self._alive:
            return  # `LEAVE` gives it back.
        found = self._message_of(fields)
        if found is None:
            self._session.settle(scripts.REMOVE, self._keys, id_)
            return
        message, attempts = found[0], found[1] + count
        self._open[id_] = True
        self._source.deliver(self, id_, message, redelivered=attempts > 0, attempts=attempts)

    def settle(self, tag: bytes, outcome: Outcome) -> bool:
        if not self._alive:
            return False
        if self._open.pop(tag, None) is None:  # One step: of two threads, one gets on.
            return self._alive
        return self._session.loop.call(self._settle, tag, outcome)

    def _settle(self, id_: bytes, outcome: Outcome) -> None:
        self._wake.set()
        if outcome is Outcome.REQUEUE:
            self._session.settle(scripts.GIVE_BACK, self._keys, self._consumer, id_)
        else:
            self._session.settle(scripts.REMOVE, self._keys, id_)


class InboxFeed(RedisFeed):
    """An inbox. It has one reader, who knows how far it has read: over a reconnect nothing is lost or comes twice."""

    def _on_started(self, last: bytes, open_: list[Any]) -> None:
        # Where the stream is younger than what was read (it had expired, or another Redis is the master), begin there.
        self._source.notes = min(self._source.notes or b"0-0", last, key=_order_of)

    def _room(self) -> int:
        return CHUNK

    def _words(self, count: int) -> tuple[str | bytes | int, ...]:
        return (
            "XREAD", "COUNT", count, "BLOCK", round(BLOCK * 1000), "STREAMS", self._keys.stream, self._source.notes
        )  # fmt: skip

    def _on_entries(self, entries: list[Any]) -> None:
        for id_, fields in entries:
            if not self._alive:
                return
            self._source.notes = id_
            found = self._message_of(fields)
            if found is not None:
                self._source.deliver(self, None, found[0])
            self._session.settle(scripts.REMOVE, self._keys, id_)

    def settle(self, tag: None, outcome: Outcome) -> bool:
        return self._alive


def _order_of(id_: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in id_.split(b"-"))


def feed_for(session: RedisSession, source: Source) -> RedisFeed:
    """The feed of a source."""
    return InboxFeed(session, source) if source.address.kind == "inbox" else QueueFeed(session, source)
