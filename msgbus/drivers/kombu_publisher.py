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

from msgbus.drivers import kombu_frames as frames
from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.kombu_channels import explain, fail, finish
from msgbus.drivers.kombu_link import Channel, Link
from msgbus.drivers.kombu_topology import Exchange, Route
from msgbus.exceptions import (
    MessageDeliveryFailure,
    MessageUndeliverable,
    MessagingException,
    TransportBlocked,
    TransportUnavailable,
)
from msgbus.foreign import get_logger
from msgbus.timer import Timer

LOG = get_logger(__name__)

MAX_TTL = 4_000_000.0
"""Seconds; RabbitMQ closes the channel over an expiration above 2**32 ms. What may live for so long does not expire."""
PREFIXES = 10_000
"""How many prepared beginnings of a publish are kept: as many as there are clients to answer, or topics."""
_FOREVER = float("inf")
_SENT = Sent()


class _Outgoing:
    """A message on its way, and the future of its sender."""

    __slots__ = ("address", "expires", "gives_up", "mandatory", "message", "sent")

    def __init__(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        self.address = address
        self.message = message
        self.mandatory = mandatory
        self.sent = sent
        now = time.monotonic()
        self.expires = _FOREVER if message.ttl is None else now + message.ttl
        self.gives_up = self.expires if message.wait is None else now + message.wait


class Publisher(Channel):
    """Publishes with confirms.

    What is handed over while the connection is away, or RabbitMQ takes no messages, waits here until its patience ends;
    and so does what needs an exchange or queue that has to be declared first.
    """

    def __init__(
        self,
        link: Link,
        timer: Timer,
        routes: Callable[[Address], Route],
        name: Callable[[], str],
        on_open: Callable[[], None],
    ) -> None:
        """`on_open` is called when the channel has been opened: it is to call `release` when that is right."""
        self._on_open = on_open
        self._link = link
        self._timer = timer
        self._routes = routes
        self._name = name
        self._lock = threading.Lock()
        self._ready = False  # The channel confirms, and RabbitMQ takes messages.
        self._open = False
        self._closed: MessagingException | None = None
        self._waiting: deque[_Outgoing] = deque()
        self._declaring: dict[str, list[_Outgoing]] = {}
        self._start_clean()

    def _start_clean(self) -> None:
        self._next_tag = 1
        self._lowest = 1
        self._in_flight: dict[int, _Outgoing] = {}
        self._returned: dict[str, str] = {}
        self._prefixes: dict[tuple[Address, bool], bytes] = {}
        self._declared: set[str] = set()

    # Sending: any thread

    def send(self, address: Address, message: Message, mandatory: bool) -> Future[Sent]:
        """See the contract."""
        sent: Future[Sent] = Future()
        outgoing = _Outgoing(address, message, mandatory, sent)
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

    def _wait(self, outgoing: _Outgoing) -> None:
        """The lock is held."""
        self._waiting.append(outgoing)
        if outgoing.gives_up < _FOREVER:
            left = max(0.0, outgoing.gives_up - time.monotonic())
            self._timer.call_later(left, partial(self._expire, outgoing))

    def _expire(self, outgoing: _Outgoing) -> None:
        if outgoing.sent.done():
            return
        with self._lock:
            try:
                self._waiting.remove(outgoing)
            except ValueError:
                return  # It is on its way by now; `on_tick` sees to it.
        self._fail_expired(outgoing)

    def _fail_expired(self, outgoing: _Outgoing) -> None:
        patience = outgoing.message.patience
        if self._link.blocked is not None:
            text = f"{self._name()} takes no messages ({self._link.blocked}), and did not for {patience:.3g} s"
            fail(outgoing.sent, TransportBlocked(f"{text}: to {outgoing.address}"))
        else:
            cause = self._link.error or f"{self._name()} is not connected yet"
            fail(outgoing.sent, TransportUnavailable(f"gave up after {patience:.3g} s: {cause}"))

    def _publish(self, outgoing: _Outgoing) -> None:
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

    def _write(self, prefix: bytes, outgoing: _Outgoing) -> None:
        message = outgoing.message
        ttl = outgoing.expires - time.monotonic()
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
        declaring = [outgoing for waiting in self._declaring.values() for outgoing in waiting]
        return [outgoing.sent for outgoing in (*self._in_flight.values(), *self._waiting, *declaring)]

    # Declaring: the loop's thread

    def _declare_first(self, name: str, route: Route, outgoing: _Outgoing) -> None:
        """Have what the message needs declared, on a channel of its own: a refusal closes that. The lock is held."""
        waiting = self._declaring.get(name)
        if waiting is not None:
            waiting.append(outgoing)
            return
        self._declaring[name] = [outgoing]
        declaration = _Declaration(self._link, route, partial(self._on_declared, name, route))
        self._link.on_loop(declaration.start)()

    def _on_declared(self, name: str, route: Route, refusal: str | None) -> None:
        """It is there, or RabbitMQ refuses it: then so are the messages that need it."""
        with self._lock:
            waiting = self._declaring.pop(name, [])
            if refusal is None and self._ready and self._link.up:
                # What may go at any moment with its last user is declared again for the next message.
                if route.queue is None and not route.exchange.auto_delete:
                    self._declared.add(name)
                for outgoing in waiting:
                    exchange, key, _ = self._routes(outgoing.address)
                    self._write(frames.publish_prefix(self.number, exchange.name, key, outgoing.mandatory), outgoing)
                waiting = []
            elif refusal is None:
                for outgoing in waiting:
                    self._wait(outgoing)
                waiting = []
        self._link.flush()
        for outgoing in waiting:
            fail(outgoing.sent, TransportUnavailable(f"{self._name()} refuses {outgoing.address}: {refusal}"))

    # What the link says: the loop's thread

    def connected(self) -> None:
        """The connection is open: make it a confirming channel."""
        with self._lock:
            self._start_clean()
            self._link.add(self)
            self._link.append(frames.channel_open(self.number) + frames.confirm_select(self.number))
        self._link.flush()

    def release(self) -> None:
        """Let go what waits, if it can go: RabbitMQ takes messages, and replies to them will arrive."""
        expired: list[_Outgoing] = []
        refused: list[tuple[_Outgoing, Exception]] = []
        with self._lock:
            if not self._open or self._link.blocked is not None or self._closed is not None:
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
        """RabbitMQ takes no messages: keep what comes, and give up what is on its way when its time ends."""
        now = time.monotonic()
        with self._lock:
            self._ready = False
            in_flight = list(self._in_flight.items())
        for tag, outgoing in in_flight:
            if outgoing.gives_up < _FOREVER:
                left = max(0.0, outgoing.gives_up - now)
                self._timer.call_later(left, partial(self._give_up, tag, outgoing))

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
        for outgoing in confirmed:
            if self._returned and (reason := self._returned.pop(outgoing.message.id, None)) is not None:
                text = f"nobody listens at {outgoing.address} on {self._name()}: {reason}"
                if outgoing.address.kind != "inbox":
                    text += "; is its server started, and on this RabbitMQ?"
                fail(outgoing.sent, MessageUndeliverable(text))
            elif taken:
                finish(outgoing.sent, _SENT)
            else:
                text = f"{self._name()} refused a message to {outgoing.address}: its queue is full"
                fail(outgoing.sent, TransportBlocked(text))

    def on_content(self, ids: bytes, method: Any, header: frames.ContentHeader, body: bytes) -> None:
        # RabbitMQ returns a message right before it confirms it.
        code, text = method
        self._returned[header.message_id] = f"{code} {text}"

    def _on_channel_closed(self, code: int, text: str) -> None:
        """Only this channel is lost: with what was in flight on it, whose fate is mostly unknown."""
        reason = f"{self._name()} closed the publishing channel: {explain(code, text)}"
        LOG.error("%s", reason)
        # Missing rights are missing for every message to that exchange: none of these was taken.
        named = re.search(r"exchange '([^']*)'", text)
        refused = named.group(1) if code == 403 and named else None
        lost = self._lose_all()
        self._link.write(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
        self._link.remove(self)
        for outgoing in lost:
            maybe = refused is None or self._routes(outgoing.address).exchange.name != refused
            fail(outgoing.sent, TransportUnavailable(f"to {outgoing.address}: {reason}", maybe_delivered=maybe))
        self.connected()

    def _lose_all(self) -> list[_Outgoing]:
        with self._lock:
            self._ready = self._open = False
            lost = list(self._in_flight.values())
            self._start_clean()
        return lost

    def on_down(self, error: TransportUnavailable) -> None:
        for outgoing in self._lose_all():
            text = f"the connection broke while a message to {outgoing.address} was being sent: {error}"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))

    def on_tick(self) -> None:
        """Give up what RabbitMQ has not confirmed by the end of its patience: it may be frozen."""
        now = time.monotonic()
        with self._lock:
            late = [(tag, outgoing) for tag, outgoing in self._in_flight.items() if outgoing.gives_up <= now]
            undeclared = [out for waiting in self._declaring.values() for out in waiting if out.gives_up <= now]
        for tag, outgoing in late:
            self._give_up(tag, outgoing)
        for outgoing in undeclared:
            fail(outgoing.sent, TransportUnavailable(f"{self._name()} did not declare {outgoing.address} in time"))

    def _give_up(self, tag: int, outgoing: _Outgoing) -> None:
        with self._lock:
            if self._in_flight.get(tag) is not outgoing:
                return
            del self._in_flight[tag]
        if self._link.blocked is not None:
            text = f"{self._name()} takes no messages ({self._link.blocked}): to {outgoing.address}"
            fail(outgoing.sent, TransportBlocked(text, maybe_delivered=True))
        else:
            text = f"{self._name()} did not confirm a message to {outgoing.address} in time"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))

    def close(self, error: MessagingException) -> None:
        """Fail what waits, what is in flight, and what comes from now on."""
        with self._lock:
            self._closed = error
            self._ready = False
            left = self.inherited()
            self._in_flight.clear()
            self._waiting.clear()
            self._declaring.clear()
        for sent in left:
            fail(sent, error)

    def fail_waiting(self, error: MessagingException) -> None:
        """Fail what waits: there is no hope of a connection."""
        with self._lock:
            left = list(self._waiting)
            self._waiting.clear()
        for outgoing in left:
            fail(outgoing.sent, error)


class _Declaration(Channel):
    """Declares what a message needs, on a channel of its own."""

    def __init__(self, link: Link, route: Route, on_done: Callable[[str | None], None]) -> None:
        """`on_done` is called with why RabbitMQ refuses, or None: then it is there, or the connection is gone."""
        self._link = link
        self._route = route
        self._on_done: Callable[[str | None], None] | None = on_done
        self._last = frames.EXCHANGE_DECLARE_OK

    def start(self) -> None:
        if not self._link.up:
            self._done(None)
            return
        self._link.add(self)
        queue, exchange = self._route.queue, self._route.exchange
        ask = _exchange_declare(self.number, exchange) if exchange.name else b""
        if queue is not None:
            self._last = frames.QUEUE_DECLARE_OK
            ask += frames.queue_declare(self.number, queue.name, durable=queue.durable, arguments=queue.arguments)
            if queue.key is not None:
                self._last = frames.QUEUE_BIND_OK
                ask += frames.queue_bind(self.number, queue.name, exchange.name, queue.key)
        self._link.write(frames.channel_open(self.number) + ask)

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == self._last:
            self._link.write(frames.channel_close(self.number))
            self._done(None)
        elif ids == frames.CHANNEL_CLOSE:
            code, text = frames.read_close(buffer, at, end)
            self._link.write(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
            self._link.remove(self)
            self._done(explain(code, text))
        elif ids == frames.CHANNEL_CLOSE_OK:
            self._link.remove(self)

    def on_down(self, error: TransportUnavailable) -> None:
        self._done(None)

    def _done(self, refusal: str | None) -> None:
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(refusal)


def _to_declare(route: Route) -> str | None:
    """A name for what the sender has to declare before it publishes, or None."""
    if route.queue is not None:
        return f"queue {route.queue.name}"
    return f"exchange {route.exchange.name}" if route.exchange.name else None


def _exchange_declare(channel: int, exchange: Exchange) -> bytes:
    return frames.exchange_declare(
        channel, exchange.name, exchange.kind, durable=exchange.durable, auto_delete=exchange.auto_delete
    )


def _ours(error: Exception, outgoing: _Outgoing) -> MessagingException:
    if isinstance(error, MessagingException):
        return error
    return MessageDeliveryFailure(f"a message to {outgoing.address} cannot be written for RabbitMQ: {error!r}")
