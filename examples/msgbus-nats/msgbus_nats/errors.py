"""The one place at which errors of NATS become errors of msgbus."""

from __future__ import annotations

import asyncio

import nats.errors
import nats.js.errors

from msgbus.exceptions import (
    InvalidTarget,
    MessagingException,
    TransportBlocked,
    TransportUnavailable,
)

# Of JetStream's own codes: https://github.com/nats-io/nats-server/blob/main/server/errors.json
STREAM_EXISTS = 10058
"""A stream of that name exists, with another configuration."""
_NO_ROOM = {
    10002: "the account has no more room",
    10023: "its resources do not suffice",
    10026: "the account may have no more consumers",
    10027: "the account may have no more streams",
    10028: "it has no more memory for streams",
    10047: "its disk has no more room for streams",
    10077: "the stream is full",
}
_RIGHTS = ("authorization", "permissions violation", "authentication")


def reason_of(error: BaseException) -> str:
    """Why something failed, in words."""
    if isinstance(error, nats.js.errors.ServiceUnavailableError) and error.err_code is None:
        return "JetStream is not enabled there: start nats-server with -js"
    if isinstance(error, nats.js.errors.APIError):
        return f"{error.description} (JetStream's code {error.err_code})"
    if isinstance(error, asyncio.TimeoutError):
        return "it did not answer in time"
    text = str(error).removeprefix("nats: ").strip("' ") or type(error).__name__
    if any(word in text.lower() for word in _RIGHTS):
        return f"{text}: check user, password and the user's permissions"
    return text


def mapped(error: BaseException, what: str) -> MessagingException:
    """The error of ours for one of NATS. `what` says what was tried, and where; it holds no password."""
    if isinstance(error, MessagingException):
        return error
    text = f"{what}: {reason_of(error)}"
    if isinstance(error, nats.errors.BadSubjectError):
        return InvalidTarget(text, what)
    if isinstance(error, nats.js.errors.APIError) and error.err_code in _NO_ROOM:
        return TransportBlocked(text)
    return TransportUnavailable(text)


def refused(error: dict[str, object], what: str) -> MessagingException:
    """The error for JetStream's refusal of a message."""
    code = error.get("err_code")
    why = _NO_ROOM.get(code, "") if isinstance(code, int) else ""
    return TransportBlocked(f"{what}: {why or error.get('description')} (JetStream's code {code})")


def is_refusal(error: BaseException) -> bool:
    """Whether trying again will not help, as long as nobody changes something at the server."""
    return isinstance(error, nats.js.errors.APIError) and error.err_code is not None and error.code in (400, 403)
