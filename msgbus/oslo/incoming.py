"""What oslo.messaging's servers get for each message, and how they answer."""

from __future__ import annotations

import enum
import sys
import threading
from concurrent.futures import Future
from typing import Any, Protocol

import oslo_messaging
from oslo_messaging._drivers import base, common
from oslo_serialization import jsonutils

from msgbus import MessageTooLarge, MessageUndeliverable, MessagingException
from msgbus.foreign import get_logger
from msgbus.lowlevel import JSON, Address, Capability, Delivery, Message, MessageTransport, Sent, new_id, now

LOG = get_logger(__name__)

CONTEXT = "_context_"
"""With this before its name a part of the context travels in the payload."""
REPLY_TTL = 60.0
"""Seconds for which a reply is kept at least, for a client that is there, or while the message system is away."""
GONE_FOR = 60.0
"""Seconds for which replies to a client that was away for too long are tried only once."""
MAX_GONE = 200
"""The number of such clients that are remembered."""
MAX_NAME = 255
"""The most characters of an id or the name of an inbox, which are remembered and logged. oslo.messaging's have 38."""


class Replies:
    """Sends replies, and remembers whose client is gone. Thread-safe."""

    def __init__(self, transport: MessageTransport, timeout: float) -> None:
        """Try each reply for `timeout` seconds if its client is away, which may be reconnecting; 0: try it once."""
        self._transport = transport
        self._timeout = timeout
        self._ttl = max(timeout, REPLY_TTL)
        self._gone: dict[str, float] = {}  # by inbox, until when
        self._under_way: set[Future[Sent]] = set()  # first tries that have not ended

    def send(self, inbox: str, call_id: str, payload: dict[str, Any], *, is_about_size: bool = False) -> None:
        """Send a reply to an inbox. It does not wait; if it is lost, the log says so.

        If it is larger than the message system takes, the caller gets that as the server's failure.

        Raises:
            Exception: it cannot be written as JSON.
        """
        body = jsonutils.dump_as_bytes(common.serialize_msg({**payload, "_msg_id": call_id, "_unique_id": new_id()}))
        began = now()
        away_until = began if self._gone.get(inbox, 0.0) > began else began + self._timeout

        def on_outcome(error: BaseException | None) -> None:
            if error is not None:
                self._on_lost(inbox, call_id, error)
            if isinstance(error, MessageTooLarge) and not is_about_size:
                too_large = MessageTooLarge(f"the answer: {error}")
                failure = common.serialize_remote_exception((MessageTooLarge, too_large, None))
                answer = {"result": None, "failure": failure, "ending": True}
                self.send(inbox, call_id, answer, is_about_size=True)

        # Its id differs from that of other replies to the call: signs of life come before the answer.
        message = Message(body, JSON, f"{call_id[:32]}.{new_id()[:8]}", self._ttl)
        sent = self._transport.send(
            Address("inbox", name=inbox),
            message,
            mandatory=True,
            until=began + self._ttl,
            retry_undeliverable=away_until,
            on_outcome=on_outcome,
        )
        if not sent.done():
            self._under_way.add(sent)
            sent.add_done_callback(self._under_way.discard)

    def wait(self, until: float) -> None:
        """Wait until the message system has taken, or refused, what was sent before, or `until`."""
        for sent in self._under_way.copy():
            self._transport.wait_for(sent, until)

    def _on_lost(self, inbox: str, call_id: str, error: BaseException) -> None:
        LOG.warning("a reply to call %s, for inbox %s, is lost: %s", call_id, inbox, error)
        if not isinstance(error, MessageUndeliverable):
            return  # The client may well be there.
        while len(self._gone) >= MAX_GONE:
            self._gone.pop(next(iter(self._gone)), None)
        self._gone[inbox] = now() + GONE_FOR

    def send_sign_of_life(self, inbox: str, call_id: str) -> None:
        """Tell a client that its call still runs. If that is lost, the next one follows soon."""
        payload = {"result": None, "failure": None, "ending": False, "_msg_id": call_id, "_unique_id": new_id()}
        body = jsonutils.dump_as_bytes(common.serialize_msg(payload))
        message = Message(body, JSON, f"{call_id[:32]}.{new_id()[:8]}", self._ttl)
        self._transport.send(Address("inbox", name=inbox), message, mandatory=False)


class Owner(Protocol):
    """The listener that a message has come to."""

    replies: Replies

    def note_settled(self, unique_id: str | None) -> None:
        """A message is settled: if it comes again it is dropped."""

    def forget(self, unique_id: str | None) -> None:
        """A message was not run: if it comes again it is to be run."""

    def give_back(self, delivery: Delivery, unique_id: str | None) -> None:
        """Give a message back to the message system."""

    def take_copy(self, delivery: Delivery) -> None:
        """A copy of a message that was forgotten came before that: take it as if it came now."""


class _State(enum.Enum):
    """Of a message, for what becomes of a copy of it that comes."""

    OPEN = enum.auto()
    """A copy is settled together with it."""
    SETTLING = enum.auto()
    """It is not known yet whether the message system takes that: a copy has to wait."""
    SETTLED = enum.auto()
    """A copy is dropped."""
    FORGOTTEN = enum.auto()
    """It is not run, and comes again: a copy is that."""


class Incoming(base.RpcIncomingMessage):  # type: ignore[misc]  # oslo.messaging has no types
    """A request. Its server acknowledges it before it runs it.

    Attributes:
        unique_id: the same if the message comes again; None if the sender gave none.
    """

    def __init__(self, listener: Owner, delivery: Delivery, payload: Any) -> None:
        """Read a payload, which is used up.

        Raises:
            TypeError: it is no dict, or an id or the inbox in it is not a string.
            ValueError: one of these is too long.
        """
        if not isinstance(payload, dict):
            raise TypeError(f"it is no JSON object but {type(payload).__name__}")
        ctxt = {key.removeprefix(CONTEXT): payload.pop(key) for key in list(payload) if key.startswith(CONTEXT)}
        self.unique_id = _pop_name(payload, "_unique_id")
        self._call_id = _pop_name(payload, "_msg_id")
        self._inbox = _pop_name(payload, "_reply_q")
        payload.pop("_msgbus", None)  # What a client of msgbus adds.
        client_timeout = ctxt["client_timeout"] = payload.pop("_timeout", None)
        super().__init__(ctxt, payload, self._call_id)
        self.client_timeout = client_timeout
        self._listener = listener
        self._deliveries = [delivery]
        self._state = _State.OPEN
        self._settling = threading.Lock()
        self._is_answered = False

    def join(self, delivery: Delivery) -> bool:
        """The message has come again. False if this one is forgotten; else that one is settled as this one is."""
        with self._settling:
            if self._state in (_State.OPEN, _State.SETTLING):
                self._deliveries.append(delivery)
                return True
            is_settled = self._state is _State.SETTLED
        if is_settled:
            delivery.accept()
        return is_settled

    def _begin_settling(self) -> list[Delivery]:
        """What has come so far; empty if that was begun before. `_end_settling` has to follow."""
        with self._settling:
            if self._state is not _State.OPEN:
                return []
            self._state = _State.SETTLING
            deliveries, self._deliveries = self._deliveries, []
        return deliveries

    def _end_settling(self, state: _State) -> None:
        """Note how it ended. The listener knows that already, so that no copy is judged by what was before."""
        with self._settling:
            self._state = state
            copies, self._deliveries = self._deliveries, []
        for copy in copies:
            if state is _State.SETTLED:
                copy.accept()
            else:
                self._listener.take_copy(copy)

    def acknowledge(self) -> None:
        """Accept it.

        Raises:
            MessageDeliveryFailure: it will come again, to this server or another, since its connection is lost.
        """
        deliveries = self._begin_settling()
        if not deliveries:
            return
        accepted = [delivery.accept() for delivery in deliveries]
        if any(accepted):
            self._listener.note_settled(self.unique_id)
            self._end_settling(_State.SETTLED)
            return
        self._listener.forget(self.unique_id)
        self._end_settling(_State.FORGOTTEN)
        raise oslo_messaging.MessageDeliveryFailure("the connection by which it came is lost; it will come again")

    def requeue(self) -> None:
        """Give it back, so that this server or another gets it again."""
        deliveries = self._begin_settling()
        if not deliveries:
            return
        for delivery in deliveries[:-1]:
            delivery.accept()
        self._listener.give_back(deliveries[-1], self.unique_id)
        self._end_settling(_State.FORGOTTEN)

    def reply(self, reply: Any = None, failure: Any = None) -> None:
        """Answer the caller, if there is one."""
        self._is_answered = True
        if self._call_id is None or self._inbox is None:
            return
        replies = self._listener.replies
        try:
            reason = common.serialize_remote_exception(failure) if failure else None
            replies.send(self._inbox, self._call_id, {"result": reply, "failure": reason, "ending": True})
        except MessagingException:
            raise
        except Exception:
            # It cannot be written. The caller would wait in vain; the server logs it.
            reason = common.serialize_remote_exception(sys.exc_info())
            replies.send(self._inbox, self._call_id, {"result": None, "failure": reason, "ending": True})
            raise

    def heartbeat(self) -> None:
        """Tell the caller that the call still runs, if it has asked for that: others would not understand it.

        Raises:
            MessageDeliveryFailure: the call is answered.
        """
        if self._is_answered:
            # If no method was found, the thread that calls this goes on after the answer, until this raises.
            raise oslo_messaging.MessageDeliveryFailure("the call is answered, and runs no more")
        if self._call_id is not None and self._inbox is not None and self.client_timeout:
            self._listener.replies.send_sign_of_life(self._inbox, self._call_id)


class IncomingNotification(Incoming):
    """A notification. Its server acknowledges it after it has processed it."""

    def acknowledge(self) -> None:
        """Accept it. If its connection is lost it will come again, and is dropped then, since its id is known."""
        deliveries = self._begin_settling()
        if not deliveries:
            return
        self._listener.note_settled(self.unique_id)
        accepted = [delivery.accept() for delivery in deliveries]
        self._end_settling(_State.SETTLED)
        if not any(accepted):
            LOG.info("notification %s was processed, and will come again: its connection is lost", self.unique_id)


def _pop_name(payload: dict[str, Any], key: str) -> str | None:
    """Take an id or the name of a queue out of a payload. A peer may send anything."""
    value = payload.pop(key, None)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{key} is not a string but {type(value).__name__}")
    if value is not None and len(value) > MAX_NAME:
        raise ValueError(f"{key} has {len(value)} characters, and may have {MAX_NAME}")
    return value


def can_requeue(transport: MessageTransport) -> bool:
    """Whether the message system takes messages back."""
    return Capability.REQUEUE in transport.driver.capabilities
