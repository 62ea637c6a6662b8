"""Requests made by hand, as a foreign peer might send them."""

from __future__ import annotations

import json
import uuid
from typing import Any

from msgbus.drivers.base import Message
from msgbus.message import JSON


def payload(method: Any, key: str, **more: Any) -> dict[str, Any]:
    """A cast of a method with an argument ``key``."""
    return {"method": method, "args": {"key": key}, "_unique_id": uuid.uuid4().hex, **more}


def envelope(content: Any) -> bytes:
    """The envelope of a payload, as bytes."""
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(content)}).encode()


def raw(body: bytes, content_type: str = JSON, ttl: float | None = 30.0) -> Message:
    """A message with that body."""
    return Message(body, content_type, uuid.uuid4().hex, ttl)


def policy(name: str) -> dict[str, Any]:
    """The part of a request that has its delivery policy."""
    return {"_msgbus": {"policy": name}}
