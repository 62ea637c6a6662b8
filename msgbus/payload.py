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

T = TypeVar("T")


def encode(payload: Payload, content_type: str) -> bytes:
    """Write a payload as bytes.

    Raises:
        SerializationError: it holds something that the codec cannot write.
    """
    try:
        if content_type == MSGPACK:
            return msgpack_encoder.encode(payload)
        text = json_encoder.encode(payload).decode()
        return json_encoder.encode({"oslo.version": _ENVELOPE_VERSION, "oslo.message": text})
    except ENCODING_ERRORS as exc:
        raise unwritable(content_type, exc) from exc


def unwritable(content_type: str, exc: Exception) -> SerializationError:
    """The error for what a codec cannot write."""
    if isinstance(exc, SerializationError):
        return exc
    return SerializationError(f"cannot be written as {content_type}: {exc}{_PLAIN}")


def codec_of(content_type: str, lossy: bool) -> Codec:
    """Which values a codec can write; `lossy` is the option ``rpc_json_lossy``."""
    if content_type == MSGPACK:
        return MSGPACK_VALUES
    return LOSSY_JSON_VALUES if lossy else JSON_VALUES


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
    """Read JSON, also with the NaN, infinity and lone surrogates that the standard library reads and writes.

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


def read(
    body: bytes, content_type: str, from_json: msgspec.json.Decoder[T], from_msgpack: msgspec.msgpack.Decoder[T]
) -> tuple[T, bytes | str]:
    """Read a payload as what the decoders make of it. Returns its own text too.

    Raises:
        SerializationError: it cannot be read.
    """
    try:
        text = _open(body, content_type)
        if content_type == MSGPACK:
            return from_msgpack.decode(text), text  # type: ignore[arg-type]  # only JSON is text
        return _read_json(text, from_json), text
    except DECODING_ERRORS as exc:
        raise _unreadable(content_type, exc) from exc


def payload_of(text: bytes | str, content_type: str) -> Payload:
    """All that is in a payload whose own text `read` has returned. Raises what that raises."""
    try:
        if content_type == MSGPACK:
            return _msgpack_payload.decode(text)  # type: ignore[arg-type]  # only JSON is text
        return _read_json(text, _json_payload)
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
