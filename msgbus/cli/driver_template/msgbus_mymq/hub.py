"""Stands in for the message system until yours takes its place: named queues in the memory of this process.

Your client library, and the message system behind it, do what this file does. Delete it when `msgbus_mymq.driver` no
longer needs it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from msgbus.drivers.base import Depth, Message

_hubs: dict[str, Hub] = {}


def connect(name: str) -> Hub:
    """The hub of that name, the same for all of this process."""
    return _hubs.setdefault(name, Hub())


os.register_at_fork(after_in_child=_hubs.clear)


class Item:
    """A message in a queue."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.expires = float("inf") if message.ttl is None else time.monotonic() + message.ttl
        self.attempts = 0
        self.redelivered = False

    @property
    def left(self) -> float | None:
        """Seconds until it is worthless."""
        return None if self.message.ttl is None else self.expires - time.monotonic()


class Consumer:
    """Takes items from one queue; `hand_over` is called, with the hub locked, for each: it must only take note."""

    def __init__(self, queue: Queue, prefetch: float, hand_over: Callable[[Consumer, Item], None]) -> None:
        self.queue = queue
        self.prefetch = prefetch
        self.hand_over = hand_over
        self.unsettled: list[Item] = []


class Queue:
    """Items that wait, and who takes them in turn."""

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.consumers: deque[Consumer] = deque()

    def hand_over(self) -> None:
        """Give out what can be given out."""
        while self.items:
            if self.items[0].expires <= time.monotonic():
                self.items.popleft()
                continue
            with_room = [one for one in self.consumers if len(one.unsettled) < one.prefetch]
            if not with_room:
                return
            consumer, item = with_room[0], self.items.popleft()
            self.consumers.remove(consumer)
            self.consumers.append(consumer)  # the next item is the next one's
            consumer.unsettled.append(item)
            consumer.hand_over(consumer, item)
            item.attempts += 1

    def take_back(self, item: Item) -> None:
        """Put an item that was handed over in front, for the next consumer."""
        item.redelivered = True
        self.items.appendleft(item)


class Hub:
    """All queues, by name. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str, Queue] = {}

    def names(self, prefix: str) -> list[str]:
        """The queues whose names begin so."""
        with self._lock:
            return [name for name in self._queues if name.startswith(prefix)]

    def declare(self, name: str) -> None:
        """Make a queue, if it is not there."""
        with self._lock:
            self._queues.setdefault(name, Queue())

    def delete(self, name: str) -> None:
        """Remove a queue with all that is in it."""
        with self._lock:
            self._queues.pop(name, None)

    def put(self, name: str, message: Message) -> bool:
        """Put a message into a queue; False: there is no such queue."""
        with self._lock:
            queue = self._queues.get(name)
            if queue is None:
                return False
            queue.items.append(Item(message))
            queue.hand_over()
            return True

    def consume(self, name: str, prefetch: float, hand_over: Callable[[Consumer, Item], None]) -> Consumer:
        """Take items from a queue, which is made if it is not there."""
        with self._lock:
            queue = self._queues.setdefault(name, Queue())
            consumer = Consumer(queue, prefetch, hand_over)
            queue.consumers.append(consumer)
            queue.hand_over()
            return consumer

    def settle(self, consumer: Consumer, item: Item, *, requeue: bool = False) -> bool:
        """An item is done with, or given back; False: it was so before."""
        with self._lock:
            if item not in consumer.unsettled:
                return False
            consumer.unsettled.remove(item)
            if requeue:
                consumer.queue.take_back(item)
            consumer.queue.hand_over()
            return True

    def cancel(self, consumer: Consumer, *, give_back: bool) -> None:
        """Take no more; `give_back`: what is not settled goes to others."""
        with self._lock:
            if consumer in consumer.queue.consumers:
                consumer.queue.consumers.remove(consumer)
            if give_back:
                for item in reversed(consumer.unsettled):
                    consumer.queue.take_back(item)
                consumer.unsettled.clear()
            consumer.queue.hand_over()

    def depth(self, name: str) -> Depth | None:
        """Who takes from a queue and what waits in it, or None where there is none."""
        with self._lock:
            queue = self._queues.get(name)
            if queue is None:
                return None
            now = time.monotonic()
            return Depth(len(queue.consumers), sum(item.expires > now for item in queue.items))
