"""The channel of one connection on which messages are published, with confirms, any number in flight."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from msgbus.drivers.base import Address
from msgbus.drivers.kombu import frames, questions
from msgbus.drivers.kombu.channel import Channel, Wire
from msgbus.drivers.kombu.compression import compress
from msgbus.drivers.kombu.questions import Answer, Question, explain, is_temporary
from msgbus.drivers.kombu.refusals import RENEW_AFTER, Refusals
from msgbus.drivers.kombu.topology import Route
from msgbus.drivers.toolkit.sending import Offer, OnDeclared, Outgoing, Sender
from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

MAX_TTL = 4_000_000.0
"""Seconds; RabbitMQ closes the channel over an expiration above 2**32 ms. A message with a longer ttl is sent without
one."""
MAX_PREFIXES = 10_000
"""How many prepared basic.publish frames are kept: one for each client that is answered, and each topic."""
STALL_TIMEOUT = 5.0
"""Seconds for which RabbitMQ may confirm nothing, or not answer a declaration, before the next host is tried. They
begin when nothing keeps it from answering: a large message on a slow network takes longer until it is confirmed."""
CLASSIC_TIMEOUT = 90.0
"""The same for the declaration of a classic queue. If only that queue's node is down, RabbitMQ 4 takes a minute to say
so, and the other hosts cannot reach it either."""
RENEW_WAIT = 2.0
"""Seconds for which nothing is published, at most, until nothing is in flight and the channel can be reopened."""
RENEW_PAUSE = 30.0
"""Seconds until that is tried again, if something was still in flight then."""
MOVE_PAUSE = 30.0
"""Seconds after one change of the host until another may follow for a declaration. Perhaps no host can make it, and
each change leaves the outcome of other messages unknown."""


class _Declaration(NamedTuple):
    """What RabbitMQ is to declare: since when, how long that may take once it is asked, and who waits for it."""

    question: Question
    since: float
    timeout: float
    waiting: list[OnDeclared]


class Publisher(Channel):
    """See the module's text. `publish` may be called on any thread, all other methods on the loop's."""

    def __init__(self, session: Wire, route: Callable[[Address], Route], sender: Sender, compression: str = "") -> None:
        """Make it; `open` opens the channel.

        Args:
            session: the connection.
            route: where a message to an address is published.
            sender: has what is to be sent.
            compression: how bodies are compressed; empty: not at all.
        """
        self._session = session
        self._routes = route
        self._sender = sender
        self._compression = compression
        self._refusals = Refusals(session, route, self._renew)
        self._declaring: dict[str, _Declaration] = {}
        self._changed_at = self._progress = session.loop.now()  # Opening or closing the channel was asked for.
        self._renewing_since = 0.0
        self._renew_from = 0.0  # Not before that.
        self._start_clean()

    def _start_clean(self) -> None:
        self._is_open = self._renewing = False
        self._next_tag = 1
        self._lowest = 1
        self._in_flight: dict[int, Outgoing] = {}
        self._returned: dict[str, str] = {}
        self._prefixes: dict[tuple[Address, bool], bytes] = {}
        self._declared: set[str] = set()

    def open(self) -> None:
        """Open the channel, and turn on confirms."""
        self._start_clean()
        self._changed_at = self._session.loop.now()
        self._session.add(self)
        self._session.write(frames.channel_open(self.number) + frames.confirm_select(self.number))

    # Publishing

    def publish(self, outgoing: Outgoing) -> Offer:
        """See `Session.publish`."""
        if self._renewing or not self._is_open:
            return Offer.FULL
        key = (outgoing.address, outgoing.mandatory)
        prefix = self._prefixes.get(key)
        if prefix is None:
            route = self._routes(outgoing.address)
            name = _to_declare(route)
            if name is not None and name not in self._declared:
                return Offer.UNDECLARED
            prefix = frames.publish_prefix(self.number, route.exchange.name, route.key, outgoing.mandatory)
            if name is None or _stays(route):
                if len(self._prefixes) >= MAX_PREFIXES:
                    self._prefixes.clear()
                self._prefixes[key] = prefix
        session, message = self._session, outgoing.message
        now = session.loop.now()
        ttl = outgoing.expires - now
        if not self._in_flight:
            self._progress = now
        compression = self._compression
        data = frames.publish(
            prefix,
            self.number,
            compress(message.body, compression) if compression else message.body,
            message.content_type,
            message.id,
            None if not ttl < MAX_TTL else max(1, int(ttl * 1000)),
            message.durable,
            session.frame_max,
            compression,
        )
        self._in_flight[self._next_tag] = outgoing
        self._next_tag += 1
        session.append(data)
        return Offer.SENT

    def declare(self, address: Address, declared: OnDeclared) -> None:
        """See `Session.declare`. Uses a separate channel, since a refusal closes it."""
        route = self._routes(address)
        name = _to_declare(route)
        if name is None:
            declared()
            return
        if name in self._declaring:
            self._declaring[name].waiting.append(declared)
            return
        ask, last = partial(questions.declare, route=route), questions.last_of_declare(route)
        on_answer = partial(self._on_declared, name, route, address)
        question = Question(self._session, ask, last, on_answer, timeout=None)
        is_classic = route.queue is not None and not route.queue.is_quorum
        timeout = CLASSIC_TIMEOUT if is_classic else STALL_TIMEOUT
        self._declaring[name] = _Declaration(question, self._session.loop.now(), timeout, [declared])
        question.start()

    def _on_declared(self, name: str, route: Route, address: Address, answer: Answer) -> None:
        """It was declared; or RabbitMQ refuses it. Then the messages that need it fail, or wait if that may end."""
        waiting = self._declaring.pop(name).waiting
        if answer.code == questions.DISCONNECTED:
            return
        refusal = None
        if answer.code == 0 or (route.queue is None and questions.differs_in_durability(answer, route.exchange)):
            self._declared.add(name)
        else:
            text = f"{self._session.name()} refuses {address}: {explain(answer.code, answer.text)}"
            refusal = TransportUnavailable(text)
        for declared in waiting:
            declared(refusal, hold=is_temporary(answer.code, answer.text))
        if not _stays(route):
            self._declared.discard(name)  # RabbitMQ may delete it at any moment, with its last user.

    # What RabbitMQ says

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == frames.BASIC_ACK:
            self._on_confirm(frames.read_u64(buffer, at)[0], buffer[at + 8] & 1, taken=True)
        elif ids == frames.BASIC_NACK:
            self._on_confirm(frames.read_u64(buffer, at)[0], buffer[at + 8] & 1, taken=False)
        elif ids == frames.CONFIRM_SELECT_OK:
            self._is_open = True
            self._session.line.sendable()
        elif ids == frames.CHANNEL_CLOSE:
            self._on_closed(*frames.read_close(buffer, at, end))
        elif ids == frames.CHANNEL_CLOSE_OK:
            self._session.remove_channel(self)
            self.open()

    def _on_confirm(self, tag: int, multiple: int, *, taken: bool) -> None:
        pop = self._in_flight.pop
        if not multiple:
            found = pop(tag, None)
            confirmed: Sequence[Outgoing] = () if found is None else (found,)
            if tag == self._lowest:
                self._lowest += 1
        else:
            tags: Any = range(self._lowest, tag + 1)
            if len(tags) > 2 * len(self._in_flight) + 100:  # after many single confirms out of order
                tags = sorted(t for t in list(self._in_flight) if t <= tag)
            confirmed = [found for t in tags if (found := pop(t, None)) is not None]
            self._lowest = max(self._lowest, tag + 1)
        self._progress = self._session.loop.now()
        for outgoing in confirmed:
            if self._returned and (reason := self._returned.pop(outgoing.message.id, None)) is not None:
                self._refusals.on_returned(outgoing, reason)
            elif taken:
                outgoing.confirmed()
            else:
                self._refusals.on_refused(outgoing)
        if self._renewing:
            self._close_when_empty()

    def on_returned(self, message_id: str, why: str) -> None:
        self._returned[message_id] = why  # RabbitMQ returns a message right before it confirms it.

    def _on_closed(self, code: int, text: str) -> None:
        """Only this channel is lost. The outcome of most messages in flight on it is unknown."""
        session = self._session
        reason = f"{session.name()} closed the publishing channel: {explain(code, text)}"
        LOG.error("%s", reason)
        named = re.search(r"exchange '([^']*)'", text)
        self._sender.disconnected()  # From now on nothing is published.
        session.write(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
        session.remove_channel(self)
        lost = [outgoing for outgoing in self._in_flight.values() if not outgoing.sent.done()]
        theirs = [out for out in lost if named and self._routes(out.address).exchange.name == named.group(1)]
        # If a right is missing, no message to that exchange was taken. If the exchange was deleted, the first of them
        # may still have been taken, but not the last.
        untaken = set(theirs) if code == 403 else set(theirs[-1:]) if code == questions.NOT_FOUND else set()
        for outgoing in lost:
            maybe = outgoing not in untaken
            error = TransportUnavailable(f"to {outgoing.address}: {reason}", maybe_delivered=maybe)
            if maybe or code == 403:
                outgoing.failed(error)
            else:
                outgoing.hold(error)
        session.line.sendable(False)
        self.open()

    # A channel that misbehaves

    def _renew(self) -> None:
        """Reopen the channel as soon as nothing is in flight on it.

        If a quorum queue loses its leader, a channel of RabbitMQ 3.10 may go on asking the old leader, and refuse every
        message until that node is back.
        """
        now = self._session.loop.now()
        if not self._is_open or self._renewing or now < self._renew_from or now - self._changed_at < RENEW_AFTER:
            return
        self._renewing = True
        self._renewing_since = now
        self._session.line.sendable(False)
        self._close_when_empty()

    def _close_when_empty(self) -> None:
        if self._renewing and self._is_open and all(out.sent.done() for out in list(self._in_flight.values())):
            self._is_open = False
            self._changed_at = self._session.loop.now()
            LOG.debug("the publishing channel is reopened")
            self._session.write(frames.channel_close(self.number))

    def _keep_channel(self, now: float) -> None:
        """Go on with a channel that cannot be reopened soon: a queue that does not confirm must not stop all others."""
        if self._renewing and self._is_open and now - self._renewing_since >= RENEW_WAIT:
            self._renewing = False
            self._renew_from = now + RENEW_PAUSE
            LOG.debug("the publishing channel is not reopened: some messages have not been confirmed for long")
            self._session.line.sendable()

    def on_tick(self, now: float) -> None:
        """Called each second: leave a RabbitMQ that has stopped answering, though nothing keeps it from that."""
        self._close_when_empty()
        self._keep_channel(now)
        hindered_at = self._session.hindered_at
        since = self._progress if self._in_flight else now
        if not self._is_open:
            since = self._changed_at
        waits = now - max(since, hindered_at)
        if waits >= STALL_TIMEOUT:
            self._session.move(f"{self._session.name()} has confirmed nothing for {waits:.0f} s")
            return
        for name, declaration in self._declaring.items():
            asked_at = declaration.question.asked_at
            # Before that it waits for other questions, which may be about classic queues.
            timeout = CLASSIC_TIMEOUT if asked_at is None else declaration.timeout
            waits = now - max(asked_at or declaration.since, hindered_at)
            if waits >= timeout:
                reason = f"{self._session.name()} has not declared {name} for {waits:.0f} s"
                self._session.move(reason, pause=MOVE_PAUSE)
                return


def _to_declare(route: Route) -> str | None:
    """A name for what the sender has to declare before it publishes, or None."""
    if route.queue is not None:
        return f"queue {route.queue.name}"
    return f"exchange {route.exchange.name}" if route.exchange.name else None


def _stays(route: Route) -> bool:
    """Whether what was declared for a route stays until somebody deletes it."""
    return route.queue is None and not route.exchange.auto_delete
