"""The HTTP service: ``uvicorn reports.app:app``."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

import msgbus
from msgbus import aio
from reports.bus import TOPIC, open_transport
from reports.errors import as_http

Pages = Annotated[int, Query(ge=1, le=1000)]
Seconds = Annotated[float, Query(gt=0, le=600)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """One transport for the process, and one client. All requests share them."""
    async with open_transport() as transport:
        yield {"client": aio.get_rpc_client(transport, msgbus.Target(topic=TOPIC))}


app = FastAPI(title="Reports", lifespan=lifespan)


async def call(request: Request, method: str, seconds: float = 10, **arguments: Any) -> Any:
    """Call the server. If the HTTP client hangs up before the answer is there, the call is cancelled on the server."""
    client: aio.AsyncRPCClient = request.state.client.prepare(timeout=seconds)
    with anyio.CancelScope() as scope:
        watcher = asyncio.create_task(cancel_on_hang_up(request, scope))
        try:
            return await client.call({}, method, **arguments)
        except Exception as exc:
            raise as_http(exc) from exc
        finally:
            watcher.cancel()
    raise HTTPException(499)  # Nobody is there to read it.


async def cancel_on_hang_up(request: Request, scope: anyio.CancelScope) -> None:
    """Whoever waits in the scope is cancelled once the server has noticed that the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass  # It is the rest of the body.
    scope.cancel()


@app.post("/reports/{template}")
async def write(request: Request, template: str, pages: Pages = 3, seconds: Seconds = 10) -> dict[str, Any]:
    """Write a report, within so many seconds."""
    report: dict[str, Any] = await call(request, "write", seconds, template=template, pages=pages)
    return report


@app.get("/reports/{template}/events", response_class=EventSourceResponse)
async def events(request: Request, template: str, pages: Pages = 3) -> AsyncIterator[ServerSentEvent]:
    """The same with an event for each page. If the event stream is closed, so is the generator on the server."""
    client: aio.AsyncRPCClient = request.state.client
    try:
        async with client.multicall({}, "write_pages", template=template, pages=pages) as stream:
            async for page in stream:
                yield ServerSentEvent(data=page)
        yield ServerSentEvent(event="done", data=pages)  # An EventSource that is not closed now asks again.
    except Exception as exc:  # The status was sent before the first event.
        error = as_http(exc)
        yield ServerSentEvent(event="failed", data={"status": error.status_code, "detail": error.detail})


@app.post("/prints")
async def print_pages(request: Request, pages: Pages = 3, seconds: Seconds = 10) -> int:
    """Print pages. Returns how many were printed."""
    printed: int = await call(request, "print_pages", seconds, pages=pages)
    return printed


@app.get("/running")
async def running(request: Request) -> int:
    """How many requests the server runs."""
    count: int = await call(request, "running")
    return count
