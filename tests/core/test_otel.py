"""msgbus.otel: what clients and servers tell a real OpenTelemetry SDK. tests/aio/test_otel.py has those for asyncio."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from opentelemetry import baggage, context, metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics._internal import _ProxyMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util._once import Once
from prometheus_client import generate_latest

import msgbus
from msgbus import InterceptedRequest, Proceed, Target, expected_exceptions, otel, rpc
from msgbus.conformance.waiting import until
from msgbus.counting import MOST_NAMES
from msgbus.drivers.base import Message
from msgbus.encoding import encode_request
from msgbus.message import JSON, Request
from tests.support import EVENT_TIMEOUT, ROOT, new_conf, new_transport, new_url

SENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""A trace context as W3C writes it."""


class Telemetry:
    """A real SDK that keeps what it is given."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader])
        self.providers: Any = {"tracer_provider": self.tracers, "meter_provider": self.meters}
        self.tracer = self.tracers.get_tracer("test")

    def spans(self, count: int | None = None) -> list[ReadableSpan]:
        """The spans that have ended, in the order of their beginning; waits for so many."""
        if count is not None:
            until(lambda: len(self._exporter.get_finished_spans()) >= count, f"{count} spans", EVENT_TIMEOUT)
        found = sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        assert count is None or len(found) == count, [span.name for span in found]
        return found

    def points(self, name: str) -> list[Any]:
        """What was measured under a name."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def values(self, name: str) -> list[Any]:
        """The values or, of a histogram, the counts."""
        return [point.value if hasattr(point, "value") else point.count for point in self.points(name)]


class Boom(Exception):
    """What methods raise."""


class Endpoint:
    """What is called."""

    def __init__(self) -> None:
        self.client: msgbus.RPCClient
        self.tracer: trace.Tracer
        self.fails = 0
        self.kind: type[BaseException]
        self.baggage: list[object] = []

    def echo(self, ctxt: Any, value: Any = None) -> Any:
        return value

    def note(self, ctxt: Any, value: Any = None) -> None:
        self.baggage.append(baggage.get_baggage("tenant"))
        if self.fails:
            self.fails -= 1
            raise Boom("not yet")

    def outer(self, ctxt: Any) -> Any:
        with self.tracer.start_as_current_span("inside"):
            return self.client.call({}, "echo", value=1)

    def fail(self, ctxt: Any) -> None:
        raise Boom("no")

    def raise_kind(self, ctxt: Any) -> None:
        raise self.kind

    def items(self, ctxt: Any, to: int, fail: bool = False) -> Iterator[int]:
        for number in range(to):
            with self.tracer.start_as_current_span("step"):
                yield number
        if fail:
            raise Boom("midway")

    def many(self, ctxt: Any) -> Iterator[int]:
        yield from range(10**6)

    @expected_exceptions(LookupError)
    def expects(self, ctxt: Any) -> None:
        raise LookupError("none")


@pytest.fixture
def telemetry() -> Telemetry:
    """What is told."""
    return Telemetry()


@pytest.fixture
def transport(retries_at_once: None) -> Iterator[msgbus.Transport]:
    """A transport in memory."""
    transport = new_transport(rpc_response_timeout=EVENT_TIMEOUT)
    yield transport
    transport.cleanup()


@pytest.fixture
def client(transport: msgbus.Transport, telemetry: Telemetry) -> msgbus.RPCClient:
    """A client that is traced."""
    interceptors = [otel.client_interceptor(**telemetry.providers)]
    return msgbus.get_rpc_client(transport, Target(topic="shop"), interceptors=interceptors)


@pytest.fixture
def endpoint(client: msgbus.RPCClient, telemetry: Telemetry) -> Endpoint:
    """What the server runs."""
    endpoint = Endpoint()
    endpoint.client, endpoint.tracer = client, telemetry.tracer
    return endpoint


Serve = Callable[..., msgbus.RPCServer]


@pytest.fixture
def serve(transport: msgbus.Transport, telemetry: Telemetry, endpoint: Endpoint) -> Iterator[Serve]:
    """Starts a server that is traced."""
    servers: list[msgbus.RPCServer] = []

    def start(name: str = "one", **options: Any) -> msgbus.RPCServer:
        interceptors = [otel.server_interceptor(**telemetry.providers), *options.pop("more", ())]
        target = Target(topic="shop", server=name)
        server = msgbus.get_rpc_server(transport, target, [endpoint], interceptors=interceptors, **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()
        assert server.wait(EVENT_TIMEOUT) == 0


def id_of(span: ReadableSpan) -> int:
    """A span's own id."""
    found = span.get_span_context()
    assert found is not None
    return found.span_id


def parent_of(span: ReadableSpan) -> int | None:
    """The id of a span's parent."""
    return None if span.parent is None else span.parent.span_id


def test_a_call_is_a_span_on_each_side_of_one_trace(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry
) -> None:
    """The client's is a child of what its caller does, and the server's of the client's."""
    serve()
    with telemetry.tracer.start_as_current_span("caller"):
        assert client.call({}, "echo", value=1) == 1
    caller, sent, served = telemetry.spans(3)
    assert (sent.name, sent.kind) == ("shop/echo", SpanKind.CLIENT)
    assert (served.name, served.kind) == ("shop/echo", SpanKind.SERVER)
    assert (parent_of(sent), parent_of(served)) == (id_of(caller), id_of(sent))
    expected = {"rpc.system.name": "msgbus", "rpc.method": "shop/echo", "server.address": "shop"}
    assert sent.attributes == expected
    assert served.attributes is not None
    assert dict(served.attributes) == {
        **expected,
        "msgbus.server": "one",
        "messaging.message.id": served.attributes["messaging.message.id"],
    }
    assert {span.status.status_code for span in (sent, served)} == {StatusCode.UNSET}


def test_what_a_method_does_is_in_the_trace(serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry) -> None:
    """Its own spans, and the calls that it makes, with all that comes of them."""
    serve()
    client.call({}, "outer")
    sent, served, inside, sent_inside, served_inside = telemetry.spans(5)
    chain = [sent, served, inside, sent_inside, served_inside]
    assert [parent_of(span) for span in chain] == [None, *map(id_of, chain[:-1])]


def test_errors_are_recorded_with_their_kind(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry, endpoint: Endpoint
) -> None:
    """As the class of the exception, on both sides; also one that is expected."""
    serve()
    for method in ("fail", "expects"):
        with pytest.raises((msgbus.RemoteError, LookupError)):
            client.call({}, method)
    with pytest.raises(msgbus.MessageUndeliverable):
        client.prepare(topic="nobody").call({}, "echo")
    spans = telemetry.spans(5)
    found = [(span.kind, span.attributes and span.attributes["error.type"]) for span in spans]
    assert found == [
        (SpanKind.CLIENT, "Boom"),
        (SpanKind.SERVER, f"{__name__}.Boom"),
        (SpanKind.CLIENT, "LookupError"),
        (SpanKind.SERVER, "LookupError"),
        (SpanKind.CLIENT, "msgbus.exceptions.MessageUndeliverable"),
    ]
    assert {span.status.status_code for span in spans} == {StatusCode.ERROR}
    assert spans[1].events[0].name == "exception"
    kinds = {point.attributes["error.type"] for point in telemetry.points("rpc.client.call.duration")}
    assert kinds == {"Boom", "LookupError", "msgbus.exceptions.MessageUndeliverable"}


def test_a_cast_is_sent_and_processed_in_one_trace(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry
) -> None:
    """As the conventions for messaging say: the span that processes it links to the one that sent it."""
    serve()
    client.cast({}, "note", value=1)
    sent, processed = telemetry.spans(2)
    assert (sent.name, sent.kind) == ("send shop", SpanKind.PRODUCER)
    assert (processed.name, processed.kind) == ("process shop", SpanKind.CONSUMER)
    assert parent_of(processed) == id_of(sent)
    assert [link.context.span_id for link in processed.links] == [id_of(sent)]
    assert sent.attributes == {
        "messaging.system": "msgbus",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "shop",
        "rpc.method": "shop/note",
    }


def test_each_run_of_a_cast_is_a_span(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry, endpoint: Endpoint
) -> None:
    """One that raised is run again: both link to the sender, and the second says which attempt it is."""
    serve()
    endpoint.fails = 1
    client.prepare(delivery="at_least_once").cast({}, "note")
    sent, first, second = telemetry.spans(3)
    assert [link.context.span_id for span in (first, second) for link in span.links] == [id_of(sent)] * 2
    assert first.attributes is not None
    assert second.attributes is not None
    assert first.attributes["error.type"] == f"{__name__}.Boom"
    assert "msgbus.attempts" not in first.attributes
    assert second.attributes["msgbus.attempts"] == 2
    assert telemetry.values("msgbus.server.retries") == [1]
    assert telemetry.values("msgbus.server.queue.duration") == [1]
    assert sum(telemetry.values("messaging.client.consumed.messages")) == 2


def test_casts_to_all_and_many_casts(serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry) -> None:
    """Every server has a span, and each of many casts has one on both sides."""
    serve("one")
    serve("two")
    client.fanout_cast({}, "note")
    sent, *processed = telemetry.spans(3)
    assert {parent_of(span) for span in processed} == {id_of(sent)}
    client.cast_many({}, [("note", {})] * 3)
    assert len([span for span in telemetry.spans(9) if span.kind is SpanKind.PRODUCER]) == 4
    assert telemetry.values("messaging.client.sent.messages") == [4]
    assert sum(telemetry.values("messaging.process.duration")) == 5


def test_a_stream_is_a_span_until_its_end(serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry) -> None:
    """On both sides, with the number of its items; what the generator does is in the server's."""
    serve()
    stream = client.multicall({}, "items", to=2)
    assert next(stream) == 0
    assert "shop/items" not in {span.name for span in telemetry.spans() if span.kind is SpanKind.CLIENT}
    assert list(stream) == [1]
    spans = telemetry.spans(4)
    sent, served = spans[:2]
    assert (sent.name, sent.kind, served.name, served.kind) == (
        "shop/items",
        SpanKind.CLIENT,
        "shop/items",
        SpanKind.SERVER,
    )
    assert parent_of(served) == id_of(sent)
    assert {parent_of(step) for step in spans[2:]} == {id_of(served)}
    assert [span.attributes and span.attributes["msgbus.stream.items"] for span in (sent, served)] == [2, 2]


def test_a_stream_that_fails(serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry) -> None:
    """The error ends both spans."""
    serve()
    with pytest.raises(msgbus.RemoteError):
        list(client.multicall({}, "items", to=1, fail=True))
    spans = [span for span in telemetry.spans(3) if span.name == "shop/items"]
    assert [span.attributes and span.attributes["error.type"] for span in spans] == ["Boom", f"{__name__}.Boom"]


@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("drop", [False, True])
def test_a_stream_that_is_not_read_to_its_end(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry, taken: int, drop: bool
) -> None:
    """Closed or dropped, at once or later: its spans end, without an error."""
    serve()
    stream: Any = client.multicall({}, "many")
    for _ in range(taken):
        next(stream)
    if drop:
        # Otherwise the server's may begin only after the drop, and end it.
        until(lambda: telemetry.values("msgbus.server.active_requests") == [1], "the server begins", EVENT_TIMEOUT)
        del stream
        gc.collect()
        # The SDK is not called then: the garbage collector may come while this very thread holds a lock of it.
        assert telemetry.values("msgbus.client.active_requests") == [1]
    else:
        stream.close()
    client.call({}, "echo")  # Those that were dropped end when the next request begins.
    until(lambda: set(active(telemetry)) <= {0}, "nothing is in flight", EVENT_TIMEOUT)
    spans = [span for span in telemetry.spans() if span.name == "shop/many"]
    assert len(spans) == 2 if taken else spans  # The server may never have begun it.
    assert {span.status.status_code for span in spans} == {StatusCode.UNSET}


def active(telemetry: Telemetry) -> list[Any]:
    """How many requests are in flight, of each side and kind."""
    return [value for side in ("client", "server") for value in telemetry.values(f"msgbus.{side}.active_requests")]


def test_requests_in_flight_are_counted(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry, endpoint: Endpoint
) -> None:
    """Up when they begin, and down when they end, on both sides."""
    seen: list[Any] = []
    endpoint.echo = lambda ctxt, value=None: seen.append(active(telemetry))  # type: ignore[method-assign]
    serve()
    client.call({}, "echo")
    assert seen == [[1, 1]]
    until(lambda: active(telemetry) == [0, 0], "nothing is in flight", EVENT_TIMEOUT)


def test_durations_are_measured(serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry) -> None:
    """In seconds, in the buckets of the conventions, by method; and how long requests have waited."""
    serve()
    for _ in range(3):
        client.call({}, "echo")
    telemetry.spans(6)
    for side in ("client", "server"):
        (point,) = telemetry.points(f"rpc.{side}.call.duration")
        assert point.count == 3
        assert 0 < point.sum < 3 * EVENT_TIMEOUT
        assert point.explicit_bounds[0] == 0.005
        assert point.attributes == {"rpc.system.name": "msgbus", "rpc.method": "shop/echo", "server.address": "shop"}
    assert telemetry.values("msgbus.server.queue.duration") == [3]


def test_methods_that_a_server_does_not_have_are_one(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry
) -> None:
    """Strangers choose such names: they must not fill the memory of who counts them."""
    serve()
    for number in range(3):
        with pytest.raises(msgbus.NoSuchMethod):
            client.call({}, f"nothing{number}")
    (point,) = telemetry.points("rpc.server.call.duration")
    assert point.count == 3
    assert point.attributes["rpc.method"] == "_OTHER"
    served = [span for span in telemetry.spans(6) if span.kind is SpanKind.SERVER]
    assert {span.name for span in served} == {"_OTHER"}
    assert served[0].attributes is not None
    assert served[0].attributes["rpc.method_original"] == "shop/nothing0"


def test_names_that_strangers_choose_are_one_in_metrics(
    serve: Serve, transport: msgbus.Transport, telemetry: Telemetry
) -> None:
    """Also where another interceptor refuses or answers them. Those of methods are told apart, whoever refuses them."""

    def refuse(request: msgbus.InterceptedRequest, proceed: msgbus.Proceed) -> Any:
        if request.method.startswith("answered"):
            return None
        raise PermissionError(request.method)

    serve(more=[refuse])
    stranger = msgbus.get_rpc_client(transport, Target(topic="shop"))
    for number in range(3):
        stranger.call({}, f"answered{number}")
        stranger.cast({}, f"cast{number}")
        for method in (f"nothing{number}", "echo", "_private"):
            with pytest.raises(PermissionError):
                stranger.call({}, method)
    telemetry.spans(15)
    calls = {point.attributes["rpc.method"]: 0 for point in telemetry.points("rpc.server.call.duration")}
    assert set(calls) == {"_OTHER", "shop/echo"}
    assert {point.attributes["rpc.method"] for point in telemetry.points("messaging.process.duration")} == {"_OTHER"}


def test_there_is_a_bound_to_methods_and_errors_in_metrics(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry, endpoint: Endpoint
) -> None:
    """A client that passes on names of strangers, and a server that makes up classes of errors, fill no memory."""
    serve()
    for number in range(MOST_NAMES + 3):
        with pytest.raises(msgbus.NoSuchMethod):
            client.call({}, f"nothing{number}")
        endpoint.kind = type(f"Kind{number}", (Exception,), {})
        with pytest.raises(msgbus.RemoteError):
            client.call({}, "raise_kind")
    points = telemetry.points("rpc.client.call.duration")
    for name in ("rpc.method", "error.type"):
        found = {point.attributes[name] for point in points}
        assert "_OTHER" in found
        assert len(found) == MOST_NAMES + 1


class Unprintable(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("kind", [Unprintable, KeyboardInterrupt])
def test_whatever_is_raised_ends_the_span(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry, endpoint: Endpoint, kind: type[BaseException]
) -> None:
    """On both sides, once, with its kind; and nothing is in flight any more."""
    serve()
    endpoint.kind = kind
    with pytest.raises(msgbus.RemoteError):
        client.call({}, "raise_kind")
    spans = telemetry.spans(2)
    assert all(span.status.status_code is StatusCode.ERROR for span in spans)
    assert telemetry.values("msgbus.client.active_requests") == telemetry.values("msgbus.server.active_requests") == [0]


@pytest.mark.parametrize("text", ["a\nforged line", "\N{LATIN SMALL LETTER E WITH ACUTE}", "k=v," * 10_000])
@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage"])
def test_a_hostile_trace_context_is_not_read(
    serve: Serve,
    telemetry: Telemetry,
    transport: msgbus.Transport,
    caplog: pytest.LogCaptureFixture,
    name: str,
    text: str,
) -> None:
    """Propagators raise for some, and log others as they are. The request is served."""
    serve()
    request = Request("note", {}, "u", context={"traceparent": SENT, name: text})
    message = Message(encode_request(request, JSON), JSON, "u")
    transport.driver.send(transport.address(Target(topic="shop")), message, mandatory=True).result(EVENT_TIMEOUT)
    (span,) = telemetry.spans(1)
    assert span.status.status_code is StatusCode.UNSET
    assert (span.parent is None) == (name == "traceparent")
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]
    assert telemetry.values("msgbus.server.active_requests") == [0]


def test_a_propagator_that_raises_leaves_nothing_open(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the program's. Its error is that of the request."""

    def fail(*_args: object) -> None:
        raise Boom("cannot propagate")

    serve()
    with monkeypatch.context() as patched:
        patched.setattr("opentelemetry.propagate.inject", fail)
        with pytest.raises(Boom):
            client.call({}, "echo")
    (span,) = telemetry.spans(1)
    assert span.status.status_code is StatusCode.ERROR
    assert telemetry.values("msgbus.client.active_requests") == [0]


def test_a_redelivery_is_counted(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry, transport: msgbus.Transport
) -> None:
    """A message that the message system delivers once more, since its server was lost."""
    held: list[Any] = []
    subscription = transport.driver.subscribe([transport.address(client.target)], held.append, prefetch=1)
    client.prepare(delivery="at_least_once").cast({}, "note")
    until(lambda: held, "it has come", EVENT_TIMEOUT)
    serve()
    subscription.close()
    telemetry.spans(2)
    assert telemetry.values("msgbus.server.redeliveries") == [1]


def test_a_trace_of_a_stock_client_goes_on(serve: Serve, telemetry: Telemetry, transport: msgbus.Transport) -> None:
    """It has no metadata, but may have the trace context in its context. Without that, a trace begins."""
    with telemetry.tracer.start_as_current_span("starting"):
        serve()
    stock = msgbus.get_rpc_client(transport, Target(topic="shop"))
    assert stock.call({"traceparent": SENT, "user": "ada"}, "echo", value=1) == 1
    request = Request("note", {}, "u", context={})
    message = Message(encode_request(request, JSON), JSON, "u")
    transport.driver.send(transport.address(Target(topic="shop")), message, mandatory=True).result(EVENT_TIMEOUT)
    telemetry.spans(3)
    served = next(span for span in telemetry.spans() if span.kind is SpanKind.SERVER)
    assert served.parent is not None
    assert (f"{served.parent.trace_id:x}", f"{served.parent.span_id:x}") == (SENT[4:35], SENT[36:52])
    (alone,) = [span for span in telemetry.spans() if span.kind is SpanKind.CONSUMER]
    assert (alone.parent, list(alone.links)) == (None, [])


def test_baggage_travels_too(serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry, endpoint: Endpoint) -> None:
    """Whatever the program's propagators write."""
    serve()
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    try:
        client.cast({}, "note")
    finally:
        context.detach(token)
    telemetry.spans(2)
    client.cast({}, "note")
    telemetry.spans(4)
    assert endpoint.baggage == ["acme", None]


def test_dead_letters_are_counted(
    serve: Serve, client: msgbus.RPCClient, telemetry: Telemetry, endpoint: Endpoint
) -> None:
    """By the hook of a server."""
    serve(on_dead_letter=otel.dead_letter_counter(telemetry.meters))
    endpoint.fails = 100
    client.prepare(delivery="at_least_once").cast({}, "note")
    until(lambda: telemetry.values("msgbus.server.dead_letters") == [1], "it is counted", EVENT_TIMEOUT)
    (point,) = telemetry.points("msgbus.server.dead_letters")
    assert "shop" in point.attributes["msgbus.address"]


def test_a_transport_is_observed(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its send window, and since when it is connected; no longer when it is closed."""
    transport = new_transport(rpc_send_window=8)
    otel.observe_transport(transport, "main", telemetry.meters)
    assert transport.window.acquire(1)
    assert telemetry.values("msgbus.send_window.size") == [8]
    assert telemetry.values("msgbus.send_window.used") == [1]
    transport.window.release()
    assert telemetry.values("msgbus.send_window.used") == [0]
    (point,) = telemetry.points("msgbus.send_window.size")
    assert point.attributes == {"msgbus.transport": "main"}
    cls = type(transport.driver)
    monkeypatch.setattr(cls, "up_since", property(lambda driver: None))
    assert telemetry.values("msgbus.connection.uptime") == [0.0]
    monkeypatch.setattr(cls, "up_since", property(lambda driver: 1e-9))
    assert telemetry.values("msgbus.connection.uptime")[0] > 0
    monkeypatch.setattr(cls, "up_since", property(lambda driver: 0.0))
    assert telemetry.values("msgbus.connection.uptime") == []
    transport.cleanup()
    assert telemetry.values("msgbus.send_window.size") == []


@pytest.mark.parametrize("is_programs", [False, True])
def test_several_transports_are_observed(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, is_programs: bool
) -> None:
    """Each under its name, until it is closed or dropped. The program may set its meter provider meanwhile."""
    first, second, third = (new_transport() for _ in range(3))
    provider = None if is_programs else telemetry.meters
    if is_programs:
        monkeypatch.setattr(otel, "_transports", WeakKeyDictionary())
        monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", None)
        monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER_SET_ONCE", Once())
        monkeypatch.setattr("opentelemetry.metrics._internal._PROXY_METER_PROVIDER", _ProxyMeterProvider())
    otel.observe_transport(first, "first", provider)
    if is_programs:
        metrics.set_meter_provider(telemetry.meters)
    otel.observe_transport(second, "second", provider)
    otel.observe_transport(third, "third", provider)

    def names() -> set[str]:
        return {point.attributes["msgbus.transport"] for point in telemetry.points("msgbus.send_window.size")}

    assert names() == {"first", "second", "third"}
    first.cleanup()
    third.cleanup()
    assert names() == {"second"}
    second.cleanup()


def test_notifications_of_the_classic_api_are_traced(telemetry: Telemetry) -> None:
    """As casts are."""
    came: list[Any] = []
    client, server = otel.client_interceptor(**telemetry.providers), otel.server_interceptor(**telemetry.providers)
    rpc.init(new_conf(transport_url=new_url(), rpc_response_timeout=EVENT_TIMEOUT), [client], [server])
    connection = rpc.create_connection()
    connection.join_consumer_pool(came.append, "pool", "notifications.info")
    connection.consume_in_thread()
    rpc.notify({}, "notifications.info", {"event_type": "made"})
    sent, processed = telemetry.spans(2)
    assert (sent.name, processed.name) == ("send notifications.info", "process notifications.info")
    assert parent_of(processed) == id_of(sent)
    assert "rpc.method" not in (sent.attributes or {})
    connection.close()
    rpc.init(new_conf())
    rpc.cleanup()


def test_what_a_client_does_meanwhile_is_in_its_span(
    serve: Serve, transport: msgbus.Transport, telemetry: Telemetry
) -> None:
    """For example interceptors after this one; what the caller does afterwards is not."""

    def look_up(request: InterceptedRequest, proceed: Proceed) -> Any:
        with telemetry.tracer.start_as_current_span("inner"):
            return proceed(request)

    serve()
    interceptors = [otel.client_interceptor(**telemetry.providers), look_up]
    client = msgbus.get_rpc_client(transport, Target(topic="shop"), interceptors=interceptors)
    stream = client.multicall({}, "items", to=0)
    with telemetry.tracer.start_as_current_span("afterwards"):
        assert list(stream) == []
    sent, inner, *_ = spans = telemetry.spans(4)
    assert (sent.name, inner.name, parent_of(inner)) == ("shop/items", "inner", id_of(sent))
    assert [parent_of(span) for span in spans if span.name == "afterwards"] == [None]


def test_retries_of_a_caller_are_spans_of_their_own(
    serve: Serve, transport: msgbus.Transport, telemetry: Telemetry
) -> None:
    """Where the one that tries again is around the one that traces; the other way round there is one for all."""

    def retry(request: InterceptedRequest, proceed: Proceed) -> Any:
        try:
            return proceed(request)
        except msgbus.RemoteError:
            return proceed(request)

    serve()
    traced = otel.client_interceptor(**telemetry.providers)
    for interceptors, count in (([retry, traced], 2), ([traced, retry], 1)):
        before = len(telemetry.spans())
        client = msgbus.get_rpc_client(transport, Target(topic="shop"), interceptors=interceptors)
        with pytest.raises(msgbus.RemoteError):
            client.call({}, "fail")
        new = telemetry.spans(before + count + 2)[before:]
        assert len([span for span in new if span.kind is SpanKind.CLIENT]) == count


def test_the_dashboard_shows_what_is_measured(
    transport: msgbus.Transport, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each metric and label in the queries of the dashboard for Grafana is one that Prometheus gets."""
    reader = PrometheusMetricReader()
    meters = MeterProvider([reader])
    monkeypatch.setattr(type(transport.driver), "up_since", property(lambda driver: 1e-9))
    held: list[Any] = []
    client = msgbus.get_rpc_client(
        transport, Target(topic="shop"), interceptors=[otel.client_interceptor(meter_provider=meters)]
    )
    subscription = transport.driver.subscribe([transport.address(client.target)], held.append, prefetch=1)
    client.prepare(delivery="at_least_once").cast({}, "note")
    until(lambda: held, "it has come", EVENT_TIMEOUT)
    letters: list[Any] = []
    count = otel.dead_letter_counter(meters)

    def on_dead_letter(letter: msgbus.DeadLetter) -> None:
        count(letter)
        letters.append(letter)

    server = msgbus.get_rpc_server(
        transport,
        Target(topic="shop", server="one"),
        [endpoint],
        interceptors=[otel.server_interceptor(meter_provider=meters)],
        on_dead_letter=on_dead_letter,
    )
    endpoint.fails = 1000
    server.start()
    subscription.close()
    otel.observe_transport(transport, meter_provider=meters)
    with pytest.raises(msgbus.RemoteError):
        client.call({}, "fail")
    client.prepare(delivery="at_least_once").cast({}, "note")
    until(lambda: len(letters) == 2, "both are given up", EVENT_TIMEOUT)
    server.wait(EVENT_TIMEOUT)
    shown = generate_latest().decode()
    meters.shutdown()
    known = set(re.findall(r"^(\w+)[{ ]", shown, re.MULTILINE)) | set(re.findall(r"[{,](\w+)=", shown))
    known |= {"job", "instance"}  # Prometheus adds these.
    dashboard = json.loads((ROOT / "docs" / "howto" / "msgbus-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    words = {word for query in queries for word in re.findall(r"[a-z]+(?:_[a-z]+)+", query)} - {
        "histogram_quantile",
        "rate_interval",
    }
    assert words - known == set()
    assert len(words) > 20


def test_without_an_sdk_it_does_nothing(transport: msgbus.Transport, endpoint: Endpoint) -> None:
    """The program has not set one up: requests work as ever."""
    server = msgbus.get_rpc_server(
        transport, Target(topic="shop", server="one"), [endpoint], interceptors=[otel.server_interceptor()]
    )
    server.start()
    client = msgbus.get_rpc_client(transport, Target(topic="shop"), interceptors=[otel.client_interceptor()])
    assert client.call({}, "echo", value=1) == 1
    assert list(client.multicall({}, "echo", value=1)) == [1]
    otel.observe_transport(transport)
    server.stop()
    server.wait(EVENT_TIMEOUT)


def test_it_needs_the_api_alone() -> None:
    """The module imports no SDK, and no asyncio: the program may bring the one and may not need the other."""
    code = "import sys, msgbus.otel; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"opentelemetry.sdk", "asyncio", "prometheus_client"} & set(run.stdout.split()) == set()
