"""Every error that msgbus raises, in one tree.

::

    MessagingException
    ├── InvalidTarget (ValueError)      the target cannot be used for what was asked
    ├── InvalidTransportURL (ValueError)
    ├── ConfigurationError (ValueError) a wrong option name or value
    ├── DriverLoadFailure               the driver is unknown, broken, or its library is missing
    ├── CapabilityMissing               the driver lacks a capability that is needed
    ├── MessageDeliveryFailure          it was not delivered to the message system
    │   ├── MessageUndeliverable        nobody listens at the target
    │   ├── TransportUnavailable        the message system could not be reached in time
    │   ├── TransportBlocked            the message system refuses messages
    │   ├── MessageTooLarge             larger than the message system takes
    │   ├── OutcomeUnknown              it may or may not have run; not repeated, by policy
    │   └── CastsFailed                 of many casts, some were not taken
    ├── MessagingTimeout (TimeoutError) the deadline passed
    │   └── ServerLost                  the server stopped answering while it ran the call
    ├── CallCancelled                   the caller's transport was closed while it waited
    ├── RemoteError                     what the endpoint raised, if it may not be rebuilt here
    ├── RPCDispatcherError
    │   ├── NoSuchMethod (AttributeError)
    │   ├── UnsupportedVersion
    │   ├── InvalidArguments (TypeError)
    │   └── AccessDenied
    ├── RPCVersionCapError              the version cap forbids the request
    ├── NoCurrentRequest (LookupError)  no request is being run here
    └── SerializationError (ValueError) a value cannot be sent, or a message cannot be read

Where a class takes several arguments they are kept in ``args``, so that an error can be copied, pickled, and rebuilt
on the other side of a call.

An endpoint's own exception is raised as itself where its module is on the transport's ``allowed_remote_exmods``
(built-in exceptions always are) and as `RemoteError` otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence


class MessagingException(Exception):
    """Base class of all errors of msgbus."""


class InvalidTarget(MessagingException, ValueError):
    """The target lacks a field that the operation needs, or has a name that cannot be used."""

    def __init__(self, msg: str, target: object) -> None:
        self.msg = msg
        self.target = target

    def __str__(self) -> str:
        return f"{self.msg}: {self.target}"


class InvalidTransportURL(MessagingException, ValueError):
    """The transport URL is invalid. `url` never contains a password."""

    def __init__(self, url: str, msg: str) -> None:
        self.url = url
        self.msg = msg

    def __str__(self) -> str:
        return f"{self.msg}: {self.url}"


class ConfigurationError(MessagingException, ValueError):
    """An option has a wrong name or value, in a configuration file or in a transport URL."""


class DriverLoadFailure(MessagingException):
    """The driver could not be loaded.

    Attributes:
        driver: the name that was asked for.
        ex: what went wrong.
    """

    def __init__(self, driver: str, ex: BaseException | str) -> None:
        self.driver = driver
        self.ex = ex

    def __str__(self) -> str:
        return f"Failed to load the driver {self.driver!r}: {self.ex}"


class CapabilityMissing(MessagingException):
    """The driver does not declare a capability that the operation needs."""


class MessageDeliveryFailure(MessagingException):
    """The message system did not accept the message."""


class MessageUndeliverable(MessageDeliveryFailure):
    """No server listens at the target, and requests to it are not stored."""


class TransportUnavailable(MessageDeliveryFailure):
    """The message system could not be reached in time.

    Attributes:
        maybe_delivered: True if sending had begun, so that the message may have been delivered.
    """

    def __init__(self, msg: str, *, maybe_delivered: bool = False) -> None:
        super().__init__(msg)
        self.maybe_delivered = maybe_delivered


class TransportBlocked(MessageDeliveryFailure):
    """The message system refuses messages: a memory or disk alarm, a full queue, a full peer.

    Attributes:
        maybe_delivered: True where the message had been sent before the refusal was known.
    """

    def __init__(self, msg: str, *, maybe_delivered: bool = False) -> None:
        super().__init__(msg)
        self.maybe_delivered = maybe_delivered


class MessageTooLarge(MessageDeliveryFailure):
    """The message is larger than the message system accepts. No part of it was sent."""


class OutcomeUnknown(MessageDeliveryFailure):
    """The request may or may not have run, and under ``at_most_once`` it is not sent again to find out."""


class CastsFailed(MessageDeliveryFailure):
    """At least one cast of a `cast_many` was not confirmed; after the first error no more were sent.

    Casts are numbered from 0, in the order in which they came from the iterable.

    Attributes:
        failed: the errors of the casts that were not confirmed, by number, in rising order. There may be several, since
            many casts are on their way at once.
        begun: how many casts were begun: those from this number on were not sent, and those below it that are not in
            `failed` were confirmed.
    """

    def __init__(self, failed: dict[int, Exception], begun: int) -> None:
        self.failed = failed
        self.begun = begun

    @property
    def index(self) -> int:
        """The number of the first cast that failed."""
        return min(self.failed)

    @property
    def error(self) -> Exception:
        """The error of that cast, which `cast` would have raised."""
        return self.failed[self.index]

    @property
    def confirmed(self) -> int:
        """How many casts the message system has taken."""
        return self.begun - len(self.failed)

    @property
    def unknown(self) -> list[int]:
        """The numbers of the failed casts that may have been delivered anyway."""
        return [
            number
            for number, error in self.failed.items()
            if isinstance(error, OutcomeUnknown) or getattr(error, "maybe_delivered", False)
        ]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"  # There may be hundreds of errors, and this goes to logs.

    def __str__(self) -> str:
        unknown = self.unknown
        maybe = f", of which {len(unknown)} may have been delivered (from number {unknown[0]} on)" if unknown else ""
        return (
            f"cast number {self.index} failed: {type(self.error).__name__}: {self.error}. {self.confirmed} casts were "
            f"confirmed, {len(self.failed)} failed{maybe}, and none was sent from number {self.begun} on"
        )


class MessagingTimeout(MessagingException, TimeoutError):
    """The deadline passed. The message says what is known of the request."""


class ServerLost(MessagingTimeout):
    """The server that had begun to run the request showed no sign of life for three keepalive intervals."""


class CallCancelled(MessagingException):
    """The transport was closed (or the process forked) while the caller waited for its answer.

    A server that is stopped before a method has ended answers with it too: the method has run in part.
    """


class RemoteError(MessagingException):
    """An endpoint raised an exception that may not be rebuilt in this process.

    Attributes:
        exc_type: the name of the remote exception's class.
        value: its text.
        traceback: the remote traceback, a list of lines, or None where the server sends none.
    """

    def __init__(
        self, exc_type: str | None = None, value: object = None, traceback: list[str] | str | None = None
    ) -> None:
        self.exc_type = exc_type
        self.value = value
        self.traceback = traceback

    def __str__(self) -> str:
        return f"Remote error: {self.exc_type}: {self.value}"


class RPCDispatcherError(MessagingException):
    """No endpoint could be run for the request."""


class NoSuchMethod(RPCDispatcherError, AttributeError):
    """No endpoint of a fitting namespace and version has the method.

    Attributes:
        method: its name.
        near: an existing method that may have been meant, or None.
        namespace: another namespace that has the method, or None.
    """

    def __init__(self, method: str, near: str | None = None, namespace: str | None = None) -> None:
        self.method = method
        self.near = near
        self.namespace = namespace

    def __str__(self) -> str:
        hint = "" if self.near is None else f"; did you mean {self.near!r}?"
        if self.namespace is not None:
            hint = f"; did you mean the namespace {self.namespace!r}?"
        return f"Endpoint does not support RPC method {self.method}{hint}"


class UnsupportedVersion(RPCDispatcherError):
    """No endpoint has the namespace in a version that serves the request.

    Attributes:
        version: the version that was asked for.
        method: its name.
        namespace: the namespace that was asked for, or None.
        found: the versions in which the namespace is there; empty where it is not there at all.
        near: an existing namespace that may have been meant, or None.
    """

    def __init__(
        self,
        version: str,
        method: str | None = None,
        namespace: str | None = None,
        found: Sequence[str] = (),
        near: str | None = None,
    ) -> None:
        self.version = version
        self.method = method
        self.namespace = namespace
        self.found = list(found)
        self.near = near

    def __str__(self) -> str:
        if self.namespace is not None and not self.found:
            text = f"No endpoint has the namespace {self.namespace!r}"
        elif self.near is not None:
            text = "Every endpoint has a namespace, and the request names none"
        else:
            has = f" (it has {', '.join(self.found)})" if self.found else ""
            text = f"Endpoint does not support RPC version {self.version}{has}"
        text = f"{text}. Attempted method: {self.method}" if self.method else text
        return text if self.near is None else f"{text}; did you mean the namespace {self.near!r}?"


class InvalidArguments(RPCDispatcherError, TypeError):
    """The arguments do not fit the method's signature, or, where they are validated, its annotations.

    In the second case the text begins with the place in the arguments: ``image.width: expected int >= 1, got -3``.
    """


class AccessDenied(RPCDispatcherError):
    """The method exists, but the server's access policy does not allow clients to call it."""


class RPCVersionCapError(MessagingException):
    """The request's version is above the client's version cap. Nothing was sent."""

    def __init__(self, version: str | None, version_cap: str) -> None:
        self.version = version
        self.version_cap = version_cap

    def __str__(self) -> str:
        return (
            f"The request needs version {self.version}, which the version cap {self.version_cap} forbids: the major "
            "version has to be the same, and the minor version no higher"
        )


class NoCurrentRequest(MessagingException, LookupError):
    """`msgbus.current_request` was called outside of a request."""


class SerializationError(MessagingException, ValueError):
    """A value cannot be sent, or a received message cannot be read."""
