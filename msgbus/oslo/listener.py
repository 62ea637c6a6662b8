"""What oslo.messaging's servers listen with: drops what comes twice, gathers batches."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from oslo_messaging._drivers import base, common
from oslo_serialization import jsonutils

from msgbus import MessagingException
from msgbus.foreign import get_logger
from msgbus.lowlevel import FOREVER, Address, Delivery, MessageTransport, WideSubscription, now
from msgbus.oslo.incoming import Incoming, Replies, can_requeue
from msgbus.oslo.settings import MAX_PREFETCH

LOG = get_logger(__name__)

KNOWN_IDS = 1000
"""The number of messages whose ids a listener remembers at least, so that it runs none of them twice."""
CLOSE_TIMEOUT = 10.0
"""Seconds to wait for the message system when a listener is stopped or closed."""
REQUEUE_DELAY, REQUEUE_DELAY_MAX = 0.1, 5.0
"""Seconds after which a message is given back for the second time; twice as long each time, up to the latter. With one
listener it comes back to the one that has given it back."""

Value = TypeVar("Value")
Run = Callable[..., None]
"""Calls a function with arguments, on a thread on which it may log and call oslo.messaging."""


class Listener(base.Listener):  # type: ignore[misc]  # oslo.messaging has no types
    """Consumes from addresses, and passes what comes to a server, in batches.

    Attributes:
        replies: answers requests.
    """

    def __init__(
        self,
        transport: MessageTransport,
        replies: Replies,
        kind: type[Incoming],
        prefetch: int,
        batch_size: int | None,
        batch_timeout: float | None,
        run: Run,
    ) -> None:
        """`listen` has to follow.

        Args:
            transport: where to listen.
            replies: answers requests.
            kind: of the messages.
            prefetch: how many messages of an address may be unsettled.
            batch_size: of how many messages a batch is made, `MAX_PREFETCH` at most; None: of all that come in
                `batch_timeout`.
            batch_timeout: seconds after its first message when a smaller batch is passed on; None: never.
            run: by which everything is called that comes from the message system.
        """
        # While a batch is processed the next one has to find room.
        self._prefetch = prefetch if batch_size is None else min(max(prefetch, 2 * batch_size), MAX_PREFETCH)
        super().__init__(batch_size or self._prefetch, batch_timeout, self._prefetch)
        self.replies = replies
        self._known_ids = max(KNOWN_IDS, 2 * self._prefetch)  # Of those too that are not settled.
        self._transport = transport
        self._kind = kind
        self._run = run
        self._lock = threading.Lock()
        self._known: dict[str, Incoming | None] = {}  # by unique id; None: it is settled
        self._requeued: dict[str, int] = {}  # by unique id, how often
        self._paused: Counter[Address] = Counter()  # how many wait to be given back
        self._gathered: list[Incoming] = []
        self._batch_number = 0  # of the one that is gathered
        self._started = False
        self._subscription: WideSubscription

    def listen(self, addresses: Sequence[Address]) -> None:
        """Begin to consume. It returns when the message system has confirmed it, however long that takes.

        Raises:
            MessagingException: it refuses.
        """
        take = partial(self._run, self._on_delivery)
        self._subscription = self._transport.subscribe(addresses, take, prefetch=self._prefetch, deadline=FOREVER)

    def start(self, on_incoming_callback: Callable[[list[Incoming]], object]) -> None:
        """Pass on what has come, and what comes from now on."""
        super().start(on_incoming_callback)
        with self._lock:
            self._started = True
        self._pass_on(self._full_batches())

    def stop(self) -> None:
        """Pass on what has come, and nothing more. Returns when that is done."""
        self._wait_for(self._subscription.stop())
        batches = self._full_batches()
        with self._lock:
            rest, self._gathered = self._gathered, []
            self._started = False
        self._pass_on([*batches, rest] if rest else batches)
        super().stop()

    def cleanup(self) -> None:
        """Unsubscribe. What was passed on and is not settled is given to others.

        It waits for replies that are not sent yet: workers of services end their process by `os._exit` after this.
        """
        self.replies.wait(now() + CLOSE_TIMEOUT)
        self._wait_for(self._subscription.close())

    def _wait_for(self, done: Future[None]) -> None:
        try:
            if self._transport.wait_for(done, now() + CLOSE_TIMEOUT):
                done.result()
            else:
                LOG.warning("%s has not confirmed the end of a subscription", self._transport.driver.state)
        except MessagingException as exc:
            LOG.warning("a subscription was not ended cleanly: %s", exc)

    # What comes

    def _on_delivery(self, delivery: Delivery) -> None:
        try:
            payload = common.deserialize_msg(jsonutils.loads(delivery.message.body))
            incoming = self._kind(self, delivery, payload)
        except Exception as exc:
            LOG.error("a message to %s cannot be read, and is dropped: %s", delivery.address, exc)
            delivery.accept()
            return
        if self._is_new(incoming, delivery):
            with self._lock:
                self._gathered.append(incoming)
                is_first = len(self._gathered) == 1
            if is_first:
                self._end_batch_later()
            self._pass_on(self._full_batches())

    def _is_new(self, incoming: Incoming, delivery: Delivery) -> bool:
        """Whether a message has not come before. Otherwise it is settled, now or with the one that has."""
        if not incoming.unique_id:
            return True
        with self._lock:
            if incoming.unique_id not in self._known:
                _remember(self._known, incoming.unique_id, incoming, self._known_ids)
                return True
            first = self._known[incoming.unique_id]
        if first is None:
            delivery.accept()
        elif not first.join(delivery):
            return self._is_new(incoming, delivery)  # That one was forgotten at this moment.
        LOG.info("message %s has come again, and is settled with the first one", incoming.unique_id)
        return False

    # Batches

    def _full_batches(self) -> list[list[Incoming]]:
        """Take out the batches that are complete."""
        batches = []
        with self._lock:
            while self._started and len(self._gathered) >= self.batch_size:
                batches.append(self._gathered[: self.batch_size])
                del self._gathered[: self.batch_size]
                self._batch_number += 1
            is_begun = bool(batches and self._gathered)
        if is_begun:
            self._end_batch_later()
        return batches

    def _end_batch_later(self) -> None:
        """Have the batch passed on when its time is over, if it is not complete by then."""
        if self.batch_timeout is not None and self.batch_size > 1:
            self._transport.loop.call_later(
                self.batch_timeout, lambda number: self._run(self._end_batch, number), self._batch_number
            )

    def _end_batch(self, number: int) -> None:
        with self._lock:
            if number != self._batch_number or not self._gathered:
                return  # It was passed on before.
            if self._started:
                batch, self._gathered = self._gathered, []
                self._batch_number += 1
            else:
                batch = []
        if batch:
            self._pass_on([batch])
        else:
            self._end_batch_later()

    def _pass_on(self, batches: list[list[Incoming]]) -> None:
        for batch in batches:
            callback = self.on_incoming_callback
            if callback is None:  # It was stopped at this moment, and `cleanup` gives the messages back.
                continue
            try:
                callback(batch)
            except Exception as exc:  # No thread can be started, for example.
                LOG.error("messages could not be passed on, and are given back (%d): %s", len(batch), exc)
                for incoming in batch:
                    incoming.requeue()

    # What messages report

    def note_settled(self, unique_id: str | None) -> None:
        """A message is settled: if it comes again it is dropped."""
        with self._lock:
            if unique_id in self._known:
                self._known[unique_id] = None

    def forget(self, unique_id: str | None) -> None:
        """A message was not run: if it comes again it is to be run."""
        with self._lock:
            self._known.pop(unique_id or "", None)

    def take_copy(self, delivery: Delivery) -> None:
        """A copy of a message that was forgotten came before that: take it as if it came now."""
        self._run(self._on_delivery, delivery)

    def give_back(self, delivery: Delivery, unique_id: str | None) -> None:
        """Give a message back; if that is not the first time, a while later, and others come meanwhile."""
        self.forget(unique_id)
        if not can_requeue(self._transport):
            LOG.warning("%s takes no messages back: %s is dropped", self._transport.driver.state, unique_id)
            delivery.accept()
            return
        with self._lock:
            times = self._requeued.get(unique_id or "", 0)
            _remember(self._requeued, unique_id or "", times + 1, self._known_ids)
        if times == 0:
            delivery.reject(requeue=True)
        else:
            self._pause(delivery, min(REQUEUE_DELAY * 2.0 ** (times - 1), REQUEUE_DELAY_MAX))

    def _pause(self, delivery: Delivery, delay: float) -> None:
        with self._lock:
            self._paused[delivery.address] += 1
            paused = self._paused[delivery.address]
        self._transport.loop.call_later(delay, self._run, self._end_pause, delivery)
        # What is given back is the first to come again. So there may never be room for what is behind it.
        self._subscription.widen_for(paused)

    def _end_pause(self, delivery: Delivery) -> None:
        with self._lock:
            self._paused[delivery.address] -= 1
        delivery.reject(requeue=True)


def _remember(table: dict[str, Value], key: str, value: Value, size: int) -> None:
    """Add to a table of the last `size`."""
    table.pop(key, None)
    table[key] = value
    if len(table) > size:
        del table[next(iter(table))]
