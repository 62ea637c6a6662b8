"""What an address is called on NATS, and what travels in the headers of a message.

==================  =======================================  ==========  ===================  ==========================
kind                stream                                   retention   consumer             subject
==================  =======================================  ==========  ===================  ==========================
topic, stored       ``msgbus,topic,EXCHANGE,TOPIC``          interest    ``topic``            the stream's name with
pool                the topic's                              interest    ``pool,NAME``        dots for its commas
server              ``msgbus,server,EXCHANGE,TOPIC,SERVER``  work queue  ``server``
dead                ``msgbus,dead,EXCHANGE,TOPIC``           work queue  ``dead``
fanout              ``msgbus,fanout,EXCHANGE,TOPIC``         interest    one for each
                                                                         subscriber
inbox               none: core NATS                                                           ``msgbus.inbox.NAME``
(marks)             ``msgbus,mark``                          limits      none                 ``msgbus.mark.``, stream
                                                                                              and consumer
==================  =======================================  ==========  ===================  ==========================
"""

from __future__ import annotations

import hashlib
import string
from typing import Final
from urllib.parse import quote, unquote

from msgbus.drivers.base import Address, Message

MARKS: Final = "msgbus,mark"
"""The stream of the marks, see `msgbus_nats.mark`."""
_PLAIN: Final = frozenset(string.ascii_letters + string.digits + "-_")
_LONGEST: Final = 50  # A stream's name is the name of a folder: 255 bytes at most, for up to four such parts.
_TYPE: Final = "Content-Type"
_TTL: Final = "Msgbus-Ttl"
_ID: Final = "Msgbus-Id"


def escape(name: str) -> str:
    """A name in characters that subjects, streams and folders can hold. Different names stay different."""
    escaped = "".join(
        c if c in _PLAIN else "".join(f"={byte:02X}" for byte in c.encode("utf-8", "surrogatepass")) for c in name
    )
    if len(escaped) > _LONGEST:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return f"{escaped[:16]}=~{digest}"
    return escaped or "="


def stream_of(address: Address) -> str:
    """The stream that keeps what is sent to an address of any kind but inbox."""
    kind = "topic" if address.kind in ("stored", "pool") else address.kind
    parts = [address.exchange, address.topic, *([address.server] if kind == "server" else [])]
    return ",".join(["msgbus", kind, *map(escape, parts)])


def subject_of(address: Address) -> str:
    """Where to publish what is sent to an address."""
    if address.kind == "inbox":
        return f"msgbus.inbox.{escape(address.name)}"
    return stream_of(address).replace(",", ".")


def consumer_of(address: Address) -> str:
    """The durable consumer that the subscribers of an address share; a fanout has none."""
    if address.kind == "pool":
        return f"pool,{escape(address.name)}"
    return "topic" if address.kind == "stored" else address.kind


def roll_call_of(address: Address) -> str:
    """Where the subscribers of an address answer, so that they can be counted: JetStream knows only those that wait."""
    return f"msgbus.roll-call.{stream_of(address)}.{consumer_of(address)}"


def mark_of(address: Address, consumer: str) -> str:
    """Where the mark of a consumer is published."""
    return f"msgbus.mark.{stream_of(address)}.{consumer}"


def headers_of(message: Message, ttl: float | None) -> dict[str, str]:
    """The headers of a message that is worthless in so many seconds.

    A header can hold neither line ends nor, at its ends, spaces.
    """
    headers = {_ID: quote(message.id, safe=""), _TYPE: quote(message.content_type, safe="/+;=")}
    return headers if ttl is None else {**headers, _TTL: repr(ttl)}


def message_of(body: bytes, headers: dict[str, str] | None, age: float | None) -> Message:
    """A message that came, `age` seconds after it was stored. Somebody else may have sent it without our headers."""
    found = headers or {}
    try:
        ttl = float(found[_TTL]) - age if age is not None and _TTL in found else None
    except ValueError:
        ttl = None
    return Message(body, unquote(found.get(_TYPE, "")), unquote(found.get(_ID, "")), ttl)
