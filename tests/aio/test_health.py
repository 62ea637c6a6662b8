"""Whether a server of msgbus.aio takes requests, and whether it works at all: `AsyncRPCServer.healthy`."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from msgbus import Health, aio
from tests.aio.support import SERVER, Service, conf_with, on_loop, serving, until
from tests.support import EVENT_TIMEOUT, new_conf, new_url

WELL = Health(live=True, ready=True, why=())


@on_loop
async def test_a_server_is_ready_from_its_start_to_its_stop(url: str) -> None:
    """It does not wait on the event loop; any thread may ask."""
    async with aio.get_rpc_transport(await conf_with(), url) as transport:
        server = aio.get_rpc_server(transport, SERVER, [Service()])
        assert server.healthy() == Health(live=True, ready=False, why=("it was not started, or it was stopped",))
        await server.start()
        assert server.healthy() == WELL
        assert await asyncio.to_thread(server.healthy) == WELL
        await server.wait()
        assert not server.healthy()
    found = server.healthy()
    assert (found.live, found.why[0]) == (False, "its transport was closed")


@on_loop
async def test_a_server_that_drains_is_not_ready(fake_url: str) -> None:
    """It is live: what runs has time to finish."""
    async with serving(fake_url) as bus:
        call = asyncio.ensure_future(bus.client.call({}, "nap", value=1))
        await until(lambda: "began" in bus.service.log)
        await bus.server.stop()
        assert bus.server.healthy() == Health(live=True, ready=False, why=("it is being stopped",))
        bus.service.may_go = True
        assert await call == 1


def test_a_server_whose_event_loop_is_blocked_is_not_live() -> None:
    """Another thread finds that out."""
    began, go_on = threading.Event(), threading.Event()
    found: list[Health] = []
    conf, url = new_conf(), new_url()

    async def main() -> None:
        async with (
            aio.get_rpc_transport(conf, url) as transport,
            aio.get_rpc_server(transport, SERVER, [Service()]) as server,
        ):
            asker = threading.Thread(target=ask, args=(server,))
            asker.start()
            began.set()
            end = time.monotonic() + EVENT_TIMEOUT
            while not go_on.is_set() and time.monotonic() < end:
                time.sleep(0.005)  # noqa: ASYNC251  # that is the mistake
            await asyncio.to_thread(asker.join)

    def ask(server: Any) -> None:
        assert began.wait(EVENT_TIMEOUT)
        time.sleep(0.05)
        found.append(server.healthy(0.2))
        go_on.set()
        found.append(server.healthy(EVENT_TIMEOUT))

    asyncio.run(main())
    assert (found[0].live, found[0].ready) == (False, False)
    assert "has not reacted for 0.2 s" in found[0].why[0]
    assert found[1] == WELL
