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
==================  =======================================  ==========  ===================  ==========================
"""

from __future__ import annotations

import hashlib
import string
from typing import Final
from urllib.parse import quote, unquote

from msgbus.drivers.base import Address

_PLAIN: Final = frozenset(string.ascii_letters + string.digits + "-_")
_LONGEST: Final = 50  # A stream's name is the name of a folder: 255 bytes at most, for up to four such parts.
_TYPE: Final = "Content-Type"
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


def headers_of(message_id: str, content_type: str) -> dict[str, str]:
    """The headers of a message. A header can hold neither line ends nor, at its ends, spaces."""
    return {_ID: quote(message_id, safe=""), _TYPE: quote(content_type, safe="/+;=")}


def read_headers(headers: dict[str, str] | None) -> tuple[str, str]:
    """The id and the content type of a message, empty where somebody else sent it without."""
    found = headers or {}
    return unquote(found.get(_ID, "")), unquote(found.get(_TYPE, ""))
