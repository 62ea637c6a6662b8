"""What travels: requests, replies and control frames, and how they are written as bytes.

On the wire a request or reply is oslo.messaging's envelope, version 2.0: a JSON object with ``oslo.version`` and
``oslo.message``, the latter the payload as JSON text. The codec msgpack writes the payload alone, without the double
wrapping. What msgbus adds rides in the payload's key ``_msgbus``, which a stock oslo.messaging peer ignores; only a
peer that has sent that key is sent control frames.

========== ============================= ==================================================================
frame      goes to                       its ``_msgbus`` holds
========== ============================= ==================================================================
request    topic, server or fanout       ttl (seconds left), at (wall clock when sent), policy, window (streams),
                                         confirms, again, attempts (where a server passes it on)
reply      the client's inbox            after a stream: its last items, seq; confirm: where to confirm it
started    the client's inbox            inbox (of the server), server (its name)
items      the client's inbox            items, seq (number of the first of them)
keepalive  the other side's inbox        of a server: inbox, server; of a stream's client: taken
declined   the client's inbox            server: it will not run what may have run before
credit     the server's inbox            taken: how many of the stream's items the client has consumed so far
cancel     the server's inbox
confirm    the server's inbox            the answer has come
========== ============================= ==================================================================
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from msgbus.exceptions import SerializationError

JSON = "application/json"
MSGPACK = "application/msgpack"
CONTENT_TYPES = {"json": JSON, "msgpack": MSGPACK}

AT_MOST_ONCE = "at_most_once"
AT_LEAST_ONCE = "at_least_once"
POLICIES = (AT_MOST_ONCE, AT_LEAST_ONCE)
"""What may happen to a request when a server or a connection is lost: it is not run, or it may be run twice."""

MAX_NAME = 255
"""Characters of a method's name, a namespace, an id or an inbox at the most. Message systems have names of 255 bytes,
ids of msgbus and oslo.messaging 32 characters. A server remembers ids, so they may not be of any size."""
MAX_VERSION = 64
"""Characters of a version at the most."""

EXTENSION = "_msgbus"
PING_NAMESPACE = "msgbus"
"""The namespace of the method ``ping`` that every server answers."""
_CONTEXT = "_context_"
_ENVELOPE_VERSION = "2.0"
_READABLE = re.compile(r"2\.0+")  # A higher minor version may hold what this side does not know, says oslo.messaging.
_AGES = 1e10  # seconds
_PLAIN = " (plain data can: dict, list, str, number, bool, None; a serializer makes it of other objects)"
_DECODING_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)

ReplyKind = Literal["reply", "started", "items", "keepalive", "declined"]
ControlKind = Literal["credit", "cancel", "keepalive", "confirm"]

Payload = dict[str, Any]


class Hints(msgspec.Struct, omit_defaults=True):
    """What a msgbus client says of its request, in ``_msgbus``.

    Attributes:
        ttl: seconds that were left when it was sent, or None.
        at: the sender's wall clock then, seconds since the epoch, or None.
        policy: the sender's delivery policy, or None where it does not say.
        window: for a stream, how many items the server may send ahead of what the client has consumed.
        end: for a stream, whose ttl is for its first item: seconds that were left for all of it, or None.
        confirms: it says when it has the answer, which its inbox may lose; the server sends the answer until then.
        again: the client sends the request once more, since it has no answer: a server that has already given one is
            to run it again.
        attempts: how often other servers have begun it, of a cast that raised there; they say so, not the client.
    """

    ttl: float | None = None
    at: float | None = None
    policy: str | None = None
    window: Annotated[int, msgspec.Meta(ge=1)] | None = None
    end: float | None = None
    confirms: bool = False
    again: bool = False
    attempts: Annotated[int, msgspec.Meta(ge=0)] = 0


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
        monitor: seconds; a stock client's wish for a sign of life twice in that time. It may send anything here.
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


class UnacceptableRequest(SerializationError):
    """A request that could be read, and has a name or id that is too long.

    Attributes:
        request: where its `call_id` and `reply_to` are of use, its client can be told; else both are None.
    """

    def __init__(self, msg: str, request: Request) -> None:
        super().__init__(msg)
        self.request = request


class Reply(msgspec.Struct):
    """What a server tells a client of one call. Only the one with `ending` is the answer.

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
        confirm: the server's inbox, which is to be told that this has come; None where nobody asks.
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


class Control(msgspec.Struct):
    """What a client tells the server that runs its call.

    Attributes:
        call_id: the call.
        kind: what it is.
        taken: of a stream's client, how many items it has consumed so far. A total does no harm when it comes twice,
            and the next one makes up for one that was lost.
    """

    call_id: str
    kind: ControlKind
    taken: int = 0


class _Extension(msgspec.Struct):
    """The ``_msgbus`` key of a reply or a control frame."""

    kind: Literal["reply", "started", "items", "keepalive", "declined", "credit", "cancel", "confirm"] = "reply"
    inbox: str | None = None
    server: str | None = None
    items: list[Any] | None = None
    seq: int = 0
    taken: int = 0
    confirm: str | None = None


class _InboxFrame(msgspec.Struct):
    """A payload that comes to an inbox: a reply, or a control frame, which has neither result nor failure."""

    call_id: str = msgspec.field(name="_msg_id")
    result: Any = msgspec.UNSET
    failure: str | msgspec.UnsetType | None = msgspec.UNSET
    ending: bool = False
    extension: _Extension | None = msgspec.field(default=None, name="_msgbus")


class _Envelope(msgspec.Struct):
    version: str | None = msgspec.field(default=None, name="oslo.version")
    message: str | None = msgspec.field(default=None, name="oslo.message")


_json_encoder = msgspec.json.Encoder()
_msgpack_encoder = msgspec.msgpack.Encoder()
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_json_payload = msgspec.json.Decoder(dict[str, Any])
_msgpack_payload = msgspec.msgpack.Decoder(dict[str, Any])
_json_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])
_msgpack_raw = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_json_hints = msgspec.json.Decoder()
_msgpack_hints = msgspec.msgpack.Decoder()
_json_request = msgspec.json.Decoder(Request)
_msgpack_request = msgspec.msgpack.Decoder(Request)
_json_frame = msgspec.json.Decoder(_InboxFrame)
_msgpack_frame = msgspec.msgpack.Decoder(_InboxFrame)


def new_id() -> str:
    """A fresh id for a request or a call: 32 hexadecimal digits that nobody can guess, for a reply is known by it."""
    return os.urandom(16).hex()


def encode(payload: Payload, content_type: str) -> bytes:
    """Write a payload as bytes.

    Raises:
        SerializationError: it holds something that the codec cannot write.
    """
    try:
        if content_type == MSGPACK:
            return _msgpack_encoder.encode(payload)
        text = _json_encoder.encode(payload).decode()
        return _json_encoder.encode({"oslo.version": _ENVELOPE_VERSION, "oslo.message": text})
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise SerializationError(f"cannot be written as {content_type}: {exc}{_PLAIN}") from exc


def _open(body: bytes, content_type: str) -> bytes | str:
    """The payload's own text, out of its envelope.

    A JSON body without envelope is taken as the payload itself, as oslo.messaging does.
    """
    if content_type == MSGPACK:
        return body
    if content_type != JSON:
        raise SerializationError(f"content type {content_type!r}; known are {JSON} and {MSGPACK}")
    envelope = _decode_envelope(body)
    if envelope.message is None or envelope.version is None:
        return body
    if envelope.version != _ENVELOPE_VERSION and not _READABLE.fullmatch(envelope.version):
        raise SerializationError(f"envelope version {envelope.version}; this side reads {_ENVELOPE_VERSION}")
    return envelope.message


def decode(body: bytes, content_type: str) -> Payload:
    """Read a payload, whatever it is.

    Raises:
        SerializationError: it is none.
    """
    try:
        text = _open(body, content_type)
        return _msgpack_payload.decode(text) if content_type == MSGPACK else _json_payload.decode(text)  # type: ignore[arg-type]  # only JSON is text
    except _DECODING_ERRORS as exc:
        raise _unreadable(content_type, exc) from exc


def _unreadable(content_type: str, exc: Exception) -> SerializationError:
    return SerializationError(f"cannot be read as {content_type}: {exc}")


def encode_request(request: Request, content_type: str) -> bytes:
    """Write a request.

    Raises:
        SerializationError: the text names the argument or context key that cannot be written, or the name that is too
            long.
    """
    if problem := _too_long(request):
        raise SerializationError(problem)
    payload: Payload = {"method": request.method, "args": request.args, "_unique_id": request.unique_id}
    if request.namespace is not None:
        payload["namespace"] = request.namespace
    if request.version is not None:
        payload["version"] = request.version
    if request.call_id is not None:
        payload["_msg_id"] = request.call_id
        payload["_reply_q"] = request.reply_to
        payload["_timeout"] = request.monitor
    for key, value in request.context.items():
        payload[f"{_CONTEXT}{key}"] = value
    if request.hints is not None:
        payload[EXTENSION] = request.hints
    try:
        return encode(payload, content_type)
    except SerializationError as exc:
        named = {"argument": request.args, "context key": request.context}
        raise _name_the_culprit(named, content_type, exc) from exc


def encode_repeat(body: bytes, content_type: str, left: float) -> bytes:
    """Write a request of this side once more, for servers that may have answered its first copy; see `Hints.again`.

    Args:
        body: the request as `encode_request` wrote it.
        content_type: of `body`.
        left: seconds that are left to it now.
    """
    request = decode_request(body, content_type)
    hints = request.hints
    assert hints is not None, "this side's requests have hints"
    if hints.end is not None and hints.ttl is not None:
        hints.end -= hints.ttl - left
    hints.ttl, hints.at, hints.again = left, time.time(), True
    return encode_request(request, content_type)


def encode_notification(
    notification: dict[str, Any], context: dict[str, Any], unique_id: str, content_type: str
) -> bytes:
    """Write a notification: any dict, together with the context, in the places where oslo.messaging has them.

    One that was received and is sent on keeps its own id.

    Raises:
        SerializationError: the text names the key that cannot be written.
    """
    payload = {**notification, **{f"{_CONTEXT}{key}": value for key, value in context.items()}}
    try:
        return encode({"_unique_id": unique_id, **payload}, content_type)
    except SerializationError as exc:
        raise _name_the_culprit({"key": notification, "context key": context}, content_type, exc) from exc


def _name_the_culprit(named: dict[str, dict[str, Any]], content_type: str, error: SerializationError) -> Exception:
    for what, values in named.items():
        for key, value in values.items():
            try:
                encode({str(key): value}, content_type)
            except SerializationError as exc:
                return SerializationError(f"{what} {key!r} {exc}")
    return error


def decode_request(body: bytes, content_type: str) -> Request:
    """Read a request.

    Raises:
        UnacceptableRequest: a name or an id in it is too long.
        SerializationError: it is none; the text says what is wrong with it.
    """
    try:
        text = _open(body, content_type)
        request: Request = _msgpack_request.decode(text) if content_type == MSGPACK else _json_request.decode(text)  # type: ignore[arg-type]  # only JSON is text
        context = {}
        if (b"_context_" if isinstance(text, bytes) else "_context_") in text:  # type: ignore[operator]  # likewise
            payload = _msgpack_payload.decode(text) if content_type == MSGPACK else _json_payload.decode(text)  # type: ignore[arg-type]  # likewise
            context = context_of(payload)
    except _DECODING_ERRORS as exc:
        raise _unreadable(content_type, exc) from exc
    request.context = context
    request.monitor = _seconds(request.monitor)
    hints = request.hints
    if hints is not None:
        hints.ttl, hints.at = _seconds(hints.ttl), _seconds(hints.at)
    if problem := _too_long(request):
        if max(len(request.call_id or ""), len(request.reply_to or "")) > MAX_NAME:
            request.call_id = request.reply_to = None
        raise UnacceptableRequest(problem, request)
    return request


def _too_long(request: Request) -> str | None:
    """What is too long in a request, in words."""
    # Lengths one by one: this is done for each request, and mostly nothing is too long.
    if (
        len(request.method) <= MAX_NAME
        and len(request.unique_id) <= MAX_NAME
        and (request.namespace is None or len(request.namespace) <= MAX_NAME)
        and (request.version is None or len(request.version) <= MAX_VERSION)
        and (request.call_id is None or len(request.call_id) <= MAX_NAME)
        and (request.reply_to is None or len(request.reply_to) <= MAX_NAME)
    ):
        return None
    for what, value, limit in (
        ("the method's name", request.method, MAX_NAME),
        ("the unique id", request.unique_id, MAX_NAME),
        ("the namespace", request.namespace, MAX_NAME),
        ("the version", request.version, MAX_VERSION),
        ("the call's id", request.call_id, MAX_NAME),
    ):
        if value is not None and len(value) > limit:
            return _length(what, value, limit)
    return _length("the name of the inbox", request.reply_to or "", MAX_NAME)


def _length(what: str, value: str, limit: int) -> str:
    return f"{what} has {len(value)} characters, and may have {limit}: {value[:40]}…"


def context_of(payload: Payload) -> dict[str, Any]:
    """The sender's context in a payload, of a request or a notification."""
    return {key[len(_CONTEXT) :]: payload[key] for key in payload if key.startswith(_CONTEXT)}


def with_attempts(body: bytes, content_type: str, attempts: int) -> bytes:
    """A request as it came, but for the number of times that it was begun.

    Raises:
        SerializationError: it cannot be read, or not be written again.
    """
    payload = decode(body, content_type)
    hints = payload.get(EXTENSION)
    payload[EXTENSION] = {**(hints if isinstance(hints, dict) else {}), "attempts": attempts}
    return encode(payload, content_type)


def encode_again(body: bytes, content_type: str, unique_id: str) -> bytes:
    """Write a request that was received once more: under another id, without its deadline and its attempts.

    Raises:
        SerializationError: it cannot be read.
    """
    try:
        text = _open(body, content_type)
        if content_type == MSGPACK:
            packed = _msgpack_raw.decode(text)  # type: ignore[arg-type]  # only JSON is text
            return _msgpack_encoder.encode(_renewed(packed, _msgpack_hints, unique_id))
        fields = _renewed(_json_raw.decode(text), _json_hints, unique_id)
    except _DECODING_ERRORS as exc:
        raise _unreadable(content_type, exc) from exc
    return _json_encoder.encode(
        {"oslo.version": _ENVELOPE_VERSION, "oslo.message": _json_encoder.encode(fields).decode()}
    )


def _renewed(payload: dict[str, msgspec.Raw], hints: Any, unique_id: str) -> dict[str, Any]:
    renewed: dict[str, Any] = {**payload, "_unique_id": unique_id}
    if EXTENSION in payload and isinstance(extension := hints.decode(payload[EXTENSION]), dict):
        renewed[EXTENSION] = {key: value for key, value in extension.items() if key not in ("ttl", "at", "attempts")}
    return renewed


def _seconds(value: Any) -> float | None:
    """A time as somebody else gave it, or None where it is none that can be reckoned with: infinity, for one."""
    if isinstance(value, int | float) and not isinstance(value, bool) and -_AGES < value < _AGES:
        return value
    return None


def encode_reply(reply: Reply, content_type: str) -> bytes:
    """Write a reply or another frame for a client.

    Raises:
        SerializationError: the result cannot be written.
    """
    payload: Payload = {
        "result": reply.result,
        "failure": reply.failure,
        "ending": reply.ending,
        "_msg_id": reply.call_id,
        "_unique_id": new_id(),
    }
    if reply.extended:
        extension: dict[str, Any] = {"kind": reply.kind, "server": reply.server}
        if reply.inbox is not None:
            extension["inbox"] = reply.inbox
        if reply.items is not None:
            extension["items"] = reply.items
            extension["seq"] = reply.seq
        if reply.confirm is not None:
            extension["confirm"] = reply.confirm
        payload[EXTENSION] = extension
    return encode(payload, content_type)


def encode_control(control: Control, content_type: str) -> bytes:
    """Write a control frame for a server."""
    extension: dict[str, Any] = {"kind": control.kind}
    if control.taken:
        extension["taken"] = control.taken
    return encode({"_msg_id": control.call_id, EXTENSION: extension}, content_type)


def decode_inbox_frame(body: bytes, content_type: str) -> Reply | Control:
    """Read what came to an inbox: a reply (to this process's client) or a control frame (to its server).

    Raises:
        SerializationError: it is neither.
    """
    try:
        text = _open(body, content_type)
        frame: _InboxFrame = _msgpack_frame.decode(text) if content_type == MSGPACK else _json_frame.decode(text)  # type: ignore[arg-type]  # only JSON is text
    except _DECODING_ERRORS as exc:
        raise _unreadable(content_type, exc) from exc
    extension = frame.extension
    if len(frame.call_id) > MAX_NAME:
        raise SerializationError(_length("the call's id", frame.call_id, MAX_NAME))
    if extension is not None:
        for what, value in (
            ("the name of the inbox", extension.inbox),
            ("the server's name", extension.server),
            ("the name of the inbox", extension.confirm),
        ):
            if value is not None and len(value) > MAX_NAME:
                raise SerializationError(_length(what, value, MAX_NAME))
    if frame.result is msgspec.UNSET and frame.failure is msgspec.UNSET:
        if extension is None or extension.kind not in ("credit", "cancel", "keepalive", "confirm"):
            raise SerializationError("it is neither a reply nor a control frame")
        return Control(frame.call_id, extension.kind, extension.taken)
    result = None if frame.result is msgspec.UNSET else frame.result
    failure = None if frame.failure is msgspec.UNSET else frame.failure
    if extension is None:
        return Reply(frame.call_id, "reply", result, failure, frame.ending)
    kind = extension.kind
    if kind == "credit" or kind == "cancel" or kind == "confirm":  # noqa: PLR1714 - this the type checker understands
        raise SerializationError(f"a reply cannot be of the kind {kind!r}")
    return Reply(
        frame.call_id,
        kind,
        result,
        failure,
        frame.ending,
        True,
        extension.inbox,
        extension.server,
        extension.items,
        extension.seq,
        extension.confirm,
    )


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


def encode_item(item: Any, content_type: str) -> msgspec.Raw:
    """Write one item of a stream, to be put into a frame later.

    Raises:
        SerializationError: it cannot be written.
    """
    encoder = _msgpack_encoder if content_type == MSGPACK else _json_encoder
    try:
        return msgspec.Raw(encoder.encode(item))
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise SerializationError(f"an item cannot be written as {content_type}: {exc}{_PLAIN}") from exc


encode_dead_letter: Callable[[DeadLetter], bytes] = _json_encoder.encode
_decode_dead_letter = msgspec.json.Decoder(DeadLetter).decode


def decode_dead_letter(body: bytes) -> DeadLetter:
    """Read the body of a message from a topic's dead letters.

    Raises:
        SerializationError: it is not a dead letter.
    """
    try:
        return _decode_dead_letter(body)
    except _DECODING_ERRORS as exc:
        raise SerializationError(f"cannot be read as a dead letter: {exc}") from exc
