"""The one place at which errors of NATS become errors of msgbus."""

from __future__ import annotations

from typing import Any

import nats.errors

from msgbus.exceptions import (
    InvalidTarget,
    MessagingException,
    TransportBlocked,
    TransportUnavailable,
)

# Of JetStream's own codes: https://github.com/nats-io/nats-server/blob/main/server/errors.json
STREAM_EXISTS = 10058
"""A stream of that name exists, with another configuration."""
SUBJECTS_OVERLAP = 10065
"""Another stream has its subjects; also said where the same stream is being made by somebody else at this moment."""
CONSUMER_MISSING, STREAM_MISSING = 10014, 10059
_NO_ROOM = frozenset((10002, 10023, 10026, 10027, 10028, 10047, 10077))
"""The account or the server has no more room or resources, or the stream is full."""
_RIGHTS = ("authorization", "permissions violation", "authentication")


class JetStreamError(nats.errors.Error):
    """JetStream refuses something.

    Attributes:
        code: JetStream's own.
        status: as of HTTP.
    """

    def __init__(self, error: dict[str, Any]) -> None:
        self.status: int = error.get("code", 0)
        self.code: int | None = error.get("err_code")
        super().__init__(f"{error.get('description')} (JetStream says {self.code or self.status})")


def reason_of(error: BaseException) -> str:
    """Why something failed, in words."""
    if isinstance(error, TimeoutError):
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
    if isinstance(error, JetStreamError) and error.code in _NO_ROOM:
        return TransportBlocked(text)
    return TransportUnavailable(text)


def is_refusal(error: BaseException) -> bool:
    """Whether trying again will not help, as long as nobody changes something at the server."""
    return isinstance(error, JetStreamError) and error.status in (400, 403)
