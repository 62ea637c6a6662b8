"""One address of a subscription or inbox over one connection to RabbitMQ, on a separate channel.

So a refusal, which closes the channel, affects no other address.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

from msgbus.drivers.base import Message
from msgbus.drivers.kombu import frames, questions
from msgbus.drivers.kombu.channel import Channel, Wire
from msgbus.drivers.kombu.questions import Answer, Question, explain, is_temporary
from msgbus.drivers.kombu.topology import Queue
from msgbus.drivers.toolkit.consuming import Feed, Outcome, Source
from msgbus.drivers.toolkit.loop import Loop
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

ACK_AT_ONCE = 64
"""So many messages of an inbox are acknowledged at once, if nothing else is written that takes it along before."""
CHECK_TIMEOUT = 5.0
"""Seconds that checking a queue may take: a node of a cluster that is cut off from the others cannot do it."""
CHECKS_WITHOUT_LEADER = 3
"""So often in a row a quorum queue of its own may know of no consumer before it is consumed from again."""
STALL_TIMEOUT = 5.0
"""Seconds that declaring a quorum queue may take before the next host is tried."""
LOST_AFTER = 30.0
"""Seconds of waiting, over all hosts, after which a quorum queue that none of them could declare counts as lost: most
of its members are gone. A cluster that is well elects a leader within seconds."""
REFUSAL_COUNTS = 2.0
"""Seconds of waiting as which a refusal counts that came sooner. The pauses between tries grow to five seconds."""
LOST_TIMEOUT = 25.0
"""Seconds that declaring a queue that counts as lost may take, instead of `STALL_TIMEOUT`: each change of the host
disturbs the other addresses too."""
FROM_NOW_ON = "next"
"""Where in a stream a first consumer begins: after what is in it."""
DELETE_TIMEOUT = 60.0
"""The same where it is deleted before. RabbitMQ gives each member five seconds, and then does it by force. Whoever asks
again before it is done may delete the new queue as well."""


class KombuFeed(Feed, Channel):
    """See the module's text, and `Feed`.

    `Source.notes` is for how many seconds RabbitMQ was asked in vain to declare the queue and consume from it, since
    that was last done; None: not at all. Of a stream it is where to go on reading; None: from now on. Other queues do
    not use it.

    Attributes:
        source: the source that this serves over the present connection.
    """

    def __init__(self, session: Wire, source: Source, queue: Queue) -> None:
        """Make it; `start` begins."""
        self.source = source
        self._session = session
        self._queue = queue
        self._is_inbox = not source.prefetch
        self._counts = self._queue.is_quorum
        self._is_stream = self._queue.is_stream
        self._without_leader = 0  # So many checks in a row have found no consumer.
        self._is_cancelled = False
        self._check: Question | None = None  # The last one.
        self._lock = threading.Lock()
        self._alive = True
        self._unsettled: set[int] = set()
        self._accepted: list[int] = []  # settled, but not written yet
        self._rejected: dict[int, bool] = {}  # likewise; with whether to requeue
        self._offsets: dict[int, int] = {}  # of a stream, by tag: those of unsettled deliveries

    def start(self) -> None:
        """Declare and consume."""
        if self._alive and self._session.is_open:
            self._session.add(self)
            self._session.write(self._declarations(self.number))

    def _declarations(self, channel: int) -> bytes:
        parts = [frames.channel_open(channel)]
        queue = self._queue
        if queue.own and self._is_lost:
            # It holds nothing that was promised to others, unlike the queue of a topic. RabbitMQ forms a new one.
            parts.append(frames.queue_delete(channel, queue.name))
        if self.source.prefetch:
            parts.append(frames.basic_qos(channel, self.source.prefetch))
        if queue.exchange.name:
            parts.append(questions.exchange_declare(channel, queue.exchange))
        parts += [questions.queue_declare(channel, queue), questions.bind(channel, queue)]
        if queue.pools is not None:
            parts.append(questions.exchange_declare(channel, queue.pools))
        # If RabbitMQ has not noticed that an older connection broke, that one still consumes, and would take messages
        # that are meant for this process alone. RabbitMQ serves the higher priority first: the newer connection's.
        priority = int(time.time()) - 1_700_000_000 if queue.own or self.source.address.kind == "server" else 0
        arguments: dict[str, Any] = {"x-priority": priority} if priority else {}
        if queue.is_stream:
            arguments = {"x-stream-offset": FROM_NOW_ON if self.source.notes is None else self.source.notes}
        parts.append(frames.basic_consume(channel, queue.name, frames.CONSUMER_TAG, arguments))
        return b"".join(parts)

    # Any thread

    def settle(self, tag: int, outcome: Outcome) -> bool:
        with self._lock:
            if not self._alive:
                return False
            unsettled = self._unsettled
            try:
                unsettled.remove(tag)
            except KeyError:
                return True
            if self._offsets:
                self._offsets.pop(tag, None)
            if outcome is Outcome.ACCEPT or self._is_stream:  # A stream closes the channel over anything else.
                self._accepted.append(tag)
                # While RabbitMQ knows of few unsettled ones, it delivers on.
                is_urgent = 2 * (len(unsettled) + len(self._accepted)) >= self.source.prefetch
            else:
                self._rejected[tag] = outcome is Outcome.REQUEUE
                is_urgent = True
        self._session.settle_soon(self, is_urgent=is_urgent)
        self._session.flush()
        return True

    def take_settlements(self) -> bytes:
        with self._lock:
            # On a closed channel RabbitMQ closes the connection over this.
            return self._settlements() if self._alive else b""

    def _settlements(self) -> bytes:
        """The frames for what was settled since the last time. The lock is held.

        One acknowledgement stands for all up to its tag, if none of those is to be rejected or still to be settled.
        RabbitMQ has less work with one than with many.
        """
        accepted, self._accepted = self._accepted, []
        rejected, self._rejected = self._rejected, {}
        parts = []
        if len(accepted) > 1:
            # The loop's thread may add to these meanwhile, and to copy them is one step of the interpreter.
            others = [*self._unsettled, *rejected]
            first = min(others, default=max(accepted) + 1)
            together = [tag for tag in accepted if tag < first]
            if together:
                parts.append(frames.basic_ack(self.number, max(together), multiple=True))
                accepted = [tag for tag in accepted if tag > first]
        parts += [frames.basic_ack(self.number, tag) for tag in accepted]
        parts += [frames.basic_reject(self.number, tag, requeue) for tag, requeue in rejected.items()]
        return b"".join(parts)

    def trouble(self) -> str | None:
        since = self.source.waits_since
        if since is None or (waits := Loop.now() - since) <= questions.INSPECT_TIMEOUT:
            return None
        return self._not_declared(waits)

    def _not_declared(self, waits: float) -> str:
        name, queue = self._session.name(), self._queue
        text = f"{name} has not declared queue {queue.name!r} of {self.source.address} in {waits:.0f} s"
        if not queue.is_quorum:
            text = f"{text}; perhaps {questions.NODE_HINT}"
        elif self._is_lost:
            text = f"{text}, and other hosts have not before; {self._lost_hint()}"
        return text

    @property
    def _is_lost(self) -> bool:
        """Whether no host could declare the queue for so long that most of its members must be gone."""
        return self._queue.is_quorum and (self.source.notes or 0.0) >= LOST_AFTER

    def _lost_hint(self) -> str:
        if self._queue.own:
            return "it is deleted and created again"
        return questions.members_hint(self._queue.name)

    # What RabbitMQ says: the loop's thread

    def on_delivery(self, tag: int, redelivered: bool, message: Message, headers: frames.Headers) -> None:
        # RabbitMQ leaves the count out at the first delivery.
        attempts = (_number(headers.get("x-delivery-count")) or 0) if self._counts else None
        if not self._is_inbox:
            self._unsettled.add(tag)
            if self._is_stream and (offset := _number(headers.get("x-stream-offset"))) is not None:
                self._offsets[tag] = offset
                self.source.notes = offset + 1
            self.source.deliver(self, tag, message, redelivered, attempts)
            return
        self.source.deliver(self, tag, message, redelivered, attempts)
        if self._alive:
            self._session.acknowledge_later(self.number, tag)
            if tag % ACK_AT_ONCE == 0:  # The tags of a channel are 1, 2, 3 and so on.
                self._session.write(b"")

    def on_unread(self, tag: int) -> None:
        """Reject it, so that an acknowledgement of several does not cover it. Requeued, it might fail for ever.

        In an inbox there is nothing to choose: nobody else could read the reply.
        """
        if not self._is_inbox:
            LOG.error(
                "a message to %s, queue %r, could not be read, and is rejected", self.source.address, self._queue.name
            )
            self._unsettled.add(tag)
            self.settle(tag, Outcome.DROP)

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == frames.BASIC_CONSUME_OK:
            if self._queue.is_quorum:
                self.source.notes = None
            self.source.active(self)
        elif ids == frames.BASIC_CANCEL_OK:
            self.source.cancelled(self)
        elif ids == frames.BASIC_CANCEL and self._alive:
            # RabbitMQ ended the consumer: the queue was deleted, or its node went down.
            self._end(frames.channel_close(self.number))
            why = "RabbitMQ has ended it: the queue was deleted, or its consumer_timeout has passed"
            self.source.lost(self, why)
        elif ids == frames.CHANNEL_CLOSE:
            code, text = frames.read_close(buffer, at, end)
            if self._declares_as_found(code, text):
                return
            if code == questions.INTERNAL_ERROR:
                self._count_in_vain(at_least=REFUSAL_COUNTS)
            has_closed = not self._alive
            self._end(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
            if not has_closed:  # Else they have crossed, and RabbitMQ answers with CHANNEL_CLOSE_OK as well.
                self._session.remove_channel(self)
            name, where = self._session.name(), f"{self.source.address}, queue {self._queue.name!r}"
            why = f"{name} refuses {where}: {explain(code, text)}"
            if self._is_lost:
                why = f"{why} - {self._lost_hint()}"
            self.source.refused(self, why, permanent=not is_temporary(code, text))
        elif ids == frames.CHANNEL_CLOSE_OK:
            self._session.remove_channel(self)
            self.end()
            self.source.closed(self)

    def _declares_as_found(self, code: int, text: str) -> bool:
        """Stock peers of several services may share an exchange that is not durable, though some are set to be durable.

        These then declare their queues as not durable too, and so does this side.

        Returns:
            whether it declares again.
        """
        queue = self._queue
        differs = questions.differs_in_durability(Answer(code, text), queue.exchange)
        if not differs or not self._alive or not queue.durable or queue.is_quorum or queue.is_stream:
            return False
        self._session.write(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
        self._session.remove_channel(self)
        warning = "%s: exchange %r is not durable, so neither is queue %r: what is in it is lost if RabbitMQ restarts"
        LOG.warning(warning, self.source.address, queue.exchange.name, queue.name)
        self._queue = queue.not_durable
        self.start()
        return True

    def on_transient_refused(self, code: int, text: str) -> None:
        """RabbitMQ has closed the connection, since it takes no queues that do not outlive a restart."""
        if self._alive and not self._queue.durable:
            self._end()
            where = f"{self.source.address}, queue {self._queue.name!r}"
            why = f"{self._session.name()} refuses {where}: {explain(code, text)}"
            self.source.refused(self, why, permanent=True)

    def check_queue(self) -> None:
        """See that the queue is still there, and restore its exchange and its binding if somebody has deleted them.

        A quorum queue may go without a word to those who consume from it: where one node could not form it, for
        example since another is frozen, it deletes it, though a third node has found it meanwhile and serves it
        (``rabbit_quorum_queue:declare_queue_error``, in 3.10 and 4.3). Nor does anybody say that its leader is gone and
        that there will be no other; then RabbitMQ counts no consumers (``rabbit_quorum_queue:stat``).
        """
        queue = self._queue
        if not self.source.consuming or not self._alive:
            return
        if self._check is not None and self._check.is_pending:
            self._leave_if_silent()
            return  # It is not asked again, on one more channel each time, while RabbitMQ does not answer.
        if queue.key is None:
            ask, last = partial(questions.inspect_queue, queue=queue.name), frames.QUEUE_DECLARE_OK
        else:
            ask, last = partial(questions.inspect_and_bind, queue=queue), frames.QUEUE_BIND_OK
        self._check = Question(self._session, ask, last, self._on_checked, CHECK_TIMEOUT)
        self._check.start()

    def _on_checked(self, answer: Answer) -> None:
        if answer.code == 0:
            self._check_leader(answer)
        elif answer.code < 0:
            self._leave_if_silent()
        elif answer.code != questions.NOT_FOUND:
            why = explain(answer.code, answer.text)
            LOG.warning("%s: it is not known whether its queue is bound: %s", self.source.address, why)
        elif self._alive and answer.info is None and not answer.node_is_down:
            self._end(frames.channel_close(self.number))
            self.source.lost(self, f"{self._session.name()} has lost queue {self._queue.name!r}")

    def _leave_if_silent(self) -> None:
        """Leave a node that does not answer a check, though nothing keeps it from that."""
        check = self._check
        if not self._alive or not self._queue.is_quorum or check is None or check.asked_at is None:
            return
        waits = Loop.now() - max(check.asked_at, self._session.hindered_at)
        if check.is_pending and waits >= CHECK_TIMEOUT:
            self._session.move(f"{self._session.name()} has not answered for {waits:.0f} s")

    def _check_leader(self, answer: Answer) -> None:
        """Consume again where RabbitMQ knows of no consumer.

        One that was stopped has none, and goes on settling. It is not done where shared requests would be delivered
        again: RabbitMQ also counts none where a busy leader does not answer within a quarter of a second.
        """
        expects_one = self._queue.own and self._queue.is_quorum and not self._is_cancelled
        has_none = expects_one and answer.info is not None and not answer.info.consumers
        self._without_leader = self._without_leader + 1 if has_none else 0
        if self._alive and self._without_leader >= CHECKS_WITHOUT_LEADER:
            self._end(frames.channel_close(self.number))
            self.source.lost(self, f"{self._session.name()}: queue {self._queue.name!r} has no leader, or no consumer")

    def check_declared(self, now: float) -> bool:
        """Leave a node that does not declare a quorum queue in time: it may be cut off from the others of its cluster.

        Returns:
            whether it was left.
        """
        if not self._alive or not self._queue.is_quorum or self.source.waits_since is None:
            return False
        limit = STALL_TIMEOUT
        if self._is_lost:
            limit = DELETE_TIMEOUT if self._queue.own else LOST_TIMEOUT
        waits = now - max(self.source.waits_since, self._session.hindered_at)
        if waits < limit:
            return False
        self._session.move(self._not_declared(waits))
        return True

    def _count_in_vain(self, at_least: float = 0.0) -> None:
        """The declaration ends without success; say so once in the log if the queue counts as lost by that."""
        if not self._alive or not self._queue.is_quorum or self.source.waits_since is None:
            return
        since, was_lost = self.source.waits_since, self._is_lost
        waits = max(Loop.now() - since, at_least)
        self.source.notes = (self.source.notes or 0.0) + waits
        if self._is_lost and not was_lost:
            text = "%s: no host of the cluster has declared queue %r within %.0f s; %s"
            LOG.error(text, self.source.address, self._queue.name, self.source.notes, self._lost_hint())

    # The end

    def cancel(self) -> None:
        self._is_cancelled = True
        self._session.write(frames.basic_cancel(self.number, frames.CONSUMER_TAG))

    def close(self) -> None:
        """Delete a private queue, and close the channel: RabbitMQ requeues what was not settled."""
        deletion = frames.queue_delete(self.number, self._queue.name) if self._queue.own else b""
        self._end(deletion + frames.channel_close(self.number))

    def end(self) -> None:
        self._count_in_vain()
        self._end()

    def _end(self, last_words: bytes = b"") -> None:
        """No delivery can be settled any more: RabbitMQ closes the connection over a frame on a closed channel."""
        with self._lock:
            self._alive = False
            self._session.acknowledge_no_more(self.number)
            last_words = self._settlements() + last_words
            if self._offsets:  # What was not settled is read again.
                self.source.notes = min(self._offsets.values())
            if last_words:
                self._session.append(last_words)
        self._session.flush()


def _number(header: object) -> int | None:
    """The value of a header that is a number if RabbitMQ has written it. A peer may send anything."""
    return header if isinstance(header, int) else None
