"""One address of a subscription or inbox over one connection to NATS."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from typing import TYPE_CHECKING, Final

import nats.aio.subscription
import nats.errors
from nats.aio.msg import Msg

from msgbus.drivers.toolkit.consuming import Feed, Outcome, Source
from msgbus.drivers.toolkit.loop import Loop
from msgbus.foreign import get_logger
from msgbus_nats.connection import NOBODY, status_of
from msgbus_nats.errors import is_refusal, reason_of
from msgbus_nats.jetstream import NAK
from msgbus_nats.mark import Mark
from msgbus_nats.names import consumer_of, message_of, roll_call_of, subject_of

if TYPE_CHECKING:
    from msgbus_nats.session import NatsSession

LOG = get_logger(__name__)

PULL_TIMEOUT: Final = 0.5
"""Seconds that one pull request lasts. A subscription that stops waits for the last one, so that nothing which is on
its way to it gets lost, and comes again elsewhere as redelivered."""
PULL_LOST: Final = 2.0
"""Seconds after its end for which a pull request may have had no answer, before another one follows."""
PULL_PAUSE: Final = 0.1
"""Seconds until the next pull request after one that NATS has refused: of one consumer it keeps 512 at a time."""
PULL_CHECK: Final = 1.0
"""Seconds between two checks for that."""
COUNTS_ALL: Final = (2, 10, 14)
"""The version of NATS from which on a shared consumer's pull request may be bounded in bytes. Before, if a message that
is delivered again does not fit into it, another one is delivered twice and counted once (nats-server,
server/consumer.go, loopAndGatherMsgs). A fanout's consumer belongs to one server, which recognizes the second one."""
_WORDS: Final = {Outcome.ACCEPT: b"+ACK", Outcome.DROP: b"+TERM"}
_IN_PROGRESS: Final = b"+WPI"


class NatsFeed(Feed):
    """What both kinds do.

    Attributes:
        starting: done when it consumes, or does not.
    """

    starting: asyncio.Task[None]

    def __init__(self, session: NatsSession, source: Source) -> None:
        self._session = session
        self._source = source
        self._connection = session.connection
        self._alive = True
        self._subscriptions: list[nats.aio.subscription.Subscription] = []

    def start(self) -> None:
        self.starting = self._connection.aio.spawn(self._start())

    async def _start(self) -> None:
        try:
            await self._begin()
            await self._connection.flush()
        except (OSError, nats.errors.Error) as exc:
            await self._refused(exc)
            return
        if self._alive:
            self._source.active(self)
            self._on_active()

    async def _refused(self, exc: BaseException) -> None:
        if self._alive:
            self.end()
            with contextlib.suppress(OSError, nats.errors.Error):
                await self._unsubscribe()
            why = f"{self._session.name} refuses {self._source.address}: {reason_of(exc)}"
            self._source.refused(self, why, permanent=is_refusal(exc))

    async def _begin(self) -> None:
        """Declare, and subscribe."""
        raise NotImplementedError

    def _on_active(self) -> None:
        """It is consumed from."""

    def keep_alive(self) -> None:
        """Called four times in `ack_wait`."""

    def close(self) -> None:
        self.end()
        self._connection.aio.spawn(self._close())

    async def _close(self) -> None:
        await asyncio.wait({self.starting})
        try:
            await self._unsubscribe()
            await self._clean_up()
            await self._connection.flush()
        except (OSError, nats.errors.Error) as exc:
            LOG.debug("%s could not be closed cleanly: %s", self._source.address, exc)
        self._source.closed(self)

    async def _unsubscribe(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.unsubscribe()

    async def _clean_up(self) -> None:
        """Give back what is open, and delete what is this subscription's own."""

    def end(self) -> None:
        self._alive = False
        self._session.remove_feed(self)


class InboxFeed(NatsFeed):
    """A subject of core NATS; whoever gets a message there sends the receipt."""

    async def _begin(self) -> None:
        subject = subject_of(self._source.address)
        self._subscriptions.append(await self._connection.subscribe(subject, self._on_message))

    async def _on_message(self, msg: Msg) -> None:
        if self._alive:
            self._source.deliver(self, None, message_of(msg.data, msg.headers, None), attempts=0)
            if msg.reply:
                self._connection.publish(msg.reply, b"")

    def settle(self, tag: None, outcome: Outcome) -> bool:
        return True

    def cancel(self) -> None:
        self._source.cancelled(self)


class JetStreamFeed(NatsFeed):
    """A consumer of JetStream. `Source.notes` are the reply subjects of what was open on an earlier connection.

    It has one pull request under way at a time, for as much as there is room: so JetStream, which serves waiting
    requests in turn, gives idle subscribers equal shares.
    """

    def __init__(self, session: NatsSession, source: Source) -> None:
        # A fanout's consumer belongs to this subscription alone, and is found again after a reconnect.
        self._is_fanout = source.address.kind == "fanout"
        self._consumer = source.unique if self._is_fanout else consumer_of(source.address)
        self._open: dict[str, float] = {}  # by reply subject: since when
        self._inbox = f"_INBOX.{uuid.uuid4().hex}"
        self._missing = 0  # of the present pull request
        self._next_is_large = False
        self._is_bounded = self._is_fanout or session.connection.server_version >= COUNTS_ALL
        self._request = 0
        self._pulled_at = 0.0
        self._stopping = False
        self._mark: Mark | None = None
        self._arrived: deque[Msg] = deque()  # what waits for the mark, and what came behind it
        super().__init__(session, source)

    async def _begin(self) -> None:
        address = self._source.address
        await self._declare()
        self._subscriptions.append(await self._connection.subscribe(f"{self._inbox}.*", self._on_message))
        if not self._is_fanout:
            self._subscriptions.append(await self._connection.subscribe(roll_call_of(address), self._on_roll_call))
        await self._give_back()

    async def _declare(self) -> None:
        address, jetstream = self._source.address, self._session.jetstream
        await jetstream.declare(address)
        if self._is_fanout:
            await jetstream.add_fanout_consumer(address, self._consumer)
        else:
            # A fanout's consumer needs none: it delivers to one server only, which recognizes what it has had before.
            mark = Mark(self._connection, jetstream, address, self._consumer)
            await mark.begin()
            self._mark = mark

    async def _give_back(self) -> None:
        """Give back what earlier feeds delivered: it cannot be accepted any more, and JetStream would wait for it."""
        replies = self._source.notes or []
        await self._session.jetstream.give_back(self._source.address, self._consumer, replies)
        self._source.notes = None

    def _on_active(self) -> None:
        self._pull()
        self._watch_pull()

    # Pulling

    def _pull(self) -> None:
        room = self._source.prefetch - len(self._open)
        if self._missing or self._stopping or room <= 0 or not self._alive:
            return
        size = self._session.pull_size if self._is_bounded else None
        if self._next_is_large:  # It may be larger than any bound, so it comes alone.
            room, size = 1, None
        self._missing = room
        self._request += 1
        self._pulled_at = Loop.now()
        reply = f"{self._inbox}.{self._request}"
        self._session.jetstream.pull(self._source.address, self._consumer, room, size, PULL_TIMEOUT, reply)

    def _watch_pull(self) -> None:
        """See that the pull request under way was not forgotten: NATS may lose one, and its end."""
        if not self._alive:
            return
        if self._missing and not self._arrived and Loop.now() - self._pulled_at > PULL_TIMEOUT + PULL_LOST:
            self._on_pull_end(self._request)
        self._session.loop.call_later(PULL_CHECK, self._watch_pull)

    async def _on_message(self, msg: Msg) -> None:
        is_message = status_of(msg) is None
        if not self._alive:
            if is_message:
                self._connection.publish(msg.reply, NAK)
            return
        is_covered = self._is_covered(msg)
        if is_message:
            self._open[msg.reply] = Loop.now()
        if is_covered and not self._arrived:
            self._take(msg)
            return
        self._arrived.append(msg)
        if len(self._arrived) == 1:
            self._connection.aio.spawn(self._take_arrived())

    def _is_covered(self, msg: Msg) -> bool:
        """Whether NATS cannot forget any more that it has delivered this."""
        return self._mark is None or status_of(msg) is not None or self._mark.covers(msg.metadata.sequence.stream)

    async def _take_arrived(self) -> None:
        """Take what has arrived, in its order, as soon as it is covered."""
        while self._arrived and self._alive:
            arrived = list(self._arrived)
            numbers = [msg.metadata.sequence.stream for msg in arrived if status_of(msg) is None]
            if self._mark is not None and numbers:
                try:
                    await self._mark.cover(max(numbers))
                except (OSError, nats.errors.Error) as exc:
                    await self._refused(exc)
            for msg in arrived:
                if self._alive:  # Otherwise it is given back.
                    self._take(msg)
                    self._arrived.popleft()

    def _take(self, msg: Msg) -> None:
        status = status_of(msg)
        if status is None:
            self._deliver(msg)
            self._missing -= 1
            if self._missing <= 0:
                self._on_pull_end(self._request)
        elif status != "100":
            request = int(msg.subject.rpartition(".")[2])  # what is no message comes by the subject of the request
            why = str(msg.headers) if status == "409" else ""
            is_deleted, is_full = status == NOBODY or "Deleted" in why, "Size Exceeds MaxBytes" in why
            if why and not (is_deleted or is_full):
                self._session.loop.call_later(PULL_PAUSE, self._on_pull_end, request)
            else:
                self._on_pull_end(request, is_deleted=is_deleted, is_full=is_full)

    def _deliver(self, msg: Msg) -> None:
        metadata = msg.metadata
        before, stored = metadata.num_delivered - 1, metadata.timestamp.timestamp()
        if before == 0 and self._mark is not None and self._mark.doubts(metadata.sequence.stream, stored):
            before = 1
        message = message_of(msg.data, msg.headers, self._session.jetstream.clock.age(stored))
        self._source.deliver(self, msg.reply, message, before > 0, before)

    def _on_pull_end(self, request: int, *, is_deleted: bool = False, is_full: bool = False) -> None:
        if request != self._request:
            return
        self._missing = 0
        self._next_is_large = is_full
        if self._stopping:
            self._source.cancelled(self)
        elif is_deleted:
            self._missing = 1  # until it is declared
            self._connection.aio.spawn(self._declare_again())
        else:
            self._pull()

    async def _declare_again(self) -> None:
        """Somebody has deleted the consumer or the stream."""
        LOG.warning("%s was deleted on %s: it is declared again", self._source.address, self._session.name)
        self._session.jetstream.forget(self._source.address)
        try:
            await self._declare()
        except (OSError, nats.errors.Error) as exc:
            await self._refused(exc)
        else:
            self._on_pull_end(self._request)

    async def _on_roll_call(self, msg: Msg) -> None:
        self._connection.publish(msg.reply, b"")

    def keep_alive(self) -> None:
        """Have JetStream go on waiting for what is open."""
        now = Loop.now()
        for reply, since in list(self._open.items()):
            if since < now - self._session.ack_wait / 4:
                self._connection.publish(reply, _IN_PROGRESS)

    # Settling

    def cancel(self) -> None:
        self._stopping = True
        if not self._missing:
            self._source.cancelled(self)

    def settle(self, tag: str, outcome: Outcome) -> bool:
        if self._open.pop(tag, None) is None:
            return self._alive
        self._session.loop.call(self._settled, tag, outcome)
        return True

    def _settled(self, reply: str, outcome: Outcome) -> None:
        if outcome is Outcome.REQUEUE:
            self._connection.aio.spawn(self._requeue(reply))
        else:
            self._connection.publish(reply, _WORDS[outcome])
            self._pull()

    async def _requeue(self, reply: str) -> None:
        try:
            await self._session.jetstream.give_back(self._source.address, self._consumer, [reply])
        except (OSError, nats.errors.Error) as exc:
            LOG.warning("%s: a message comes again later: %s", self._source.address, reason_of(exc))
        self._pull()

    # The end

    async def _clean_up(self) -> None:
        await self._give_back()
        if self._is_fanout:
            await self._session.jetstream.delete_consumer(self._source.address, self._consumer)

    def end(self) -> None:
        super().end()
        taken = []
        while self._open:
            with contextlib.suppress(KeyError):  # Somebody has settled the last one at this moment.
                taken.append(self._open.popitem()[0])
        self._source.notes = [*(self._source.notes or []), *taken]
