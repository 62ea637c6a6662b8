"""The request that is being run: the context in which it runs, and what its code can learn about it."""

from __future__ import annotations

import logging
import sys
import time
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import NoCurrentRequest
from msgbus.foreign import printable
from msgbus.message import AT_LEAST_ONCE, AT_MOST_ONCE
from msgbus.target import Target

if TYPE_CHECKING:
    from msgbus.drivers.base import Address, Delivery
    from msgbus.message import Request

P = ParamSpec("P")
R = TypeVar("R")

_MAX_LOGGED = 100
"""Characters of an id or a method's name that go into a line of the log."""


class RunningRequest:
    """A request, or a notification, that this process runs.

    Attributes:
        server: the name of the server that runs it.
        delivery: the delivery that it came with.
        request: the method and its arguments.
        deadline: seconds of `Loop.now`, or None where it has none.
        at_least_once: the delivery policy that holds for it.
        raised: how often it was begun here and raised.
        cancelled: the client does not want the answer any more, or takes no more items of a stream.
        metadata: what interceptors have made of the client's; None where there are none.
    """

    cancelled = False
    metadata: dict[str, str] | None = None
    raised = 0

    def __init__(
        self, server: str, delivery: Delivery, request: Request, deadline: float | None, at_least_once: bool
    ) -> None:
        self.server = server
        self.delivery = delivery
        self.request = request
        self.deadline = deadline
        self.at_least_once = at_least_once

    @property
    def names_method(self) -> bool:
        """Whether the server has such a method, and it may be called: a stranger may name any."""
        return False

    @property
    def attempts(self) -> int:
        """How often it was begun before, here and by other servers, as far as that is known."""
        # A server that was stopped has written its attempts into the request. Of one that was lost, only the
        # message system knows.
        hints, delivery = self.request.hints, self.delivery
        passed_on = 0 if hints is None else hints.attempts
        return passed_on + max(delivery.attempts or 0, int(delivery.redelivered)) + self.raised


running: ContextVar[RunningRequest | None] = ContextVar("msgbus_running", default=None)
"""The request that is being run here, or None outside of one."""


class ServerContext:
    """The context (`contextvars`) in which a server was started. Each request runs in a fresh copy of it.

    So what the program had set before it started the server is there for every request, and what one request sets no
    other sees, whichever thread runs it.
    """

    def __init__(self) -> None:
        """Take the caller's context."""
        self._context = copy_context()
        # A copy of a context holds the same objects. That of the module decimal is meant to be changed in place
        # (getcontext().prec = 50), so each request needs one of its own. If there is none yet, decimal makes one.
        module = sys.modules.get("decimal")
        found = [value for value in self._context.values() if module is not None and isinstance(value, module.Context)]
        self._decimal: Any = found[0].copy() if found else None

    def copy(self) -> Context:
        """A copy of this context."""
        context = self._context.copy()
        if self._decimal is not None:
            context.run(sys.modules["decimal"].setcontext, self._decimal.copy())
        return context


@dataclass(frozen=True, slots=True, eq=False)
class CurrentRequest:
    """Information for a method about the request that it serves. `msgbus.current_request` returns it.

    `cancelled`, `time_left` and `age` are looked up each time they are read; the rest never changes. Any thread may
    read it, also after the request has ended.

    Attributes:
        request_id: names the request in the logs of both sides. It stays the same when the request is repeated.
        call_id: names the call that waits for the answer; of a msgbus client it is the `request_id`. None for a cast.
        method: the name of the method, as the client sent it; empty for a notification of the classic API.
        target: where the request was sent: exchange and topic; ``server`` if it was sent to this server alone;
            ``fanout`` if it was sent to all; the requested namespace and version.
        server: the name of the server that runs it.
        context: the caller's context, as plain data, before the serializer. It is the request's own dict: do not change
            it.
        delivery: the policy of the request, ``"at_most_once"`` or ``"at_least_once"``.
        redelivered: whether the message system has delivered it before, to this or another server, so it may have run.
        attempts: how often it has been begun, as far as is known; 1 the first time. See
            ``docs/explanation/delivery.md``.
        metadata: a dict of strings from the client's interceptors; see `InterceptedRequest`. Do not change it either.
    """

    request_id: str
    call_id: str | None
    method: str
    target: Target
    server: str
    context: dict[str, Any] = field(repr=False)  # It may hold a token.
    delivery: str
    redelivered: bool
    attempts: int
    metadata: dict[str, str] = field(repr=False)  # likewise
    _running: RunningRequest = field(repr=False)

    @property
    def topic(self) -> str:
        """The topic that the request was sent to."""
        return self.target.topic or ""

    @property
    def time_left(self) -> float | None:
        """Seconds until its deadline, 0 when that has passed; None if it has no deadline, as most casts.

        For a stream that has begun, it is the deadline of the whole stream, if its client gave one.
        """
        deadline = self._running.deadline
        return None if deadline is None else max(0.0, deadline - Loop.now())

    @property
    def age(self) -> float | None:
        """Seconds since the client sent it, by the clocks of both machines; None if the client did not send the time.

        Since clocks differ, it says little if it is short. It is never negative.
        """
        hints = self._running.request.hints
        return None if hints is None or hints.at is None else max(0.0, time.time() - hints.at)

    @property
    def cancelled(self) -> bool:
        """Whether the client no longer wants the answer. Always False for a cast.

        For a stream also whether its client has disappeared, or an item could not be sent to it.
        """
        return self._running.cancelled


def current_request() -> CurrentRequest:
    """The request that runs here: in a method, a generator, a serializer, an access policy, or a hook.

    A thread that a method starts has it if it runs in a copy of the method's context:
    ``Thread(target=contextvars.copy_context().run, args=(function,))``. `asyncio.run` and `asyncio.to_thread` copy it.

    Raises:
        NoCurrentRequest: no request runs here.
    """
    found = running.get()
    if found is None:
        raise NoCurrentRequest(
            "no request is being run here; a thread that a method starts knows of the request only if it runs in a "
            "copy of the method's context: Thread(target=contextvars.copy_context().run, args=(function,))"
        )
    request, metadata = found.request, found.metadata
    if metadata is None:
        hints = request.hints
        metadata = {} if hints is None or hints.metadata is None else hints.metadata
    return CurrentRequest(
        request_id=request.unique_id or request.call_id or "",
        call_id=request.call_id,
        method=request.method,
        target=target_of(found.delivery.address, request),
        server=found.server,
        context=request.context,
        delivery=AT_LEAST_ONCE if found.at_least_once else AT_MOST_ONCE,
        redelivered=found.delivery.redelivered,
        attempts=found.attempts + 1,
        metadata=metadata,
        _running=found,
    )


def target_of(address: Address, request: Request) -> Target:
    """Where a request was sent to, as far as the server can know."""
    return Target(
        exchange=address.exchange or None,
        topic=address.topic,
        namespace=request.namespace,
        version=request.version,
        server=address.server if address.kind == "server" else None,
        fanout=True if address.kind == "fanout" else None,
    )


class RequestLogFilter(logging.Filter):
    """Adds to each line of a service's log which request it belongs to. It lets every line pass.

    Add it to a handler (``handler.addFilter``), and name what it sets in the format. Each is ``-`` outside a request.
    A handler that hands its records to another thread, such as a ``QueueHandler``, needs it itself.

    ==================== ==========================================
    attribute            the request's
    ==================== ==========================================
    ``msgbus_call``      id: what the logs of both sides have in it
    ``msgbus_topic``     topic
    ``msgbus_method``    method
    ``msgbus_server``    server's name
    ==================== ==========================================
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the attributes; True."""
        found = running.get()
        call = topic = method = server = ""
        if found is not None:
            request = found.request
            call, topic = request.unique_id or request.call_id or "", found.delivery.address.topic
            method, server = request.method, found.server
        record.msgbus_call = printable(call, _MAX_LOGGED) or "-"
        record.msgbus_topic = printable(topic, _MAX_LOGGED) or "-"
        record.msgbus_method = printable(method, _MAX_LOGGED) or "-"
        record.msgbus_server = printable(server, _MAX_LOGGED) or "-"
        return True
