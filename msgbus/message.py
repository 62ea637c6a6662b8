"""What travels: requests, replies and control frames, and how they are written as bytes.

On the wire a request or reply is oslo.messaging's envelope, version 2.0: a JSON object with ``oslo.version`` and
``oslo.message``, the latter the payload as JSON text. The codec msgpack writes the payload alone, without the double
wrapping. What msgbus adds rides in the payload's key ``_msgbus``, which a stock oslo.messaging peer ignores; only a
peer that has sent that key is sent control frames.

========== ============================= ==================================================================
frame      goes to                       its ``_msgbus`` holds
========== ============================= ==================================================================
request    topic, server or fanout       ttl (seconds left), at (wall clock when sent), policy, window (streams)
reply      the client's inbox            after a stream: its last items, seq
started    the client's inbox            inbox (of the server), server (its name)
items      the client's inbox            items, seq (number of the first of them)
keepalive  the other side's inbox
declined   the client's inbox            server: it will not run what may have run before
credit     the server's inbox            credit: how many further items the client takes
cancel     the server's inbox
========== ============================= ==================================================================
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from msgbus.exceptions import SerializationError

JSON = "application/json"
MSGPACK = "application/msgpack"
CONTENT_TYPES = {"json": JSON, "msgpack": MSGPACK}

AT_MOST_ONCE = "at_most_once"
AT_LEAST_ONCE = "at_least_once"
POLICIES = (AT_MOST_ONCE, AT_LEAST_ONCE)
"""What may happen to a request when a server or a connection is lost: it is not run, or it may be run twice."""

EXTENSION = "_msgbus"
PING_NAMESPACE = "msgbus"
"""The namespace of the method ``ping`` that every server answers."""
_CONTEXT = "_context_"
_ENVELOPE_VERSION = "2.0"

ReplyKind = Literal["reply", "started", "items", "keepalive", "declined"]
ControlKind = Literal["credit", "cancel", "keepalive"]

Payload = dict[str, Any]


class Request(msgspec.Struct):
    """A method to be run.

    Attributes:
        unique_id: the same each time that the core repeats the request.
        call_id: names the call that its replies belong to; None for a cast.
        reply_to: name of the client's inbox; None for a cast.
        monitor: seconds; a stock client's wish for a sign of life twice in that time.
        extended: the sender is a msgbus peer, which understands control frames.
        ttl: seconds that were left when it was sent, or None.
        sent_at: the sender's wall clock then, seconds since the epoch, or None.
        policy: the sender's delivery policy, or None where it does not say.
        window: for a stream, how many items the client takes before it gives further credit.
    """

    method: str
    args: dict[str, Any]
    context: dict[str, Any]
    unique_id: str
    namespace: str | None = None
    version: str | None = None
    call_id: str | None = None
    reply_to: str | None = None
    monitor: float | None = None
    extended: bool = False
    ttl: float | None = None
    sent_at: float | None = None
    policy: str | None = None
    window: int | None = None


class Reply(msgspec.Struct):
    """What a server tells a client of one call. Only the one with `ending` is the answer."""

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


class Control(msgspec.Struct):
    """What a client tells the server that runs its call."""

    call_id: str
    kind: ControlKind
    credit: int = 0


class _Extension(msgspec.Struct):
    """The ``_msgbus`` key of a request, a reply or a control frame, as far as it may be trusted: checked types."""

    kind: str | None = None
    ttl: float | None = None
    at: float | None = None
    policy: str | None = None
    window: int | None = None
    inbox: str | None = None
    server: str | None = None
    items: list[Any] | None = None
    seq: int = 0
    credit: int = 0


class _Envelope(msgspec.Struct):
    version: str | None = msgspec.field(default=None, name="oslo.version")
    message: str | None = msgspec.field(default=None, name="oslo.message")


_json_encoder = msgspec.json.Encoder()
_msgpack_encoder = msgspec.msgpack.Encoder()
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_json = msgspec.json.Decoder(dict[str, Any]).decode
_decode_msgpack = msgspec.msgpack.Decoder(dict[str, Any]).decode


class _Ids:
    """Makes ids that are unique among all processes: random for each process, counted within it."""

    def __init__(self) -> None:
        self.restart()
        os.register_at_fork(after_in_child=self.restart)

    def restart(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._count = itertools.count(1)

    def next(self) -> str:
        """32 hexadecimal digits; a tenth of what `uuid.uuid4` costs."""
        return f"{self._prefix}{next(self._count):016x}"


new_id = _Ids().next


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
        raise SerializationError(f"cannot be written as {content_type}: {exc}") from exc


def decode(body: bytes, content_type: str) -> Payload:
    """Read a payload.

    A JSON body without envelope is taken as the payload itself, as oslo.messaging does.

    Raises:
        SerializationError: the body is not what the content type says, or an envelope of another major version.
    """
    try:
        if content_type == MSGPACK:
            return _decode_msgpack(body)
        if content_type != JSON:
            raise SerializationError(f"content type {content_type!r}; known are {JSON} and {MSGPACK}")
        envelope = _decode_envelope(body)
        if envelope.message is None or envelope.version is None:
            return _decode_json(body)
        if envelope.version != _ENVELOPE_VERSION and envelope.version.partition(".")[::2] > ("2", "0"):
            raise SerializationError(f"envelope version {envelope.version}; this side reads {_ENVELOPE_VERSION}")
        return _decode_json(envelope.message)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        if isinstance(exc, SerializationError):
            raise
        raise SerializationError(f"cannot be read as {content_type}: {exc}") from exc


def encode_request(request: Request, content_type: str) -> bytes:
    """Write a request.

    Raises:
        SerializationError: the text names the argument or context key that cannot be written.
    """
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
    extension = {"ttl": request.ttl, "at": request.sent_at, "policy": request.policy}
    if request.window is not None:
        extension["window"] = request.window
    payload[EXTENSION] = extension
    try:
        return encode(payload, content_type)
    except SerializationError as exc:
        named = {"argument": request.args, "context key": request.context}
        raise _name_the_culprit(named, content_type, exc) from exc


def _name_the_culprit(named: dict[str, dict[str, Any]], content_type: str, error: SerializationError) -> Exception:
    for what, values in named.items():
        for key, value in values.items():
            try:
                encode({str(key): value}, content_type)
            except SerializationError as exc:
                return SerializationError(f"{what} {key!r} {exc}")
    return error


def decode_request(payload: Payload) -> Request:
    """Take a payload as a request.

    Raises:
        SerializationError: a key is missing or of a wrong type; the text says which.
    """
    get = payload.get
    request = Request(
        method=get("method"),  # type: ignore[arg-type]  # checked below, once for all
        args=get("args") or {},
        context={key[len(_CONTEXT) :]: value for key, value in payload.items() if key.startswith(_CONTEXT)},
        unique_id=get("_unique_id") or "",
        namespace=get("namespace"),
        version=get("version"),
        call_id=get("_msg_id"),
        reply_to=get("_reply_q"),
        monitor=get("_timeout"),
    )
    extension = _extension(payload)
    if extension is not None:
        request.extended = True
        request.ttl = extension.ttl
        request.sent_at = extension.at
        request.policy = extension.policy
        request.window = extension.window
    _check(
        ("method", request.method, str),
        ("args", request.args, dict),
        ("_unique_id", request.unique_id, str),
        ("namespace", request.namespace, str | None),
        ("version", request.version, str | None),
        ("_msg_id", request.call_id, str | None),
        ("_reply_q", request.reply_to, str | None),
    )
    if not isinstance(request.monitor, int | float):
        request.monitor = None  # A stock peer may send any JSON value; it means the same as none.
    return request


def _check(*checks: tuple[str, object, Any]) -> None:
    for key, value, expected in checks:
        if not isinstance(value, expected):
            name = getattr(expected, "__name__", str(expected))
            raise SerializationError(f"its {key!r} should be {name}, and is {type(value).__name__}")


def _extension(payload: Payload) -> _Extension | None:
    found = payload.get(EXTENSION)
    if found is None:
        return None
    try:
        return msgspec.convert(found, _Extension)
    except msgspec.ValidationError as exc:
        raise SerializationError(f"its {EXTENSION!r} is wrong: {exc}") from exc


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
        payload[EXTENSION] = extension
    return encode(payload, content_type)


def encode_control(control: Control, content_type: str) -> bytes:
    """Write a control frame for a server."""
    extension: dict[str, Any] = {"kind": control.kind}
    if control.credit:
        extension["credit"] = control.credit
    return encode({"_msg_id": control.call_id, EXTENSION: extension}, content_type)


def decode_inbox_frame(payload: Payload) -> Reply | Control:
    """Take a payload that came to an inbox as a reply (to this process's client) or a control frame (to its server).

    Raises:
        SerializationError: it is neither.
    """
    call_id = payload.get("_msg_id")
    _check(("_msg_id", call_id, str))
    assert isinstance(call_id, str)
    extension = _extension(payload)
    if "result" not in payload and "failure" not in payload:
        if extension is None or extension.kind not in ("credit", "cancel", "keepalive"):
            raise SerializationError("it is neither a reply nor a control frame")
        kind: Any = extension.kind
        return Control(call_id, kind, extension.credit)
    reply = Reply(call_id, "reply", payload.get("result"), payload.get("failure"), payload.get("ending") is True)
    _check(("failure", reply.failure, str | None))
    if extension is not None:
        reply.extended = True
        reply.inbox = extension.inbox
        reply.server = extension.server
        reply.items = extension.items
        reply.seq = extension.seq
        if extension.kind in ("started", "items", "keepalive", "declined"):
            reply.kind = extension.kind  # type: ignore[assignment]  # narrowed by the line above
    return reply


class DeadLetter(msgspec.Struct):
    """A message that could not be processed, and why. It travels as JSON.

    Attributes:
        reason: one line.
        address: where the message had been sent to.
        server: the name of the server that gave it up.
        attempts: how often it was begun.
        at: wall clock, seconds since the epoch.
        traceback: of the last attempt's exception, or an empty list.
        content_type: of `body`.
        body: the message as it came (base64 in JSON).
    """

    reason: str
    address: str
    server: str
    attempts: int
    at: float
    traceback: list[str]
    content_type: str
    body: bytes


def encode_item(item: Any, content_type: str) -> msgspec.Raw:
    """Write one item of a stream, to be put into a frame later.

    Raises:
        SerializationError: it cannot be written.
    """
    encoder = _msgpack_encoder if content_type == MSGPACK else _json_encoder
    try:
        return msgspec.Raw(encoder.encode(item))
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise SerializationError(f"an item cannot be written as {content_type}: {exc}") from exc


encode_dead_letter: Callable[[DeadLetter], bytes] = _json_encoder.encode
decode_dead_letter: Callable[[bytes], DeadLetter] = msgspec.json.Decoder(DeadLetter).decode
