"""Writes and reads requests, replies, control frames, notifications and dead letters as bytes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from msgbus import payload as payloads
from msgbus.exceptions import SerializationError
from msgbus.message import (
    MAX_METADATA,
    MAX_NAME,
    MAX_VERSION,
    MSGPACK,
    Control,
    DeadLetter,
    Reply,
    Request,
    UnacceptableRequest,
    metadata_size,
    new_id,
)
from msgbus.values import is_plain, read_extension

EXTENSION = "_msgbus"
_CONTEXT = "_context_"
_MAX_SECONDS = 1e10
_CALL_ID = re.compile(rb"_msg_id\W{1,12}([0-9a-f]{32})(?![0-9a-f])")
"""A call's id in a body, whatever else is wrong with that: in JSON, JSON within JSON, and msgpack."""


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


_json_request = msgspec.json.Decoder(Request)
_msgpack_request = msgspec.msgpack.Decoder(Request, ext_hook=read_extension)
_json_frame = msgspec.json.Decoder(_InboxFrame)
_msgpack_frame = msgspec.msgpack.Decoder(_InboxFrame, ext_hook=read_extension)


def encode_request(request: Request, content_type: str, *, lossy: bool = False) -> bytes:
    """Write a request.

    Args:
        request: what to write. Its namespace and version are those of a `Target`, and its ids are this side's own: so
            of all names only the method's may be too long.
        content_type: names the codec.
        lossy: values that JSON does not have are converted; see the option ``rpc_json_lossy``.

    Raises:
        SerializationError: the text names the argument or context key that cannot travel, or the method's name is too
            long.
    """
    if len(request.method) > MAX_NAME:
        raise SerializationError(_length("the method's name", request.method, MAX_NAME))
    codec = payloads.VALUES[content_type, lossy]
    try:
        if is_plain((request.args, request.context), codec):
            return payloads.encode(_request_payload(request, request.args, request.context), content_type)
    except (SerializationError, RuntimeError):
        pass  # The code below finds the value at fault, or a form of it that can be written.
    args = payloads.each_simplified(request.args, "argument", codec)
    context = payloads.each_simplified(request.context, "context key", codec)
    try:
        return payloads.encode(_request_payload(request, args, context), content_type)
    except SerializationError as exc:
        raise _error_with_name({"argument": args, "context key": context}, content_type, exc) from exc


def _request_payload(request: Request, args: dict[str, Any], context: dict[str, Any]) -> payloads.Payload:
    payload: payloads.Payload = {"method": request.method, "args": args, "_unique_id": request.unique_id}
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
    payload = payloads.decode(body, content_type)
    hints = payload[EXTENSION]
    if hints.get("end") is not None:
        hints["end"] -= hints["ttl"] - left
    hints.update(ttl=left, at=time.time(), again=True)
    return payloads.rewrite(payload, content_type)


def encode_notification(
    notification: dict[str, Any],
    context: dict[str, Any],
    unique_id: str,
    content_type: str,
    *,
    lossy: bool = False,
    metadata: dict[str, str] | None = None,
    enveloped: bool = True,
) -> bytes:
    """Write a notification: any dict, together with the context, in the places where oslo.messaging has them.

    One that was received and is sent on keeps its own id. The metadata is where that of a request is. Without
    `enveloped`, JSON has no envelope around it: that is what the driver messaging of oslo.messaging sends.

    Raises:
        SerializationError: the text names the key that cannot travel.
    """
    codec = payloads.VALUES[content_type, lossy]
    notification = payloads.each_simplified(notification, "key", codec)
    context = payloads.each_simplified(context, "context key", codec)
    # What was received, and is sent on, may hold keys of another context.
    payload = {"_unique_id": unique_id, **notification, **{f"{_CONTEXT}{key}": context[key] for key in context}}
    if metadata is not None:
        payload[EXTENSION] = {"metadata": metadata}
    try:
        return payloads.encode(payload, content_type, enveloped=enveloped)
    except SerializationError as exc:
        raise _error_with_name({"key": notification, "context key": context}, content_type, exc) from exc


def _error_with_name(named: dict[str, dict[str, Any]], content_type: str, error: SerializationError) -> Exception:
    for what, values in named.items():
        for key, value in values.items():
            try:
                payloads.encode({key: value}, content_type)
            except SerializationError as exc:
                return SerializationError(f"{what} {key!r} {exc}")
    return error


def decode_request(body: bytes, content_type: str) -> Request:
    """Read a request.

    Raises:
        UnacceptableRequest: it is invalid, but names a client to answer to; or a name or an id in it is too long.
        SerializationError: it is invalid. The text says what is wrong with it.
    """
    context: dict[str, Any] = {}
    try:
        request, text = payloads.read(body, content_type, _json_request, _msgpack_request)
        if (b"_context_" if isinstance(text, bytes) else "_context_") in text:  # type: ignore[operator]  # bytes in bytes
            context = context_of(payloads.payload_of(text, content_type))
    except SerializationError as error:
        call_id, reply_to = _client_in(body, content_type)
        if call_id is None:
            raise
        raise UnacceptableRequest(f"the request {error}", Request("", call_id=call_id, reply_to=reply_to)) from error
    request.context = context
    if request.monitor is not None:
        request.monitor = _seconds(request.monitor)
    hints = request.hints
    if hints is not None:  # Its numbers are floats; what is not within the bounds may also be no number (NaN).
        if hints.ttl is not None and not -_MAX_SECONDS < hints.ttl < _MAX_SECONDS:
            hints.ttl = None
        if hints.at is not None and not -_MAX_SECONDS < hints.at < _MAX_SECONDS:
            hints.at = None
        if hints.end is not None and not -_MAX_SECONDS < hints.end < _MAX_SECONDS:
            hints.end = None
    problem = _too_long(request)
    if hints is not None and hints.metadata is not None:
        problem = problem or _too_much_metadata(hints.metadata)
    if problem:
        if max(len(request.call_id or ""), len(request.reply_to or "")) > MAX_NAME:
            request.call_id = request.reply_to = None
        raise UnacceptableRequest(problem, request)
    return request


def _client_in(body: bytes, content_type: str) -> tuple[str, str] | tuple[None, None]:
    """The call's id and the inbox, if an invalid request has both."""
    try:
        payload = payloads.decode(body, content_type)
        call_id, reply_to = payload.get("_msg_id"), payload.get("_reply_q")
        if isinstance(call_id, str) and isinstance(reply_to, str):
            call_id.encode()
            reply_to.encode()
            if max(len(call_id), len(reply_to)) <= MAX_NAME:
                return call_id, reply_to
    except ValueError:
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


def _too_much_metadata(metadata: dict[str, str]) -> str | None:
    """What is wrong with the metadata of a request, in words."""
    try:
        size = metadata_size(metadata)
    except UnicodeEncodeError:
        return "the metadata holds a lone surrogate"
    return None if size <= MAX_METADATA else f"the metadata has {size} bytes, and may have {MAX_METADATA}"


def _length(what: str, value: str, limit: int) -> str:
    return f"{what} has {len(value)} characters, and may have {limit}: {value[:40]}…"


def context_of(payload: payloads.Payload) -> dict[str, Any]:
    """The sender's context in a payload, of a request or a notification."""
    return {key[len(_CONTEXT) :]: payload[key] for key in payload if key.startswith(_CONTEXT)}


def with_context(payload: payloads.Payload, context: dict[str, Any]) -> payloads.Payload:
    """A payload with this context in it, and no other."""
    others = {key: value for key, value in payload.items() if not key.startswith(_CONTEXT)}
    return others | {f"{_CONTEXT}{key}": value for key, value in context.items()}


def take_metadata(payload: payloads.Payload) -> dict[str, str]:
    """Take out of a notification what `encode_notification` has added to the sender's: its metadata; empty if none."""
    extension = payload.get(EXTENSION)
    if not isinstance(extension, dict) or list(extension) != ["metadata"]:
        return {}
    del payload[EXTENSION]
    found = extension["metadata"]
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in (*found, *found.values())):
        return {}
    return {} if _too_much_metadata(found) else found


def with_attempts(body: bytes, content_type: str, attempts: int) -> bytes:
    """A request with another number of attempts, and otherwise unchanged.

    Raises:
        SerializationError: it cannot be read, or not be written again.
    """
    payload = payloads.decode(body, content_type)
    hints = payload.get(EXTENSION)
    payload[EXTENSION] = {**(hints if isinstance(hints, dict) else {}), "attempts": attempts}
    return payloads.rewrite(payload, content_type)


def encode_again(body: bytes, content_type: str, unique_id: str) -> bytes:
    """Write a received request again: with another id, and without its deadline and its attempts.

    Raises:
        SerializationError: it cannot be read.
    """
    payload = payloads.decode(body, content_type)
    payload["_unique_id"] = unique_id
    if isinstance(hints := payload.get(EXTENSION), dict):
        payload[EXTENSION] = {key: value for key, value in hints.items() if key not in ("ttl", "at", "attempts")}
    return payloads.rewrite(payload, content_type)


def _seconds(value: Any) -> float | None:
    """A number of seconds from a peer, or None if it is unusable, such as infinity."""
    if isinstance(value, int | float) and not isinstance(value, bool) and -_MAX_SECONDS < value < _MAX_SECONDS:
        return value
    return None


def encode_reply(reply: Reply, content_type: str, *, lossy: bool = False) -> bytes:
    """Write a reply or another frame for a client; `lossy` as for `encode_request`. Items were written before.

    Raises:
        SerializationError: the result cannot travel.
    """
    payload: payloads.Payload = {
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
    codec = payloads.VALUES[content_type, lossy]
    try:
        if is_plain((reply.result,), codec):
            return payloads.encode(payload, content_type)
    except (SerializationError, RuntimeError):
        pass  # as for a request
    payload["result"] = payloads.simplify(reply.result, codec)
    return payloads.encode(payload, content_type)


def encode_control(control: Control, content_type: str) -> bytes:
    """Write a control frame for a server."""
    extension: dict[str, Any] = {"kind": control.kind}
    if control.taken:
        extension["taken"] = control.taken
    return payloads.encode({"_msg_id": control.call_id, EXTENSION: extension}, content_type)


def call_ids_in(body: bytes) -> set[str]:
    """The ids of calls in an unreadable body, which may belong to one of them."""
    return {found.decode() for found in _CALL_ID.findall(body)}


def decode_inbox_frame(body: bytes, content_type: str) -> Reply | Control:
    """Read a message to an inbox: a reply (to this process's client) or a control frame (to its server).

    Raises:
        SerializationError: it is neither.
    """
    frame, _ = payloads.read(body, content_type, _json_frame, _msgpack_frame)
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
    if kind == "credit" or kind == "cancel" or kind == "confirm":  # noqa: PLR1714 - the type checker understands this
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
        len(body),
    )


def item_encoder(content_type: str, *, lossy: bool = False) -> Callable[[Any], bytes]:
    """A function that writes one item of a stream, which goes into a frame later; `lossy` as for `encode_request`.

    It is made once for a stream, and raises `SerializationError` for an item that cannot travel.
    """
    codec = payloads.VALUES[content_type, lossy]
    encode = (payloads.msgpack_encoder if content_type == MSGPACK else payloads.json_encoder).encode

    def encode_item(item: Any) -> bytes:
        try:
            if is_plain((item,), codec):
                return encode(item)
        except payloads.ENCODING_ERRORS:
            pass  # as for a request
        try:
            return encode(payloads.simplify(item, codec))
        except payloads.ENCODING_ERRORS as exc:
            raise SerializationError(f"an item {payloads.unwritable(content_type, exc)}") from exc

    return encode_item


encode_dead_letter: Callable[[DeadLetter], bytes] = payloads.json_encoder.encode
_decode_dead_letter = msgspec.json.Decoder(DeadLetter).decode


def decode_dead_letter(body: bytes) -> DeadLetter:
    """Read the body of a message from a topic's dead letters.

    Raises:
        SerializationError: it is not a dead letter.
    """
    try:
        return _decode_dead_letter(body)
    except payloads.DECODING_ERRORS as exc:
        raise SerializationError(f"cannot be read as a dead letter: {exc}") from exc
