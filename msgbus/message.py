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

import json
import os
import re
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from msgbus.exceptions import SerializationError
from msgbus.values import (
    JSON_VALUES,
    LOSSY_JSON_VALUES,
    MSGPACK_VALUES,
    Codec,
    is_plain,
    read_extension,
    simplified,
)

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

KEEPALIVE = 5.0
"""Seconds of silence after which each side of a running call or stream sends a sign of life."""
LOST_AFTER = 3 * KEEPALIVE
"""Seconds without a sign of life after which the other side is taken for dead."""

EXTENSION = "_msgbus"
PING_NAMESPACE = "msgbus"
"""The namespace of the method ``ping`` that every server answers."""
_CONTEXT = "_context_"
_ENVELOPE_VERSION = "2.0"
_READABLE = re.compile(r"2\.0+")  # A higher minor version may hold what this side does not know, says oslo.messaging.
_AGES = 1e10  # seconds
_PLAIN = " (plain data can: dict, list, str, number, bool, None; a serializer makes it of other objects)"
_ENCODING_ERRORS = (TypeError, ValueError, OverflowError, RuntimeError)
"""What the codecs raise. A RuntimeError: it is nested too deep, or another thread changes it meanwhile."""
_DECODING_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)
_CALL_ID = re.compile(rb"_msg_id\W{1,12}([0-9a-f]{32})(?![0-9a-f])")
"""A call's id in a body, whatever else is wrong with that: in JSON, JSON within JSON, and msgpack."""

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
    """A request that cannot be run: it is not one, or has a name or id that is too long.

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
_json_envelope = msgspec.json.Decoder(_Envelope)
_json_payload = msgspec.json.Decoder(dict[str, Any])
_msgpack_payload = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=read_extension)
_json_request = msgspec.json.Decoder(Request)
_msgpack_request = msgspec.msgpack.Decoder(Request, ext_hook=read_extension)
_json_frame = msgspec.json.Decoder(_InboxFrame)
_msgpack_frame = msgspec.msgpack.Decoder(_InboxFrame, ext_hook=read_extension)

T = TypeVar("T")


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
    except _ENCODING_ERRORS as exc:
        raise _unwritable(content_type, exc) from exc


def _unwritable(content_type: str, exc: Exception) -> SerializationError:
    if isinstance(exc, SerializationError):
        return exc
    return SerializationError(f"cannot be written as {content_type}: {exc}{_PLAIN}")


def _codec(content_type: str, lossy: bool) -> Codec:
    if content_type == MSGPACK:
        return MSGPACK_VALUES
    return LOSSY_JSON_VALUES if lossy else JSON_VALUES


def _simplified(value: Any, codec: Codec) -> Any:
    """Return a value in the form in which it arrives.

    Raises:
        SerializationError: it cannot travel.
    """
    try:
        return simplified(value, codec)
    except SerializationError:
        raise
    except Exception as exc:  # what belongs to a value, such as its time zone, may raise anything
        raise _unwritable(codec.name, exc) from exc


def _each_simplified(values: dict[str, Any], what: str, codec: Codec) -> dict[str, Any]:
    """As `_simplified`, for each argument or whatever else `what` calls it; the text of an error names the one."""
    done = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise SerializationError(f"{what} {key!r} is {type(key).__name__}, and has to be a string")
        try:
            done[key] = _simplified(value, codec)
        except SerializationError as exc:
            raise SerializationError(f"{what} {key!r} {exc}") from exc
    return done


def _open(body: bytes, content_type: str) -> bytes | str:
    """The payload's own text, out of its envelope.

    A JSON body without envelope is taken as the payload itself, as oslo.messaging does.
    """
    if content_type == MSGPACK:
        return body
    if content_type != JSON:
        raise SerializationError(f"content type {content_type!r}; known are {JSON} and {MSGPACK}")
    envelope = _read_json(body, _json_envelope)
    if envelope.message is None or envelope.version is None:
        return body
    if envelope.version != _ENVELOPE_VERSION and not _READABLE.fullmatch(envelope.version):
        raise SerializationError(f"envelope version {envelope.version}; this side reads {_ENVELOPE_VERSION}")
    return envelope.message


def _read_json(text: bytes | str, decoder: msgspec.json.Decoder[T]) -> T:
    """Read JSON, and what passes for it: the standard library reads and writes NaN, infinity and lone surrogates too.

    Raises:
        msgspec.MsgspecError, ValueError, RecursionError: it is neither.
    """
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError):
        found = json.loads(text)
    read = msgspec.convert(found, decoder.type)
    _refuse_lone_surrogates(read)
    return read


def _read(
    body: bytes, content_type: str, from_json: msgspec.json.Decoder[T], from_msgpack: msgspec.msgpack.Decoder[T]
) -> tuple[T, bytes | str]:
    """Read a payload as what the decoders make of it. Returns its own text too."""
    text = _open(body, content_type)
    if content_type == MSGPACK:
        return from_msgpack.decode(text), text  # type: ignore[arg-type]  # only JSON is text
    return _read_json(text, from_json), text


def decode(body: bytes, content_type: str) -> Payload:
    """Read a payload, whatever it is.

    Raises:
        SerializationError: it is none.
    """
    try:
        return _read(body, content_type, _json_payload, _msgpack_payload)[0]
    except _DECODING_ERRORS as exc:
        raise _unreadable(content_type, exc) from exc


def _refuse_lone_surrogates(frame: object) -> None:
    """Refuse names and ids that JSON can spell, and nothing else can: no message system could carry them.

    Raises:
        UnicodeError: there is such a one.
    """
    if isinstance(frame, msgspec.Struct):
        for field in frame.__struct_fields__:
            value = getattr(frame, field)
            if isinstance(value, str) and field not in ("result", "failure"):
                value.encode()
            _refuse_lone_surrogates(value)


def _unreadable(content_type: str, exc: Exception) -> SerializationError:
    return SerializationError(f"cannot be read as {content_type}: {exc}")


def encode_request(request: Request, content_type: str, *, lossy: bool = False) -> bytes:
    """Write a request.

    Args:
        request: what to write.
        content_type: names the codec.
        lossy: what JSON does not have is written as something else; see the option ``rpc_json_lossy``.

    Raises:
        SerializationError: the text names the argument or context key that cannot travel, or the name that is too
            long.
    """
    if problem := _too_long(request):
        raise SerializationError(problem)
    codec = _codec(content_type, lossy)
    try:
        if is_plain((request.args, request.context), codec):
            return encode(_request_payload(request, request.args, request.context), content_type)
    except (SerializationError, RuntimeError):
        pass  # What follows finds out where in the request the trouble is, or that there is a way around it.
    args = _each_simplified(request.args, "argument", codec)
    context = _each_simplified(request.context, "context key", codec)
    try:
        return encode(_request_payload(request, args, context), content_type)
    except SerializationError as exc:
        raise _name_the_culprit({"argument": args, "context key": context}, content_type, exc) from exc


def _request_payload(request: Request, args: dict[str, Any], context: dict[str, Any]) -> Payload:
    payload: Payload = {"method": request.method, "args": args, "_unique_id": request.unique_id}
    if request.namespace is not None:
        payload["namespace"] = request.namespace
    if request.version is not None:
        payload["version"] = request.version
    if request.call_id is not None:
        payload["_msg_id"] = request.call_id
        payload["_reply_q"] = request.reply_to
        payload["_timeout"] = request.monitor
    for key, value in context.items():
        payload[f"{_CONTEXT}{key}"] = value
    if request.hints is not None:
        payload[EXTENSION] = request.hints
    return payload


def encode_repeat(body: bytes, content_type: str, left: float) -> bytes:
    """Write a request of this side once more, for servers that may have answered its first copy; see `Hints.again`.

    Args:
        body: the request as `encode_request` wrote it.
        content_type: of `body`.
        left: seconds that are left to it now.
    """
    payload = decode(body, content_type)
    hints = payload[EXTENSION]
    if hints.get("end") is not None:
        hints["end"] -= hints["ttl"] - left
    hints.update(ttl=left, at=time.time(), again=True)
    return _rewrite(payload, content_type)


def encode_notification(
    notification: dict[str, Any], context: dict[str, Any], unique_id: str, content_type: str, *, lossy: bool = False
) -> bytes:
    """Write a notification: any dict, together with the context, in the places where oslo.messaging has them.

    One that was received and is sent on keeps its own id.

    Raises:
        SerializationError: the text names the key that cannot travel.
    """
    codec = _codec(content_type, lossy)
    notification = _each_simplified(notification, "key", codec)
    context = _each_simplified(context, "context key", codec)
    payload = {**notification, **{f"{_CONTEXT}{key}": value for key, value in context.items()}}
    try:
        return encode({"_unique_id": unique_id, **payload}, content_type)
    except SerializationError as exc:
        raise _name_the_culprit({"key": notification, "context key": context}, content_type, exc) from exc


def _name_the_culprit(named: dict[str, dict[str, Any]], content_type: str, error: SerializationError) -> Exception:
    for what, values in named.items():
        for key, value in values.items():
            try:
                encode({key: value}, content_type)
            except SerializationError as exc:
                return SerializationError(f"{what} {key!r} {exc}")
    return error


def decode_request(body: bytes, content_type: str) -> Request:
    """Read a request.

    Raises:
        UnacceptableRequest: it is not one, and names a client that can be told; or a name or an id in it is too long.
        SerializationError: it is not one. The text says what is wrong with it.
    """
    try:
        request, text = _read(body, content_type, _json_request, _msgpack_request)
        context = {}
        if (b"_context_" if isinstance(text, bytes) else "_context_") in text:  # type: ignore[operator]  # bytes in bytes
            payload: Payload
            if content_type == MSGPACK:
                payload = _msgpack_payload.decode(text)  # type: ignore[arg-type]  # only JSON is text
            else:
                payload = _read_json(text, _json_payload)
            context = context_of(payload)
    except _DECODING_ERRORS as exc:
        error = _unreadable(content_type, exc)
        call_id, reply_to = _client_in(body, content_type)
        if call_id is None:
            raise error from exc
        raise UnacceptableRequest(f"the request {error}", Request("", call_id=call_id, reply_to=reply_to)) from exc
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


def _client_in(body: bytes, content_type: str) -> tuple[str, str] | tuple[None, None]:
    """The call and the inbox that are named in what is not a request, if they are."""
    try:
        payload, _ = _read(body, content_type, _json_payload, _msgpack_payload)
        call_id, reply_to = payload.get("_msg_id"), payload.get("_reply_q")
        if isinstance(call_id, str) and isinstance(reply_to, str):
            call_id.encode()
            reply_to.encode()
            if max(len(call_id), len(reply_to)) <= MAX_NAME:
                return call_id, reply_to
    except _DECODING_ERRORS:
        pass
    return None, None


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
    return _rewrite(payload, content_type)


def encode_again(body: bytes, content_type: str, unique_id: str) -> bytes:
    """Write a request that was received once more: under another id, without its deadline and its attempts.

    Raises:
        SerializationError: it cannot be read.
    """
    payload = decode(body, content_type)
    payload["_unique_id"] = unique_id
    if isinstance(hints := payload.get(EXTENSION), dict):
        payload[EXTENSION] = {key: value for key, value in hints.items() if key not in ("ttl", "at", "attempts")}
    return _rewrite(payload, content_type)


def _rewrite(payload: Payload, content_type: str) -> bytes:
    """Write a payload that was read, as it was."""
    if content_type == MSGPACK:
        return encode(_simplified(payload, MSGPACK_VALUES), content_type)
    # What a stock peer wrote, NaN for one, the standard library writes again as it was.
    return json.dumps({"oslo.version": _ENVELOPE_VERSION, "oslo.message": json.dumps(payload)}).encode()


def _seconds(value: Any) -> float | None:
    """A time as somebody else gave it, or None where it is none that can be reckoned with: infinity, for one."""
    if isinstance(value, int | float) and not isinstance(value, bool) and -_AGES < value < _AGES:
        return value
    return None


def encode_reply(reply: Reply, content_type: str, *, lossy: bool = False) -> bytes:
    """Write a reply or another frame for a client; `lossy` as for `encode_request`. Items were written before.

    Raises:
        SerializationError: the result cannot travel.
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
    codec = _codec(content_type, lossy)
    try:
        if is_plain((reply.result,), codec):
            return encode(payload, content_type)
    except (SerializationError, RuntimeError):
        pass  # as for a request
    payload["result"] = _simplified(reply.result, codec)
    return encode(payload, content_type)


def encode_control(control: Control, content_type: str) -> bytes:
    """Write a control frame for a server."""
    extension: dict[str, Any] = {"kind": control.kind}
    if control.taken:
        extension["taken"] = control.taken
    return encode({"_msg_id": control.call_id, EXTENSION: extension}, content_type)


def call_ids_in(body: bytes) -> set[str]:
    """The ids of calls that a body which cannot be read may belong to."""
    return {found.decode() for found in _CALL_ID.findall(body)}


def decode_inbox_frame(body: bytes, content_type: str) -> Reply | Control:
    """Read what came to an inbox: a reply (to this process's client) or a control frame (to its server).

    Raises:
        SerializationError: it is neither.
    """
    try:
        frame, _ = _read(body, content_type, _json_frame, _msgpack_frame)
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


def encode_item(item: Any, content_type: str, *, lossy: bool = False) -> msgspec.Raw:
    """Write one item of a stream, to be put into a frame later; `lossy` as for `encode_request`.

    Raises:
        SerializationError: it cannot travel.
    """
    codec = _codec(content_type, lossy)
    encoder = _msgpack_encoder if content_type == MSGPACK else _json_encoder
    try:
        if is_plain((item,), codec):
            return msgspec.Raw(encoder.encode(item))
    except _ENCODING_ERRORS:
        pass  # as for a request
    try:
        return msgspec.Raw(encoder.encode(_simplified(item, codec)))
    except _ENCODING_ERRORS as exc:
        raise SerializationError(f"an item {_unwritable(content_type, exc)}") from exc


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
