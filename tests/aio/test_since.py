"""Servers of msgbus.aio check and describe `msgbus.since` as synchronous ones do: tests/core/test_since.py."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from msgbus import Target, aio, expected_exceptions, since
from tests.aio.support import SERVER, TOPIC, conf_with, on_loop


class Images:
    target = Target(version="1.2")

    async def old(self, ctxt: object) -> None: ...

    @expected_exceptions(LookupError)
    @since("1.1")
    async def added(self, ctxt: object) -> str:
        return "added"

    @since("1.2")
    async def stream(self, ctxt: object) -> AsyncIterator[int]:
        yield 1


class Wrong:
    @since("1.1")
    async def method(self, ctxt: object) -> None: ...


@on_loop
async def test_which_version_added_an_async_method(fake_url: str) -> None:
    """The server says it; one that the endpoint never had is refused when the server is made."""
    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        async with aio.get_rpc_server(transport, SERVER, [Images()]):
            client = aio.get_rpc_client(transport, TOPIC, timeout=20)
            (interface,) = (await client.prepare(namespace="msgbus").call({}, "describe"))["interfaces"]
            assert {method["name"]: method["since"] for method in interface["methods"]} == {
                "old": "1.0",
                "added": "1.1",
                "stream": "1.2",
            }
            assert await client.prepare(version="1.0").call({}, "added") == "added"
        with pytest.raises(TypeError, match=r"Wrong\.method is marked with since\('1\.1'\)"):
            aio.get_rpc_server(transport, SERVER, [Wrong()])
