"""Requests, replies, control frames and dead letters. `msgbus.encoding` turns them into bytes.

On the wire a request or reply is oslo.messaging's envelope, version 2.0: a JSON object with ``oslo.version`` and
``oslo.message``, the latter the payload as JSON text. The codec msgpack writes the payload alone, without the double
wrapping. What msgbus adds rides in the payload's key ``_msgbus``, which a stock oslo.messaging peer ignores; only a
peer that has sent that key is sent control frames.

========== ============================= ==================================================================
frame      goes to                       its ``_msgbus`` holds
========== ============================= ==================================================================
request    topic, server or fanout       ttl (seconds left), at (wall clock when sent), policy, window and window_bytes
                                         (streams), confirms, again, attempts (where a server passes it on), metadata
reply      the client's inbox            after a stream: its last items, seq; confirm: where to confirm it
started    the client's inbox            inbox (of the server), server (its name)
items      the client's inbox            items, seq (number of the first of them)
keepalive  the other side's inbox        of a server: inbox, server; of a stream's client: taken
declined   the client's inbox            server: it does not run a request that may have run
credit     the server's inbox            taken: how many of the stream's items the client has consumed so far
cancel     the server's inbox
confirm    the server's inbox            the client has the answer
========== ============================= ==================================================================
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, get_args

import msgspec

from msgbus import forking
from msgbus.exceptions import SerializationError

JSON = "application/json"
MSGPACK = "application/msgpack"
CONTENT_TYPES = {"json": JSON, "msgpack": MSGPACK}

Policy = Literal["at_most_once", "at_least_once"]
"""What may happen to a request when a server or a connection is lost: it is not run, or it may be run twice."""
POLICIES: tuple[Policy, ...] = get_args(Policy)
AT_MOST_ONCE, AT_LEAST_ONCE = POLICIES

MAX_NAME = 255
"""The most characters in a method's name, a namespace, an id or the name of an inbox. Message systems allow names of
255 bytes; ids of msgbus and oslo.messaging have 32 characters. A server remembers ids, so their size has to be
bounded."""
MAX_VERSION = 64
"""The most characters in a version."""
MAX_METADATA = 16 * 1024
"""The most bytes of names and values together in a request's metadata. W3C's baggage may have 8 KiB."""

KEEPALIVE = 5.0
"""Seconds of silence after which each side of a running call or stream sends a sign of life."""
LOST_AFTER = 3 * KEEPALIVE
"""Seconds without a sign of life after which the other side is taken for dead."""

FIRST_WINDOW = 100
"""The most items that a server sends ahead at the beginning of a stream; see `window_after`."""

PING_NAMESPACE = "msgbus"
"""The namespace of the method ``ping`` that every server answers."""

ReplyKind = Literal["reply", "started", "items", "keepalive", "declined"]
ControlKind = Literal["credit", "cancel", "keepalive", "confirm"]


class Hints(msgspec.Struct, omit_defaults=True):
    """What a msgbus client says of its request, in ``_msgbus``.

    Attributes:
        ttl: seconds that were left when it was sent, or None.
        at: the sender's wall clock then, seconds since the epoch, or None.
        policy: the sender's delivery policy, or None if it does not say.
        window: for a stream, how many items the server may send ahead of what the client has consumed, at the most;
            see `window_after`.
        window_bytes: for a stream, how many bytes of items likewise; the client sends credit by bytes too. None from a
            client that counts items only.
        end: for a stream, whose ttl is for its first item: seconds that were left for all of it, or None.
        confirms: the client confirms the answer, since its inbox may lose messages; the server repeats the answer until
            it is confirmed.
        again: the client has no answer and sends the request again: a server that has already answered it is to run it
            again.
        attempts: for a cast that raised on other servers, how often they have begun it. Set by those servers, not by
            the client.
        metadata: texts by name, from the client's interceptors for the server's; None if there are none.
    """

    ttl: float | None = None
    at: float | None = None
    policy: str | None = None
    window: Annotated[int, msgspec.Meta(ge=1)] | None = None
    end: float | None = None
    confirms: bool = False
    again: bool = False
    attempts: Annotated[int, msgspec.Meta(ge=0)] = 0
    window_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    metadata: dict[str, str] | None = None


def metadata_size(metadata: dict[str, str]) -> int:
    """The bytes of all names and values.

    Raises:
        UnicodeEncodeError: there is a lone surrogate, which no message can hold.
    """
    return sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items())


class Request(msgspec.Struct):
    """A method to be run.

    Attributes:
        method: its name.
        args: its arguments.
        unique_id: the same each time that the core repeats the request.
        namespace: of the interface that the method belongs to.
        version: of that interface; None means 1.0.
        call_id: names the call that its replies belong to; None for a cast.
        reply_to: name of the client's inbox; None for a cast.
        monitor: seconds; a stock client wants two signs of life in that time. Its type is not checked: a peer may send
            anything.
        hints: of a msgbus client, which understands control frames; None for a stock client.
        context: the caller's, plain data.
    """

    method: str
    args: dict[str, Any] = {}
    unique_id: str = msgspec.field(default="", name="_unique_id")
    namespace: str | None = None
    version: str | None = None
    call_id: str | None = msgspec.field(default=None, name="_msg_id")
    reply_to: str | None = msgspec.field(default=None, name="_reply_q")
    monitor: Any = msgspec.field(default=None, name="_timeout")
    hints: Hints | None = msgspec.field(default=None, name="_msgbus")
    context: dict[str, Any] = {}

    @property
    def window(self) -> int | None:
        """The stream window, or None where the client wants one value."""
        return None if self.hints is None else self.hints.window


def window_after(taken: int, window: int) -> int:
    """How many items a server may send ahead of a client that has given credit for `taken`. Both sides count on it.

    A client that reads much is sent much, up to `window`. One that closes its stream early has had the generator do
    not more than twice the work, and `FIRST_WINDOW` items.
    """
    return min(window, max(FIRST_WINDOW, taken))


class UnacceptableRequest(SerializationError):
    """A request that cannot be run: it is not one, or has a name or id that is too long.

    Attributes:
        request: if its `call_id` and `reply_to` are valid, its client can be answered; else both are None.
    """

    def __init__(self, msg: str, request: Request) -> None:
        super().__init__(msg)
        self.request = request


class Reply(msgspec.Struct):
    """A frame from a server to the client of a call. Only the one with `ending` is the answer.

    Attributes:
        call_id: of the call.
        kind: see the table above; a stock server's frames are all replies.
        result: the value.
        failure: the exception, as `msgbus.failures` writes it.
        ending: whether nothing comes after it.
        extended: it comes from, or goes to, a msgbus peer.
        inbox: where the server takes control frames.
        server: its name.
        items: of a stream.
        seq: the number of the first of them.
        confirm: the server's inbox, where the client confirms this reply; None if no confirmation is wanted.
        size: of one that has come: the bytes of its message.
        redelivered: it may have come before, over a connection that was lost.
    """

    call_id: str
    kind: ReplyKind = "reply"
    result: Any = None
    failure: str | None = None
    ending: bool = False
    extended: bool = False
    inbox: str | None = None
    server: str | None = None
    items: list[Any] | None = None
    seq: int = 0
    confirm: str | None = None
    size: int = 0
    redelivered: bool = False


class Control(msgspec.Struct):
    """A frame from a client to the server that runs its call.

    Attributes:
        call_id: the call.
        kind: what it is.
        taken: of a stream's client, how many items it has consumed so far. Since it is a total, it may arrive twice,
            and the next one makes up for a lost one.
    """

    call_id: str
    kind: ControlKind
    taken: int = 0


class DeadLetter(msgspec.Struct):
    """A message that could not be processed, and why. It travels as JSON.

    Attributes:
        reason: one line.
        address: where the message had been sent to.
        server: the name of the server that gave it up.
        attempts: how often it was begun, as far as that is known.
        at: wall clock, seconds since the epoch.
        traceback: of the last attempt's exception, or an empty list.
        content_type: of `body`.
        body: the message as it came (base64 in JSON).
        kind: of the address: topic, server, fanout or pool. None in letters of servers that did not say.
    """

    reason: str
    address: str
    server: str
    attempts: int
    at: float
    traceback: list[str]
    content_type: str
    body: bytes
    kind: str | None = None


IDS_AT_ONCE = 256
"""The number of ids made from one read of the system's random numbers. Each read releases the interpreter's lock."""
_ids: list[str] = []


def new_id() -> str:
    """A new id for a request or a call: 32 random hexadecimal digits. A reply is accepted by its id alone."""
    while True:
        try:
            return _ids.pop()
        except IndexError:
            forks = forking.forks
            digits = os.urandom(16 * IDS_AT_ONCE).hex()
            made = [digits[at : at + 32] for at in range(0, len(digits), 32)]
            if forks == forking.forks:  # Otherwise a handler of a signal has just forked: these are the parent's too.
                _ids.extend(made)


# Otherwise a forked child would use the same ids as its parent.
os.register_at_fork(after_in_child=_ids.clear)
