"""Asynchronous generators on a server, as methods of calls and streams."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from msgbus import MessagingTimeout, Target, get_rpc_client, get_rpc_server
from msgbus.aio.executor import Event
from msgbus.drivers.toolkit.loop import Loop
from msgbus.message import Control, Reply
from msgbus.sending import OnOutcome
from msgbus.stream_sender import StreamSender
from tests.core.test_stream_sender import Client
from tests.support import EVENT_TIMEOUT, new_transport


class Busy:
    """A generator that awaits nothing, for as long as a test may take."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.began = 0.0
        self.ended = 0.0

    async def items(self, _ctxt: Any) -> AsyncGenerator[int, None]:
        self.began = Loop.now()
        try:
            while Loop.now() < self.began + EVENT_TIMEOUT:
                yield 1
        finally:
            self.ended = Loop.now()
            self.closed.set()

    async def echo(self, _ctxt: Any, value: Any) -> Any:
        return value


def test_a_call_on_a_generator_that_awaits_nothing_is_cancelled() -> None:
    """When its caller gives up, it is closed; other methods run meanwhile."""
    endpoint = Busy()
    transport = new_transport()
    server = get_rpc_server(transport, Target(topic="t", server="s"), [endpoint])
    server.start()
    try:
        client = get_rpc_client(transport, Target(topic="t"), timeout=0.5)
        with pytest.raises(MessagingTimeout):
            client.call({}, "items")
        assert client.prepare(timeout=EVENT_TIMEOUT).call({}, "echo", value=1) == 1
        assert endpoint.closed.wait(2 * EVENT_TIMEOUT)
        assert endpoint.ended < endpoint.began + EVENT_TIMEOUT, "it was not closed: it ran to its end"
    finally:
        server.wait(EVENT_TIMEOUT)
        transport.cleanup()


def test_a_stream_that_awaits_nothing_lets_others_have_their_turn() -> None:
    """Also where its client has always given credit by the time that the generator needs it."""

    async def main() -> int:
        turns = 0
        client = Generous()

        async def count_turns() -> None:
            nonlocal turns
            while not client.ends:
                turns += 1
                await asyncio.sleep(0)

        async def items() -> AsyncGenerator[int, None]:
            for number in range(10_000):
                yield number

        sender = client.sender(window=100)
        counting = asyncio.create_task(count_turns())
        await sender.run_async(items(), Event(asyncio.get_running_loop()))
        await counting
        assert len(client.items) == 10_000
        return turns

    assert asyncio.run(main()) > 10


class Generous(Client):
    """A client that takes each item at once."""

    def sender(self, window: int = 100, window_bytes: int | None = None) -> StreamSender:
        self._sender = super().sender(window, window_bytes)
        return self._sender

    def send(self, reply: Reply, on_outcome: OnOutcome) -> None:
        super().send(reply, on_outcome)
        self._sender.on_control(Control("c", "credit", taken=(reply.seq or 0) + len(reply.items or ())))
