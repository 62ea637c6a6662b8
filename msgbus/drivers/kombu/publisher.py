"""Publishing on RabbitMQ: any number of messages in flight, and what waits until it can go."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.kombu import frames, questions
from msgbus.drivers.kombu.link import STALLED, Channel, Link
from msgbus.drivers.kombu.outgoing import FOREVER, HOLD_MAX, Outgoing
from msgbus.drivers.kombu.questions import Answer, Question, explain
from msgbus.drivers.kombu.refusals import RENEW_AFTER, Refusals
from msgbus.drivers.kombu.topology import Route
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.exceptions import (
    MessageDeliveryFailure,
    MessagingException,
    TransportBlocked,
    TransportUnavailable,
)
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

MAX_TTL = 4_000_000.0
"""Seconds; RabbitMQ closes the channel over an expiration above 2**32 ms. What may live for so long does not expire."""
PREFIXES = 10_000
"""How many prepared beginnings of a publish are kept: as many as there are clients to answer, or topics."""
_EARLY = 0.001
"""Seconds by which a timer may be early."""
_SENT = Sent()


class Publisher(Channel):
    """Publishes with confirms.

    What is handed over while the connection is away, or RabbitMQ takes no messages, waits here until its patience ends;
    and so does what needs an exchange or queue that has to be declared first, and what RabbitMQ is known not to have
    taken: it is published again after a moment.
    """

    def __init__(
        self,
        link: Link,
        routes: Callable[[Address], Route],
        name: Callable[[], str],
        trouble: Callable[[], str | None],
        on_open: Callable[[], None],
    ) -> None:
        """`trouble` says why there is no inbox though the connection lives, where that is known.

        `on_open` is called when the channel has been opened: it is to call `release` when that is right.
        """
        self._on_open = on_open
        self._link = link
        self._routes = routes
        self._name = name
        self._trouble = trouble
        self._lock = threading.Lock()
        self._ready = False  # The channel confirms, and RabbitMQ takes messages.
        self._open = False
        self._closed: MessagingException | None = None
        self._waiting: deque[Outgoing] = deque()
        self._declaring: dict[str, list[Outgoing]] = {}
        self._held: set[Outgoing] = set()  # RabbitMQ did not take them: to be published again in a moment
        # Why it did not take others is being found out.
        self._refusals = Refusals(link, routes, name, self._hold, self._renew)
        self._next_look = FOREVER
        self._opened_at = self._progress = time.monotonic()
        self._start_clean()

    def _start_clean(self) -> None:
        self._renewing = False
        self._next_tag = 1
        self._lowest = 1
        self._in_flight: dict[int, Outgoing] = {}
        self._returned: dict[str, str] = {}
        self._prefixes: dict[tuple[Address, bool], bytes] = {}
        self._declared: set[str] = set()

    # Sending: any thread

    def send(self, address: Address, message: Message, mandatory: bool) -> Future[Sent]:
        """See the contract."""
        sent: Future[Sent] = Future()
        outgoing = Outgoing(address, message, mandatory, sent)
        try:
            with self._lock:
                if self._ready:
                    self._publish(outgoing)
                elif self._closed is not None:
                    raise self._closed
                else:
                    self._routes(address)  # A name that RabbitMQ cannot have is refused now.
                    self._wait(outgoing)
        except Exception as exc:
            sent.set_exception(_ours(exc, outgoing))
            return sent
        self._link.flush()
        return sent

    def _wait(self, outgoing: Outgoing) -> None:
        """The lock is held."""
        self._waiting.append(outgoing)
        self._watch(outgoing)

    def _fail_expired(self, outgoing: Outgoing) -> None:
        patience = outgoing.message.patience
        if self._link.blocked is not None:
            text = f"{self._name()} takes no messages ({self._link.blocked}), and did not for {patience:.3g} s"
            fail(outgoing.sent, TransportBlocked(f"{text}: to {outgoing.address}"))
        else:
            missing = "has not declared the inbox yet" if self._link.up else "is not connected yet"
            cause = self._link.error or self._trouble() or f"{self._name()} {missing}"
            fail(outgoing.sent, TransportUnavailable(f"gave up after {patience:.3g} s: {cause}"))

    def _publish(self, outgoing: Outgoing) -> None:
        """The lock is held; the caller flushes."""
        key = (outgoing.address, outgoing.mandatory)
        prefix = self._prefixes.get(key)
        if prefix is None:
            route = self._routes(outgoing.address)
            name = _to_declare(route)
            if name is not None and name not in self._declared:
                self._declare_first(name, route, outgoing)
                return
            prefix = frames.publish_prefix(self.number, route.exchange.name, route.key, outgoing.mandatory)
            if len(self._prefixes) >= PREFIXES:
                self._prefixes.clear()
            self._prefixes[key] = prefix
        self._write(prefix, outgoing)

    def _write(self, prefix: bytes, outgoing: Outgoing) -> None:
        message = outgoing.message
        now = time.monotonic()
        ttl = outgoing.expires - now
        if not self._in_flight:
            self._progress = now
        if outgoing.gives_up < self._next_look:
            self._watch(outgoing)
        data = prefix + frames.content(
            self.number,
            message.body,
            message.content_type.encode(),
            message.id.encode(),
            None if not ttl < MAX_TTL else max(1, int(ttl * 1000)),
            message.durable,
            self._link.frame_max,
        )
        self._in_flight[self._next_tag] = outgoing
        self._next_tag += 1
        self._link.append(data)

    def unfinished(self) -> list[Future[Sent]]:
        """The futures of all that is waiting or in flight."""
        with self._lock:
            return self.inherited()

    def inherited(self) -> list[Future[Sent]]:
        """The same in a forked child, where a thread that does not exist may hold the lock."""
        return [outgoing.sent for outgoing in (*self._in_flight.values(), *self._waiting, *self._delayed())]

    def _delayed(self) -> list[Outgoing]:
        """What is neither waiting for the connection nor in flight. The lock is held."""
        declaring = [outgoing for waiting in self._declaring.values() for outgoing in waiting]
        return [*self._held, *declaring, *self._refusals.unanswered()]

    # Declaring: the loop's thread

    def _declare_first(self, name: str, route: Route, outgoing: Outgoing) -> None:
        """Have what the message needs declared, on a channel of its own: a refusal closes that. The lock is held."""
        waiting = self._declaring.get(name)
        if waiting is not None:
            waiting.append(outgoing)
            return
        self._declaring[name] = [outgoing]
        question = Question(
            self._link,
            partial(questions.declare, route=route),
            questions.last_of_declare(route),
            partial(self._on_declared, name, route),
            timeout=None,
        )
        self._watch(outgoing)
        self._link.loop.call(question.start)

    def _on_declared(self, name: str, route: Route, answer: Answer) -> None:
        """It is there, or RabbitMQ refuses it: then so are the messages that need it."""
        gone = answer.code == questions.GONE
        with self._lock:
            waiting = self._declaring.pop(name, [])
            if answer.code == 0 and self._ready and self._link.up:
                # What may go at any moment with its last user is declared again for the next message.
                if route.queue is None and not route.exchange.auto_delete:
                    self._declared.add(name)
                for outgoing in waiting:
                    exchange, key = self._routes(outgoing.address)[:2]
                    self._write(frames.publish_prefix(self.number, exchange.name, key, outgoing.mandatory), outgoing)
                waiting = []
            elif answer.code == 0 or gone:
                for outgoing in waiting:
                    self._wait(outgoing)
                waiting = []
        self._link.flush()
        down = answer.node_is_down
        for outgoing in waiting:
            text = f"{self._name()} refuses {outgoing.address}: {explain(answer.code, answer.text)}"
            error = TransportUnavailable(text)
            if down:
                self._hold(outgoing, error)
            else:
                fail(outgoing.sent, error)

    # Deadlines: any thread

    def _watch(self, outgoing: Outgoing) -> None:
        """Have `_look_at_deadlines` called when the message's patience ends, at the latest. The lock is held."""
        if outgoing.gives_up < self._next_look:
            self._next_look = outgoing.gives_up
            self._link.loop.call_later(max(0.0, outgoing.gives_up - time.monotonic()), self._look_at_deadlines)

    def _look_at_deadlines(self) -> None:
        """Give up what RabbitMQ has not taken by the end of its patience: it may be frozen, or away."""
        now = time.monotonic() + _EARLY
        with self._lock:
            if now < self._next_look:
                return  # Another timer sees to it.
            in_flight = [(tag, out) for tag, out in self._in_flight.items() if out.gives_up <= now]
            for tag, _ in in_flight:
                del self._in_flight[tag]
            waiting = [out for out in self._waiting if out.gives_up <= now]
            if waiting:
                self._waiting = deque(out for out in self._waiting if out.gives_up > now)
            delayed = [out for out in self._delayed() if out.gives_up <= now]
            self._held.difference_update(delayed)
            left = (*self._in_flight.values(), *self._waiting, *self._delayed())
            self._next_look = min((out.gives_up for out in left if out.gives_up > now), default=FOREVER)
            if self._next_look < FOREVER:
                self._link.loop.call_later(max(0.0, self._next_look - time.monotonic()), self._look_at_deadlines)
        if self._renewing:
            self._link.loop.call(self._close_drained)
        for _, outgoing in in_flight:
            self._fail_unconfirmed(outgoing)
        for outgoing in waiting:
            self._fail_expired(outgoing)
        for outgoing in delayed:
            fail(outgoing.sent, outgoing.refusal or self._undeclared(outgoing))

    def _undeclared(self, outgoing: Outgoing) -> MessagingException:
        return TransportUnavailable(f"{self._name()} did not declare {outgoing.address} in time")

    def _fail_unconfirmed(self, outgoing: Outgoing) -> None:
        if self._link.blocked is not None:
            text = f"{self._name()} takes no messages ({self._link.blocked}): to {outgoing.address}"
            fail(outgoing.sent, TransportBlocked(text, maybe_delivered=True))
        else:
            text = f"{self._name()} did not confirm a message to {outgoing.address} in time"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))

    # What RabbitMQ did not take: the loop's thread

    def _hold(self, outgoing: Outgoing, refusal: MessagingException) -> None:
        """Publish again, in a moment, what is known not to have been taken. `refusal` is told if that does not help."""
        outgoing.refusal = refusal
        with self._lock:
            if outgoing.sent.done() or self._closed is not None:
                return
            self._held.add(outgoing)
            self._watch(outgoing)
        self._link.loop.call_later(outgoing.delay, self._publish_again, outgoing)
        outgoing.delay = min(2 * outgoing.delay, HOLD_MAX)

    def _publish_again(self, outgoing: Outgoing) -> None:
        with self._lock:
            if outgoing not in self._held:
                return
            self._held.discard(outgoing)
            if self._ready:
                self._publish(outgoing)
            else:
                self._wait(outgoing)
        self._link.flush()

    def _renew(self) -> None:
        """Open the channel anew as soon as nothing is in flight on it.

        A channel of RabbitMQ 3.10 that met a quorum queue while its leader was lost goes on asking for that one, and
        refuses every message until that node is back.
        """
        with self._lock:
            if not self._open or self._renewing or time.monotonic() - self._opened_at < RENEW_AFTER:
                return
            self._renewing = True
            self._ready = False
        self._close_drained()

    def _close_drained(self) -> None:
        with self._lock:
            if not self._renewing or self._in_flight:
                return
            self._renewing = self._open = False
        LOG.debug("the publishing channel is opened anew")
        self._link.write(frames.channel_close(self.number))

    # What the link says: the loop's thread

    def connected(self) -> None:
        """The connection is open: make it a confirming channel."""
        with self._lock:
            self._start_clean()
            self._opened_at = time.monotonic()
            self._link.add(self)
            self._link.append(frames.channel_open(self.number) + frames.confirm_select(self.number))
        self._link.flush()

    def release(self) -> None:
        """Let go what waits, if it can go: RabbitMQ takes messages, and replies to them will arrive."""
        expired: list[Outgoing] = []
        refused: list[tuple[Outgoing, Exception]] = []
        with self._lock:
            if not self._open or self._renewing or self._link.blocked is not None or self._closed is not None:
                return
            self._ready = True
            now = time.monotonic()
            while self._waiting:
                outgoing = self._waiting.popleft()
                if outgoing.gives_up <= now:
                    expired.append(outgoing)
                    continue
                try:
                    self._publish(outgoing)
                except Exception as exc:
                    refused.append((outgoing, exc))
        self._link.flush()
        for outgoing in expired:
            self._fail_expired(outgoing)
        for outgoing, error in refused:
            fail(outgoing.sent, _ours(error, outgoing))

    def hold(self) -> None:
        """RabbitMQ takes no messages: keep what comes."""
        with self._lock:
            self._ready = False

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == frames.BASIC_ACK:
            self._on_confirm(frames.read_u64(buffer, at)[0], buffer[at + 8] & 1, taken=True)
        elif ids == frames.BASIC_NACK:
            self._on_confirm(frames.read_u64(buffer, at)[0], buffer[at + 8] & 1, taken=False)
        elif ids == frames.CONFIRM_SELECT_OK:
            self._open = True
            self._on_open()
        elif ids == frames.CHANNEL_CLOSE:
            self._on_channel_closed(*frames.read_close(buffer, at, end))
        elif ids == frames.CHANNEL_CLOSE_OK:
            self._link.remove(self)
            self.connected()

    def _on_confirm(self, tag: int, multiple: int, *, taken: bool) -> None:
        pop = self._in_flight.pop
        if not multiple:
            found = pop(tag, None)
            confirmed = [] if found is None else [found]
            if tag == self._lowest:
                self._lowest += 1
        else:
            tags: Any = range(self._lowest, tag + 1)
            if len(tags) > 2 * len(self._in_flight) + 100:  # after many single confirms out of order
                tags = sorted(t for t in list(self._in_flight) if t <= tag)
            confirmed = [found for t in tags if (found := pop(t, None)) is not None]
            self._lowest = max(self._lowest, tag + 1)
        self._progress = time.monotonic()
        for outgoing in confirmed:
            if self._returned and (reason := self._returned.pop(outgoing.message.id, None)) is not None:
                self._refusals.on_returned(outgoing, reason)
            elif taken:
                finish(outgoing.sent, _SENT)
            else:
                self._refusals.on_refused(outgoing)
        if self._renewing:
            self._close_drained()

    def on_content(self, ids: bytes, method: Any, header: frames.ContentHeader, body: bytes) -> None:
        # RabbitMQ returns a message right before it confirms it.
        code, text = method
        self._returned[header.message_id] = f"{code} {text}"

    def _on_channel_closed(self, code: int, text: str) -> None:
        """Only this channel is lost: with what was in flight on it, whose fate is mostly unknown."""
        reason = f"{self._name()} closed the publishing channel: {explain(code, text)}"
        LOG.error("%s", reason)
        named = re.search(r"exchange '([^']*)'", text)
        lost = self._lose_all()
        self._link.write(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
        self._link.remove(self)
        theirs = [out for out in lost if named and self._routes(out.address).exchange.name == named.group(1)]
        # Missing rights are missing for every message to that exchange: none of these was taken. Where somebody has
        # deleted the exchange, it was still there for the first of them, perhaps; not for the last.
        untaken = set(theirs) if code == 403 else set(theirs[-1:]) if code == questions.NOT_FOUND else set()
        for outgoing in lost:
            maybe = outgoing not in untaken
            error = TransportUnavailable(f"to {outgoing.address}: {reason}", maybe_delivered=maybe)
            if maybe or code == 403:
                fail(outgoing.sent, error)
            else:
                self._hold(outgoing, error)
        self.connected()

    def _lose_all(self) -> list[Outgoing]:
        with self._lock:
            self._ready = self._open = False
            lost = list(self._in_flight.values())
            self._start_clean()
        return lost

    def on_down(self, error: TransportUnavailable) -> None:
        for outgoing in self._lose_all():
            text = f"the connection broke while a message to {outgoing.address} was being sent: {error}"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))

    def on_tick(self, now: float) -> None:
        """Another second has passed: has RabbitMQ stopped to confirm, though it says that it takes messages?"""
        if self._link.blocked is not None:
            return
        with self._lock:
            since = self._progress if self._in_flight else now
        if not self._open:
            since = self._opened_at
        if now - since >= STALLED:
            self._link.move(f"{self._name()} has confirmed nothing for {now - since:.0f} s")

    def close(self, error: MessagingException) -> None:
        """Fail what waits, what is in flight, and what comes from now on."""
        with self._lock:
            self._closed = error
            self._ready = False
            left = self.inherited()
            for kept in (self._in_flight, self._waiting, self._declaring, self._held, self._refusals):
                kept.clear()
        for sent in left:
            fail(sent, error)

    def fail_waiting(self, error: MessagingException) -> None:
        """Fail what waits: there is no hope of a connection."""
        with self._lock:
            left = list(self._waiting)
            self._waiting.clear()
        for outgoing in left:
            fail(outgoing.sent, error)


def _to_declare(route: Route) -> str | None:
    """A name for what the sender has to declare before it publishes, or None."""
    if route.queue is not None:
        return f"queue {route.queue.name}"
    return f"exchange {route.exchange.name}" if route.exchange.name else None


def _ours(error: Exception, outgoing: Outgoing) -> MessagingException:
    if isinstance(error, MessagingException):
        return error
    return MessageDeliveryFailure(f"a message to {outgoing.address} cannot be written for RabbitMQ: {error!r}")
