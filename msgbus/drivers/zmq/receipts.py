"""What nodes report of the messages that they were sent: who has each, and who has room for more.

Everything here belongs to the loop's thread.
"""

from __future__ import annotations

from functools import partial

from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.link import WINDOW, WINDOW_MESSAGES, PeerLink
from msgbus.drivers.zmq.queue import Parcel, Queue
from msgbus.drivers.zmq.routing import Router


class ReceiptReader:
    """Handles the records that nodes send as receipts, and those that say whether they have room.

    It sends nothing itself: `ZmqSender.on_frame_end` does, once the whole frame has been read.

    Attributes:
        returned: the queues to be redistributed, each with the messages that were given back.
        held_up: the queues that wait for a congested connection.
    """

    def __init__(self, router: Router, server_expires: float) -> None:
        """`server_expires`: see `ZmqSender`."""
        self._router = router
        self._server_expires = server_expires
        self.returned: dict[Queue, list[Parcel]] = {}
        self.held_up: dict[PeerLink, dict[Queue, None]] = {}
        router.links.on_record |= {
            frames.TAKEN: self._on_taken,
            frames.QUEUED: self._on_queued,
            frames.REACHED: self._on_reached,
            frames.SETTLED: self._on_settled,
            frames.READY: self._on_ready,
            frames.RECALLED: self._on_recalled,
        }
        for kind in (frames.FULL, frames.NOBODY, frames.REQUEUED, frames.RELEASED):
            router.links.on_record[kind] = partial(self._on_given_back, kind)

    def _confirm(self, link: PeerLink, parcel: Parcel) -> None:
        """There is a receipt: the message does not count for the connection's window any more."""
        if parcel.confirmed:
            return
        parcel.confirmed = True
        consumer = parcel.consumer
        consumer.unconfirmed -= 1
        if consumer.must_resume and not consumer.unconfirmed:
            self.returned.setdefault(consumer.queue, [])
        link.unconfirmed -= 1
        link.unconfirmed_bytes -= parcel.size
        if link.congested and link.unconfirmed < WINDOW_MESSAGES // 2 and link.unconfirmed_bytes < WINDOW // 2:
            link.congested = False
            for queue in self.held_up.pop(link, ()):
                self.returned.setdefault(queue, [])

    def _remove(self, link: PeerLink, seq: int) -> Parcel | None:
        """A message that the other side does not have any more."""
        parcel: Parcel | None = link.in_flight.pop(seq, None)
        if parcel is not None:
            self._confirm(link, parcel)
            consumer = parcel.consumer
            consumer.outstanding -= 1
            if consumer.queued:
                consumer.queued.pop(seq, None)
        return parcel

    def _on_taken(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        for seq in frames.read_numbers(frame, at, end):
            parcel = link.in_flight.get(seq)
            if parcel is None:
                continue
            if parcel.queue.settles:
                self._confirm(link, parcel)
            else:
                self._remove(link, seq)
            parcel.mark_taken(1)

    def _on_queued(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        self._on_taken(link, frame, at, end)
        for seq in frames.read_numbers(frame, at, end):
            parcel = link.in_flight.get(seq)
            if parcel is not None:
                parcel.consumer.queued[seq] = None
                parcel.consumer.busy = True
                self.returned.setdefault(parcel.queue, [])

    def _on_reached(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        pairs = frames.read_numbers(frame, at, end)
        for seq, count in zip(pairs[::2], pairs[1::2], strict=False):
            parcel = self._remove(link, seq)
            if parcel is not None:
                parcel.mark_taken(count)

    def _on_settled(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        for seq in frames.read_numbers(frame, at, end):
            parcel = self._remove(link, seq)
            if parcel is None:
                continue
            if not parcel.taken:
                parcel.mark_taken(1)
            queue = parcel.queue
            if queue.waiting or (len(queue.consumers) > 1 and queue.has_queued()):
                self.returned.setdefault(queue, [])

    def _on_given_back(self, kind: int, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        for seq in frames.read_numbers(frame, at, end):
            parcel = self._remove(link, seq)
            if parcel is None:
                continue
            consumer = parcel.consumer
            if kind == frames.REQUEUED:
                parcel.redelivered = True
                parcel.mark_taken(1)
            elif kind == frames.RELEASED:
                parcel.mark_taken(1)
            elif kind == frames.FULL:
                if not consumer.must_resume:  # Else it was sent before the node reported that it has room again.
                    consumer.full = consumer.busy = True
            elif parcel.entry is consumer.entry:
                consumer.unsubscribed = True  # Else its entry has changed since the message was sent.
            self.give_back(parcel)

    def give_back(self, parcel: Parcel) -> None:
        """Another node is to get it, once the whole frame has been read."""
        if parcel.taken:
            parcel.send_until = min(parcel.expires, Loop.now() + self._server_expires)
        elif parcel.sent.done():
            return  # It has failed, with maybe_delivered=True.
        self.returned.setdefault(parcel.queue, []).append(parcel)

    def _on_ready(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        room, address = frames.read_numbered(frame, at, end)
        for queue, consumer in self._router.at(link, address):
            if consumer.full:
                consumer.full = False
                consumer.must_resume = True
            if room:
                consumer.busy = False
            self.returned.setdefault(queue, [])

    def _on_recalled(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        missing, address = frames.read_numbered(frame, at, end)
        for queue, consumer in self._router.at(link, address):
            consumer.recalling = False
            if missing:  # None of our messages waits there any more: its subscribers have them.
                consumer.queued.clear()
            self.returned.setdefault(queue, [])
