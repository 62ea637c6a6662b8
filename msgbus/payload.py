"""Payloads: dicts as bytes, in oslo.messaging's envelope where the codec is JSON, and which values can travel."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

from msgbus.exceptions import SerializationError
from msgbus.message import JSON, MSGPACK
from msgbus.values import JSON_VALUES, LOSSY_JSON_VALUES, MSGPACK_VALUES, Codec, read_extension, simplified

Payload = dict[str, Any]

_ENVELOPE_VERSION = "2.0"
_READABLE = re.compile(r"2\.0+")  # A higher minor version may hold what this side does not know, says oslo.messaging.
_PLAIN = " (plain data can: dict, list, str, number, bool, None; a serializer makes it of other objects)"
DECODING_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)
"""The exceptions that decoding raises."""
_NOT_STRICT = (msgspec.MsgspecError, UnicodeError)
"""What the decoders raise for text that the standard library may still be able to read."""
ENCODING_ERRORS = (TypeError, ValueError, OverflowError, RuntimeError)
"""The exceptions that encoding raises. RuntimeError: it is nested too deep, or another thread changes it meanwhile."""


class _Envelope(msgspec.Struct):
    version: str | None = msgspec.field(default=None, name="oslo.version")
    message: str | None = msgspec.field(default=None, name="oslo.message")


json_encoder = msgspec.json.Encoder()
msgpack_encoder = msgspec.msgpack.Encoder()
_json_envelope = msgspec.json.Decoder(_Envelope)
_json_payload = msgspec.json.Decoder(Payload)
_msgpack_payload = msgspec.msgpack.Decoder(Payload, ext_hook=read_extension)

VALUES: dict[tuple[str, bool], Codec] = {
    (JSON, False): JSON_VALUES,
    (JSON, True): LOSSY_JSON_VALUES,
    (MSGPACK, False): MSGPACK_VALUES,
    (MSGPACK, True): MSGPACK_VALUES,
}
"""Which values a codec can write, by content type and the option ``rpc_json_lossy``."""

T = TypeVar("T")


def encode(payload: Payload, content_type: str, *, enveloped: bool = True) -> bytes:
    """Write a payload as bytes; without `enveloped`, JSON has no envelope around it.

    Raises:
        SerializationError: it holds something that the codec cannot write.
    """
    try:
        if content_type == MSGPACK:
            return msgpack_encoder.encode(payload)
        if not enveloped:
            return json_encoder.encode(payload)
        text = json_encoder.encode(payload).decode()
        return json_encoder.encode({"oslo.version": _ENVELOPE_VERSION, "oslo.message": text})
    except ENCODING_ERRORS as exc:
        raise unwritable(content_type, exc) from exc


def unwritable(content_type: str, exc: Exception) -> SerializationError:
    """The error for what a codec cannot write."""
    if isinstance(exc, SerializationError):
        return exc
    return SerializationError(f"cannot be written as {content_type}: {exc}{_PLAIN}")


def simplify(value: Any, codec: Codec) -> Any:
    """Return a value in the form in which it arrives.

    Raises:
        SerializationError: it cannot travel.
    """
    try:
        return simplified(value, codec)
    except SerializationError:
        raise
    except Exception as exc:  # part of a value, such as its time zone, may raise anything
        raise unwritable(codec.name, exc) from exc


def each_simplified(values: dict[str, Any], what: str, codec: Codec) -> dict[str, Any]:
    """`simplify` each value. The text of an error names the value: `what` it is, and its key."""
    done = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise SerializationError(f"{what} {key!r} is {type(key).__name__}, and has to be a string")
        try:
            done[key] = simplify(value, codec)
        except SerializationError as exc:
            raise SerializationError(f"{what} {key!r} {exc}") from exc
    return done


def _read_stock_json(text: bytes | str, decoder: msgspec.json.Decoder[T]) -> T:
    """Read JSON that `decoder` cannot: with NaN, infinity and lone surrogates, as the standard library writes them.

    Raises:
        msgspec.MsgspecError, ValueError, RecursionError: it is not that either.
    """
    read: T = msgspec.convert(json.loads(text), decoder.type)
    _refuse_lone_surrogates(read)
    return read


def read(
    body: bytes, content_type: str, from_json: msgspec.json.Decoder[T], from_msgpack: msgspec.msgpack.Decoder[T]
) -> tuple[T, bytes | str]:
    """Read a payload as what the decoders make of it. Returns its own text too, out of its envelope.

    A JSON body without envelope is taken as the payload itself, as oslo.messaging does.

    Raises:
        SerializationError: it cannot be read.
    """
    try:
        if content_type == MSGPACK:
            return from_msgpack.decode(body), body
        if content_type != JSON:
            raise SerializationError(f"content type {content_type!r}; known are {JSON} and {MSGPACK}")
        try:
            envelope = _json_envelope.decode(body)
        except _NOT_STRICT:
            envelope = _read_stock_json(body, _json_envelope)
        text: bytes | str = body
        version = envelope.version
        if envelope.message is not None and version is not None:
            if version != _ENVELOPE_VERSION and not _READABLE.fullmatch(version):
                raise SerializationError(f"envelope version {version}; this side reads {_ENVELOPE_VERSION}")
            text = envelope.message
        try:
            return from_json.decode(text), text
        except _NOT_STRICT:
            return _read_stock_json(text, from_json), text
    except DECODING_ERRORS as exc:
        raise _unreadable(content_type, exc) from exc


def payload_of(text: bytes | str, content_type: str) -> Payload:
    """All that is in a payload whose own text `read` has returned. Raises what that raises."""
    try:
        if content_type == MSGPACK:
            return _msgpack_payload.decode(text)  # type: ignore[arg-type]  # only JSON is text
        try:
            return _json_payload.decode(text)
        except _NOT_STRICT:
            return _read_stock_json(text, _json_payload)
    except DECODING_ERRORS as exc:
        raise _unreadable(content_type, exc) from exc


def _unreadable(content_type: str, exc: Exception) -> SerializationError:
    return SerializationError(f"cannot be read as {content_type}: {exc}")


def decode(body: bytes, content_type: str) -> Payload:
    """Read a payload, whatever it is; see `read`."""
    return read(body, content_type, _json_payload, _msgpack_payload)[0]


def _refuse_lone_surrogates(frame: object) -> None:
    """Refuse names and ids with lone surrogates: JSON can write them, but no message system can carry them.

    Raises:
        UnicodeError: there is one.
    """
    if isinstance(frame, msgspec.Struct):
        for field in frame.__struct_fields__:
            value = getattr(frame, field)
            if isinstance(value, str) and field not in ("result", "failure"):
                value.encode()
            _refuse_lone_surrogates(value)


def rewrite(payload: Payload, content_type: str) -> bytes:
    """Write a payload that was read, unchanged."""
    if content_type == MSGPACK:
        return encode(simplify(payload, MSGPACK_VALUES), content_type)
    # The standard library writes NaN and the like as a stock peer wrote it.
    return json.dumps({"oslo.version": _ENVELOPE_VERSION, "oslo.message": json.dumps(payload)}).encode()
