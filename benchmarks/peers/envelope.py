"""The double envelope that msgbus and oslo.messaging write, by the JSON of the standard library, for floors."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.payloads import Payload


def wrap(message: dict[str, Any]) -> str:
    """A message as it travels."""
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)})


def unwrap(body: str | bytes) -> dict[str, Any]:
    """What is in a message."""
    message: dict[str, Any] = json.loads(json.loads(body)["oslo.message"])
    return message


def request(call_id: str, inbox: str | None, method: str = "echo", **args: Any) -> dict[str, Any]:
    """A request; without an inbox nobody answers it."""
    return {
        "method": method,
        "args": args,
        "_msg_id": call_id,
        "_reply_q": inbox,
        "_unique_id": call_id,
        "_timeout": None,
    }


def reply(call_id: str, result: Payload) -> dict[str, Any]:
    """An answer."""
    return {"result": result, "failure": None, "ending": True, "_msg_id": call_id, "_unique_id": call_id}
