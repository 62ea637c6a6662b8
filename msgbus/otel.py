"""OpenTelemetry: interceptors that trace and measure the requests of clients and servers, over its API alone.

``pip install 'msgbus[otel]'``. Names and attributes are those of OpenTelemetry's semantic conventions, for RPC (calls
and streams) and for messaging (casts and notifications); what begins with ``msgbus.`` is not in them. The trace context
travels in the metadata of each request. ``docs/howto/opentelemetry.md`` lists all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from opentelemetry import context as contexts
from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider

from msgbus.base_transport import BaseTransport
from msgbus.counting import Names
from msgbus.current import current_request
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import AccessDenied, NoSuchMethod, RemoteError, UnsupportedVersion
from msgbus.foreign import get_logger, printable, text_of
from msgbus.interceptors import InterceptedRequest, Interceptor, Proceed
from msgbus.message import DeadLetter

if TYPE_CHECKING:
    from msgbus.aio.interceptors import AsyncInterceptor, AsyncProceed

LOG = get_logger(__name__)
SYSTEM = "msgbus"
OTHER = "_OTHER"
"""Stands for methods that a server does not have: strangers choose such names, as many as they like. It stands also for
methods and kinds of errors that have no room in `Names`."""
_REFUSALS = (NoSuchMethod, UnsupportedVersion, AccessDenied)
_MAX_HEADER = 8192
"""The most characters of a part of a trace context that is read. W3C's baggage may have as many."""
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Those of the conventions, in seconds."""
_MAX_NAME = 100

Attributes = dict[str, str | int]
_transports: WeakKeyDictionary[Any, _Transports] = WeakKeyDictionary()  # by meter provider
_dropped: deque[tuple[_Observed, int]] = deque()  # streams that have not ended yet; see `_Observed.drop`


def client_interceptor(
    tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Interceptor:
    """Make an interceptor for `msgbus.RPCClient`.

    Args:
        tracer_provider: None means the program's.
        meter_provider: likewise.
    """
    return _observing(_Client(tracer_provider, meter_provider))


def async_client_interceptor(
    tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> AsyncInterceptor:
    """Make one for `msgbus.aio.AsyncRPCClient`; see `client_interceptor`."""
    return _observing_async(_Client(tracer_provider, meter_provider))


def server_interceptor(
    tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Interceptor:
    """Make an interceptor for a server that runs on threads; see `client_interceptor`."""
    return _observing(_Server(tracer_provider, meter_provider))


def async_server_interceptor(
    tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> AsyncInterceptor:
    """Make an interceptor for a server that runs on an event loop; see `client_interceptor`."""
    return _observing_async(_Server(tracer_provider, meter_provider))


def _observing(side: _Client | _Server) -> Interceptor:
    def trace_request(request: InterceptedRequest, proceed: Proceed) -> Any:
        observed = side.begin(request)
        try:
            with observed.as_current():
                result = proceed(request)
        except BaseException as exc:
            observed.end(exc)
            raise
        return observed.result(result)

    return trace_request


def _observing_async(side: _Client | _Server) -> AsyncInterceptor:
    async def trace_request(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        observed = side.begin(request)
        try:
            with observed.as_current():
                result = await proceed(request)
        except BaseException as exc:
            observed.end(exc)
            raise
        return observed.async_result(result)

    return trace_request


def dead_letter_counter(meter_provider: MeterProvider | None = None) -> Callable[[DeadLetter], None]:
    """Make a hook that counts dead letters, for ``get_rpc_server(..., on_dead_letter=...)``."""
    counter = metrics.get_meter(SYSTEM, meter_provider=meter_provider).create_counter(
        "msgbus.server.dead_letters", "{message}", "Messages that this server has given up."
    )

    def count(letter: DeadLetter) -> None:
        counter.add(1, {"msgbus.address": letter.address})

    return count


def observe_transport(transport: BaseTransport, name: str = "", meter_provider: MeterProvider | None = None) -> None:
    """Measure the send window and the connection of a transport, whenever metrics are read, until it is closed.

    Args:
        transport: of `msgbus` or `msgbus.aio`.
        name: tells it from others of this process; the attribute ``msgbus.transport``.
        meter_provider: None means the program's.
    """
    # The program's may be set later: the module that will have it stands for it.
    provider = metrics if meter_provider is None else meter_provider
    known = _transports.get(provider)
    if known is None:
        known = _transports[provider] = _Transports(metrics.get_meter(SYSTEM, meter_provider=meter_provider))
    known.names[transport] = name


class _Transports:
    """Those that are observed for one meter provider, which has one gauge of each name.

    Attributes:
        names: by transport.
    """

    def __init__(self, meter: metrics.Meter) -> None:
        self.names: WeakKeyDictionary[BaseTransport, str] = WeakKeyDictionary()
        gauge = meter.create_observable_gauge
        gauge(
            "msgbus.send_window.size",
            [partial(self._observe, lambda found: found.window.size)],
            "{request}",
            "The option rpc_send_window: how many requests may be unfinished.",
        )
        gauge(
            "msgbus.send_window.used",
            [partial(self._observe, lambda found: found.window.used)],
            "{request}",
            "How many requests are unfinished. At its size, further ones wait.",
        )
        gauge(
            "msgbus.connection.uptime",
            [partial(self._observe, _uptime)],
            "s",
            "For how long the message system is connected; 0 while it is not. It falls when it was reconnected.",
        )

    def _observe(self, value: Callable[[BaseTransport], float | None], _: CallbackOptions) -> Iterator[Observation]:
        for transport, name in list(self.names.items()):
            number = None if transport.closed else value(transport)
            if number is not None:
                yield Observation(number, {"msgbus.transport": name})


def _uptime(transport: BaseTransport) -> float | None:
    up_since = transport.driver.up_since
    if up_since is None:
        return 0.0
    return None if up_since == 0.0 else Loop.now() - up_since  # 0: there are no connections.


class _Side:
    """What a client and a server do alike."""

    active_name: str

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        self.tracer = trace.get_tracer(SYSTEM, tracer_provider=tracer_provider)
        self.meter = metrics.get_meter(SYSTEM, meter_provider=meter_provider)
        self.active = self.meter.create_up_down_counter(
            self.active_name, "{request}", "Requests that have begun and not ended."
        )
        self.methods = Names()
        self.errors = Names()

    def histogram(self, name: str, description: str) -> metrics.Histogram:
        return self.meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_BUCKETS)


class _Client(_Side):
    active_name = "msgbus.client.active_requests"

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        super().__init__(tracer_provider, meter_provider)
        self.calls = self.histogram("rpc.client.call.duration", "How long calls and streams take.")
        self.casts = self.histogram("messaging.client.operation.duration", "How long it takes to send a cast.")
        self.sent = self.meter.create_counter("messaging.client.sent.messages", "{message}", "Casts that were sent.")

    def begin(self, request: InterceptedRequest) -> _Observed:
        """Begin a span, and put its context into the metadata."""
        observed = _Observed(self, request, "send", self.calls, self.casts, self.sent)
        kind = SpanKind.PRODUCER if observed.one_way else SpanKind.CLIENT
        with observed.beginning():
            observed.span = self.tracer.start_span(observed.name, kind=kind, attributes=observed.attributes)
            propagate.inject(request.metadata, trace.set_span_in_context(observed.span))
        return observed


class _Server(_Side):
    active_name = "msgbus.server.active_requests"

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        super().__init__(tracer_provider, meter_provider)
        self.calls = self.histogram("rpc.server.call.duration", "How long calls and streams take.")
        self.casts = self.histogram("messaging.process.duration", "How long it takes to run a cast.")
        counter = self.meter.create_counter
        self.consumed = counter("messaging.client.consumed.messages", "{message}", "Casts that were begun.")
        self.waited = self.histogram("msgbus.server.queue.duration", "From the sending of a request to its beginning.")
        self.retries = counter("msgbus.server.retries", "{request}", "Requests that had been begun before.")
        self.redeliveries = counter("msgbus.server.redeliveries", "{request}", "Requests delivered once more.")

    def begin(self, request: InterceptedRequest) -> _Observed:
        """Begin a span in the trace of the client, and make it that of all that the request does."""
        observed = _Observed(self, request, "process", self.calls, self.casts, self.consumed)
        with observed.beginning():
            self._begin(observed, request)
        return observed

    def _begin(self, observed: _Observed, request: InterceptedRequest) -> None:
        running, attributes = current_request(), observed.attributes
        observed.is_method = lambda: running._running.names_method
        where: Attributes = {"messaging.destination.name": running.topic}
        if running.redelivered:
            self.redeliveries.add(1, where)
        if running.attempts > 1:
            self.retries.add(1, where)
        elif (age := running.age) is not None:
            self.waited.record(age, where)
        parent = propagate.extract(_carrier(request), Context())
        creation = trace.get_current_span(parent).get_span_context()
        links = [Link(creation)] if observed.one_way and creation.is_valid else []
        kind = SpanKind.CONSUMER if observed.one_way else SpanKind.SERVER
        more: Attributes = {"msgbus.server": running.server, "messaging.message.id": running.request_id}
        if running.attempts > 1:
            more["msgbus.attempts"] = running.attempts
        observed.span = self.tracer.start_span(observed.name, parent, kind, {**attributes, **more}, links)
        # For a stream, which goes on later. The request's context ends with it: so nothing has to be detached.
        contexts.attach(trace.set_span_in_context(observed.span, parent))


def _carrier(request: InterceptedRequest) -> dict[str, str]:
    """Where the trace context of a request is: in its metadata, or of a stock client in its context.

    What no propagator writes is left out: it logs what it cannot read, as it is, and may raise.
    """
    found = request.metadata or request.context
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if _is_header(name) and _is_header(value)}


def _is_header(text: object) -> bool:
    """Whether it is what the header of a trace context may be: of bounded length, in printable ASCII."""
    return isinstance(text, str) and len(text) <= _MAX_HEADER and text.isascii() and text.isprintable()


class _Observed:
    """A request that is traced and measured, until `end`.

    Attributes:
        is_method: says whether there is such a method; None where nobody knows.
    """

    span: Span = trace.INVALID_SPAN
    is_method: Callable[[], bool] | None = None

    def __init__(
        self,
        side: _Side,
        request: InterceptedRequest,
        operation: str,
        calls: metrics.Histogram,
        casts: metrics.Histogram,
        messages: metrics.Counter,
    ) -> None:
        _end_dropped()
        target, kind = request.target, request.kind
        topic = target.topic or ""
        self.one_way = kind in ("cast", "notification")
        self.streams = kind == "multicall"
        service = topic if target.namespace is None else f"{topic}.{target.namespace}"
        method = f"{service}/{request.method}" if request.method else ""
        self.attributes: Attributes = {"rpc.method": method} if method else {}
        if self.one_way:
            self.name = f"{operation} {topic}"
            self.attributes |= {
                "messaging.system": SYSTEM,
                "messaging.operation.name": operation,
                "messaging.operation.type": operation,
                "messaging.destination.name": topic,
            }
        else:
            self.name = method
            self.attributes |= {"rpc.system.name": SYSTEM, "server.address": topic}
        self._side = side
        self._duration = casts if self.one_way else calls
        self._messages = messages
        self._operation = operation
        self._began = Loop.now()
        self._ended = False
        self._active: Attributes = {"msgbus.kind": kind, "messaging.destination.name": topic}
        side.active.add(1, self._active)

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Around what begins it, which the program may have a part in: a sampler, a propagator."""
        try:
            yield
        except BaseException as exc:
            self.end(exc)
            raise

    def as_current(self) -> Any:
        """A context manager in which the span is the current one. `end` says how it ended."""
        return trace.use_span(self.span, record_exception=False, set_status_on_exception=False)

    def result(self, result: Any) -> Any:
        """What an interceptor returns: a stream goes on."""
        if self.streams and isinstance(result, Iterator):
            return _Items(result, self)
        self.end(None)
        return result

    def async_result(self, result: Any) -> Any:
        """As `result`."""
        if self.streams and isinstance(result, AsyncIterator):
            return _AsyncItems(result, self)
        self.end(None)
        return result

    def drop(self, items: int) -> None:
        """Its stream was dropped. The garbage collector may come at any moment, also where the SDK holds a lock.

        So this only leaves a note, and the request ends when the next one begins.
        """
        if not self._ended:
            _dropped.append((self, items))

    def end(self, error: BaseException | None, items: int | None = None) -> None:
        """The request has ended, by an error or not. Further calls do nothing."""
        if self._ended:
            return
        self._ended = True
        try:
            self._record(error, items)
        finally:
            self._side.active.add(-1, self._active)
            self.span.end()

    def _record(self, error: BaseException | None, items: int | None) -> None:
        span, attributes = self.span, self.attributes
        if items is not None:
            span.set_attribute("msgbus.stream.items", items)
        if error is not None:
            kind = _type_of(error)
            attributes["error.type"] = kind if self._side.errors.has(kind) else OTHER
            span.set_attribute("error.type", kind)
            span.set_status(Status(StatusCode.ERROR, printable(text_of(error))))
            try:
                span.record_exception(error)
            except Exception:  # Its __str__ is the user's.
                LOG.debug("an exception cannot be recorded in its span", exc_info=True)
        if "rpc.method" in attributes:
            self._name_method(str(attributes["rpc.method"]), error)
        context = trace.set_span_in_context(span)  # which an exemplar may name
        self._duration.record(Loop.now() - self._began, attributes, context)
        if self.one_way:
            self._messages.add(1, attributes, context)

    def _name_method(self, method: str, error: BaseException | None) -> None:
        refused = isinstance(error, _REFUSALS) and isinstance(self._side, _Server)
        if not refused and self._side.methods.has(method, self.is_method):
            return
        self.attributes["rpc.method"] = OTHER
        self.span.set_attribute("rpc.method_original", method)
        self.span.set_attribute("rpc.method", OTHER)
        if not self.one_way:
            self.span.update_name(OTHER)


def _end_dropped() -> None:
    while True:
        try:
            stream, items = _dropped.popleft()
        except IndexError:  # Not checked before: other threads do the same.
            return
        stream.end(None, items)


class _ObservedItems:
    """The items of a stream, which ends when they do, when it is closed, or when it is dropped."""

    def __init__(self, items: Any, observed: _Observed) -> None:
        self._items = items
        self._observed = observed
        self._count = 0

    def __del__(self) -> None:
        self._observed.drop(self._count)


class _Items(_ObservedItems, Iterator[Any]):
    """For a thread."""

    def __next__(self) -> Any:
        try:
            item = next(self._items)
        except StopIteration:
            self._observed.end(None, self._count)
            raise
        except BaseException as exc:
            self._observed.end(exc, self._count)
            raise
        self._count += 1
        return item

    def close(self) -> None:
        """Close the stream."""
        close = getattr(self._items, "close", None)
        try:
            if close is not None:
                close()
        finally:
            self._observed.end(None, self._count)


class _AsyncItems(_ObservedItems, AsyncIterator[Any]):
    """For a task."""

    async def __anext__(self) -> Any:
        try:
            item = await anext(self._items)
        except StopAsyncIteration:
            self._observed.end(None, self._count)
            raise
        except BaseException as exc:
            self._observed.end(exc, self._count)
            raise
        self._count += 1
        return item

    async def aclose(self) -> None:
        """Close the stream."""
        aclose = getattr(self._items, "aclose", None)
        try:
            if aclose is not None:
                await aclose()
        finally:
            self._observed.end(None, self._count)


def _type_of(error: BaseException) -> str:
    """The name of an error's class; for one of the other side that of its class there."""
    if isinstance(error, RemoteError) and error.exc_type:
        return printable(error.exc_type, _MAX_NAME)
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
