"""msgbus.otel on event loops: what it tells a real OpenTelemetry SDK. tests/core/test_otel.py has those for threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

import msgbus
from msgbus import aio, otel
from tests.aio.support import SERVER, TOPIC, Bus, Service, conf_with, on_loop, until
from tests.core.test_otel import Telemetry, active, id_of, parent_of
from tests.support import EVENT_TIMEOUT, new_url


class Methods(Service):
    """More methods, which have spans of their own."""

    tracer: trace.Tracer
    client: aio.AsyncRPCClient

    async def outer(self, _ctxt: Any) -> Any:
        with self.tracer.start_as_current_span("inside"):
            return await self.client.call({}, "plain_inside")

    def plain_inside(self, _ctxt: Any) -> int:
        with self.tracer.start_as_current_span("inside"):
            return 1

    async def items(self, _ctxt: Any, to: int) -> AsyncIterator[int]:
        for number in range(to):
            with self.tracer.start_as_current_span("step"):
                await asyncio.sleep(0)
            yield number

    def plain_items(self, _ctxt: Any, to: int) -> Iterator[int]:
        for number in range(to):
            with self.tracer.start_as_current_span("step"):
                pass
            yield number


@asynccontextmanager
async def traced() -> AsyncIterator[tuple[Bus, Telemetry]]:
    """A server and a client, both of which are traced."""
    telemetry, bus = await asyncio.to_thread(Telemetry), Bus(new_url(), Methods())
    conf = await conf_with(rpc_response_timeout=EVENT_TIMEOUT)
    async with aio.get_rpc_transport(conf, bus.url) as one, aio.get_rpc_transport(conf, bus.url) as two:
        on_client = otel.async_client_interceptor(**telemetry.providers)
        on_server = otel.async_server_interceptor(**telemetry.providers)
        bus.client = bus.service.client = aio.get_rpc_client(one, TOPIC, interceptors=[on_client])
        bus.service.tracer = telemetry.tracer
        bus.server = aio.get_rpc_server(two, SERVER, [bus.service], interceptors=[on_server])
        await bus.server.start()
        yield bus, telemetry
        await bus.server.wait(1.0)


async def spans_of(telemetry: Telemetry, count: int) -> list[Any]:
    """So many spans, in the order of their beginning."""
    await until(lambda: len(telemetry.spans()) >= count)
    return telemetry.spans(count)


@on_loop
async def test_calls_are_in_one_trace_with_what_methods_do() -> None:
    """Also calls that an async method makes, and spans of a plain one on its thread."""
    async with traced() as (bus, telemetry):
        assert await bus.client.call({}, "outer") == 1
        chain = await spans_of(telemetry, 6)
        assert [parent_of(span) for span in chain] == [None, *map(id_of, chain[:-1])]
        assert [span.kind for span in chain[:2]] == [SpanKind.CLIENT, SpanKind.SERVER]
        assert active(telemetry) == [0, 0]


@on_loop
async def test_tasks_do_not_mix_their_traces() -> None:
    """Each request has its own, however many run at the same time."""
    async with traced() as (bus, telemetry):
        await asyncio.gather(*(bus.client.call({}, "outer") for _ in range(20)))
        spans = await spans_of(telemetry, 120)
        traces = [span.get_span_context().trace_id for span in spans]
        assert [traces.count(one) for one in set(traces)] == [6] * 20


@on_loop
async def test_casts_and_errors() -> None:
    """A cast's span links to its sender's; an error is recorded on both sides."""
    async with traced() as (bus, telemetry):
        await bus.client.cast({}, "note", value=1)
        sent, processed = await spans_of(telemetry, 2)
        assert [link.context.span_id for link in processed.links] == [id_of(sent)]
        with pytest.raises(KeyError):
            await bus.client.call({}, "fail")
        *_, failed_here, failed_there = await spans_of(telemetry, 4)
        assert [span.attributes["error.type"] for span in (failed_here, failed_there)] == ["KeyError"] * 2
        assert await bus.client.cast_many({}, [("note", {"value": 1})] * 3) == 3
        assert telemetry.values("messaging.client.sent.messages") == [4]


@pytest.mark.parametrize("method", ["items", "plain_items"])
@on_loop
async def test_a_stream_is_a_span_until_its_end(method: str) -> None:
    """On both sides; what the generator does is in the server's, on whatever thread."""
    async with traced() as (bus, telemetry):
        assert [item async for item in bus.client.multicall({}, method, to=3)] == [0, 1, 2]
        sent, served, *steps = await spans_of(telemetry, 5)
        assert parent_of(served) == id_of(sent)
        assert {parent_of(step) for step in steps} == {id_of(served)}
        assert [span.attributes["msgbus.stream.items"] for span in (sent, served)] == [3, 3]


@on_loop
async def test_a_stream_that_is_not_read_to_its_end() -> None:
    """Its spans end when it is closed, without an error at the client."""
    async with traced() as (bus, telemetry):
        async with bus.client.multicall({}, "count", to=10**6) as stream:
            assert await anext(stream) == 0
        sent, _served = await spans_of(telemetry, 2)
        assert sent.status.status_code is StatusCode.UNSET
        stream = bus.client.multicall({}, "count", to=10**6)
        await stream.aclose()
        await until(lambda: active(telemetry) == [0, 0])
        assert len(telemetry.spans()) == 2


@on_loop
async def test_a_call_that_is_cancelled() -> None:
    """Both spans end with that as their error, and nothing is in flight."""
    async with traced() as (bus, telemetry):
        call = asyncio.ensure_future(bus.client.call({}, "sleep"))
        await until(lambda: bus.service.log == ["asleep"])
        call.cancel()
        spans = await spans_of(telemetry, 2)
        kinds = {span.attributes["error.type"] for span in spans}
        assert kinds == {"asyncio.exceptions.CancelledError"}
        await until(lambda: active(telemetry) == [0, 0])


@on_loop
async def test_async_methods_of_a_server_for_threads() -> None:
    """It takes the interceptor for event loops."""
    telemetry, service = await asyncio.to_thread(Telemetry), Methods()
    service.tracer = telemetry.tracer
    conf = await conf_with(rpc_response_timeout=EVENT_TIMEOUT)

    def call() -> Any:
        transport = msgbus.get_rpc_transport(conf, new_url())
        interceptors = [otel.async_server_interceptor(**telemetry.providers)]
        server = msgbus.get_rpc_server(transport, SERVER, [service], interceptors=interceptors)
        server.start()
        try:
            return list(msgbus.get_rpc_client(transport, TOPIC).multicall({}, "items", to=2))
        finally:
            server.wait(EVENT_TIMEOUT)
            transport.cleanup()

    assert await asyncio.to_thread(call) == [0, 1]
    served, *steps = await spans_of(telemetry, 3)
    assert {parent_of(step) for step in steps} == {id_of(served)}
