"""The one place at which errors of NATS become errors of msgbus."""

from __future__ import annotations

from typing import Any

import nats.errors

from msgbus.exceptions import MessagingException, TransportBlocked, TransportUnavailable

# Of JetStream's own codes: https://github.com/nats-io/nats-server/blob/main/server/errors.json
STREAM_EXISTS = 10058
"""A stream of that name exists, with another configuration."""
SUBJECTS_OVERLAP = 10065
"""A stream has such subjects: another one, or the same one where somebody else is making it at this moment."""
CONSUMER_MISSING, STREAM_MISSING, MESSAGE_MISSING = 10014, 10059, 10037
WRONG_SEQUENCE = 10071
"""The last message of a subject is not the one that was expected: somebody else has published meanwhile."""
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
    return f"{text}: check user, password and the user's permissions" if is_forbidden(error) else text


def is_forbidden(error: BaseException) -> bool:
    """Whether the user may not log in, or may not do that."""
    return any(word in str(error).lower() for word in _RIGHTS)


def mapped(error: BaseException, what: str) -> MessagingException:
    """The error of ours for one of NATS. `what` says what was tried, and where; it holds no password."""
    is_full = isinstance(error, JetStreamError) and error.code in _NO_ROOM
    return (TransportBlocked if is_full else TransportUnavailable)(f"{what}: {reason_of(error)}")


def is_refusal(error: BaseException) -> bool:
    """Whether trying again will not help, as long as nobody changes something at the server."""
    return isinstance(error, JetStreamError) and error.status in (400, 403)
