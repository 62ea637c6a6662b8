"""What an HTTP client is told when a call fails."""

import logging

from fastapi import HTTPException

import msgbus
from reports.bus import NoSuchTemplate

LOG = logging.getLogger(__name__)

STATUSES: dict[type, int] = {
    NoSuchTemplate: 404,
    msgbus.MessageTooLarge: 413,
    msgbus.MessageDeliveryFailure: 503,  # no server listens, or the message system is away: it has not run
    msgbus.CallCancelled: 503,  # this process, or the server, is being stopped
    msgbus.OutcomeUnknown: 504,  # it may have run
    msgbus.MessagingTimeout: 504,  # likewise; ServerLost is one too
    msgbus.RPCDispatcherError: 502,  # the server is of another version
    msgbus.MessagingException: 500,  # all others of msgbus mean that this service is wrong
    Exception: 502,  # what the method has raised: a built-in exception, or a RemoteError
    msgbus.RemoteError: 502,
}
"""The status for each error; the nearest base class counts."""


def as_http(error: Exception) -> HTTPException:
    """The error of a call, of msgbus or raised by the method, as one of HTTP. Details are for the log."""
    status = next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)
    if status < 500:
        return HTTPException(status, str(error))
    LOG.error("a call failed: %s", error)
    return HTTPException(status, type(error).__name__)
