"""Interceptors: functions around the requests of a client or a server, each around the next one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

from msgbus.awaitables import PLAIN, is_async
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import RPCDispatcherError, SerializationError
from msgbus.message import MAX_METADATA, metadata_size
from msgbus.target import Target

Kind = Literal["call", "cast", "multicall", "notification"]


class Timed(Protocol):
    """What has a deadline: a request that a server runs, or a `Deadline`."""

    @property
    def deadline(self) -> float | None:
        """In seconds of `Loop.now`; None if there is none."""


class Deadline(NamedTuple):
    """A deadline in seconds of `Loop.now`; None where there is none."""

    deadline: float | None


class InterceptedRequest:
    """A request on its way through the interceptors of a client or a server: their first argument.

    An interceptor may change `context`, `args` and `metadata`, in place or by setting them, before it proceeds.

    On a client these are the caller's values, before the serializer: the dicts are copies, the values are not. On a
    server they are plain data, as they arrived. There `msgbus.current_request` has the rest: the request's id, its
    attempts, and whether its client has cancelled it.

    Attributes:
        context: the caller's.
        args: the arguments by name; the message itself of a notification.
        metadata: a dict of strings that travels beside the context, for interceptors of the other side. Names and
            values together have at most 16 KiB. Empty if the client is not one of msgbus.
    """

    __slots__ = ("_kind", "_method", "_target", "_timed", "args", "context", "metadata")

    def __init__(
        self,
        kind: Kind,
        method: str,
        target: Target,
        context: Any,
        args: dict[str, Any],
        metadata: dict[str, str],
        timed: Timed,
    ) -> None:
        self._kind = kind
        self._method = method
        self._target = target
        self.context = context
        self.args = args
        self.metadata = metadata
        self._timed = timed

    def __repr__(self) -> str:  # Without values: a token may be among them.
        return f"<InterceptedRequest {self.kind} {self.method!r} on {self.target}>"

    @property
    def kind(self) -> Kind:
        """``"call"``, ``"cast"`` (also each of a `cast_many`), ``"multicall"``, or ``"notification"``."""
        return self._kind

    @property
    def method(self) -> str:
        """The method's name; empty for a notification."""
        return self._method

    @property
    def target(self) -> Target:
        """The target of the client; on a server that of the request, as in `CurrentRequest.target`."""
        return self._target

    @property
    def time_left(self) -> float | None:
        """Seconds until its deadline, 0 when that has passed; None if it has none.

        On a client: for a call, until the caller stops waiting; for a cast or a notification, the time in which it has
        to be sent; for a multicall, the time of the whole stream, if ``prepare(deadline=...)`` gave one. The time that
        interceptors take is taken from it. On a server: `CurrentRequest.time_left`.
        """
        deadline = self._timed.deadline
        return None if deadline is None else max(0.0, deadline - Loop.now())


class Proceed(Protocol):
    """What an interceptor calls: the ones that follow it, and then the sending or the method. It returns the result."""

    def __call__(self, request: InterceptedRequest, /) -> Any:
        """Run the request; raises whatever comes of that."""


class Interceptor(Protocol):
    """A function around the ones that follow it: it proceeds, answers by itself, or raises."""

    def __call__(self, request: InterceptedRequest, proceed: Proceed, /) -> Any:
        """Return the result, mostly that of ``proceed(request)``."""


def checked_interceptors(interceptors: object, *, asynchronous: bool, owner: str) -> tuple[Any, ...]:
    """The interceptors of a client or a server, which begins the text of an error as `owner`.

    Args:
        interceptors: what the user has given.
        asynchronous: they run on an event loop, and have to be ``async``; otherwise they must not be.
        owner: whose they are.

    Raises:
        TypeError: it is not a list of functions of the right kind that take a request and what proceeds. The text says
            what to do.
    """
    if callable(interceptors) or isinstance(interceptors, str | bytes | dict) or not isinstance(interceptors, Iterable):
        raise TypeError(f"interceptors is a list of functions, [function], not {interceptors!r}")
    found = tuple(interceptors)
    for interceptor in found:
        _check(interceptor, asynchronous, owner)
    return found


def _check(interceptor: Any, asynchronous: bool, owner: str) -> None:
    name = name_of_interceptor(interceptor)
    if not callable(interceptor):
        raise TypeError(f"an interceptor is a function (request, proceed), not {interceptor!r}")
    if isinstance(interceptor, type):
        raise TypeError(f"an interceptor is a function or an object that is called, and {name} is a class: {name}()")
    if inspect.isgeneratorfunction(interceptor) or inspect.isasyncgenfunction(interceptor):
        raise TypeError(f"the interceptor {name} yields: call proceed(request) instead, and return what that returns")
    if is_async(interceptor) and not asynchronous:
        raise TypeError(
            f"the interceptor {name} is async, and {owner} runs on threads, without awaiting it: make it a plain "
            "function, use msgbus.aio, or for a server executor='asyncio'"
        )
    if asynchronous and not is_async(interceptor):
        raise TypeError(
            f"the interceptor {name} is a plain function, and {owner} runs on an event loop, which it would block: "
            f"write it as 'async def' with 'return await proceed(request)', or, for a server all of whose methods are "
            "plain, use executor='threading'"
        )
    try:
        inspect.signature(interceptor).bind(None, None)
    except TypeError as exc:
        raise TypeError(f"the interceptor {name} is called as {name}(request, proceed): {exc}") from None
    except ValueError:  # It is not written in Python, and has no signature to read.
        pass


def name_of_interceptor(interceptor: Any) -> str:
    """Its name, for a text."""
    while isinstance(interceptor, partial):
        interceptor = interceptor.func
    return str(getattr(interceptor, "__qualname__", None) or type(interceptor).__qualname__)


def chain(
    interceptors: Sequence[Interceptor], last: Proceed, around: Callable[[Proceed], Proceed] | None = None
) -> Proceed:
    """What runs a request through plain interceptors, of which the first is the outermost, and then through `last`.

    `around`, if given, wraps what each interceptor proceeds with.
    """
    proceed: Proceed = partial(_run_last, last)
    for interceptor in reversed(interceptors):
        proceed = partial(_run, interceptor, around(proceed) if around is not None else proceed)
    return proceed


def _run_last(last: Proceed, request: InterceptedRequest) -> Any:
    check_request(request)
    return last(request)


def _run(interceptor: Interceptor, proceed: Proceed, request: InterceptedRequest) -> Any:
    check_request(request)
    result = interceptor(request, proceed)
    if type(result) not in PLAIN:
        refuse_coroutine(interceptor, result)
    return result


def check_request(request: object) -> None:
    """Check what an interceptor has proceeded with.

    Raises:
        TypeError: it is not the request.
    """
    if not isinstance(request, InterceptedRequest):
        raise TypeError(f"an interceptor calls proceed(request), with its own request, not {type(request).__name__}")


def refuse_coroutine(interceptor: Any, result: object) -> None:
    """Refuse what an interceptor should have awaited.

    Raises:
        RPCDispatcherError: it is a coroutine. Nothing of that has run.
    """
    if isinstance(result, Coroutine):
        result.close()
        raise RPCDispatcherError(
            f"the interceptor {name_of_interceptor(interceptor)} returned a coroutine that was not awaited: an async "
            "one ends with 'return await proceed(request)', and a plain one must not call what is async"
        )


class Once:
    """Lets a server's interceptors proceed once, since the method of a request is begun once each time it is run."""

    def __init__(self) -> None:
        self._over = False

    def use(self, what: str) -> None:
        """Note that an interceptor proceeds with `what`.

        Raises:
            RPCDispatcherError: one has already, or the last one has returned.
        """
        if self._over:
            raise RPCDispatcherError(
                f"an interceptor called proceed a second time, or after it had returned, for {what}: a server runs a "
                "method once for each request; only interceptors of clients may try again"
            )
        self._over = True

    def end(self) -> None:
        """Let none proceed any more."""
        self._over = True


def checked_metadata(metadata: object) -> dict[str, str] | None:
    """Metadata that is to be sent; None if there is none.

    Raises:
        SerializationError: it is not a dict of texts, or has more than `MAX_METADATA` bytes.
    """
    if not isinstance(metadata, dict) or not all(
        isinstance(name, str) and isinstance(value, str) for name, value in metadata.items()
    ):
        raise SerializationError("the metadata of a request is a dict of str to str")
    try:
        size = metadata_size(metadata)
    except UnicodeEncodeError as exc:
        raise SerializationError(
            f"the metadata of a request contains a value that cannot be sent: {exc.reason}"
        ) from None
    if size > MAX_METADATA:
        raise SerializationError(f"the metadata of a request has {size} bytes, and may have {MAX_METADATA}")
    return dict(metadata) or None
